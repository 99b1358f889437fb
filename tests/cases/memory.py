"""Rows of the contract table for memory queues."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import memory
from siamese_jax.relations import Items
from tests.cases.case import FOUR, Case, Inputs, Kind, Refusal, f32
from tests.oracles import memory as oracles

EMPTY = memory.make_queue(3, 2)
ITEMS = Items(FOUR, ids=FOUR)
ONES = jnp.ones((4, 2))


def batch(rng, num_rows):
    items = Items(
        jnp.asarray(rng.integers(0, 3, size=num_rows), jnp.int32),
        ids=jnp.asarray(rng.integers(0, 100, size=num_rows), jnp.int32),
        valid=jnp.asarray(rng.random(num_rows) < 0.7),
    )
    return f32(rng.normal(size=(num_rows, 2))), items


def used_queue(rng, size):
    """A queue that is partly filled, with its position somewhere."""
    embeddings, items = batch(rng, size)
    return memory.Queue(embeddings, items, jnp.asarray(rng.integers(size), jnp.int32))


def _misfit(name, words, *, embeddings=ONES, items=ITEMS, error=ValueError):
    return Refusal(name, (EMPTY, embeddings, items), {}, error, words)


MISFITS = (
    _misfit(
        "another dim", r"embeddings must have shape \(4, 2\)", embeddings=jnp.ones((4, 3))
    ),
    _misfit(
        "embeddings are integers",
        "embeddings must be a floating",
        embeddings=ONES.astype(int),
        error=TypeError,
    ),
    _misfit("one embedding", "embeddings must have 2 axes", embeddings=jnp.ones(2)),
    _misfit("no items", r"items must be Items", items=FOUR, error=TypeError),
    _misfit("no ids", "items.ids must be given", items=Items(FOUR)),
    _misfit("fewer ids", r"items.ids must have shape", items=Items(FOUR, ids=FOUR[:3])),
    _misfit("fewer labels", "items.labels must have", items=Items(FOUR[:3], ids=FOUR)),
    _misfit(
        "labels of another shape",
        r"items.labels must have shape \(4,\)",
        items=Items(jnp.ones((4, 5), bool), ids=FOUR),
    ),
    _misfit(
        "labels are numbers",
        "items.labels must fit the type of the queue, int32; got float32",
        items=Items(FOUR * 1.0, ids=FOUR),
        error=TypeError,
    ),
    _misfit(
        "a mask of numbers",
        "items.valid must be a boolean",
        items=ITEMS._replace(valid=FOUR),
        error=TypeError,
    ),
    _misfit(
        "a short mask",
        r"items.valid must have shape \(4,\)",
        items=ITEMS._replace(valid=FOUR[:3] > 0),
    ),
)


def _averaged(rng):
    return {"count": jnp.asarray(rng.integers(9)), "w": f32(rng.normal(size=3))}


MEMORY = [
    Case(
        "memory.make_queue",
        lambda like, size=3, dim=2: memory.make_queue(size, dim, like=like),
        Kind.TREES,
        lambda rng: Inputs((batch(rng, 4)[1],)),
        oracle=lambda like: (
            np.zeros((3, 2)),
            *(np.zeros(3) for _ in ("labels", "ids", "valid")),
            0,
        ),
        refusals=(
            Refusal("no place", (ITEMS,), {"size": 0}, ValueError, "size must be at least"),
            Refusal("no dim", (ITEMS,), {"dim": 0}, ValueError, "dim must be at least 1"),
            Refusal("no ids", (Items(FOUR),), {}, ValueError, "like.ids must be given"),
        ),
    ),
    *(
        Case(
            f"memory.{name}",
            fn,
            Kind.TREES,
            lambda rng, size=size: Inputs((used_queue(rng, size), *batch(rng, 4))),
            oracle=oracle,
            refusals=MISFITS,
        )
        for name, fn, size, oracle in (
            ("push", memory.push, 5, oracles.push),
            ("push (a batch larger than the queue)", memory.push, 2, oracles.push),
            ("joined", memory.joined, 3, oracles.joined),
        )
    ),
    Case(
        "memory.momentum_update",
        memory.momentum_update,
        Kind.TREES,
        lambda rng: Inputs((_averaged(rng), _averaged(rng), f32(rng.random()))),
        oracle=oracles.momentum_update,
        refusals=(
            Refusal(
                "other names",
                ({"w": FOUR}, {"v": FOUR}, 0.5),
                {},
                ValueError,
                "source must have the shapes of target",
            ),
            Refusal(
                "other shapes",
                (ONES, FOUR, 0.5),
                {},
                ValueError,
                r"target, \(4, 2\); got \(4,\)",
            ),
            Refusal(
                "momentum above 1", (ONES, ONES, 1.5), {}, ValueError, "0 to 1; got 1.5"
            ),
            Refusal(
                "momentum is a vector",
                (ONES, ONES, FOUR * 1.0),
                {},
                ValueError,
                "momentum must be a scalar",
            ),
        ),
    ),
]
