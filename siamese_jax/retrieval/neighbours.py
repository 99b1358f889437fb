"""The k nearest references of each query, exactly, without the matrix of distances."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_distance_fn,
    check_floating,
    check_integer,
    check_rank,
    check_shape,
)
from siamese_jax.batching import map_batches
from siamese_jax.distances import euclidean_distance_matrix

MatrixFn = Callable[[Array, Array], Float[Array, "n m"]]

_GROUP = 32  # neighbouring references, of which the nearest stands for all


class Neighbours(NamedTuple):
    """The nearest references of each query, the nearest first.

    Attributes:
      distances: Infinity where there are fewer than k references. NaN for a query of which
        a distance is NaN.
      indices: Position of the reference. -1 where there is none, and for a query of which a
        distance is NaN.
    """

    distances: Float[Array, "n k"]
    indices: Int[Array, "n k"]


class Candidates(NamedTuple):
    """The nearest in some of the references, and whether a distance to these is NaN."""

    nearest: Neighbours
    has_nan: Bool[Array, " n"]


References = tuple[Array, Array | None, Array | None]  # embeddings, ids, validity


def nearest(
    queries: Float[Array, "n dim"],
    references: Float[Array, "m dim"],
    *,
    k: int,
    query_ids: Int[Array, " n"] | None = None,
    reference_ids: Int[Array, " m"] | None = None,
    reference_valid: Bool[Array, " m"] | None = None,
    matrix_fn: MatrixFn = euclidean_distance_matrix,
    query_tile_size: int = 512,
    reference_tile_size: int = 8192,
    shard_references: bool = False,
) -> Neighbours:
    """Finds the k nearest references of each query.

    The search is exact. Of equal distances the reference that comes first is the nearer. A
    query is never compared with a reference of the same id. To search a set in itself, pass
    it twice, with `jnp.arange(n)` as both ids.

    Distances are computed in tiles, so that the memory is that of a few arrays
    `[query_tile_size, reference_tile_size]` besides the inputs and the result. Where a mesh
    is set (`jax.set_mesh`), its devices share the queries of a tile, as in
    `batching.map_batches`, and each needs all references. With `shard_references` each
    device keeps and searches a share of the references, and the nearest of all shares are
    put together. The result is the same.

    Args:
      queries: Embeddings to find neighbours for.
      references: Embeddings to search.
      k: Number of neighbours. It may be larger than the number of references.
      query_ids: Identity of each query, together with `reference_ids`.
      reference_ids: Identity of each reference.
      reference_valid: False for padding among the references, which is never found.
      matrix_fn: `matrix_fn(x, y)`, distances of `[n, dim]` to `[m, dim]`, each of which
        depends on its two embeddings alone. `lambda x, y: -x @ y.T` finds the largest inner
        products.
      query_tile_size: Largest number of queries that are compared at a time.
      reference_tile_size: Largest number of references that are compared at a time.
      shard_references: Whether the devices of the mesh share the references. They are best
        spread over the mesh beforehand: the share of a device is m / devices consecutive
        rows, and where m does not divide, the references are copied to pad them.

    Raises:
      ValueError: If a shape is wrong, a set is empty, a number is below 1, only one set has
        ids, `matrix_fn` clearly gives similarities, or references are to be shared without
        a mesh.
      TypeError: If embeddings are not floating-point, ids not integers, or
        `reference_valid` is not boolean.

    >>> points = jnp.array([[0.0], [5.0], [1.0], [5.0]])
    >>> found = nearest(jnp.array([[2.0]]), points, k=3)
    >>> print(found.indices, found.distances)
    [[2 0 1]] [[1. 2. 3.]]
    """
    check_two_sets(queries, references)
    check_at_least("k", k, 1)
    check_at_least("query_tile_size", query_tile_size, 1)
    check_at_least("reference_tile_size", reference_tile_size, 1)
    if (query_ids is None) != (reference_ids is None):
        raise ValueError("query_ids and reference_ids must be given together")
    if query_ids is not None and reference_ids is not None:
        check_integer("query_ids", query_ids)
        check_integer("reference_ids", reference_ids)
        check_shape("query_ids", query_ids, (len(queries),), "one for each query")
        check_shape(
            "reference_ids", reference_ids, (len(references),), "one for each reference"
        )
    if reference_valid is not None:
        check_boolean("reference_valid", reference_valid)
        check_shape(
            "reference_valid", reference_valid, (len(references),), "one for each reference"
        )
    check_distance_fn("matrix_fn", matrix_fn, references)
    if shard_references and jax.sharding.get_abstract_mesh().empty:
        raise ValueError("shard_references needs a mesh, as jax.set_mesh sets it")
    num_devices = mesh_size()
    share = -(-len(references) // num_devices) if shard_references else len(references)
    return _nearest(
        (queries, query_ids),
        (references, reference_ids, reference_valid),
        k=k,
        matrix_fn=matrix_fn,
        query_tile_size=even_tiles(
            len(queries), query_tile_size, 1 if shard_references else num_devices
        ),
        reference_tile_size=even_tiles(share, reference_tile_size, _GROUP),
        shard_references=shard_references,
    )


_STATIC = (
    "k",
    "matrix_fn",
    "query_tile_size",
    "reference_tile_size",
    "shard_references",
)


@partial(jax.jit, static_argnames=_STATIC)  # compiled once, not once a call
def _nearest(
    queries: tuple[Array, Array | None],
    references: References,
    *,
    k: int,
    matrix_fn: MatrixFn,
    query_tile_size: int,
    reference_tile_size: int,
    shard_references: bool,
) -> Neighbours:
    num_references = len(references[0])
    num_found = min(k, num_references)

    def search(first: Array | int, queries: Any, references: References) -> Candidates:
        return map_batches(
            lambda some: _of_tile(
                some,
                references,
                first,
                num_references,
                num_found=num_found,
                matrix_fn=matrix_fn,
                tile_size=reference_tile_size,
            ),
            queries,
            batch_size=query_tile_size,
        )

    if shard_references:
        found = _of_all_shares(search, queries, references, num_found)
    else:
        found = search(0, queries, references)
    return _finished(found.nearest, found.has_nan[:, None], k)


def _of_all_shares(
    search: Callable[..., Candidates], queries: Any, references: References, num_found: int
) -> Candidates:
    """What the devices of the mesh find in their shares of the references, together."""
    mesh = jax.sharding.get_abstract_mesh()
    share = -(-len(references[0]) // mesh.size)

    def padded(array: Array) -> Array:
        missing = share * mesh.size - len(array)
        return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

    def of_share(queries: Any, references: References) -> Candidates:
        found = search(lax.axis_index(mesh.axis_names) * share, queries, references)
        distances, indices = (
            lax.all_gather(part, mesh.axis_names, axis=1, tiled=True)
            for part in found.nearest
        )  # shares come in the order of their references
        has_nan = lax.pmax(found.has_nan.astype(jnp.int32), mesh.axis_names)
        return Candidates(_first(distances, indices, num_found), has_nan > 0)

    return jax.shard_map(
        of_share,
        in_specs=(PartitionSpec(), PartitionSpec(mesh.axis_names)),
        out_specs=PartitionSpec(),
        check_vma=False,  # all devices put together the same
    )(queries, jax.tree.map(padded, references))


def _of_tile(
    queries: tuple[Array, Array | None],
    references: References,
    first: Array | int,
    num_references: int,
    *,
    num_found: int,
    matrix_fn: MatrixFn,
    tile_size: int,
) -> Candidates:
    """What some queries find in references, the first of which has the number `first`."""
    embeddings, query_ids = queries
    tiles, starts = _tiles_of(references, tile_size)
    within = jnp.arange(tile_size)

    def merge(found: Candidates, tile: Any) -> tuple[Candidates, None]:
        (columns, ids, valid), start = tile
        distances = comparable(matrix_fn(embeddings, columns))
        places = start + within
        is_real = (places < len(references[0])) & (first + places < num_references)
        where = is_real[None, :]
        if valid is not None:
            where &= valid[None, :]
        if ids is not None and query_ids is not None:
            where = where & (query_ids[:, None] != ids[None, :])
        here = smallest(jnp.where(where, distances, jnp.inf), num_found)
        here = here._replace(indices=here.indices + first + start)
        candidates, indices = (
            jnp.concatenate(both, axis=1) for both in zip(found.nearest, here, strict=True)
        )
        has_nan = found.has_nan | jnp.any(where & jnp.isnan(distances), axis=1)
        return Candidates(_first(candidates, indices, num_found), has_nan), None

    dtype = jax.eval_shape(matrix_fn, embeddings, references[0]).dtype
    shape = (len(embeddings), num_found)
    nothing = Neighbours(jnp.full(shape, jnp.inf, dtype), jnp.full(shape, -1))
    no_nan = jnp.zeros(len(embeddings), bool)
    return lax.scan(merge, Candidates(nothing, no_nan), (tiles, starts))[0]


def _tiles_of(references: tuple, tile_size: int) -> tuple[Any, Array]:
    """Arrays of the references cut into tiles, the last padded, and where each begins."""
    num_tiles = -(-len(references[0]) // tile_size)

    def cut(array: Array) -> Array:
        array = jnp.asarray(array)
        missing = num_tiles * tile_size - len(array)
        padded = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(num_tiles, tile_size, *array.shape[1:])

    return jax.tree.map(cut, references), jnp.arange(num_tiles) * tile_size


def _first(
    distances: Float[Array, "n m"], indices: Int[Array, "n m"], k: int
) -> Neighbours:
    """The k nearest of candidates, of which equal ones are in the order of references."""
    negated, places = lax.top_k(-distances, k)
    return Neighbours(-negated, _taken(indices, places))


def _finished(found: Neighbours, has_nan: Bool[Array, "n 1"], k: int) -> Neighbours:
    """Marks places without a reference, undoes `comparable`, and pads to k."""
    distances, indices = found
    none = distances == jnp.inf
    largest = jnp.finfo(distances.dtype).max
    distances = jnp.where(distances == largest, jnp.inf, distances)
    missing = [(0, 0), (0, k - distances.shape[1])]
    distances = jnp.pad(distances, missing, constant_values=jnp.inf)
    indices = jnp.pad(jnp.where(none, -1, indices), missing, constant_values=-1)
    return Neighbours(
        jnp.where(has_nan, jnp.nan, distances), jnp.where(has_nan, -1, indices)
    )


def comparable(distances: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Makes -0 to 0, which a sort would tell apart, and infinity to the largest number.

    So infinity is left to stand for entries that are not compared.

    >>> print(comparable(jnp.array([[-0.0, 2.0]])))
    [[0. 2.]]
    """
    distances = jnp.where(distances == 0, 0, distances)
    return jnp.minimum(distances, jnp.finfo(distances.dtype).max)


