"""The settings of a run, and the random keys that follow from its seed.

Every system has a frozen dataclass `Config` that extends `RunConfig`. Its fields are the
flags of the command line.
"""

import dataclasses
import json
import pathlib
import re
import zlib
from typing import Any, ClassVar, Literal

import jax

from siamese_jax.errors import UserError

Stream = Literal["init", "train", "epochs", "pairs"]


def only_when(default: Any, **conditions: Any) -> Any:
    """A field of a Config that a run uses only under some conditions.

    Setting it in any other run is an error, so that no flag is silently ignored.

    Args:
      default: The default value of the field.
      **conditions: Names of other fields with the value, or the tuple of values, that they
        must have.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     loss: str = "contrastive"
    ...     margin: float = only_when(1.0, loss="contrastive")
    >>> check_conditions(Config(loss="logistic", margin=2.0))
    Traceback (most recent call last):
    siamese_jax.errors.UserError: --margin is used only with --loss contrastive; this run has --loss logistic
    """  # noqa: E501
    wanted = {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in conditions.items()
    }
    return dataclasses.field(default=default, metadata={"only_when": wanted})


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings that every system has.

    Attributes:
      workdir: The folder of the run, where everything is written and resumed from. Without
        it the folder is runs/SYSTEM, with every flag that differs from its default in the
        name.
      seed: The seed of all randomness.
      num_steps: Number of training steps.
      steps_per_call: Number of steps in one compiled program.
      checkpoint_every: Number of steps between checkpoints, a multiple of `steps_per_call`.
    """

    experiment: ClassVar[str] = "experiment"

    workdir: pathlib.Path | None = None
    seed: int = 0
    num_steps: int = 1000
    steps_per_call: int = 10
    checkpoint_every: int = 100

    @property
    def directory(self) -> pathlib.Path:
        """The folder of the run: `workdir`, or a name made from the flags."""
        if self.workdir is not None:
            return self.workdir
        changes = [f"{name}={_plain(value)}" for name, value in changed(self).items()]
        return pathlib.Path("runs", "-".join([self.experiment, *changes]))


def stream(config: Any, name: Stream) -> jax.Array:
    """The key for one purpose in a run; different purposes have different keys.

    >>> keys = [stream(RunConfig(), name) for name in ("init", "train")]
    >>> bool((keys[0] == keys[1]).all())
    False
    """
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))


def check_config(config: RunConfig) -> None:
    """Refuses counts below 1 and flags that the run would ignore.

    Raises:
      UserError: If a count is below 1, checkpoints do not fall between calls, or a flag is
        set that this run does not use.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if is_count and field.name not in ("seed", "background") and value < 1:
            raise UserError(f"{_flag(field.name)} must be at least 1; got {value}")
    if config.checkpoint_every % config.steps_per_call:
        raise UserError(
            f"--checkpoint-every must be a multiple of --steps-per-call "
            f"({config.steps_per_call}); got {config.checkpoint_every}"
        )
    check_conditions(config)


def check_conditions(config: Any) -> None:
    """Refuses flags that were made by `only_when` and that this run would ignore.

    Raises:
      UserError: If such a flag differs from its default.
    """
    for field in dataclasses.fields(config):
        if getattr(config, field.name) == field.default:
            continue
        for name, wanted in field.metadata.get("only_when", {}).items():
            found = getattr(config, name)
            if found not in wanted:
                raise UserError(
                    f"{_flag(field.name)} is used only with {_flag(name)} "
                    f"{' or '.join(map(str, wanted))}; this run has {_flag(name)} {found}"
                )


def changed(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from their defaults, by name."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }


def command(config: RunConfig) -> str:
    """The command that makes this run, without its folder and its seed.

    >>> command(RunConfig(num_steps=5, seed=2))
    'python -m experiments experiment --num-steps 5'
    """
    words = [f"python -m experiments {config.experiment}"]
    for name, value in changed(config).items():
        if name in ("workdir", "seed"):
            continue
        flag = _flag(name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            several = value if isinstance(value, tuple) else (value,)
            words += [flag, *map(str, several)]
    return " ".join(words)


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings as they stand in config.json; the folder itself is left out."""
    fields = dataclasses.asdict(config)
    del fields["workdir"]
    asked = {"experiment": config.experiment, **fields}
    return json.loads(json.dumps(asked, default=str))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> str:
    """The value of a flag as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")
