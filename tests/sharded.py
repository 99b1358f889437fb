"""A batch spread over devices: losses of it, and the modes of JAX in which to compute them.

All losses of a table are computed by one program, each with parameters of its own, so that
one compilation gives the gradients of all.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from siamese_jax import distances, losses, miners, relations
from siamese_jax.reductions import mean
from siamese_jax.relations import Items
from tests.cases import CASES, Kind, Reach

AXIS = "data"
NUM_ROWS = 16

# Losses ----------------------------------------------------------------------------------


class Loss(NamedTuple):
    """A loss of a matrix, and what makes the matrix."""

    fn: Callable
    matrix_fn: Callable


def matrix_of(loss_fn: Callable) -> Callable:
    """Cosines for a loss of similarities, Euclidean distances for one of distances."""
    if next(iter(inspect.signature(loss_fn).parameters)) == "similarities":
        return distances.cosine_similarity_matrix
    return distances.euclidean_distance_matrix


def losses_of(*reaches: Reach) -> dict[str, Loss]:
    """The losses of matrices whose terms have this reach, of the table of contracts."""
    kinds = (Kind.PAIR_LOSS, Kind.MATRIX_LOSS)
    names = [
        case.name.removeprefix("losses.")
        for case in CASES
        if case.kind in kinds and case.reach in reaches
    ]
    fns = {name: getattr(losses, name) for name in names if name != "both_directions"}
    return {name: Loss(fn, matrix_of(fn)) for name, fn in fns.items()}


def triplets_of(negatives_fn: Callable) -> Callable:
    def loss(distances, same, *, where, reduce_fn=mean):
        negatives = negatives_fn(distances, same, where=where)
        return losses.triplet_loss(
            distances, negatives.distances, where=negatives.where, reduce_fn=reduce_fn
        )

    return loss


def mined_triplets(distances, same, *, where, reduce_fn=mean):
    mined = miners.mine_triplets(
        distances, same, positive="easy", negative="semi-hard", where=where
    )
    return losses.triplet_loss(
        mined.positive.distances,
        mined.negative.distances,
        where=mined.where,
        reduce_fn=reduce_fn,
    )


def masked_by(mask_fn: Callable, loss_fn: Callable) -> Callable:
    def loss(matrix, same, *, where, reduce_fn=mean):
        mask = mask_fn(matrix, same, where=where)
        return loss_fn(matrix, same, where=mask, reduce_fn=reduce_fn)

    return loss


EUCLIDEAN = distances.euclidean_distance_matrix
COSINE = distances.cosine_similarity_matrix
OPTIONS = {
    "contrastive, apart": Loss(partial(losses.contrastive_loss, apart=True), EUCLIDEAN),
    "all triplets, soft": Loss(partial(losses.all_triplets_loss, soft=True), EUCLIDEAN),
    "all triplets, active": Loss(
        partial(losses.all_triplets_loss, active_only=True), EUCLIDEAN
    ),
    "supervised, inside": Loss(
        partial(losses.supervised_contrastive_loss, inside=True), COSINE
    ),
}
BOTH = {
    f"{fn.__name__}, both": Loss(losses.both_directions(fn), matrix_of(fn))
    for fn in (
        losses.info_nce_loss,
        losses.supervised_contrastive_loss,
        losses.hard_triplet_loss,
        losses.semi_hard_triplet_loss,
    )
}
MINED = {
    "hard negatives": Loss(triplets_of(miners.hard_negatives), EUCLIDEAN),
    "semi-hard negatives": Loss(triplets_of(miners.semi_hard_negatives), EUCLIDEAN),
    "one triplet for each anchor": Loss(mined_triplets, EUCLIDEAN),
    "pair margins": Loss(
        masked_by(
            partial(miners.pair_margin_mask, negative_margin=1.5), losses.contrastive_loss
        ),
        EUCLIDEAN,
    ),
    "nearest": Loss(
        masked_by(
            partial(miners.nearest_mask, num_positives=1, num_negatives=2),
            losses.margin_loss,
        ),
        EUCLIDEAN,
    ),
    "multi-similarity": Loss(
        masked_by(miners.multi_similarity_mask, losses.multi_similarity_loss), COSINE
    ),
    "false negatives": Loss(
        masked_by(miners.false_negative_mask, losses.hard_triplet_loss), EUCLIDEAN
    ),
}

# The batch -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Inputs of an encoder and what is known of them, as rows and as columns."""

    inputs: np.ndarray
    items: Items
    others: np.ndarray
    other_items: Items


