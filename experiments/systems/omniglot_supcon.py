"""One-shot Omniglot with hard batches, strong distortions and a contrastive softmax.

Source:  this project's own. The loss is the supervised contrastive loss of Khosla et al.
         2020; averaged weights as in Tarvainen, Valpola 2017.
Run:     python -m experiments omniglot_supcon --preset short
Expect:  within_alphabet_accuracy .873 +- .002 (one seed), and .892 +- .001 with --preset
         long (three seeds), on 100,000 tasks. With --no-whiten --made none: .863 +- .003,
         --preset long .879 +- .001 (three seeds, bfloat16), --preset record .885 (one seed)
Quick:   python -m experiments omniglot_supcon --num-steps 20
             --workdir runs/quick_omniglot_supcon

The experiment needs Omniglot (`python -m experiments tfds omniglot`).

--preset short    1,500 steps of a small network
--preset long     6,500 steps of the same network, 4 times as long
--preset record   10,000 steps of a large network, 22 times as long

The short run took 5 minutes on two CPU cores with a matrix unit for bfloat16, and 26
minutes on two cores without any unit for it. By default the type of numbers is the one that
is faster on the processor (`--compute-dtype auto`).

The model is trained on the 30 background alphabets alone, and compares two drawings by the
cosine of their embeddings. Six things make it accurate:

1. A batch resembles the task of the test. It has characters of as few alphabets as possible
   and a few drawings of each, and each drawing has to find the others of its character
   among the whole batch (supervised contrastive loss with a learnt temperature).
2. Every drawing is centred and then distorted anew: rotated, sheared, scaled, shifted and
   bent, with thicker or thinner strokes.
3. A batch is rotated by right angles and mirrored as a whole. There are eight times as many
   characters then, and two characters that differ by a rotation, as in syllabic scripts,
   stay different.
4. A quarter of the characters of a batch are new ones that nobody has drawn: each joins a
   part of one character of the batch to a part of another, from which it has to be told
   apart (`--made`).
5. Images are resized with anti-aliasing. The encoder is a residual network, trained by
   AdamW on a one-cycle cosine schedule, and its weights are averaged.
6. At the end the embedding is whitened within the training characters: directions in which
   drawings of one character differ become smaller. The map is multiplied into the last
   layer, so that the network stays what it is (`--no-whiten` leaves it out).

RESULTS.md lists what was tried. All settings were chosen on the ten validation
alphabets. In the test each question is answered on its own, by one model, from one view.
The evaluation `ensembles` compares this with several models and views.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from experiments.cli import command_line
from experiments.datasets import omniglot
from experiments.datasets.lake_archive import LakeRun, read_runs
from experiments.datasets.omniglot import Characters
from experiments.engine import loop, optimizers, supcon
from experiments.engine.config import ComputeDtype, RunConfig, as_json, setting
from experiments.engine.data import ClassData
from experiments.engine.folders import other_settings
from experiments.engine.precision import settled
from experiments.engine.supcon import LabelledBatch
from experiments.engine.system import System
from experiments.evaluations import few_shot, lake_trials
from experiments.evaluations.pair_metrics import threshold_of
from siamese_jax import augment, distances, samplers, whitening
from siamese_jax.encoders import ResNet
from siamese_jax.images import Preparation, prepare
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax
from siamese_jax.training import TrainState

_SMALL = {"widths": (128, 256), "num_blocks": 1}
_LARGE = {"widths": (192, 384), "num_blocks": 2}
PRESETS: dict[str, dict[str, Any]] = {
    "short": {"num_steps": 1_500} | _SMALL,
    "long": {"num_steps": 6_500} | _SMALL,
    "record": {"num_steps": 10_000} | _LARGE,
}
EXPECTED = {  # within_alphabet_accuracy
    "short": ".873",
    "long": ".892",
    "record": ".885 without whitening and made characters",
}
WAYS = ("stretch", "bend", "splice", "gap", "copy")  # to make a character of another


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """The settings; where the value is 0 or empty, the preset's value is used.

    Attributes:
      preset: Values for `num_steps`, `widths` and `num_blocks`.
      num_steps: Number of training steps.
      train_on: The background alphabets, one of the two smaller sets of them, or 1,200
        random characters of all alphabets, as in Vinyals et al. 2016. The model of the
        latter is calibrated on the characters that it is tested on.
      runs: The archive all_runs.zip of Lake et al., to be evaluated too.
      evaluate_test: Whether the test alphabets are evaluated. False while settings are
        chosen.
      num_episodes: Number of test tasks of each kind.
      size: Height and width of the encoder's images.
      stem: Number of channels of the encoder's first convolution.
      widths: Number of channels in each stage of the encoder.
      num_blocks: Number of residual blocks in each stage.
      dim: Number of dimensions of the embedding.
      remat: Whether the encoder computes activations again in the backward pass, for less
        memory and a third more time on accelerators.
      num_classes: Number of characters in a batch.
      num_images: Number of drawings of each character in a batch.
      learning_rate: Peak of the one-cycle schedule.
      weight_decay: Weight decay of AdamW.
      average_decay: Decay of the averaged weights.
      temperature: Temperature of the loss before training; it is learnt.
      ink: Pixels that are brighter than this are ink, when drawings are centred.
      max_rotation: Largest rotation, in degrees.
      max_shear: Largest shear.
      max_scale: Drawings are made smaller or larger by up to this fraction.
      max_shift: Largest shift, as a fraction of the height.
      elastic: Standard deviation of the bending, as a fraction of the height; 0 for none.
      thickness: Largest change of a stroke's borders, in pixels.
      turn: Whether batches are rotated by right angles and mirrored as a whole.
      whiten: Whether the embedding is whitened within the training characters at the end.
      shrinkage: How much of the identity is added to the covariance, see
        `siamese_jax.whitening`.
      made: How characters that nobody has drawn are made, as hard negatives of those of
        the batch: by stretching or bending a character, joining parts of two, cutting a
        gap, or adding a moved copy. "any" takes one of these ways at random for each.
      made_share: Share of the batch's characters that are made.
    """

    experiment: ClassVar[str] = "omniglot_supcon"

    preset: Literal["short", "long", "record"] = "short"
    num_steps: int = setting(0, at_least=0)
    checkpoint_every: int = setting(250, at_least=1)
    compute_dtype: ComputeDtype | Literal["auto"] = "auto"

    train_on: Literal["background", "small1", "small2", "vinyals"] = "background"
    runs: pathlib.Path | None = None
    evaluate_test: bool = setting(
        True, only_when={"train_on": ("background", "small1", "small2")}
    )
    num_episodes: int = setting(10_000, at_least=2)

    size: int = setting(48, at_least=1)
    stem: int = setting(64, at_least=1)
    widths: tuple[int, ...] = setting((), at_least=1)
    num_blocks: int = setting(0, at_least=0)
    dim: int = setting(256, at_least=1)
    remat: bool = False
    num_classes: int = setting(40, at_least=2)
    num_images: int = setting(4, at_least=2)
    learning_rate: float = setting(2e-3, above=0)
    weight_decay: float = setting(0.05, at_least=0)
    average_decay: float = setting(0.99, at_least=0, below=1)
    temperature: float = setting(0.1, above=0)
    ink: float = setting(0.3, at_least=0, below=1)
    max_rotation: float = setting(10.0, at_least=0)
    max_shear: float = setting(0.15, at_least=0, below=1)
    max_scale: float = setting(0.15, at_least=0, below=1)
    max_shift: float = setting(0.05, at_least=0, at_most=1)
    elastic: float = setting(0.01, at_least=0, at_most=1)
    thickness: float = setting(0.3, at_least=0, at_most=1)
    turn: bool = True
    whiten: bool = True
    shrinkage: float = setting(0.3, at_least=0, only_when={"whiten": True})
    made: Literal["none", "stretch", "bend", "splice", "gap", "copy", "any"] = "splice"
    made_share: float = setting(
        0.25, above=0, at_most=0.5, only_when={"made": (*WAYS, "any")}
    )

    @property
    def num_made(self) -> int:
        """Number of the batch's characters that are made: one at least, two are not."""
        most = 0 if self.made == "none" else self.num_classes - 2
        return min(max(1, int(self.made_share * self.num_classes)), most)

    @property
    def num_drawn(self) -> int:
        """Number of the batch's characters that are not made."""
        return self.num_classes - self.num_made

    def has_bfloat16_products(self, platform: str) -> bool:
        """Everywhere: the layers of `ResNet` have them on CPUs too."""
        return True

    @property
    def can_be_lengthened(self) -> bool:
        """No: the learning rate falls to zero at the last step."""
        return False


