"""Rows of the table: training, batching, episodes, verification."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamese_jax import (
    batching,
    episodes,
    training,
    verification,
)
from tests import oracles
from tests.cases.case import KEY, Case, f32, key
from tests.cases.losses import entry_arrays
from tests.cases.relations import FOUR
from tests.cases.samplers import INDEX

OPTIMIZER = optax.adam(0.1)


def slope_loss(params, statistics, batch, key):
    loss = jnp.mean((params * batch["x"] - batch["y"]) ** 2)
    return loss, (statistics, {"slope": params})


def slope_batch(key, step, data):
    rows = jax.random.randint(key, (4,), 0, len(data["x"]))
    return jax.tree.map(lambda array: array[rows], data)


def slope_data(rng):
    return {"x": f32(rng.normal(size=8)), "y": f32(rng.normal(size=8))}


TRAINING = [
    Case(
        "training.init_state",
        lambda params: training.init_state(params, OPTIMIZER),
        lambda rng: (f32(rng.normal(size=3)),),
    ),
    Case(
        "training.with_compute_dtype",
        training.with_compute_dtype(lambda params, x: params * x, jnp.bfloat16),
        # products of whole numbers that bfloat16 has exactly
        lambda rng: tuple(f32(rng.integers(1, 16, size=6)) for _ in range(2)),
        oracle=lambda params, x: np.asarray(params) * np.asarray(x),
    ),
    Case(
        "training.train_step",
        lambda key, params, batch: training.train_step(
            key,
            training.init_state(params, OPTIMIZER),
            batch,
            loss_fn=slope_loss,
            optimizer=OPTIMIZER,
        ),
        lambda rng: (key(rng), f32(rng.normal()), slope_data(rng)),
    ),
    Case(
        "training.train_steps",
        lambda key, params, data, num_steps=3: training.train_steps(
            key,
            training.init_state(params, OPTIMIZER),
            data,
            num_steps=num_steps,
            batch_fn=slope_batch,
            loss_fn=slope_loss,
            optimizer=OPTIMIZER,
        ),
        lambda rng: (key(rng), f32(rng.normal()), slope_data(rng)),
        misuse=(
            (
                (KEY, f32(0.0), slope_data(np.random.default_rng(0))),
                {"num_steps": 0},
                ValueError,
                "num_steps must be at least 1; got 0",
            ),
        ),
    ),
    Case(
        "batching.map_batches",
        lambda x, batch_size=3: batching.map_batches(
            lambda rows: 2 * rows["x"], {"x": x}, batch_size=batch_size
        ),
        lambda rng: (f32(rng.normal(size=(7, 2))),),
        oracle=lambda x: 2 * np.asarray(x),
        misuse=(
            ((jnp.ones((0, 2)),), {}, ValueError, r"at least 1; got \[0\]"),
            ((jnp.ones((3, 2)),), {"batch_size": 0}, ValueError, "batch_size must be"),
        ),
    ),
]

_EPISODE_OPTIONS = {"num_episodes": 5, "num_ways": 2}

EPISODES = [
    Case(
        "episodes.prototypes",
        episodes.prototypes,
        lambda rng: (f32(rng.normal(size=(4, 3, 2))),),
        oracle=oracles.prototypes,
        gradient=(0,),
        misuse=(
            ((jnp.ones((3, 2)),), {}, ValueError, "support must have 3 axes"),
            ((jnp.ones((3, 2, 2), int),), {}, TypeError, "support must be a floating"),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "episodes.classify",
        episodes.classify,
        lambda rng: (f32(rng.normal(size=(4, 3, 2))), f32(rng.normal(size=(6, 2)))),
        oracle=oracles.classify,
        misuse=(
            ((jnp.ones((3, 2)), jnp.ones((3, 2))), {}, ValueError, "support must have 3"),
            (
                (jnp.ones((3, 1, 2)), jnp.ones((3, 4))),
                {},
                ValueError,
                "must have 4 columns",
            ),
            (
                (jnp.ones((3, 1, 2)), jnp.ones((3, 2), int)),
                {},
                TypeError,
                "must be a float",
            ),
        ),
    ),
    Case(
        "episodes.episode_accuracy",
        episodes.episode_accuracy,
        lambda rng: (key(rng), f32(rng.normal(size=(14, 2))), INDEX),
        options=(_EPISODE_OPTIONS,),
        misuse=(
            ((KEY, jnp.ones((13, 2)), INDEX), _EPISODE_OPTIONS, ValueError, "14 rows"),
            ((KEY, jnp.ones(14), INDEX), _EPISODE_OPTIONS, ValueError, "must have 2 axes"),
            (
                (KEY, jnp.ones((14, 2), int), INDEX),
                _EPISODE_OPTIONS,
                TypeError,
                "floating",
            ),
            (
                (KEY, jnp.ones((14, 2)), INDEX),
                _EPISODE_OPTIONS | {"num_episodes": 1},
                ValueError,
                "num_episodes must be at least 2",
            ),
            (
                (KEY, jnp.ones((14, 2)), INDEX),
                _EPISODE_OPTIONS | {"num_shots": 2},
                ValueError,
                "class 5 has 2",
            ),
            (
                (KEY, jnp.ones((14, 2)), INDEX),
                _EPISODE_OPTIONS | {"num_asked": 3},
                ValueError,
                "num_asked must be from 1 to 2; got 3",
            ),
        ),
    ),
]


def judged(rng):
    """Distances of two kinds, with ties."""
    same = rng.random(40) < 0.5
    gaps = np.round(rng.normal(size=40) + np.where(same, 0, 1), 1)
    return f32(gaps - gaps.min()), jnp.asarray(same)


def where_and_weights(rng, args):
    return entry_arrays(rng, args)


_D, _S = jnp.ones(4), jnp.ones(4, bool)
_JUDGED_MISUSE = (
    ((_D[:, None], _S[:, None]), {}, ValueError, "distances must have 1 axes"),
    ((_D, _S[:3]), {}, ValueError, r"same must have shape \(4,\)"),
    ((_S, _S), {}, TypeError, "distances must be a floating"),
    ((_D, _D), {}, TypeError, "same must be a boolean"),
    ((_D, _S), {"weights": _D[:3]}, ValueError, "weights must have shape"),
    ((_D, _S), {"where": _S[:3]}, ValueError, "where"),
)


def _bootstrap(key, distances, same, identities, **options):
    options = {"num_identities": 6, "num_samples": 20} | options
    return verification.bootstrap_interval(
        key, verification.roc_area, distances, same, identities, **options
    )


VERIFICATION = [
    Case(
        "verification.decision_rates",
        verification.decision_rates,
        judged,
        options=({"threshold": 1.0}, {"threshold": 1.3}),
        arrays=where_and_weights,
        oracle=oracles.decision_rates,
        misuse=tuple((a, k | {"threshold": 1.0}, e, m) for a, k, e, m in _JUDGED_MISUSE),
        traits=frozenset({"nan"}),
    ),
    *(
        Case(
            f"verification.{fn.__name__}",
            fn,
            judged,
            arrays=arrays,
            oracle=oracle,
            misuse=_JUDGED_MISUSE,
            traits=frozenset({"nan"}),
        )
        for fn, oracle, arrays in (
            (verification.roc_curve, oracles.roc_curve, None),
            (verification.roc_area, oracles.roc_area, where_and_weights),
            (verification.equal_error_rate, oracles.equal_error_rate, where_and_weights),
            (verification.best_threshold, oracles.best_threshold, where_and_weights),
            (verification.fit_logistic, oracles.fit_logistic, where_and_weights),
        )
    ),
    Case(
        "verification.transferred_threshold",
        lambda *args: verification.transferred_threshold(args[:2], args[2:]),
        lambda rng: (*judged(rng), *judged(rng)),
        oracle=lambda *args: oracles.transferred_threshold(args[:2], args[2:]),
    ),
    Case(
        "verification.bootstrap_interval",
        _bootstrap,
        lambda rng: (key(rng), *judged(rng), jnp.asarray(rng.integers(6, size=(2, 40)))),
        misuse=(
            ((KEY, _D, _S, FOUR), {}, ValueError, r"identities must have shape \(2, 4\)"),
            (
                (KEY, _D, _S, jnp.ones((2, 4))),
                {},
                TypeError,
                "identities must be an integer",
            ),
            ((KEY, _D, _S, FOUR), {"level": 1.0}, ValueError, "level must be in"),
            ((KEY, _D, _S, FOUR), {"num_identities": 1}, ValueError, "num_identities"),
            ((KEY, _D, _S, FOUR), {"num_samples": 1}, ValueError, "num_samples"),
        ),
    ),
]
