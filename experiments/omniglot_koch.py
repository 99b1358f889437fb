"""Koch's convolutional siamese net on Omniglot: one-shot recognition by verification.

Source:  Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image
         Recognition. 2015; and the public Keras tutorial that simplifies it.
Run:     python -m experiments.omniglot_koch --workdir runs/koch             (accelerator)
         python -m experiments.omniglot_koch --size half --num-steps 6000   (CPU)
Expect:  half size, --num-steps 1500 --learning-rate 0.0003: random_20_way_accuracy .206,
         .244, .281 at steps 500, 1000, 1500, in 20 minutes on two busy CPU cores. The full
         run has not been made yet: it needs an accelerator
Quick:   python -m experiments.omniglot_koch --size half --num-steps 200 --workdir runs/q

Trains on pairs of the 30 background alphabets: each batch has 32 different characters, half
of the pairs are the same, by two different drawings. Weighted city-block distance of 4,096
sigmoid features, binary cross-entropy, an L2 term.

--schedule tutorial   Adam 6e-5, batch 32, 20,000 steps, drawings as they are (it reports
                      85.2 % on random 20-way tasks, in 27 minutes on a GPU)
--schedule paper      stochastic gradient descent, rate falling by 1 % an epoch of 150,000
                      pairs, momentum rising from .5; meant for --batch-size 128 --affine
                      --num-steps 234000 (92.0 % on Lake's runs). The paper searched a rate
                      for each layer and does not give them: one rate serves here
--affine              the paper's distortions, new for each drawing, on the device
--size half           53 x 53 pixels and kernels 5, 4, 3, 3: some ten times cheaper

Judged at every checkpoint on the ten validation alphabets; the best state is kept, and
training stops when nothing better has come for a while. At the end random 20-way tasks over
all evaluation characters, the tutorial's test, are an easier question than tasks within an
alphabet: both are reported, by their names.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import model, omniglot, optimizers, pairs, report, run
from experiments.data import resize
from experiments.model import Model
from experiments.recipe import Data
from siamese_jax import augment, losses, samplers, training
from siamese_jax import verification as verify
from siamese_jax.batching import map_batches
from siamese_jax.distances import distance_matrix
from siamese_jax.encoders import KochConv, WeightedL1Head
from siamese_jax.episodes import EpisodeAccuracy


@dataclasses.dataclass(frozen=True)
class Config(pairs.PairConfig):
    """The tutorial's settings."""

    experiment: ClassVar[str] = "omniglot_koch"

    num_steps: int = 20_000
    steps_per_call: int = 10
    checkpoint_every: int = 500  # and judged

    size: Literal["full", "half"] = "full"
    schedule: Literal["tutorial", "paper"] = "tutorial"
    affine: bool = False
    batch_size: int = 32  # pairs
    learning_rate: float | None = None  # tutorial: 6e-5, paper: 1e-2
    momentum: float = 0.9  # paper: what it rises to, over 200 epochs
    l2_convolution: float = 2e-4
    l2_dense: float = 1e-3
    patience: int = 20  # judgements without a better one
    num_judged: int = 4  # drawings of each validation character, at checkpoints
    num_episodes: int = 10_000  # at the end


TEST_SEED = 20  # the tasks and pairs of judgement are the same for every seed
PAIRS_PER_EPOCH = 150_000


# Training -------------------------------------------------------------------------------


def image_shape(config: Config) -> tuple[int, int, int]:
    """Height, width, channels."""
    return (105, 105, 1) if config.size == "full" else (53, 53, 1)


def make_encoder(config: Config) -> KochConv:
    """The paper's network, or the same for half the size."""
    return KochConv() if config.size == "full" else KochConv(kernel_sizes=(5, 4, 3, 3))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Keras's Adam, or the paper's momentum with both its schedules."""
    if config.schedule == "tutorial":
        return optimizers.adam(config.learning_rate or 6e-5)
    epoch = PAIRS_PER_EPOCH / config.batch_size
    first_rate = config.learning_rate or 1e-2

    def rate(step: jax.Array) -> jax.Array:
        return first_rate * 0.99 ** jnp.floor(step / epoch)

    def momentum(step: jax.Array) -> jax.Array:
        share = jnp.minimum(jnp.floor(step / epoch) / 200, 1.0)
        return 0.5 + share * (config.momentum - 0.5)

    return optax.chain(scheduled_momentum(momentum), optax.scale_by_learning_rate(rate))


class Momentum(NamedTuple):
    """Number of updates, and their running sum."""

    step: jax.Array
    sum: Any


def scheduled_momentum(momentum_fn: optax.Schedule) -> optax.GradientTransformation:
    """Koch et al. 2015, section 3.2: momentum that changes with the step."""

    def init(params: Any) -> Momentum:
        return Momentum(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: Momentum, params: Any = None) -> Any:
        momentum = momentum_fn(state.step)
        updates = jax.tree.map(lambda g, s: g + momentum * s, gradients, state.sum)
        return updates, Momentum(state.step + 1, updates)

    return optax.GradientTransformation(init, update)


def initial_state(config: Config) -> training.TrainState:
    """Random parameters from the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    encoder_key, head_key = jax.random.split(key)
    encoder, image = make_encoder(config), jnp.zeros((1, *image_shape(config)))
    embedding = jnp.zeros((1, encoder.dim))
    params = {
        "encoder": jax.jit(encoder.init)(encoder_key, image)["params"],
        "head": WeightedL1Head().init(head_key, embedding, embedding)["params"],
    }
    return training.init_state(params, make_optimizer(config))


