"""The settings of a run, and the random keys that follow from its seed.

Every system has a frozen dataclass `Config` that extends `RunConfig`. Its fields are the
flags of the command line.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from siamese_jax.errors import UserError

Stream = Literal["init", "train", "epochs", "pairs"]
ComputeDtype = Literal["float32", "bfloat16", "float64"]

AXIS = "devices"  # name of the axis over which the examples of a batch are spread


class Range(NamedTuple):
    """The numbers that a setting may have. A bound that is None does not bound.

    Attributes:
      at_least: Smallest number.
      above: Numbers are larger than this.
      at_most: Largest number.
      below: Numbers are smaller than this.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, number: float) -> bool:
        """Whether a number is within the bounds."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """The bounds in words, such as "at least 0 and below 1"."""
        words = [
            f"{name.replace('_', ' ')} {bound:,}"
            for name, bound in self._asdict().items()
            if bound is not None
        ]
        return " and ".join(words)


LARGEST_INTEGER = 2**31 - 1  # steps and indices are 32-bit integers on the device
LARGEST_SEED = 2**32 - 1


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    only_when: Mapping[str, Any] | None = None,
) -> Any:
    """A field with the range of its numbers and the conditions under which a run uses it.

    Every field that holds numbers declares its range. The range of a tuple is that of each
    of its numbers. Setting a field in a run that would ignore it is an error.

    Args:
      default: The default value of the field.
      at_least: Smallest number.
      above: Numbers are larger than this.
      at_most: Largest number.
      below: Numbers are smaller than this.
      only_when: The conditions under which a run uses the field: names of other fields
        with the value, or the tuple of values, that they must have.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     loss: str = "contrastive"
    ...     margin: float = setting(1.0, above=0, only_when={"loss": "contrastive"})
    >>> check_config(Config(margin=-2.0))
    Traceback (most recent call last):
    siamese_jax.errors.UserError: --margin must be above 0; got -2.0
    >>> check_config(Config(loss="logistic", margin=2.0))
    Traceback (most recent call last):
    siamese_jax.errors.UserError: --margin is used only with --loss contrastive; this run has --loss logistic
    """  # noqa: E501
    conditions = {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in (only_when or {}).items()
    }
    metadata = {"range": Range(at_least, above, at_most, below), "only_when": conditions}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings that every system has.

    Attributes:
      workdir: The folder of the run, where everything is written and resumed from. Without
        it the folder is runs/SYSTEM, with every flag that differs from its default in the
        name.
      init_from: The folder of a model whose parameters the run starts from. Its classes
        should not be among those that this run is tested on.
      seed: The seed of all randomness.
      num_steps: Number of training steps.
      steps_per_call: Number of steps in one compiled program.
      checkpoint_every: Number of steps between checkpoints, a multiple of `steps_per_call`.
      compute_dtype: Type of the network's activations and products. With bfloat16,
        parameters, distances and losses are float32. With float64 everything is, and the
        model that is saved is float32. "auto" is bfloat16 where the processor gains by it,
        else float32. See `experiments.engine.precision`.
      devices: Number of devices. Without it all devices are used that share the examples of
        a batch evenly. The result does not depend on it, apart from rounding.
      parallel: How a step is spread over the devices: one program over all of them, or the
        same program on each of them. See `experiments.engine.devices`.
      coordinator: HOST:PORT of process 0, in a run of several processes, or "auto". See
        `experiments.engine.processes`.
      num_processes: Number of processes.
      process_id: Number of this process, from 0.
    """

    experiment: ClassVar[str] = "experiment"

    workdir: pathlib.Path | None = None
    init_from: pathlib.Path | None = None
    seed: int = setting(0, at_least=0, at_most=LARGEST_SEED)
    num_steps: int = setting(1000, at_least=1)
    steps_per_call: int = setting(10, at_least=1)
    checkpoint_every: int = setting(100, at_least=1)
    compute_dtype: ComputeDtype | Literal["auto"] = "float32"
    devices: int | None = setting(None, at_least=1)
    parallel: Literal["jit", "pmap"] = "jit"
    coordinator: str | None = None
    num_processes: int | None = setting(None, at_least=1)
    process_id: int | None = setting(None, at_least=0)

    @property
    def axis_name(self) -> str | None:
        """The axis over which losses and batch statistics are combined by name."""
        return AXIS if self.parallel == "pmap" else None

    def joined(self) -> contextlib.AbstractContextManager["RunConfig"]:
        """The settings of this process, after it joined the others of its run."""
        from experiments.engine.processes import joined

        return joined(self)

    def has_bfloat16_products(self, platform: str) -> bool:
        """Whether the network multiplies in bfloat16 on "cpu", "gpu" or "tpu" if asked to.

        On CPUs most layers compute in float32 anyway.
        """
        return platform != "cpu"

    @property
    def can_be_lengthened(self) -> bool:
        """Whether the updates of a run do not depend on its number of steps.

        A system whose learning rate falls to zero at the last step cannot go on.
        """
        return True

    @property
    def directory(self) -> pathlib.Path:
        """The folder of the run: `workdir`, or a name made from the flags."""
        return directory_of(self)


