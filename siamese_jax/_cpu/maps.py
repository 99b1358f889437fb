"""Linear and bilinear maps of images for which `vmap` over the images costs nothing.

`vmap` over pairs of images [2, n, ...] turns a matrix product into a batch of two products,
and the reshapes around it into copies. The maps of this module are JAX primitives with
another batching rule: when only the images are mapped, the mapped axis joins the axis of
the images, [2 * n, ...], and the product stays one product. Its derivative with respect to
the kernel is then one product too, since JAX differentiates what `vmap` has produced. With
`vmap` outside of `grad` each mapped entry has its own kernel gradient, as it must be.

Where the images are the last axis, joining would cut the rows of memory into pieces. There
a mapped axis of few entries is taken entry by entry, each with products of its own. The
same is done where XLA computes products of their own on several cores at once.

All derivatives, forward and reverse and of any order, come from the three forms of a
bilinear map: its value, and its two transposes.

>>> product = Bilinear(
...     forward=lambda x, kernel: x @ kernel,
...     to_images=lambda y, kernel: y @ kernel.T,
...     to_kernel=lambda x, y: x.T @ y,
... )
>>> x, kernel = jnp.ones((2, 5, 3)), jnp.ones((3, 4))
>>> print(jax.vmap(lambda x: bilinear(product, x, kernel))(x).shape)
(2, 5, 4)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

_MOST_ONE_BY_ONE = 4  # inputs of a network, which are compared


class Linear(NamedTuple):
    """A linear map of images and its transpose.

    Attributes:
      forward: From images to values.
      transposed: From values to images.
      image_axes: The axis of the images in the images and in the values.
    """

    forward: Callable[[Array], Array]
    transposed: Callable[[Array], Array]
    image_axes: tuple[int, int] = (0, 0)


class Bilinear(NamedTuple):
    """A map that is linear in images and in a kernel, and its two transposes.

    Attributes:
      forward: From images and kernel to values.
      to_images: From values and kernel to images.
      to_kernel: From images and values to the kernel.
      image_axes: The axis of the images in the images and in the values, or None if images
        are not to be joined.
    """

    forward: Callable[[Array, Array], Array]
    to_images: Callable[[Array, Array], Array]
    to_kernel: Callable[[Array, Array], Array]
    image_axes: tuple[int, int] | None = (0, 0)


def linear(maps: Linear, x: Array) -> Array:
    """Applies a linear map; `vmap` joins a mapped axis to the images."""
    return _linear_p.bind(x, maps=maps)


def bilinear(maps: Bilinear, x: Array, kernel: Array) -> Array:
    """Applies a bilinear map; `vmap` over images alone joins the axis to the images."""
    return _bilinear_p.bind(*alike(x, kernel), maps=maps, form="forward")


def elementwise(
    fn: Callable[..., tuple[Array, ...]],
    *args: Array,
    image_axes: tuple[tuple[int, ...], tuple[int, ...]] | None,
    transposed: Callable[..., tuple[Array, ...]] | None = None,
) -> list[Array]:
    """Applies a function that treats images one by one; `vmap` joins a mapped axis to them.

    Args:
      fn: Function of arrays that returns a tuple of arrays.
      *args: Arguments of fn.
      image_axes: The axis of the images in each argument and in each result, or None if
        images are not to be joined.
      transposed: If fn has one result, which is linear in the last argument and does not
        depend on the others smoothly, its transpose: from the others and the result's
        cotangent to the last argument's.
    """
    return _elementwise_p.bind(*args, fn=fn, image_axes=image_axes, transposed=transposed)


def linear_by_transposition(
    forward: Callable[[Array], Array],
    x: Array,
    *,
    image_axes: tuple[int, int] = (0, 0),
) -> Array:
    """Applies a linear function whose transpose JAX derives."""
    images, values = image_axes
    before, after = x.shape[:images], x.shape[images + 1 :]

    def transposed(y: Array) -> Array:
        shape = (*before, y.shape[values], *after)
        zeros = jnp.zeros_like(y, shape=shape)
        return jax.vjp(forward, zeros)[1](y)[0]

    return linear(Linear(forward, transposed, image_axes), x)


def alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Makes both arguments device-varying under `shard_map` where one of them is.

    The gradient of what did not vary over the devices is then summed over them.
    """
    return a + jnp.zeros_like(b, shape=()), b + jnp.zeros_like(a, shape=())