def with_preset(config: Config) -> Config:
    """The settings with the preset's values where none are given."""
    values = PRESETS[config.preset].items()
    missing = {name: value for name, value in values if not getattr(config, name)}
    return dataclasses.replace(config, workdir=config.directory, **missing)


def is_of_preset(config: Config) -> bool:
    """Whether nothing that changes the accuracy differs from the preset but the seed."""
    configs = (config, Config(preset=config.preset))
    different = other_settings(*(as_json(with_preset(each)) for each in configs))
    return {*different} <= {"seed", "compute_dtype", "runs"}


# Training -------------------------------------------------------------------------------


def build(config: Config) -> System:
    """The system as pure functions, of settings that have a preset's values."""
    encoder = ResNet(
        stem=config.stem,
        widths=config.widths,
        num_blocks=config.num_blocks,
        dim=config.dim,
        dtype=jnp.dtype(config.compute_dtype),
        axis_name=config.axis_name,
        remat=config.remat,
    )
    encoder_init, encode = from_flax(encoder)

    def embed_fn(variables: Any, images: jax.Array) -> jax.Array:
        params, statistics = variables["params"], variables["statistics"]
        ink = jax.vmap(partial(augment.center, threshold=config.ink))(images)
        return distances.normalize(encode(params, ink, statistics=statistics))

    def model(state: TrainState) -> Model:
        params = optimizers.averaged_params(state.optimizer_state)["encoder"]
        variables = {"params": params, "statistics": state.statistics}
        return Model(variables, embed_fn, preparation(config))

    image_shape = preparation(config).image_shape
    return System(
        init=supcon.make_init(encoder_init, image_shape, config.temperature),
        sample=partial(sample, config),
        # the encoder computes in its own type
        loss=supcon.make_loss(encode, axis_name=config.axis_name),
        optimizer=make_optimizer(config),
        model=model,
    )