def directory_of(config: Any) -> pathlib.Path:
    """The `workdir` of a Config, or the folder with a name made from its flags.

    >>> directory_of(RunConfig(num_steps=5)).as_posix()
    'runs/experiment-num_steps=5'
    """
    if config.workdir is not None:
        return config.workdir
    changes = [
        f"{name}={_plain(value)}"
        for name, value in changed(config).items()
        if name not in WHERE_IT_RUNS
    ]
    return pathlib.Path("runs", _short("-".join([config.experiment, *changes]), config))


def stream(config: Any, name: Stream) -> jax.Array:
    """The key for one purpose in a run; different purposes have different keys.

    >>> keys = [stream(RunConfig(), name) for name in ("init", "train")]
    >>> bool((keys[0] == keys[1]).all())
    False
    """
    return jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))


def check_config(config: Any) -> None:
    """Refuses settings out of their range, and those that the run would ignore.

    Raises:
      UserError: If a number is out of its range or not finite, a tuple is empty whose
        default is not, checkpoints do not fall between calls, or a flag is set that this
        run does not use.
    """
    for field in dataclasses.fields(config):
        check_range(field, getattr(config, field.name))
    if isinstance(config, RunConfig) and config.checkpoint_every % config.steps_per_call:
        raise UserError(
            f"--checkpoint-every must be a multiple of --steps-per-call "
            f"({config.steps_per_call}); got {config.checkpoint_every}"
        )
    check_conditions(config)


def check_range(field: dataclasses.Field, value: Any) -> None:
    """Refuses a value that is out of the range of its field.

    Raises:
      UserError: If a number is out of the range or not finite, or a tuple is empty whose
        default is not.
    """
    flag, bounds = flag_of(field.name), field.metadata.get("range", Range())
    several = value if isinstance(value, tuple) else (value,)
    if not several and field.default != ():
        raise UserError(f"{flag} needs at least one value; got none")
    for number in several:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{flag} must be finite; got {value}")
        if not bounds.holds(number):
            raise UserError(f"{flag} must be {bounds}; got {value}")
        largest = bounds.at_most or LARGEST_INTEGER
        if isinstance(number, int) and number > largest:
            raise UserError(f"{flag} must be at most {largest:,}; got {value}")


def check_conditions(config: Any) -> None:
    """Refuses flags that are `only_when` used and that this run would ignore.

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
                    f"{flag_of(field.name)} is used only with {flag_of(name)} "
                    f"{' or '.join(map(str, wanted))}; this run has {flag_of(name)} {found}"
                )


def changed(config: Any) -> dict[str, Any]:
    """The settings that differ from their defaults, by name."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }


def command(config: Any) -> str:
    """The command that makes this run, without its seed and what says where it runs.

    >>> command(RunConfig(num_steps=5, seed=2))
    'python -m experiments experiment --num-steps 5'
    """
    words = [f"python -m experiments {config.experiment}"]
    for name, value in changed(config).items():
        if name in (*WHERE_IT_RUNS, "seed"):
            continue
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            several = value if isinstance(value, tuple) else (value,)
            words += [flag, *map(str, several)]
    return " ".join(words)


# Settings that change where a run is computed, not what. A run can go on with others.
WHERE_IT_RUNS = (
    "workdir",
    "devices",
    "parallel",
    "coordinator",
    "num_processes",
    "process_id",
    "stream",
)


def as_json(config: Any) -> dict[str, Any]:
    """The settings as they stand in config.json, without those of `WHERE_IT_RUNS`."""
    fields = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in WHERE_IT_RUNS
    }
    asked = {"experiment": config.experiment, **fields}
    return json.loads(json.dumps(asked, default=str))


def is_started(directory: pathlib.Path) -> bool:
    """Whether the folder holds the settings of a run that has made steps or has ended.

    A run over folds or variants makes its steps in folders inside its own.
    """
    written = ("metrics.jsonl", "*/metrics.jsonl", "results.json")
    began = any(any(directory.glob(pattern)) for pattern in written)
    return began and (directory / "config.json").exists()


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> str:
    """The value of a flag as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


_LONGEST_NAME = 120  # bytes; file systems allow 255


def _short(name: str, config: Any) -> str:
    """The name, or its beginning with a hash of all settings where it is too long."""
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    settings = json.dumps(as_json(config), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    start = name.encode()[: _LONGEST_NAME - 1 - len(digest)].decode(errors="ignore")
    return f"{start}-{digest}"
