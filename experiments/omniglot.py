"""Omniglot: which alphabets are for what, and random tasks over them.

Images come from TFDS: its `train` has the 30 background alphabets, its `test` the 20 for
evaluation. Ten of these are in Lake's one-shot runs and are the test set; the other ten are
for validation, as in Koch et al. 2015. TFDS carries no drawer: the two images of a class in
a task are different ones, by any drawers.

Images are pictures as in the files: dark ink, 0, on light paper, 255.
"""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import run
from experiments.data import class_names, load_columns
from experiments.model import Model, embed, judge
from experiments.pairs import Judged, Pairs
from siamese_jax import episodes, samplers

LAKE_ALPHABETS = (
    "Atlantean",
    "Ge_ez",
    "Glagolitic",
    "Gurmukhi",
    "Kannada",
    "Malayalam",
    "Manipuri",
    "Old_Church_Slavonic_(Cyrillic)",
    "Tengwar",
    "Tibetan",
)

Part = Literal["background", "validation", "test", "all"]

PAIR_SEED = 20  # the pairs of judgement are the same for every run
FEW_SHOT = ((20, 1), (5, 1), (20, 5), (5, 5))  # ways and shots
_SHORT = {
    "within_alphabet_20_way_1_shot": "within_alphabet",
    "random_20_way_1_shot": "random_20_way",
}


class Characters(NamedTuple):
    """Drawings of characters.

    Attributes:
      images: uint8 [n, 105, 105, 1].
      labels: [n], one number a character, over all alphabets.
      alphabets: [n], names.
    """

    images: np.ndarray
    labels: np.ndarray
    alphabets: np.ndarray

    def only(self, rows: np.ndarray) -> "Characters":
        """Some of the drawings: numbers, a slice or a mask."""
        return Characters(*(array[rows] for array in self))

    def class_index(self) -> samplers.ClassIndex:
        """Characters as classes, alphabets as their groups."""
        return samplers.class_index(self.labels, groups=self.alphabets)


def load(part: Part) -> Characters:
    """Background, validation or test alphabets; "all" is the 20 for evaluation.

    Raises:
      FileNotFoundError: If Omniglot is not prepared; says how to get it.
    """
    if part == "background":
        return load_split("train")
    characters = load_split("test")
    in_runs = np.isin(characters.alphabets, LAKE_ALPHABETS)
    wanted = {"validation": ~in_runs, "test": in_runs, "all": np.full_like(in_runs, True)}
    return characters.only(wanted[part])


def load_split(split: str) -> Characters:
    """A split of TFDS: "train", "test", "small1" or "small2"."""
    columns = {
        # decoders differ in whether paper is 1 or 255, and in the number of channels
        "images": lambda example: np.where(
            example["image"][:, :, :1] > 0, np.uint8(255), np.uint8(0)
        ),
        "labels": lambda example: example["label"],
        "alphabets": lambda example: example["alphabet"],
    }
    arrays = load_columns("omniglot", split, columns)
    names = np.array(class_names("omniglot", "alphabet"))
    return Characters(arrays["images"], arrays["labels"], names[arrays["alphabets"]])


def task_accuracy(
    key: jax.Array,
    model: Model,
    embeddings: jax.Array,
    index: samplers.ClassIndex,
    *,
    num_episodes: int,
    within_alphabet: bool,
    num_ways: int = 20,
    num_shots: int = 1,
) -> episodes.EpisodeAccuracy:
    """Few-shot tasks of one query each, within an alphabet or over all of them.

    Raises:
      UserError: If an alphabet has too few characters.
    """
    try:
        return episodes.episode_accuracy(
            key,
            embeddings,
            index,
            num_episodes=num_episodes,
            num_ways=num_ways,
            num_shots=num_shots,
            num_asked=1,
            max_groups=1 if within_alphabet else None,
            matrix_fn=model.matrix_fn,
        )
    except ValueError as error:
        raise run.UserError(f"{num_ways}-way tasks: {error}") from error


def as_metrics(name: str, accuracy: episodes.EpisodeAccuracy) -> dict[str, Any]:
    """The mean under its name, with half the width of its interval."""
    half = float(accuracy.high - accuracy.mean)
    return {name: float(accuracy.mean), f"{name}_interval": half}


def few_shot_metrics(
    learnt: Model, characters: Characters, num_episodes: int, ending: str = ""
) -> dict[str, float]:
    """Tasks within an alphabet, where there are several, and over all characters.

    within_alphabet_accuracy is 20-way one-shot, and so is random_20_way_accuracy over all
    characters; the other names say what they are.
    """
    embeddings = embed(learnt, characters.images, batch_size=64)
    index = characters.class_index()
    several = len(index.group_sizes) > 1
    metrics: dict[str, float] = {}
    for place in ("within_alphabet", "random") if several else ("random",):
        for num_ways, num_shots in FEW_SHOT:
            name = f"{place}_{num_ways}_way_{num_shots}_shot"
            name = _SHORT.get(name, name)
            found = task_accuracy(
                jax.random.key(0),
                learnt,
                embeddings,
                index,
                num_episodes=num_episodes,
                within_alphabet=place == "within_alphabet",
                num_ways=num_ways,
                num_shots=num_shots,
            )
            metrics |= as_metrics(f"{name}_accuracy{ending}", found)
    return metrics


def some_of_each(characters: Characters, num: int) -> Characters:
    """The first drawings of each character."""
    return characters.only(np.asarray(characters.class_index().rank_of) < num)


def draw_pairs(characters: Characters) -> Pairs:
    """Balanced pairs of drawings, of one alphabet where they differ."""
    drawn = samplers.sample_pairs(
        jax.random.key(PAIR_SEED), characters.class_index(), 4_000, within_groups=True
    )
    return Pairs(*map(np.asarray, drawn))


def judge_pairs(learnt: Model, characters: Characters, pairs: Pairs) -> Judged:
    """The distance of each pair of drawings."""
    return judge(learnt, embed(learnt, characters.images, batch_size=64), pairs)


def vinyals_split(seed: int) -> dict[str, Characters]:
    """All 1,623 characters as "train", 1,200 of them at random, and "vinyals", the others.

    Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra. Matching Networks for One Shot
    Learning. NeurIPS 2016, section 4.1.1. Alphabets are on both sides, those of Lake's
    runs too; tasks are drawn over all characters, so the held out ones count as one
    alphabet. The paper does not list its characters: the split is drawn from the seed.
    """
    both = load_split("train"), load_split("test")
    everything = Characters(*(np.concatenate(arrays) for arrays in zip(*both, strict=True)))
    order = np.random.default_rng(seed).permutation(np.unique(everything.labels))
    chosen = np.isin(everything.labels, order[:1_200])
    held_out = everything.only(~chosen)
    as_one = held_out._replace(alphabets=np.full(len(held_out.labels), "all"))
    return {"train": everything.only(chosen), "vinyals": as_one}
