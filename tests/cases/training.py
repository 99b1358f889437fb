"""Rows of the contract table for training and batching."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamese_jax import batching, training
from tests.cases.case import Case, Contract, Inputs, Kind, Refusal, f32, key

OPTIMIZER = optax.adam(0.1)


def slope_loss(params, statistics, batch, key):
    loss = jnp.mean((params * batch["x"] - batch["y"]) ** 2)
    return loss, (statistics, {"slope": params})


def named_loss(params, statistics, batch, key):
    return params, (statistics, {"loss": params})


def slope_batch(key, step, data):
    rows = jax.random.randint(key, (4,), 0, len(data["x"]))
    return jax.tree.map(lambda array: array[rows], data)


def slope_data(rng):
    return {"x": f32(rng.normal(size=8)), "y": f32(rng.normal(size=8))}


def started(rng):
    state = training.init_state(f32(rng.normal()), OPTIMIZER)
    return Inputs((key(rng), state, slope_data(rng)))


STARTED = started(np.random.default_rng(0)).args
_STEP = {"loss_fn": slope_loss, "optimizer": OPTIMIZER}

TRAINING = [
    Case(
        "training.init_state",
        training.init_state,
        Kind.TREES,
        lambda rng: Inputs((f32(rng.normal(size=3)),)),
        options=({"optimizer": OPTIMIZER},),
        oracle=lambda params, optimizer: (0, params, 0, np.zeros(3), np.zeros(3)),
        exempt={Contract.REFUSALS: "takes any parameters that its optimizer takes"},
    ),
    Case(
        "training.with_compute_dtype",
        training.with_compute_dtype(lambda params, x: params * x, jnp.bfloat16),
        Kind.MAP,
        # products of whole numbers that bfloat16 has exactly
        lambda rng: Inputs(tuple(f32(rng.integers(1, 16, size=6)) for _ in range(2))),
        oracle=lambda params, x: np.asarray(params) * np.asarray(x),
        exempt={
            Contract.GRADIENT: "computes in bfloat16, too coarse for differences",
            Contract.REFUSALS: "takes any trees that its function takes",
        },
    ),
    Case(
        "training.train_step",
        training.train_step,
        Kind.RANDOM,
        started,
        options=(_STEP,),
        refusals=(
            Refusal(
                "a metric named loss",
                STARTED,
                {"loss_fn": named_loss},
                ValueError,
                'must not name a metric "loss"',
            ),
        ),
    ),
    Case(
        "training.train_steps",
        training.train_steps,
        Kind.RANDOM,
        started,
        options=({"num_steps": 3, "batch_fn": slope_batch, **_STEP},),
        refusals=(
            Refusal(
                "no steps",
                STARTED,
                {"num_steps": 0},
                ValueError,
                "num_steps must be at least 1; got 0",
            ),
        ),
    ),
    Case(
        "training.batch_key",
        training.batch_key,
        Kind.RANDOM,
        lambda rng: Inputs((key(rng), rng.integers(9).astype(np.int32))),
        exempt={Contract.REFUSALS: "takes any number that `fold_in` takes"},
    ),
    Case(
        "batching.map_batches",
        partial(batching.map_batches, lambda rows: 2 * rows["x"]),
        Kind.MAP,
        lambda rng: Inputs(({"x": f32(rng.normal(size=(7, 2)))},)),
        options=({"batch_size": 3},),
        oracle=lambda inputs, batch_size: 2 * np.asarray(inputs["x"]),
        refusals=(
            Refusal(
                "no rows",
                ({"x": jnp.ones((0, 2))},),
                {},
                ValueError,
                r"at least 1; got \[0\]",
            ),
            Refusal(
                "an empty batch",
                ({"x": jnp.ones((3, 2))},),
                {"batch_size": 0},
                ValueError,
                "batch_size must be",
            ),
        ),
    ),
]
