"""One-shot recognition of letters from alphabets that the model was not trained on.

Source:  this project's own. The loss is the supervised contrastive loss of Khosla et al.
         2020, on batches of 24 letters with 4 drawings each.
Run:     python -m experiments glyphs --workdir runs/glyphs
Expect:  one_shot_accuracy .801 +- .010 over three seeds (pixels: .154), in one minute of
         training and half a minute of evaluation on two CPU cores
Quick:   python -m experiments glyphs --num-steps 40 --workdir runs/quick_glyphs

Nothing is downloaded: letters are drawn from the fonts that come with matplotlib. Each
letter is a class, and each face of the font gives one example of it. Every drawing is
distorted anew each time it is used. The model learns from Latin, Greek and Cyrillic letters
which drawings show the same letter. It is tested on Armenian and Georgian letters: a letter
in one face has to be found among 20 letters of its alphabet in another face. The letters
are new to the model, the faces are not. Thresholds are chosen on digits, punctuation marks
and symbols, which are new to it too.

At the end some test letters are written to WORKDIR/examples as picture files, dark ink on
white paper, and the commands that apply the trained model to them are printed.
"""

import dataclasses
import pathlib
import sys
import unicodedata
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import command_line
from experiments.datasets import evaluation_key
from experiments.datasets.letters import (
    TEST,
    TRAINING,
    Letters,
    draw_letters,
    draw_signs,
)
from experiments.engine import loop, optimizers, supcon
from experiments.engine.config import RunConfig, setting
from experiments.engine.data import ClassData
from experiments.engine.precision import settled
from experiments.engine.supcon import LabelledBatch
from experiments.engine.system import System
from experiments.evaluations import letters_one_shot
from experiments.evaluations.letters_one_shot import Evaluated
from siamese_jax import augment, samplers
from siamese_jax.encoders import ConvNet
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """The settings of the demonstration, which is small enough for two CPU cores.

    Attributes:
      font_dir: A folder with more fonts (.ttf, .otf), which are added to the twelve faces.
      num_letters: Number of letters in a batch, all of one alphabet.
      num_faces: Number of drawings of each letter in a batch.
      widths: Number of channels in each block of the encoder.
      dim: Number of dimensions of the embedding.
      remat: Whether the encoder computes activations again in the backward pass, for less
        memory and a third more time on accelerators.
      learning_rate: Peak of the one-cycle schedule.
      weight_decay: Weight decay of AdamW.
      temperature: Temperature of the loss before training; it is learnt.
      queue_size: Number of embeddings of earlier batches that a batch is compared with too,
        0 for none. See `supcon.Memory`. It did not improve short runs.
      num_episodes: Number of test tasks for each alphabet.
      num_ways: Number of letters in a test task.
      num_pairs: Number of test pairs, and of pairs of signs for the threshold.
    """

    experiment: ClassVar[str] = "glyphs"

    num_steps: int = setting(800, at_least=1)

    font_dir: pathlib.Path | None = None
    num_letters: int = setting(24, at_least=2)
    num_faces: int = setting(4, at_least=2)
    widths: tuple[int, ...] = setting((24, 48, 96), at_least=1)
    dim: int = setting(64, at_least=1)
    remat: bool = False
    learning_rate: float = setting(3e-3, above=0)
    weight_decay: float = setting(1e-4, at_least=0)
    temperature: float = setting(0.1, above=0)
    queue_size: int = setting(0, at_least=0)

    num_episodes: int = setting(10_000, at_least=2)
    num_ways: int = setting(20, at_least=2)
    num_pairs: int = setting(10_000, at_least=2)

    @property
    def can_be_lengthened(self) -> bool:
        """No: the learning rate falls to zero at the last step."""
        return False


DISTORTION = augment.Affine(
    max_rotation=15.0, max_shear=0.2, scale_range=(0.8, 1.2), max_shift=3.0
)
NOISE = 0.1  # standard deviation, where ink is 1 and paper is 0
# Pictures of users have dark ink on light paper. The encoder sees ink as 1, as the drawings
# of `datasets.letters` have it.
PREPARATION = Preparation(size=(32, 32), invert=True)
SANS, MONO, SERIF = 3, 7, 11  # numbers of faces for the examples


def build(config: Config) -> System:
    """The system as pure functions."""

    def sample(key: jax.Array, step: jax.Array, data: ClassData) -> LabelledBatch:
        batch_key, distortion_key = jax.random.split(key)
        batch = supcon.sample_classes(
            batch_key, data, config.num_letters, config.num_faces, max_groups=1
        )
        keys = jax.random.split(distortion_key, len(batch.images))
        return batch._replace(images=jax.vmap(distort)(keys, batch.images))

    return supcon.make_system(
        ConvNet(config.widths, config.dim, axis_name=config.axis_name, remat=config.remat),
        PREPARATION,
        sample=sample,
        optimizer=optimizers.one_cycle_adamw(
            config.learning_rate, config.num_steps, weight_decay=config.weight_decay
        ),
        temperature=config.temperature,
        compute_dtype=config.compute_dtype,
        axis_name=config.axis_name,
        queue_shape=(config.queue_size, config.dim) if config.queue_size else None,
    )


def distort(key: jax.Array, ink: jax.Array) -> jax.Array:
    """Distorts a drawing [32, 32, 1] with ink 1 on paper 0, and adds noise to it."""
    affine_key, noise_key = jax.random.split(key)
    ink = augment.random_affine(affine_key, ink, DISTORTION)
    return jnp.clip(augment.random_noise(noise_key, ink, scale=NOISE), 0, 1)


