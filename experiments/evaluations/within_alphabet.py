"""Accuracy on random one-shot tasks within an alphabet of Omniglot.

Run:     python -m experiments within_alphabet --model RUN/model --alphabets validation
         python -m experiments within_alphabet --model RUN/model --alphabets Tibetan Kannada
Expect:  what the run reports as within_alphabet_accuracy, up to the interval

Lake's 400 trials leave a 95 % interval of about 5 points. Thousands of random tasks of the
same kind leave less than one.

A task has one drawing of each of 20 characters of one alphabet, and asks which of them
another drawing shows. All drawings are by random drawers; in Lake's runs one person drew
all training images and another person all test images.

Choose models and settings on the validation alphabets, and use "test" at the end only.
Figures of alphabets that a model was trained on say nothing about new alphabets.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.cli import command_line, print_table, show_figures
from experiments.datasets import omniglot
from experiments.datasets.omniglot import Characters
from experiments.engine.config import LARGEST_SEED, check_config, setting
from experiments.evaluations import few_shot
from siamese_jax.cli import check_output
from siamese_jax.errors import UserError
from siamese_jax.model import Model, load_model


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, and the tasks to evaluate it on.

    Attributes:
      model: The folder of a model that was trained on Omniglot.
      alphabets: "validation", "test", "all" (both), "background", or names of alphabets.
      num_episodes: Number of tasks. About as many more give the accuracy of each alphabet.
      num_ways: Number of characters in a task.
      seed: The seed of the tasks.
      json: A file for the figures.
    """

    model: pathlib.Path
    alphabets: tuple[str, ...] = ("validation",)
    num_episodes: int = setting(10_000, at_least=2)
    num_ways: int = setting(20, at_least=2)
    seed: int = setting(0, at_least=0, at_most=LARGEST_SEED)
    json: pathlib.Path | None = None


def main(config: Config) -> None:
    """Embeds the drawings once, evaluates, and shows the figures.

    Raises:
      UserError: If a flag or the folder of the model is wrong.
    """
    check_config(config)
    check_output("--json", config.json)
    model = load_model(config.model)
    characters = choose_alphabets(config.alphabets)
    check_ways(characters, config.num_ways)
    print(f"embedding {len(characters.images):,} drawings ...")
    figures = evaluate(config, model, characters)
    print_table({one["alphabet"]: one["accuracy"] for one in figures["alphabets"]})
    show_figures(figures, config.json)


def choose_alphabets(words: tuple[str, ...]) -> Characters:
    """Returns the drawings of some alphabets.

    Args:
      words: Names of alphabets, or of parts of Omniglot: "validation", "test", "all",
        "background".

    Raises:
      UserError: If there is no such alphabet; the message lists all of them.
    """
    characters = omniglot.load("all")
    names = set(characters.alphabets.tolist())
    test = names & set(omniglot.LAKE_ALPHABETS)
    parts = {"all": names, "test": test, "validation": names - test}
    if not set(words) <= parts.keys() | names:
        background = omniglot.load("background")
        parts["background"] = set(background.alphabets.tolist())
        arrays = zip(characters, background, strict=True)
        characters = Characters(*map(np.concatenate, arrays))
        names |= parts["background"]
    if unknown := [word for word in words if word not in parts.keys() | names]:
        raise UserError(
            f"--alphabets: there is no {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(sorted(parts))}, or one or more of {', '.join(sorted(names))}"
        )
    wanted = set().union(*(parts.get(word, {word}) for word in words))
    return characters.only(np.isin(characters.alphabets, sorted(wanted)))


def check_ways(characters: Characters, num_ways: int) -> None:
    """Checks, before any work is done, that the alphabets have enough characters.

    Raises:
      UserError: If an alphabet has fewer characters than ways.
    """
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


def evaluate(config: Config, model: Model, characters: Characters) -> dict[str, Any]:
    """Returns the accuracy over all alphabets with its interval, and that of each one."""
    embeddings = model.embed(characters.images, batch_size=64)

    def accuracy(name: str, rows: np.ndarray, num_episodes: int) -> dict[str, float]:
        found = few_shot.task_accuracy(
            jax.random.key(config.seed),
            model,
            embeddings[rows],
            characters.only(rows).class_index(),
            num_episodes=num_episodes,
            within_alphabet=True,
            num_ways=config.num_ways,
        )
        return few_shot.as_metrics(name, found)

    all_rows = np.arange(len(characters.labels))
    metrics = accuracy("within_alphabet_accuracy", all_rows, config.num_episodes)
    names = np.unique(characters.alphabets)
    num_each = max(2, config.num_episodes // len(names))
    alphabets = []
    for name in names:
        rows = np.flatnonzero(characters.alphabets == name)
        figures = accuracy("accuracy", rows, num_each)
        alphabets.append({"alphabet": str(name), **figures, "num_episodes": num_each})
    return {"metrics": metrics, "alphabets": alphabets}


if __name__ == "__main__":
    command_line(main, Config)
