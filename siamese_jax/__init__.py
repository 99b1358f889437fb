"""Siamese networks, one-shot recognition and metric learning in JAX, as pure functions.

A loss is computed in steps, each of which is a pure function of arrays::

    labels -> relation -> matrix -> (miner) -> loss -> reduction

>>> import jax.numpy as jnp
>>> import siamese_jax as sj
>>> embeddings = jnp.array([[0.0], [1.0], [3.0]])  # computed by your network
>>> labels = jnp.array([0, 0, 1])

The relation says which entries of a matrix are of one class, and which are compared at all
(an item is not compared with itself). The matrix holds the distances of all pairs:

>>> same, where = sj.relations.within(sj.relations.Items(labels))
>>> matrix = sj.distances.euclidean_distance_matrix(embeddings, embeddings)
>>> print(matrix)
[[0. 1. 3.]
 [1. 0. 2.]
 [3. 2. 0.]]

A loss over pairs takes these three. By default it is the mean over the compared pairs:

>>> print(sj.losses.contrastive_loss(matrix, same, where=where, margin=4.0))
1.0

A triplet loss also needs a negative for each positive, which a miner selects. Another
reduction than the mean is passed as `reduce_fn`:

>>> negatives = sj.miners.hard_negatives(matrix, same, where=where)
>>> loss = sj.losses.triplet_loss(
...     matrix, negatives.distances, where=negatives.where, margin=2.0,
...     reduce_fn=sj.reductions.mean_and_count)
>>> print(loss.mean, loss.num_terms)  # (1 - 3 + 2) and (1 - 2 + 2)
0.5 2

The public modules are the namespace. They are loaded when they are first used:

* Losses: `distances`, `relations`, `miners`, `losses`, `reductions`, `regularizers`;
  `tiling` computes them in little memory, `sharding` over several devices.
* Data: `samplers` (pairs, triplets, batches and episodes), `augment`, `images`.
* Networks: `siamese` (one network for two inputs), `encoders`, `convolution`.
* Training and use: `training`, `memory` (a queue of embeddings), `whitening` (embeddings of
  one class made alike after the training), `batching`, `model`, `identification`, `errors`.
* Evaluation: `verification` (ROC, operating points, costs, calibration, open sets),
  `episodes` (N-way tasks of a few examples), `retrieval` (nearest neighbours, recall@k,
  MAP@R), `health` (collapse of embeddings), `evaluation` (all of these at once).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siamese_jax import (
        augment,
        batching,
        convolution,
        distances,
        encoders,
        episodes,
        errors,
        evaluation,
        health,
        identification,
        images,
        losses,
        memory,
        miners,
        model,
        reductions,
        regularizers,
        relations,
        retrieval,
        samplers,
        sharding,
        siamese,
        tiling,
        training,
        verification,
        whitening,
    )

__version__ = "0.2.0"

__all__ = [
    "augment",
    "batching",
    "convolution",
    "distances",
    "encoders",
    "episodes",
    "errors",
    "evaluation",
    "health",
    "identification",
    "images",
    "losses",
    "memory",
    "miners",
    "model",
    "reductions",
    "regularizers",
    "relations",
    "retrieval",
    "samplers",
    "sharding",
    "siamese",
    "tiling",
    "training",
    "verification",
    "whitening",
]


def __getattr__(name: str) -> Any:
    """Imports a public module when it is first used (PEP 562)."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names of the public modules too, loaded or not."""
    return sorted({*globals(), *__all__})
