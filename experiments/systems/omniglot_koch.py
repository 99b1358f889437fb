"""Koch's siamese convolutional network on Omniglot: one-shot recognition by verification.

Source:  Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image
         Recognition. 2015; and the public Keras tutorial that simplifies it.
Run:     python -m experiments omniglot_koch                               (accelerator)
         python -m experiments omniglot_koch --size half --pixels ink-255
             --learning-rate 0.0002 --patience 40                          (CPU)
Expect:  random_20_way_accuracy .802 +- .008 by the first command, in 2.6 hours on two idle
         CPU cores with AVX-512, and .722 +- .009 by the second, in an hour. The tutorial's
         notebook shows .82 (+- .05) after 20,000 steps, .815 on average over the last
         2,000, and .868 at its highest. Its text says .852
Quick:   python -m experiments omniglot_koch --size half --num-steps 200
             --workdir runs/quick_omniglot_koch
Watch:   python -m experiments model_so_far --run RUN --model best_so_far

The experiment needs Omniglot (`python -m experiments tfds omniglot`). The network is
trained on pairs of drawings from the 30 background alphabets. Each batch has different
characters. One half of them are paired with another drawing of the same character, the
other half with another character. The loss is the binary cross-entropy of a weighted
city-block distance between 4,096 sigmoid features, with an L2 term.

--schedule tutorial   Adam with rate 6e-5, batches of 32, 20,000 steps, no distortions. The
                      tutorial reports 85.2 % on random 20-way tasks after 27 minutes on a
                      GPU.
--schedule paper      Stochastic gradient descent. The rate falls by 1 % in each epoch of
                      150,000 pairs, the momentum rises from .5. Meant for --batch-size 128
                      --affine --num-steps 234000, with 92.0 % on Lake's runs in the paper.
                      The paper searched for a rate for each layer and does not give them,
                      so one rate is used for all.
--affine              The distortions of the paper, new for each drawing, on the device.
--size half           53 x 53 pixels and kernels of 5, 4, 3, 3, about ten times as fast.
                      Its layers have fewer inputs and larger weights. A rate of 2e-4
                      changes the weights of the dense layer, relative to their size, as
                      6e-5 does at full size.
--pixels paper-255    What the encoder sees. The tutorial's code passes the numbers of the
                      files as they are, 255 for paper and 0 for ink. With ink-255, paper is
                      0 and ink 255. With ink-1, paper is 0 and ink 1.

The range of the pixels matters, because the weights are drawn from N(0, .01) and the biases
from N(.5, .01), whatever the range is. The paper does not say what it was. This is the
half-size network at the start, with the 64 drawings of one batch:

    ---------------------------------------------------------------------------------
                                                          ink-1   paper-255   ink-255
    deviation of a feature from drawing to drawing        .0004      .033        .059
    outputs of convolutions 2 to 4 that are 0 for all     0 to 0   15 to 21 %  0 to 3 %
    gradient of convolution 2: cross-entropy over L2 term   1.1      172         175
    gradient of the dense layer: the same ratio            .010      .88         1.45
    ---------------------------------------------------------------------------------

With ink-1 the biases of .5 drown the signal: the outputs of convolution 2 are near .5, and
deviate by .01 from drawing to drawing. Almost every rectifier is on for all drawings, so
the network is nearly linear. All drawings get almost the same features, and the L2 term
shrinks the weights of the dense layer before the cross-entropy can shape them. A network
with a quarter of the channels and 1,024 features, trained once at rate 2e-4, had these
values in steps 401 to 600 (training pairs) and at step 600 (validation, +- .02):

    -----------------------------------------------------------------
                    cross-entropy    accuracy    random 20-way
    ink-1                    .537        .741             .237
    paper-255                .490        .779             .249
    ink-255                  .453        .807             .287
    -----------------------------------------------------------------

In steps 201 to 400, ink-1 had a cross-entropy of .558, and .555 with the initialisation of
He et al. instead; ink-255 had .531. All of these had a higher random 20-way accuracy, .33
to .40, at step 100 than later: at first the network learns what tells most pairs apart.
Whether the numbers of later steps keep this order is not known yet. Batches are those of
the tutorial, apart from one trap: a drawing is never paired with itself.

The model is evaluated at every checkpoint on the ten validation alphabets. The best state
is kept, and training stops when there has been no better one for a while. Random 20-way
tasks over all evaluation characters, which the tutorial reports, are easier than tasks
within an alphabet. Both are reported at the end. As the validation alphabets are half of
the evaluation alphabets, random_20_way_accuracy is partly over characters that the best
state was chosen on; random_20_way_accuracy_test is over the ten test alphabets alone.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from experiments.cli import command_line
from experiments.datasets import evaluation_key, omniglot
from experiments.datasets.omniglot import Characters
from experiments.engine import loop, optimizers, pair_batches
from experiments.engine.config import setting
from experiments.engine.data import ClassData, gather
from experiments.engine.logs import Evaluation
from experiments.engine.pair_batches import PairBatch, PairConfig
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import few_shot
from experiments.evaluations.pair_metrics import (
    PairDistances,
    pair_metrics,
    roc_curve,
    threshold_of,
)
from siamese_jax import augment, losses, reductions, samplers
from siamese_jax.batching import use_devices_of
from siamese_jax.distances import distance_matrix
from siamese_jax.encoders import KochConv, WeightedL1Head
from siamese_jax.episodes import EpisodeAccuracy
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation, prepare
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax
from siamese_jax.training import TrainState


@dataclasses.dataclass(frozen=True)
class Config(PairConfig):
    """The tutorial's settings.

    Attributes:
      size: The images and the network of the paper, or about half the size.
      pixels: What the encoder sees: light paper as 255 and ink as 0, the other way round,
        or ink as 1 and paper as 0. See above.
      schedule: The tutorial's optimiser, or the paper's.
      affine: Whether training drawings are distorted.
      remat: Whether the encoder computes activations again in the backward pass, for less
        memory and a third more time on accelerators.
      learning_rate: Learning rate, for the paper's schedule at the beginning. Without it
        the rate is 6e-5 for the tutorial's schedule and 1e-2 for the paper's.
      momentum: The momentum at the end of its rise over 200 epochs.
      l2_convolution: Factor of the squared weights of the convolutions in the loss.
      l2_dense: Factor of the squared weights of the dense layer in the loss.
      patience: Number of evaluations without a better one after which training stops.
      num_drawings: Number of drawings of each validation character that are used at
        checkpoints.
      num_episodes: Number of tasks at the end.
    """

    experiment: ClassVar[str] = "omniglot_koch"

    num_steps: int = setting(20_000, at_least=1)
    checkpoint_every: int = setting(500, at_least=1)

    size: Literal["full", "half"] = "full"
    pixels: Literal["paper-255", "ink-255", "ink-1"] = "paper-255"
    schedule: Literal["tutorial", "paper"] = "tutorial"
    affine: bool = False
    remat: bool = False
    batch_size: int = setting(32, at_least=2)
    learning_rate: float | None = setting(None, above=0)
    momentum: float = setting(0.9, at_least=0, below=1, only_when={"schedule": "paper"})
    l2_convolution: float = setting(2e-4, at_least=0)
    l2_dense: float = setting(1e-3, at_least=0)
    patience: int = setting(20, at_least=1)
    num_drawings: int = setting(4, at_least=2, at_most=20)
    num_episodes: int = setting(10_000, at_least=2)


PAIRS_PER_EPOCH = 150_000
CHECKPOINT_EPISODES = 2_000
NUM_COMPARED = 8  # drawings of each character in pairs
TASKS = ("random_20_way", "within_alphabet")
# the tasks at the end: their name, the characters, and the end of the metric's name
FINAL_TASKS: tuple[tuple[str, omniglot.Part, str], ...] = (
    ("random_20_way", "all", ""),
    ("within_alphabet", "validation", ""),
    ("random_20_way", "test", "_test"),
    ("within_alphabet", "test", "_test"),
)


# Training -------------------------------------------------------------------------------


def build(config: Config) -> System:
    """The system as pure functions."""
    encoder = make_encoder(config)
    encoder_init, apply_fn = from_flax(encoder)

    def encode(params: Any, images: jax.Array, **options: Any) -> Any:
        return apply_fn(params, grey_values(config, images), **options)

    embed_pairs = pair_batches.embed_pairs(encode, config)
    mean = pair_batches.batch_mean(config)
    head = WeightedL1Head()

    def init(key: jax.Array) -> tuple[Any, Any]:
        encoder_key, head_key = jax.random.split(key)
        image = jnp.zeros((1, *preparation(config).image_shape))
        params, statistics = encoder_init(encoder_key, image)
        embedding = jnp.zeros((1, encoder.dim))
        head_params = head.init(head_key, embedding, embedding)["params"]
        return {"encoder": params, "head": head_params}, statistics

    def log_odds(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.asarray(head.apply({"params": params["head"]}, a, b))

    def sample(key: jax.Array, step: jax.Array, data: ClassData) -> PairBatch:
        return sample_pairs(config, key, data)

    def loss(params: Any, statistics: Any, batch: PairBatch, key: jax.Array) -> Any:
        embeddings = embed_pairs(params["encoder"], batch.images, key)
        logits = log_odds(params, *embeddings)
        terms = losses.logistic_loss(logits, batch.same, where=batch.where, reduce_fn=None)
        cross_entropy = mean(terms)
        correct = ((logits >= 0) == batch.same).astype(logits.dtype)
        accuracy = mean(reductions.make_terms(correct, where=batch.where))
        metrics = pair_batches.embedded(config, embeddings, batch, terms)
        metrics |= {"cross_entropy": cross_entropy, "accuracy": accuracy}
        value = cross_entropy + regularizer(config, params["encoder"])
        return value, (statistics, metrics)

    def embed_fn(params: Any, images: jax.Array) -> jax.Array:
        return encode(params["encoder"], images)

    def matrix_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return distance_matrix(lambda a, b: -log_odds(params, a, b), x, y)

    def model(state: TrainState) -> Model:
        return Model(state.params, embed_fn, preparation(config), matrix_fn)

    return System(init, sample, loss, make_optimizer(config), model)


def preparation(config: Config) -> Preparation:
    """Pictures have dark ink on light paper. Prepared images have ink 1 and paper 0.

    Distortions fill what moves in from outside with 0, which is paper.
    """
    size = (105, 105) if config.size == "full" else (53, 53)
    return Preparation(size, invert=True)


def grey_values(config: Config, images: jax.Array) -> jax.Array:
    """What the encoder sees of prepared images, in which ink is 1 and paper is 0."""
    if config.pixels == "paper-255":
        return 255 * (1 - images)
    return 255 * images if config.pixels == "ink-255" else images


def make_encoder(config: Config) -> KochConv:
    """The paper's network, or one for images of half the size."""
    kernel_sizes = (10, 7, 4, 4) if config.size == "full" else (5, 4, 3, 3)
    return KochConv(kernel_sizes=kernel_sizes, remat=config.remat)