def batch() -> Batch:
    """Unequal classes, devices with different numbers of valid items, and duplicates.

    Rows 3 and 12, 9 and 0 are the same images, on other devices if there are two or more.
    Some of the columns are images of the rows.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, NUM_ROWS)
    ids = np.arange(NUM_ROWS)
    ids[[3, 9]] = [12, 0]
    valid = np.ones(NUM_ROWS, bool)
    valid[[1, 14, 15]] = False
    other_ids = np.where(np.arange(NUM_ROWS) % 5 == 0, ids[::-1], 100 + ids)
    inputs, others = rng.normal(size=(2, NUM_ROWS, 5))
    return Batch(
        inputs,
        Items(labels, ids, valid),
        others,
        Items(rng.permutation(labels), other_ids, valid[::-1].copy()),
    )


def parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"weights": rng.normal(size=(5, 3)), "bias": 0.3 * rng.normal(size=(1, 3))}


def encode(params, inputs):
    return jnp.tanh(inputs @ params["weights"] + params["bias"])


# One device and many ---------------------------------------------------------------------


def dense(loss: Loss, *, views: bool = False) -> Callable:
    """The loss of the whole batch with itself, or of two views, as it is written."""

    def value(params, batch):
        rows = columns = encode(params, batch.inputs)
        column_items = batch.items
        if views:
            columns, column_items = encode(params, batch.others), batch.other_items
        same, where = relations.between(batch.items, column_items)
        return loss.fn(loss.matrix_fn(rows, columns), same, where=where)

    return value


def sharded(form: Callable, loss: Loss, *, views: bool = False, **options) -> Callable:
    """The loss of a share of the batch by `sharding.gathered` or `sharding.ring`."""
    loss_fn = form(loss.fn, loss.matrix_fn, axis_name=AXIS, **options)

    def value(params, batch):
        columns = (encode(params, batch.others), batch.other_items) if views else ()
        return loss_fn(encode(params, batch.inputs), batch.items, *columns)

    return value


def stacked(losses_of_params: Sequence[Callable]) -> Callable:
    """Values and gradients of several losses, in one program."""

    def total(copies, batch):
        values = [fn(own, batch) for fn, own in zip(losses_of_params, copies, strict=True)]
        return sum(values), jnp.stack(values)

    def values_and_gradients(params, batch):
        copies = [params] * len(losses_of_params)
        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(copies, batch)
        return values, jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

    return values_and_gradients


def averaged(step: Callable) -> Callable:
    """The recipe: the loss is differentiated, the gradient averaged over the devices."""

    def on_device(params, batch):
        values, gradients = step(params, batch)
        return values, lax.pmean(gradients, AXIS)

    return on_device


def mesh_of(num_devices: int, axis_type: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), (AXIS,), axis_types=(axis_type,), devices=devices)


def run(mode: str, num_devices: int, step: Callable):
    """What a step gives with the parameters and the batch, in a mode of JAX.

    The modes are "one device", "jit", "check_vma", "no check_vma" and "pmap".
    """
    args = parameters(), batch()
    if mode == "pmap":
        program = jax.pmap(
            averaged(step),
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=jax.devices()[:num_devices],
        )
        cut = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), args[1])
        return compiled(program, args[0], cut)(args[0], cut)
    if mode == "one device":
        return compiled(jax.jit(step), *args)(*args)
    mesh, share, all_of_it = mesh_of(num_devices), jax.P(AXIS), jax.P()
    if mode == "jit":
        spread = jax.tree.map(
            lambda x: jax.device_put(x, jax.NamedSharding(mesh, share)), args[1]
        )
        return compiled(jax.jit(step), args[0], spread)(args[0], spread)
    program = jax.jit(
        jax.shard_map(
            averaged(step),
            mesh=mesh,
            in_specs=(all_of_it, share),
            out_specs=all_of_it,
            check_vma=mode == "check_vma",
        )
    )
    return compiled(program, *args)(*args)


# of XLA, to compile in a fifth of the time what runs once; newer versions lack the second
QUICKLY = {"xla_backend_optimization_level": 0}
AND_PLAINLY = {"xla_cpu_use_fusion_emitters": False}


def compiled(program: Callable, *args) -> Callable:
    lowered = program.lower(*args)
    try:
        return lowered.compile(QUICKLY | AND_PLAINLY)
    except jax.errors.JaxRuntimeError:
        return lowered.compile(QUICKLY)


def assert_equal(found, wanted, names: Sequence[str]):
    """Values and gradients equal to 1e-12, and gradients that are not all 0."""
    (values, gradients), (wanted_values, wanted_gradients) = found, wanted
    for k, name in enumerate(names):
        own, right = (
            np.concatenate([np.ravel(leaf[k]) for leaf in jax.tree.leaves(tree)])
            for tree in (gradients, wanted_gradients)
        )
        assert np.abs(right).max() > 1e-3, f"{name} has no gradient"
        np.testing.assert_allclose(values[k], wanted_values[k], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(own, right, rtol=1e-12, atol=1e-12, err_msg=name)