def distort_for_test(images: np.ndarray) -> np.ndarray:
    """Distorts each uint8 drawing once, in the same way for every seed."""
    keys = jax.random.split(evaluation_key("distortion"), len(images))
    ink = jax.jit(jax.vmap(distort))(keys, jnp.asarray(images) / 255)
    return np.rint(255 * np.asarray(ink)).astype(np.uint8)


def check_counts(config: Config, letters: Letters) -> None:
    """Refuses, before training, batches and tasks that the letters cannot fill.

    Raises:
      UserError: If there are too few letters or faces.
    """
    num_faces = len(np.unique(letters.faces))
    if config.num_faces > num_faces:
        raise UserError(f"--num-faces: there are {num_faces}; got {config.num_faces}")
    for flag, needed, alphabets in (
        ("--num-letters", config.num_letters, TRAINING),
        ("--num-ways", config.num_ways, TEST),
    ):
        for alphabet in alphabets:
            found = letters.only([alphabet]).num_letters
            if needed > found:
                raise UserError(f"{flag}: {alphabet} has {found} letters; got {needed}")


def write_examples(workdir: pathlib.Path, letters: Letters) -> list[str]:
    """Writes letters as picture files, and returns commands that apply the model to them.

    In workdir/examples there are a letter A in two faces and another letter B, and a folder
    "gallery" with five letters in a third face.
    """
    folder = workdir / "examples"
    names = list(dict.fromkeys(letters.letters.tolist()))[:5]
    a1, a2, b1 = (folder / f"{name}.png" for name in ("A1", "A2", "B1"))
    pictures = [(a1, names[0], SANS), (a2, names[0], SERIF), (b1, names[1], SANS)]
    for name in names:
        pictures.append((folder / "gallery" / _plain_name(name) / "1.png", name, MONO))
    for file, name, face in pictures:
        row = np.flatnonzero((letters.letters == name) & (letters.faces == face))[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_picture(file, letters.images[row])
    program, model = _program(), workdir / "model"
    return [
        f"{program} verify --model {model} {a1} {a2}",
        f"{program} verify --model {model} {a1} {b1}",
        f"{program} identify --model {model} --gallery {folder / 'gallery'} --queries {a1}",
    ]


def _plain_name(letter: str) -> str:
    """The name of a letter as the name of a folder, such as "armenian-capital-ayb"."""
    return unicodedata.name(letter).lower().replace(" letter ", " ").replace(" ", "-")


def _write_picture(file: pathlib.Path, drawing: np.ndarray) -> None:
    """Writes a drawing with ink 255 as a larger picture, dark ink on white paper."""
    from PIL import Image

    picture = Image.fromarray(255 - drawing[:, :, 0])
    picture.resize((128, 128), Image.Resampling.LANCZOS).save(file)


def _program() -> pathlib.Path:
    """The siamese-jax command beside this Python, relative to the current folder."""
    program = pathlib.Path(sys.executable).with_name("siamese-jax")
    here = pathlib.Path.cwd()
    return program.relative_to(here) if program.is_relative_to(here) else program


# Training and evaluation ----------------------------------------------------------------


class LoadedLetters(NamedTuple):
    """All drawings of a run.

    Attributes:
      letters: Drawings of all letters.
      distorted: The same drawings, distorted for the test.
      signs: Drawings of signs.
      distorted_signs: The same drawings, distorted for the test.
    """

    letters: Letters
    distorted: np.ndarray
    signs: Letters
    distorted_signs: np.ndarray


def load(config: Config) -> LoadedLetters:
    """Draws the letters and the signs.

    Raises:
      UserError: If there are fewer letters or faces than the batches and tasks need.
    """
    letters = draw_letters(config.font_dir)
    for alphabet in (*TRAINING, *TEST):
        print(f"{alphabet:>9}: {letters.only([alphabet]).num_letters} letters")
    check_counts(config, letters)
    signs = draw_signs(config.font_dir)
    distorted, distorted_signs = map(distort_for_test, (letters.images, signs.images))
    return LoadedLetters(letters, distorted, signs, distorted_signs)


def training_data(config: Config, loaded: LoadedLetters) -> ClassData:
    """The training letters, with alphabets as groups."""
    train = loaded.letters.only(TRAINING)
    index = samplers.class_index(train.letters, groups=train.alphabets)
    return ClassData(jnp.asarray(train.images), index)


def evaluate(config: Config, loaded: LoadedLetters, model: Model) -> Evaluated:
    """Evaluates a model on tasks and pairs of the test letters."""
    return letters_one_shot.evaluate(
        model,
        *loaded,
        num_episodes=config.num_episodes,
        num_ways=config.num_ways,
        num_pairs=config.num_pairs,
    )


def main(config: Config) -> None:
    """Draws the letters, trains, evaluates and reports."""
    config = settled(config)
    if not loop.start(config):
        return
    loaded, system = load(config), build(config)
    trained = loop.train(config, system, training_data(config, loaded))
    print("evaluating ...")
    evaluated = evaluate(config, loaded, system.model(trained.state))
    loop.finish(config, evaluated.metrics, trained, evaluated.model)
    commands = write_examples(config.directory, loaded.letters.only(TEST[:1]))
    letters_one_shot.write_report(config.directory, evaluated)
    print("Commands that apply the model to letters it was not trained on:\n")
    print("\n".join(commands))


if __name__ == "__main__":
    command_line(main, Config)