def smallest(distances: Float[Array, "n m"], k: int) -> Neighbours:
    """The k smallest entries of each row, of equal ones the first, at most m of them.

    They lie in the k groups of neighbouring columns with the smallest minima: the minimum
    of a better group is smaller, or equal and further left. So only these groups are sorted
    further.

    >>> print(smallest(jnp.array([[3.0, 1.0, 1.0]]), 2).indices)
    [[1 2]]
    """
    n, m = distances.shape
    k, num_groups = min(k, m), m // _GROUP
    if m % _GROUP or num_groups <= k:
        negated, indices = lax.top_k(-distances, k)
        return Neighbours(-negated, indices)
    grouped = distances.reshape(n, num_groups, _GROUP)
    _, groups = lax.top_k(-jnp.min(grouped, axis=2), k)
    groups = jnp.sort(groups, axis=1)  # so that the first of equal entries stays the first
    entries = _taken(grouped, groups[:, :, None]).reshape(n, k * _GROUP)
    negated, places = lax.top_k(-entries, k)
    indices = _taken(groups, places // _GROUP) * _GROUP + places % _GROUP
    return Neighbours(-negated, indices)


def _taken(array: Array, indices: Array) -> Array:
    return jnp.take_along_axis(array, indices, axis=1, mode="promise_in_bounds")


def even_tiles(num_rows: int, tile_size: int, multiple: int) -> int:
    """Size of nearly equal tiles of rows, rounded up to a multiple.

    >>> even_tiles(100, 90, 8)  # two tiles of 50
    56
    """
    num_tiles = -(-num_rows // tile_size)
    return -(-num_rows // (num_tiles * multiple)) * multiple


def mesh_size() -> int:
    """Number of devices of the mesh that is set, or 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def check_two_sets(queries: Array, references: Array) -> None:
    """Raises unless both are embeddings `[n, dim]` of the same dim, at least one each."""
    for name, array in (("queries", queries), ("references", references)):
        check_floating(name, array)
        check_rank(name, array, 2)
        check_at_least(f"the number of {name}", len(array), 1)
    if queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"references must have {queries.shape[1]} columns to match the queries; got "
            f"shape {references.shape}"
        )