def _folded(
    fn: Callable[..., Array], axes: tuple[int, int], x: Array, mapped: int, *rest: Array
) -> tuple[Array, int]:
    """Applies fn to images with a mapped axis that joins the axis of the images."""
    size = x.shape[mapped]
    x = jnp.moveaxis(x, mapped, axes[0])
    *shape, first, num = x.shape[: axes[0] + 2]
    y = fn(x.reshape(*shape, first * num, *x.shape[axes[0] + 2 :]), *rest)
    before, after = y.shape[: axes[1]], y.shape[axes[1] + 1 :]
    return y.reshape(*before, size, num, *after), axes[1]


def _each(
    bind: Callable[..., Sequence[Array]],
    fn: Callable[..., Sequence[Array]],
    args: Sequence[Array],
    dims: Sequence[int | None],
) -> tuple[list[Array], list[int]]:
    """Applies a map to each entry of the mapped axes, one by one if they are few.

    Args:
      bind: Applies the map as the primitive, for entries one by one.
      fn: Computes the map, for `vmap` over many entries.
      args: Arguments.
      dims: The mapped axis of each of them.
    """
    size = _mapped_size(args, dims)
    # symbolic sizes, of a program that is exported, cannot be counted out
    if not isinstance(size, int) or not 0 < size <= _MOST_ONE_BY_ONE:
        values = jax.vmap(fn, tuple(dims))(*args)
        return list(values), [0] * len(values)
    entries = [
        bind(
            *(
                x if axis is None else lax.index_in_dim(x, i, axis, keepdims=False)
                for x, axis in zip(args, dims, strict=True)
            )
        )
        for i in range(size)
    ]
    values = [jnp.stack(parts) for parts in zip(*entries, strict=True)]
    return values, [0] * len(values)


def _of_each(fn: Callable[..., Sequence[Array]], *args: Array) -> tuple[Array, ...]:
    return tuple(_each(fn, fn, args, [0] * len(args))[0])


def _mapped_size(args: Sequence[Array], dims: Sequence[int | None]) -> int:
    return next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)


def _abstract(fn: Callable[..., Array], *avals: Any) -> Any:
    return jax.make_jaxpr(fn)(*avals).out_avals[0]


# Linear maps ----------------------------------------------------------------------------

_linear_p = Primitive("linear_map_of_images")


@_linear_p.def_impl
def _linear_value(x: Array, *, maps: Linear) -> Array:
    return maps.forward(x)


@_linear_p.def_abstract_eval
def _linear_shape(x: Any, *, maps: Linear) -> Any:
    return _abstract(maps.forward, x)


def _linear_transpose(cotangent: Array, _: Any, *, maps: Linear) -> list[Array]:
    back = Linear(maps.transposed, maps.forward, maps.image_axes[::-1])
    return [linear(back, cotangent)]


def _linear_batched(
    args: Sequence[Array], dims: Sequence[int], *, maps: Linear
) -> tuple[Array, int]:
    return _folded(partial(linear, maps), maps.image_axes, args[0], dims[0])


ad.deflinear2(_linear_p, _linear_transpose)
batching.primitive_batchers[_linear_p] = _linear_batched
mlir.register_lowering(_linear_p, mlir.lower_fun(_linear_value, multiple_results=False))


# Bilinear maps --------------------------------------------------------------------------

_bilinear_p = Primitive("bilinear_map_of_images")


@_bilinear_p.def_impl
def _bilinear_value(a: Array, b: Array, *, maps: Bilinear, form: str) -> Array:
    return getattr(maps, form)(a, b)


@_bilinear_p.def_abstract_eval
def _bilinear_shape(a: Any, b: Any, *, maps: Bilinear, form: str) -> Any:
    return _abstract(getattr(maps, form), a, b)


# The gradients of each form's two arguments are the two other forms.
def _to_first(cotangent: Array, _: Any, b: Array, *, maps: Bilinear, form: str) -> Array:
    if form == "to_kernel":  # the images' gradient, from a kernel and values
        return _bilinear_p.bind(b, cotangent, maps=maps, form="to_images")
    back = "to_images" if form == "forward" else "forward"
    return _bilinear_p.bind(cotangent, b, maps=maps, form=back)


def _to_second(cotangent: Array, a: Array, _: Any, *, maps: Bilinear, form: str) -> Array:
    if form == "to_images":  # the kernel's gradient, from values and images
        return _bilinear_p.bind(cotangent, a, maps=maps, form="to_kernel")
    back = "to_kernel" if form == "forward" else "forward"
    return _bilinear_p.bind(a, cotangent, maps=maps, form=back)