def sample_pairs(config: Config, key: jax.Array, data: ClassData) -> PairBatch:
    """Draws different characters; every other one is paired with its own character."""
    anchor_key, partner_key, affine_key = jax.random.split(key, 3)
    num = config.batch_size
    if num > data.classes.num_classes:
        raise UserError(
            f"--batch-size: there are {data.classes.num_classes} characters; got {num}"
        )
    anchors = samplers.sample_batch(anchor_key, data.classes, num, 1).examples
    same = jnp.arange(num) % 2 == 0
    partners = samplers.sample_partners(partner_key, data.classes, anchors, same)
    images = gather(data.images, jnp.concatenate([anchors, partners]))
    if config.affine:
        distortion = augment.KOCH_AFFINE
        if config.size == "half":
            half = distortion.max_shift / 2
            distortion = dataclasses.replace(distortion, max_shift=half)
        keys = jax.random.split(affine_key, len(images))
        images = jax.vmap(lambda key, image: augment.random_affine(key, image, distortion))(
            keys, images
        )
    images = images.reshape(2, num, *images.shape[1:])
    return PairBatch(images, same, jnp.ones(num, bool))


def regularizer(config: Config, params: Any) -> jax.Array:
    """The weighted sums of squared weights of the encoder, without biases."""
    total = jnp.zeros(())
    for name, layer in params.items():
        weight = config.l2_convolution if name.startswith("Conv") else config.l2_dense
        total += weight * jnp.sum(layer["kernel"] ** 2)
    return total


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's Adam, or the paper's momentum with both of its schedules."""
    first_rate = config.learning_rate
    if first_rate is None:
        first_rate = 6e-5 if config.schedule == "tutorial" else 1e-2
    if config.schedule == "tutorial":
        return optimizers.adam(first_rate)
    epoch = PAIRS_PER_EPOCH / config.batch_size

    def rate(step: jax.Array) -> jax.Array:
        return first_rate * 0.99 ** jnp.floor(step / epoch)

    def momentum(step: jax.Array) -> jax.Array:
        share = jnp.minimum(jnp.floor(step / epoch) / 200, 1.0)
        return 0.5 + share * (config.momentum - 0.5)

    return optax.chain(scheduled_momentum(momentum), optax.scale_by_learning_rate(rate))


class Momentum(NamedTuple):
    """The number of updates, and the decaying sum of the gradients."""

    step: jax.Array
    sum: Any


def scheduled_momentum(momentum_fn: optax.Schedule) -> optax.GradientTransformation:
    """Momentum that changes with the step, as in Koch et al. 2015, section 3.2."""

    def init(params: Any) -> Momentum:
        return Momentum(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: Momentum, params: Any = None) -> Any:
        momentum = momentum_fn(state.step)
        updates = jax.tree.map(lambda g, s: g + momentum * s, gradients, state.sum)
        return updates, Momentum(state.step + 1, updates)

    return optax.GradientTransformation(init, update)


# Evaluation -----------------------------------------------------------------------------


def task_accuracy(
    name: str,
    model: Model,
    embeddings: jax.Array,
    index: samplers.ClassIndex,
    num_episodes: int,
) -> EpisodeAccuracy:
    """Accuracy in 20-way one-shot tasks of one name in `TASKS`."""
    return few_shot.task_accuracy(
        evaluation_key(name),
        model,
        embeddings,
        index,
        num_episodes=num_episodes,
        within_alphabet=name == "within_alphabet",
    )


def make_evaluation(config: Config, system: System, validation: Characters) -> Evaluation:
    """Evaluates a state at each checkpoint; compiled once for the whole run."""
    drawings = omniglot.first_drawings(validation, config.num_drawings)
    images = prepare(drawings.images, preparation(config))
    index = drawings.class_index()

    @jax.jit
    def accuracies(state: TrainState, embeddings: jax.Array) -> list[EpisodeAccuracy]:
        model = system.model(state)
        return [
            task_accuracy(name, model, embeddings, index, CHECKPOINT_EPISODES)
            for name in TASKS
        ]

    def evaluate(state: TrainState) -> dict[str, float]:
        embeddings = system.model(state).embed_prepared(images, batch_size=64)
        metrics: dict[str, float] = {}
        with use_devices_of(state.params):
            found = accuracies(state, embeddings)
        for name, accuracy in zip(TASKS, found, strict=True):
            metrics |= few_shot.as_metrics(f"{name}_accuracy", accuracy)
        return metrics

    return Evaluation(evaluate, "within_alphabet_accuracy", config.patience)


def final_metrics(config: Config, model: Model, threshold: float) -> dict[str, float]:
    """The tutorial's random tasks, tasks within alphabets, and pairs of test drawings."""
    metrics: dict[str, float] = {}
    for name, part, suffix in FINAL_TASKS:
        characters = omniglot.load(part)
        embeddings = model.embed(characters.images, batch_size=64)
        index = characters.class_index()
        accuracy = task_accuracy(name, model, embeddings, index, config.num_episodes)
        metrics |= few_shot.as_metrics(f"{name}_accuracy{suffix}", accuracy)
    drawings = omniglot.first_drawings(omniglot.load("test"), NUM_COMPARED)
    pairs = few_shot.draw_pairs(drawings)
    compared = few_shot.drawing_distances(model, drawings, pairs)
    return metrics | pair_metrics(compared, threshold)