def embed(config: Config, params: Any, pictures: jax.Array) -> Any:
    """Pictures in [0, 1], dark on light, to embeddings; the net sees ink as 1."""
    return make_encoder(config).apply({"params": params["encoder"]}, 1 - pictures)


def regularizer(config: Config, params: Any) -> jax.Array:
    """The weighted sums of squared weights, without biases."""
    total = jnp.zeros(())
    for name, layer in params["encoder"].items():
        weight = config.l2_convolution if name.startswith("Conv") else config.l2_dense
        total += weight * jnp.sum(layer["kernel"] ** 2)
    return total


def loss_fn(
    config: Config, params: Any, statistics: Any, batch: pairs.Batch, key: jax.Array
) -> Any:
    """Binary cross-entropy of the weighted city-block distance, and the L2 terms."""
    a, b = pairs.embed_both(config, partial(embed, config))(params, batch.images)
    logits: Any = WeightedL1Head().apply({"params": params["head"]}, a, b)
    loss = losses.logistic_loss(logits, batch.same, where=batch.where)
    right = ((logits >= 0) == batch.same) & batch.where
    accuracy = jnp.sum(right) / jnp.sum(batch.where)
    metrics = {"cross_entropy": loss, "accuracy": accuracy}
    return loss + regularizer(config, params), (statistics, metrics)


def sample(config: Config, key: jax.Array, step: jax.Array, data: Data) -> pairs.Batch:
    """Different characters; every other one beside another drawing of itself."""
    anchor_key, partner_key, affine_key = jax.random.split(key, 3)
    num = config.batch_size
    anchors = samplers.sample_batch(anchor_key, data.classes, num, 1).examples
    same = jnp.arange(num) % 2 == 0
    partners = samplers.sample_partners(partner_key, data.classes, anchors, same)
    pictures = pairs.gather(data.images, jnp.concatenate([anchors, partners]))
    if config.affine:
        distortion = augment.KOCH_AFFINE
        if config.size == "half":
            distortion = distortion._replace(max_shift=distortion.max_shift / 2)
        pictures = augment.random_affine(affine_key, pictures, distortion, fill=1.0)
    images = pictures.reshape(2, num, *pictures.shape[1:])
    return pairs.Batch(images, same, jnp.ones(num, bool))


train_steps = run.make_steps(sample, loss_fn, make_optimizer)


# Use and evaluation ---------------------------------------------------------------------


def as_model(config: Config, params: Any) -> Model:
    """The distance is minus the log-odds of "same"."""
    head = {"params": params["head"]}

    def distance(a: jax.Array, b: jax.Array) -> Any:
        return -jnp.asarray(WeightedL1Head().apply(head, a, b))

    embed_fn = partial(embed, config)
    matrix_fn = partial(distance_matrix, distance)
    return Model(params, embed_fn, image_shape(config), distance, matrix_fn)


def load_model(config: Config) -> Model:
    """The state that was best on the validation alphabets."""
    best = run.load_best(config, jax.eval_shape(partial(initial_state, config)))
    return as_model(config, best.params)


Tasks = dict[str, EpisodeAccuracy]


def make_judge(
    config: Config, shown: omniglot.Characters
) -> Callable[[training.TrainState], dict[str, float]]:
    """Judges a state by tasks over some drawings; compiled once for the whole run."""
    images = jnp.asarray(resize(shown.images, image_shape(config)))
    index = shown.class_index()

    @jax.jit
    def judge(params: Any) -> Tasks:
        def some(images: jax.Array) -> Any:
            return embed(config, params, images / 255)

        embeddings = map_batches(some, images, batch_size=64)
        return judge_tasks(as_model(config, params), embeddings, index, 2_000)

    return lambda state: as_metrics(judge(state.params))