def _bilinear_batched(
    args: Sequence[Array], dims: Sequence[int | None], *, maps: Bilinear, form: str
) -> tuple[Array, int]:
    bind = partial(_bilinear_p.bind, maps=maps, form=form)
    fn = getattr(maps, form)
    if maps.image_axes is None:
        values, value_dims = _each(
            lambda a, b: [bind(a, b)], lambda a, b: [fn(a, b)], args, dims
        )
        return values[0], value_dims[0]
    if form != "to_kernel" and dims[0] is not None and dims[1] is None:
        axes = maps.image_axes if form == "forward" else maps.image_axes[::-1]
        return _folded(bind, axes, args[0], dims[0], args[1])
    return jax.vmap(fn, dims)(*args), 0


ad.defbilinear(_bilinear_p, _to_first, _to_second)
batching.primitive_batchers[_bilinear_p] = _bilinear_batched
mlir.register_lowering(_bilinear_p, mlir.lower_fun(_bilinear_value, multiple_results=False))


# Functions of one image each ------------------------------------------------------------

_elementwise_p = Primitive("map_of_single_images")
_elementwise_p.multiple_results = True


@_elementwise_p.def_impl
def _elementwise_value(*args: Array, fn: Callable[..., Any], **_: Any) -> list[Array]:
    return list(fn(*args))


@_elementwise_p.def_abstract_eval
def _elementwise_shape(*avals: Any, fn: Callable[..., Any], **_: Any) -> list[Any]:
    return jax.make_jaxpr(fn)(*avals).out_avals


def _elementwise_jvp(
    primals: Sequence[Array],
    tangents: Sequence[Any],
    *,
    fn: Callable[..., Any],
    image_axes: Any,
    transposed: Callable[..., Any] | None,
) -> tuple[list[Array], list[Any]]:
    if transposed is not None:
        bind = partial(elementwise, fn, image_axes=image_axes, transposed=transposed)
        change = ad.instantiate_zeros(tangents[-1])
        return bind(*primals), bind(*primals[:-1], change)
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    values, changes = jax.jvp(fn, tuple(primals), tuple(tangents))
    return list(values), list(changes)


def _elementwise_transpose(
    cotangents: Sequence[Any],
    *args: Any,
    fn: Callable[..., Any],
    image_axes: Any,
    transposed: Callable[..., Any],
) -> list[Any]:
    others = args[:-1]
    axes = image_axes and (
        (*image_axes[0][:-1], *image_axes[1]),
        image_axes[0][-1:],
    )
    cotangent = ad.instantiate_zeros(cotangents[0])
    back = elementwise(transposed, *others, cotangent, image_axes=axes, transposed=fn)
    return [None] * len(others) + back


def _elementwise_batched(
    args: Sequence[Array],
    dims: Sequence[int | None],
    *,
    fn: Callable[..., Any],
    image_axes: Any,
    transposed: Callable[..., Any] | None,
) -> tuple[list[Array], list[int]]:
    bind = partial(elementwise, fn, image_axes=image_axes, transposed=transposed)
    size = _mapped_size(args, dims)
    if image_axes is None:
        if transposed is None:
            return _each(bind, fn, args, dims)
        # one by one inside the map, so that its transpose is too
        fronts = [
            batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True)
        ]
        forward, back = partial(_of_each, fn), partial(_of_each, transposed)
        return elementwise(forward, *fronts, image_axes=None, transposed=back), [0]
    num, joined = 0, []
    for x, mapped, axis in zip(args, dims, image_axes[0], strict=True):
        if mapped is None:
            x = jnp.broadcast_to(jnp.expand_dims(x, axis), _with(x.shape, axis, size))
        else:
            x = jnp.moveaxis(x, mapped, axis)
        num = x.shape[axis + 1]  # of images in each entry
        joined.append(x.reshape(*x.shape[:axis], size * num, *x.shape[axis + 2 :]))
    values = []
    for y, axis in zip(bind(*joined), image_axes[1], strict=True):
        values.append(y.reshape(*y.shape[:axis], size, num, *y.shape[axis + 1 :]))
    return values, list(image_axes[1])


def _with(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis:])


ad.primitive_jvps[_elementwise_p] = _elementwise_jvp
ad.primitive_transposes[_elementwise_p] = _elementwise_transpose
batching.primitive_batchers[_elementwise_p] = _elementwise_batched
mlir.register_lowering(
    _elementwise_p, mlir.lower_fun(_elementwise_value, multiple_results=True)
)