def main(config: Config) -> None:
    """Trains with an evaluation at each checkpoint, then evaluates the best state."""
    if config.batch_size % 2:
        raise UserError(f"--batch-size must be even; got {config.batch_size}")
    config = settled(config)
    if not loop.start(config):
        return
    background, validation = omniglot.load("background"), omniglot.load("validation")
    images = prepare(background.images, preparation(config))
    data = ClassData(jnp.asarray(images), background.class_index())
    system = build(config)
    evaluation = make_evaluation(config, system, validation)
    trained = loop.train(config, system, data, evaluation=evaluation)
    print("evaluating ...")
    model = system.model(trained.best)
    drawings = omniglot.first_drawings(validation, NUM_COMPARED)
    model, pairs = few_shot.calibrate_drawings(
        model,
        drawings,
        few_shot.draw_pairs(drawings),
        "pairs of drawings of the validation alphabets",
    )
    metrics = final_metrics(config, model, threshold_of(model))
    loop.finish(config, metrics, trained, model)
    write_report(config, metrics, pairs, threshold_of(model))


def write_report(
    config: Config, metrics: dict[str, float], pairs: PairDistances, threshold: float
) -> None:
    """Writes the page: distances of validation pairs, their ROC curve, the training."""
    values, same = np.asarray(pairs.distances), np.asarray(pairs.same)
    names = ("random_20_way_accuracy", "within_alphabet_accuracy")
    sections = [
        report.Section(
            "Minus the log-odds of the same character",
            "Pairs of the validation alphabets. The line is their best threshold.",
            report.distance_histogram(values, same, threshold),
        ),
        report.roc_section({"validation pairs": roc_curve(*pairs)}),
        report.Section(
            "One-shot accuracy during training",
            "20-way tasks over all validation characters, and within an alphabet.",
            report.curves(config.directory, names, log="evaluations.jsonl"),
        ),
        report.training_section(config.directory, ("cross_entropy", "accuracy")),
    ]
    title = "Koch's siamese network on Omniglot"
    report.write_report(config.directory, title, metrics, sections)


if __name__ == "__main__":
    command_line(main, Config)