def as_metrics(tasks: Tasks) -> dict[str, float]:
    """Means and half intervals by their names."""
    figures: dict[str, float] = {}
    for name, accuracy in tasks.items():
        figures |= omniglot.as_metrics(f"{name}_accuracy", accuracy)
    return figures


def judge_tasks(
    learnt: Model, embeddings: jax.Array, index: samplers.ClassIndex, num_episodes: int
) -> Tasks:
    """Random 20-way tasks, over all alphabets and within one."""
    return {
        name: omniglot.task_accuracy(
            jax.random.key(TEST_SEED),
            learnt,
            embeddings,
            index,
            num_episodes=num_episodes,
            within_alphabet=name == "within_alphabet",
        )
        for name in ("random_20_way", "within_alphabet")
    }


def main(config: Config) -> None:
    """Trains, judging as it goes; at the end the test alphabets, once."""
    if not 2 <= config.num_judged <= 20 or config.batch_size % 2:
        raise run.UserError(
            "num_judged must be from 2 to 20 and batch_size even; got "
            f"{config.num_judged} and {config.batch_size}"
        )
    if not run.start(config):
        return
    background = omniglot.load("background")
    shape = image_shape(config)
    data = Data(jnp.asarray(resize(background.images, shape)), background.class_index())
    validation = omniglot.load("validation")
    shown = omniglot.some_of_each(validation, config.num_judged)
    trained = run.train(
        config,
        initial_state(config),
        data,
        partial(train_steps, config),
        images_per_step=2 * config.batch_size,
        evaluation=run.Evaluation(
            make_judge(config, shown), "within_alphabet_accuracy", config.patience
        ),
    )
    print("judging ...")
    learnt = model.load_model(config.directory)
    some = omniglot.some_of_each(validation, 8)
    kept = omniglot.judge_pairs(learnt, some, omniglot.draw_pairs(some))
    calibration = model.calibrate(kept, "pairs of drawings of the validation alphabets")
    model.save_calibration(config, calibration)
    metrics = final_metrics(config, learnt, validation, calibration.threshold)
    run.finish(config, metrics, trained)  # first: a report can be made again
    write_report(config, metrics, kept, calibration.threshold)


def final_metrics(
    config: Config, learnt: Model, validation: omniglot.Characters, threshold: float
) -> dict[str, float]:
    """The tutorial's random tasks, tasks within alphabets, and pairs of the test's."""

    def tasks(characters: omniglot.Characters) -> Tasks:
        embeddings = model.embed(learnt, characters.images, batch_size=64)
        index = characters.class_index()
        return judge_tasks(learnt, embeddings, index, config.num_episodes)

    test = omniglot.load("test")
    judged_tasks = {
        "random_20_way": tasks(omniglot.load("all"))["random_20_way"],
        "within_alphabet": tasks(validation)["within_alphabet"],
    }
    within_test = omniglot.as_metrics(
        "within_alphabet_accuracy_test", tasks(test)["within_alphabet"]
    )
    some = omniglot.some_of_each(test, 8)
    judged = omniglot.judge_pairs(learnt, some, omniglot.draw_pairs(some))
    return as_metrics(judged_tasks) | within_test | pairs.pair_metrics(judged, threshold)


def write_report(
    config: Config, metrics: dict[str, float], kept: pairs.Judged, threshold: float
) -> None:
    """Distances of validation pairs, the ROC, the climb."""
    names = ("random_20_way_accuracy", "within_alphabet_accuracy")
    away, same = (np.asarray(array) for array in kept)
    pictures = [
        report.Section(
            "Minus the log-odds of same",
            "Pairs of the validation alphabets; the line is their best threshold.",
            report.distance_histogram(away, same, threshold),
        ),
        report.Section(
            "ROC",
            "The falling line marks equal error rates.",
            report.roc({"validation pairs": verify.roc_curve(*kept)}),
        ),
        report.Section(
            "One-shot accuracy while training",
            "20-way tasks over all validation characters, and within one alphabet.",
            report.curves(config.directory, names, log="judgements.jsonl"),
        ),
        report.Section(
            "Training", "", report.curves(config.directory, ("cross_entropy", "accuracy"))
        ),
    ]
    report.write_report(config, "Koch's siamese net on Omniglot", metrics, pictures)


if __name__ == "__main__":
    run.command_line(main, Config)
