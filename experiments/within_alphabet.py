"""Random one-shot tasks within an alphabet, of evaluation alphabets or any others.

Lake's 400 trials leave an interval of some 5 points; thousands of random tasks of the same
kind leave less than one.

Run:     python -m experiments.within_alphabet --workdir RUN --alphabets validation
         python -m experiments.within_alphabet --workdir RUN --alphabets Tibetan Kannada
Expect:  what the run reports as within_alphabet_accuracy, up to the interval

A task draws an alphabet, 20 of its characters and two different drawings of each, by any
drawers: one is shown, and for one of the characters the other is asked for. In Lake's runs
all shown drawings are by one drawer and all that are asked for by another.

Choose models and settings on the validation alphabets; "test" is for the end. Drawings of
alphabets that a net was trained on say nothing about new ones.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import model, omniglot, run
from experiments.model import Model
from experiments.omniglot import Characters
from experiments.run import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """Which run, on which tasks.

    Attributes:
      workdir: A run of an experiment on Omniglot.
      alphabets: "validation", "test", "all" (both), "background", or names of alphabets.
      num_episodes: Tasks; about as many again for the figures of single alphabets.
      num_ways: Characters a task.
      seed: Of the tasks.
      json: A file for the figures.
    """

    workdir: pathlib.Path
    alphabets: tuple[str, ...] = ("validation",)
    num_episodes: int = 10_000
    num_ways: int = 20
    seed: int = 0
    json: pathlib.Path | None = None


def choose(words: tuple[str, ...]) -> Characters:
    """The drawings of all the alphabets that are named, each or as a part.

    Raises:
      UserError: If no alphabet has such a name; lists them.
    """
    evaluation = omniglot.load("all")
    ours = set(evaluation.alphabets.tolist())
    lake = set(omniglot.LAKE_ALPHABETS)
    parts = {"all": ours, "test": ours & lake, "validation": ours - lake}
    loaded = evaluation
    if not set(words) <= parts.keys() | ours:
        background = omniglot.load("background")
        parts["background"] = set(background.alphabets.tolist())
        arrays = zip(evaluation, background, strict=True)
        loaded = Characters(*(np.concatenate(pair) for pair in arrays))
    names = set(loaded.alphabets.tolist())
    if unknown := [word for word in words if word not in parts.keys() | names]:
        raise UserError(
            f"--alphabets: there is no {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(sorted(parts))}, or one or more of {', '.join(sorted(names))}"
        )
    wanted = set().union(*(parts.get(word, {word}) for word in words))
    return loaded.only(np.isin(loaded.alphabets, sorted(wanted)))


def check_counts(characters: Characters, *, num_episodes: int, num_ways: int) -> None:
    """Refuses what the alphabets cannot give, before any work.

    Raises:
      UserError: If a count is too small or an alphabet has fewer characters than ways.
    """
    for name, num in (("num_episodes", num_episodes), ("num_ways", num_ways)):
        if num < 2:
            raise UserError(f"{name} must be at least 2; got {num}")
    sizes = {
        str(alphabet): len(np.unique(characters.labels[characters.alphabets == alphabet]))
        for alphabet in np.unique(characters.alphabets)
    }
    small = [f"{name} has {num}" for name, num in sizes.items() if num < num_ways]
    if small:
        raise UserError(
            f"{num_ways}-way tasks need {num_ways} characters in each "
            f"alphabet; {', '.join(small)}: leave out, or give a smaller --num-ways"
        )


def judge(config: Config, learnt: Model, characters: Characters) -> dict[str, Any]:
    """The accuracy over random alphabets, with its interval, and of each alphabet."""
    embeddings = model.embed(learnt, characters.images, batch_size=64)

    def accuracy(name: str, rows: np.ndarray, num_episodes: int) -> dict[str, float]:
        found = omniglot.task_accuracy(
            jax.random.key(config.seed),
            learnt,
            embeddings[rows],
            characters.only(rows).class_index(),
            num_episodes=num_episodes,
            within_alphabet=True,
            num_ways=config.num_ways,
        )
        return omniglot.as_metrics(name, found)

    everything = np.arange(len(characters.labels))
    metrics = accuracy("within_alphabet_accuracy", everything, config.num_episodes)
    names = np.unique(characters.alphabets)
    each = max(2, config.num_episodes // len(names))
    alphabets = []
    for name in names:
        rows = np.flatnonzero(characters.alphabets == name)
        figures = accuracy("accuracy", rows, each)
        alphabets.append({"alphabet": str(name), **figures, "num_episodes": each})
    return {"metrics": metrics, "alphabets": alphabets}


def command(config: Config) -> None:
    """Embeds the drawings once, judges, and shows the figures.

    Raises:
      UserError: If a flag or the working directory is wrong.
    """
    run.check_output(config.json)
    learnt = model.load_model(config.workdir)
    characters = choose(config.alphabets)
    check_counts(characters, num_episodes=config.num_episodes, num_ways=config.num_ways)
    print(f"embedding {len(characters.images):,} drawings ...")
    figures = judge(config, learnt, characters)
    run.print_table({one["alphabet"]: one["accuracy"] for one in figures["alphabets"]})
    run.show_figures(figures, config.json)


if __name__ == "__main__":
    run.command_line(command, Config)
