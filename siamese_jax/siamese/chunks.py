"""Large batches through an encoder whose activations fit for a part of them alone.

A contrastive loss needs the embeddings of the whole batch, which are small. The activations
of the encoder are not, so they are computed for one chunk of the batch at a time, forward
and again backward:

>>> import jax
>>> import jax.numpy as jnp
>>> x = jnp.arange(6.0)
>>> encode = in_chunks(lambda params, x: params * x, 3)
>>> print(jax.grad(lambda params: jnp.sum(encode(params, x)))(2.0))
15.0
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from siamese_jax._checks import check_at_least
from siamese_jax.siamese.inputs import ApplyFn


def in_chunks(apply_fn: ApplyFn, num_chunks: int) -> ApplyFn:
    """Applies an encoder to equal chunks of a batch, one after the other.

    Values and gradients are those of the whole batch, to rounding, under any loss of the
    embeddings. The memory for activations is that of one chunk: the backward pass computes
    those of each chunk once more, which takes about a third more time.

    Each row of the result must depend on the same row of the inputs alone. Batch
    normalization in training does not: the statistics of a chunk are not those of the
    batch, and an encoder that returns them is refused. Statistics as given, with
    `train=False`, do no harm. An encoder with dropout takes one key for each example, so
    that the masks do not depend on the number of chunks::

        def embed_one(params, x, key):
            embeddings, _ = apply(params, x[None], key=key, train=True)
            return embeddings[0]

        embed = in_chunks(jax.vmap(embed_one, in_axes=(None, 0, 0)), 8)
        embeddings = embed(params, images, jax.random.split(key, len(images)))

    For several inputs it stands inside: `twin(in_chunks(apply_fn, 8))`.

    Args:
      apply_fn: `apply_fn(params, x, *extras) -> embeddings`, on any pytrees. The arrays of
        its result have one row for each example. To see this, it is also traced, but not
        run, for twice as many rows.
      num_chunks: Number of chunks. The first of m chunks has the rows 0, m, 2 m, ..., so
        that over several devices with consecutive rows each device computes rows of its
        own in every chunk.

    Returns:
      A function of `(params, x, *extras)`. The arrays of `x` and of the extras have one
      row for each example. It raises ValueError if their numbers of rows differ or are not
      a multiple of `num_chunks`, if an extra is one key for all examples, or if an array
      that `apply_fn` returns has not one row for each example, such as statistics.

    Raises:
      ValueError: If `num_chunks` is below 1.

    Reference:
      Gao et al. Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.
      2021 (GradCache), whose gradient this is, by recomputation instead of a second pass.

    >>> encode = in_chunks(lambda params, x: params + x, 2)
    >>> print(encode(10.0, jnp.array([1.0, 2.0, 3.0, 4.0])))
    [11. 12. 13. 14.]
    """
    check_at_least("num_chunks", num_chunks, 1)

    def of_chunk(params: PyTree, rows: tuple[PyTree, ...]) -> Any:
        return apply_fn(params, *rows)

    # inside a loop nothing is shared between the passes, so no barrier is needed
    recomputed = jax.checkpoint(of_chunk, prevent_cse=False)

    def apply(params: PyTree, x: PyTree, *extras: PyTree) -> Any:
        num_rows = _num_rows(x)
        for number, extra in enumerate(extras):
            _check_extra(number, extra, num_rows)
        if num_rows % num_chunks:
            raise ValueError(
                f"num_chunks must divide the number of rows, {num_rows}; got {num_chunks}"
            )
        chunks = jax.tree.map(lambda array: _cut(array, num_chunks), (x, *extras))
        _check_rows_of_result(apply_fn, params, jax.tree.map(lambda a: a[0], chunks))
        outputs = lax.map(lambda rows: recomputed(params, rows), chunks)
        return jax.tree.map(lambda array: _joined(array, num_rows), outputs)

    return apply


def _cut(array: Array, num_chunks: int) -> Array:
    """Cuts the rows [n, ...] into chunks [num_chunks, n / num_chunks, ...], in turns."""
    return jnp.swapaxes(jnp.reshape(array, (-1, num_chunks, *array.shape[1:])), 0, 1)


def _joined(chunks: Array, num_rows: int) -> Array:
    """Undoes `_cut`."""
    return jnp.reshape(jnp.swapaxes(chunks, 0, 1), (num_rows, *chunks.shape[2:]))


def _num_rows(x: PyTree) -> int:
    found = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(found) != 1 or () in found or (0,) in found:
        raise ValueError(
            "x must be arrays with the same number of rows, at least 1; "
            f"got shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(x)]}"
        )
    return found.pop()[0]


def _check_extra(number: int, extra: PyTree, num_rows: int) -> None:
    for leaf in jax.tree.leaves(extra):
        shape = jnp.shape(leaf)
        if shape[:1] == (num_rows,):
            continue
        dtype = jnp.result_type(leaf)
        raw_key = dtype == jnp.uint32 and shape in ((2,), (4,))
        if raw_key or jnp.issubdtype(dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"extras[{number}] must have one key for each example, so that no draw "
                f"depends on the chunks: jax.random.split(key, {num_rows}), and an "
                f"apply_fn that maps over them; got keys of shape {shape}"
            )
        raise ValueError(
            f"extras[{number}] must have {num_rows} rows, one for each example; "
            f"got shape {shape}"
        )


def _check_rows_of_result(
    apply_fn: ApplyFn, params: PyTree, rows: tuple[PyTree, ...]
) -> None:
    """Refuses results that do not grow with the number of rows, such as statistics.

    Their number of entries may happen to be that of the rows, so two sizes are tried.
    """
    num_rows = _num_rows(rows[0])
    once = jax.eval_shape(lambda: apply_fn(params, *rows))
    twice = jax.eval_shape(
        lambda: apply_fn(params, *jax.tree.map(lambda a: jnp.concatenate([a, a]), rows))
    )
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(once), jax.tree.leaves(twice), strict=True
    ):
        lengths = leaf.shape[:1], other.shape[:1]
        if lengths != ((num_rows,), (2 * num_rows,)):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"apply_fn must return one row for each example; result{name} has shape "
                f"{leaf.shape} for {num_rows} examples. Statistics of a batch are not "
                "those of its chunks: take them as given, with train=False, or use a "
                "normalization without them"
            )
