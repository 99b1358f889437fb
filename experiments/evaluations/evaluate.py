"""How good any embeddings are: all figures that apply, as a table and a page.

Source:  this project's own; the figures are those of `siamese_jax.evaluation`.
Run:     python -m experiments evaluate --embeddings E.npy --labels L.npy --out FOLDER
Expect:  evaluation.json and evaluation.html in the folder; a minute for 10,000 rows on two
         CPU cores, and a few minutes for 100,000

This is the command `siamese-jax evaluate`, with its flags.
"""

import dataclasses
from collections.abc import Callable, Sequence

from experiments.cli import command_line
from siamese_jax.cli import parse


@dataclasses.dataclass(frozen=True)
class Config:
    """The command with its flags.

    Attributes:
      run: Runs it.
    """

    run: Callable[[], None]

    @classmethod
    def from_flags(cls, flags: Sequence[str], program: str) -> "Config":
        """Reads the flags as `siamese-jax evaluate` does."""
        name, _, command = program.rpartition(" ")
        return cls(parse([command, *flags], program=name))


def main(config: Config) -> None:
    """Evaluates the embeddings.

    Raises:
      UserError: If a flag makes no sense, or a file cannot be read or does not fit.
    """
    config.run()


if __name__ == "__main__":
    command_line(main, Config)