def whitened(
    model: Model, images: np.ndarray, labels: np.ndarray, *, shrinkage: float
) -> Model:
    """Whitens the embedding within the training characters, in the last layer.

    The cosine does not depend on the length of an embedding, so that the map of a
    normalised embedding may come before the normalisation.

    Args:
      model: A trained model.
      images: The prepared drawings that it was trained on.
      labels: Their characters.
      shrinkage: See `siamese_jax.whitening`.
    """
    embeddings = model.embed_prepared(images)
    try:
        factor = whitening.within_class_factor(embeddings, labels, shrinkage=shrinkage)
    except ValueError as error:  # of a network that has collapsed, or overflowed
        print(f"the embedding is not whitened: {error}")
        return model
    params = model.params["params"]
    last = {
        name: jnp.asarray(np.asarray(array, np.float64) @ factor.T, array.dtype)
        for name, array in params["Dense_0"].items()
    }
    variables = {**model.params, "params": {**params, "Dense_0": last}}
    return dataclasses.replace(model, params=variables)


def preparation(config: Config) -> Preparation:
    """Pictures have dark ink on light paper; the encoder sees ink as 1."""
    return Preparation((config.size, config.size), invert=True)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW on a one-cycle schedule, which also keeps the average of the weights."""
    return optax.chain(
        optimizers.one_cycle_adamw(
            config.learning_rate, config.num_steps, weight_decay=config.weight_decay
        ),
        optimizers.average_params(config.average_decay),
    )


def sample(
    config: Config, key: jax.Array, step: jax.Array, data: ClassData
) -> LabelledBatch:
    """Draws a batch of characters from few alphabets, and distorts each drawing."""
    batch_key, turn_key, distortion_key = jax.random.split(key, 3)
    batch = supcon.sample_classes(
        batch_key,
        data,
        config.num_drawn,
        config.num_images,
        max_groups=num_alphabets(config, data.classes),
    )
    if config.turn:
        batch = batch._replace(images=turn(turn_key, batch.images))
    if config.num_made:
        made_key, distortion_key = jax.random.split(distortion_key)
        batch = add_made_classes(config, made_key, batch)
    keys = jax.random.split(distortion_key, len(batch.images))
    distorted = jax.vmap(partial(distort, config))(keys, batch.images)
    return batch._replace(images=distorted)


def num_alphabets(config: Config, classes: samplers.ClassIndex) -> int:
    """The number of smallest alphabets that have enough characters for a batch."""
    totals = np.cumsum([size for _, size in classes.group_sizes])
    return int(np.searchsorted(totals, config.num_drawn)) + 1


def turn(key: jax.Array, images: jax.Array) -> jax.Array:
    """Rotates all images by the same multiple of 90 degrees, and mirrors all or none."""
    number = jax.random.randint(key, (), 0, 8)
    images = jnp.where(number >= 4, images[:, :, ::-1], images)
    turns = [partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
    return jax.lax.switch(number % 4, turns, images)


def add_made_classes(config: Config, key: jax.Array, batch: LabelledBatch) -> LabelledBatch:
    """Adds `num_made` characters that nobody has drawn, made of the first of the batch.

    All drawings of a made character are changed alike: each is made of a drawing of one
    character, centred, and where two are joined of one of the next character too.

    Args:
      config: The settings.
      key: A JAX key.
      batch: Drawings [num_images * characters, ...] with the characters in turns.

    Returns:
      The batch and the made drawings, whose labels and example numbers are negative.
    """
    num, size = config.num_made, config.size
    centred = jax.vmap(partial(augment.center, threshold=config.ink))(batch.images)
    drawings = centred.reshape(config.num_images, -1, *centred.shape[1:])
    of_class = jax.vmap(partial(change, config), in_axes=(None, None, 0, 0))
    of_classes = jax.vmap(of_class, in_axes=(0, 0, 1, 1), out_axes=1)
    way_key, change_key = jax.random.split(key)
    ways = jax.random.randint(way_key, (num,), 0, len(WAYS))
    made = of_classes(
        ways,
        jax.random.split(change_key, num),
        drawings[:, :num],
        jnp.roll(drawings, -1, axis=1)[:, :num],
    )

    def new_numbers(numbers: jax.Array) -> jax.Array:
        return -1 - numbers.reshape(config.num_images, -1)[:, :num].reshape(-1)

    added = LabelledBatch(
        made.reshape(-1, size, size, 1),
        new_numbers(batch.labels),
        new_numbers(batch.examples),
    )
    return LabelledBatch(*map(jnp.concatenate, zip(batch, added, strict=True)))


def change(
    config: Config, way: jax.Array, key: jax.Array, ink: jax.Array, other: jax.Array
) -> jax.Array:
    """Changes a drawing so strongly that it shows another character.

    Args:
      config: The settings. If the way is "any", `way` is the number of one of `WAYS`.
      way: A number.
      key: The key of the new character, one for all drawings of it.
      ink: A centred drawing.
      other: A centred drawing of another character, to join a part of.
    """
    size = config.size
    changes: dict[str, Callable[[jax.Array], jax.Array]] = {
        "stretch": partial(augment.random_stretch, key, stretch_range=(1.4, 1.8)),
        "bend": partial(
            augment.random_elastic,
            key,
            elastic=augment.Elastic(scale=0.08 * size, sigma=0.25 * size),
        ),
        "splice": lambda ink: augment.random_splice(
            key, ink, other, max_offset=0.05 * size
        ),
        "gap": partial(augment.random_gap, key, width=0.15 * size, max_offset=0.2 * size),
        "copy": partial(augment.random_copy, key, distance=0.2 * size),
    }
    if config.made != "any":
        return changes[config.made](ink)
    return jax.lax.switch(way, [changes[name] for name in WAYS], ink)


def distort(config: Config, key: jax.Array, ink: jax.Array) -> jax.Array:
    """Centres, distorts and bends one drawing, then changes the width of its strokes.

    All that moves pixels is one map, so that the drawing is interpolated once.
    """
    affine_key, elastic_key, thickness_key = jax.random.split(key, 3)
    size = config.size
    affine = augment.Affine(
        max_rotation=config.max_rotation,
        max_shear=config.max_shear,
        scale_range=(1 - config.max_scale, 1 + config.max_scale),
        max_shift=config.max_shift * size,
    )
    matrix = augment.sample_affine(affine_key, (size, size), affine)
    coordinates = augment.affine_coordinates(matrix, (size, size))
    coordinates += augment.ink_offsets(ink, threshold=config.ink)[None, None]
    if config.elastic:
        elastic = augment.Elastic(scale=config.elastic * size, sigma=0.1 * size)
        coordinates += augment.sample_elastic(elastic_key, (size, size), elastic)
    ink = augment.warp(ink, coordinates)
    return augment.random_thickness(thickness_key, ink, max_change=config.thickness)


# Evaluation -----------------------------------------------------------------------------


def load_parts(config: Config) -> dict[str, Characters]:
    """The characters to train on, as "train", and those of each evaluation by name."""
    if config.train_on == "vinyals":
        return omniglot.vinyals_split(config.seed)
    split = "train" if config.train_on == "background" else config.train_on
    parts = {"train": omniglot.load_split(split), "validation": omniglot.load("validation")}
    return parts | ({"test": omniglot.load("test")} if config.evaluate_test else {})


def evaluate(
    config: Config, model: Model, parts: dict[str, Characters], runs: list[LakeRun]
) -> dict[str, float]:
    """Tasks within alphabets and over all characters of each part, and Lake's runs."""
    metrics: dict[str, float] = {}
    for name, characters in parts.items():
        suffix = "" if name == "validation" else f"_{name}"
        metrics |= few_shot.few_shot_metrics(
            model, characters, config.num_episodes, suffix=suffix
        )
    if runs:
        matrices = lake_trials.model_distances(model, runs)
        metrics |= lake_trials.evaluate(runs, matrices)["metrics"]
    return metrics


def main(config: Config) -> None:
    """Trains, evaluates and reports."""
    if is_of_preset(config):
        expected = EXPECTED[config.preset]
        print(f"{config.preset}: expected within_alphabet_accuracy {expected}")
    config = settled(with_preset(config))
    if not loop.start(config):
        return
    runs = read_runs(config.runs) if config.runs else []
    parts = load_parts(config)
    train = parts.pop("train")
    supcon.check_batch(train.labels, config.num_drawn, config.num_images)
    images = prepare(train.images, preparation(config))
    system = build(config)
    trained = loop.train(
        config, system, ClassData(jnp.asarray(images), train.class_index())
    )
    print("evaluating ...")
    model = system.model(trained.state)
    if config.whiten:
        model = whitened(model, images, train.labels, shrinkage=config.shrinkage)
    name, characters = next(iter(parts.items()))
    drawings = omniglot.first_drawings(characters, 8)
    pairs = few_shot.draw_pairs(drawings)
    model, compared = few_shot.calibrate_drawings(
        model, drawings, pairs, f"pairs of drawings of the {name} characters"
    )
    metrics = evaluate(config, model, parts, runs)
    loop.finish(config, metrics, trained, model)
    sections = report.pair_sections(
        drawings.images,
        pairs,
        np.asarray(compared.distances),
        threshold_of(model),
        name=f"{name} pairs",
        cmap="gray",
    )
    sections.append(report.training_section(config.directory, ("loss", "temperature")))
    report.write_report(config.directory, "One-shot Omniglot", metrics, sections)


if __name__ == "__main__":
    command_line(main, Config)
