"""Convolution and max-pooling for CPUs: exact, and as fast inside `lax.scan` as outside.

XLA's own convolution is slow on a CPU, and its gradients inside a loop fall to a naive form
that is a hundred times slower still. Here a convolution is made of matrix products, which
are fast everywhere, by one of these ways, chosen by the shapes of image and kernel:

patches   the kernel as a matrix, times the shifted images side by side: few channels, or
          strides
Fourier   products in Fourier space, tile by tile: many channels. It takes a fraction of the
          multiplications: a tenth for 7x7 kernels. Its float32 error is of the size of the
          direct sum's own: about 1e-6 of the largest sum of |image| |kernel|

Images side by side, `convolution_chwn`, go by rows of the kernel instead, or with strides
by patches.

`lax`'s direct sum loses to patches at every shape that was tried. It is left with grouped
convolutions, images that are dilated, and everything on GPU and TPU.

>>> images, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
>>> print(max_pool(convolution(images, kernel, (1, 1), "VALID"), 2))
[[[[9. 9.]]]]

In Flax: `nn.Conv(features, (3, 3), conv_general_dilated=convolution)`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from siamese_jax import _fourier

Layout = Literal["NHWC", "CHWN"]

_MOVED = 120  # multiplications in the time of writing a number and reading it again
_LARGEST_BLOCK = 160  # numbers of an image that a block of outputs may see
_LARGEST_WINDOW = 8  # beyond, XLA compiles for many seconds


def convolution(
    lhs: Float[Array, "n height width channels"],
    rhs: Float[Array, "kernel_height kernel_width group_channels features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "_ out_height out_width _"]:
    """`lax.conv_general_dilated` of NHWC images, as `flax.linen.Conv` calls it.

    The sums, in another order. The way depends on static shapes alone, never on the number
    of images, which may be symbolic. Half precision is summed in float32.

    >>> images, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((2, 2, 1, 1))
    >>> print(convolution(images, kernel, (1, 1), "VALID")[0, :, :, 0])
    [[4. 4.]
     [4. 4.]]
    """
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))

    def by_lax(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)

    if not _is_plain(lhs, rhs, options):
        return by_lax(lhs, rhs)
    strides = tuple(map(int, window_strides))
    dilation = tuple(map(int, options.get("rhs_dilation") or (1, 1)))
    seen = [(rhs.shape[i] - 1) * dilation[i] + 1 for i in range(2)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], seen, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if any(lhs.shape[1 + i] + sum(pads[i]) < seen[i] for i in range(2)):
        return by_lax(lhs, rhs)  # which is empty

    def on_cpu(x: Array, kernel: Array) -> Array:
        wanted = options.get("preferred_element_type") or jnp.result_type(x)
        x, kernel = (_at_least_float32(a) for a in (x, kernel))
        none = (0, 0, 0)
        x = lax.pad(x, jnp.zeros((), x.dtype), (none, *((*pad, 0) for pad in pads), none))
        plain = _is_one(strides) and _is_one(dilation)
        tilings = _best_tilings(x.shape[1:], kernel.shape) if plain else None
        if tilings is None:
            return _by_patches(strides, dilation, x, kernel).astype(wanted)
        return _fourier.convolve(x, kernel, *tilings).astype(wanted)

    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=by_lax)


def max_pool(x: Float[Array, "a height width b"], window: int) -> Float[Array, "a h w b"]:
    """Largest value of each `window x window` block, without overlap or padding.

    The two middle axes are pooled: images are NHWC or CHWN. Rows and columns that fill no
    block are dropped. Of equal largest values the first, row by row, gets the gradient, as
    in `lax.reduce_window`. NaN in a block gives NaN.

    Raises:
      ValueError: If the image is smaller than the window.

    >>> print(max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2).ravel())
    [4.]
    """
    _check_window(window, *x.shape[1:3])

    def by_lax(x: Array) -> Array:
        size = (1, window, window, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, size, size, "VALID")

    if window > _LARGEST_WINDOW:
        return by_lax(x)
    return lax.platform_dependent(x, cpu=partial(_pool, window), default=by_lax)


def convolve_and_pool(
    x: Float[Array, "a height width b"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    window: int,
    *,
    layout: Layout = "NHWC",
) -> Float[Array, "c out_height out_width d"]:
    """`max_pool(convolution(x, kernel, (1, 1), "VALID"), window)` in one.

    With few channels a block of outputs is one matrix product, and the convolution, much
    larger than what is left of it, is never kept. A bias that is added afterwards, and a
    ReLU, give what they would have given before.

    Args:
      x: Images `[n, height, width, channels]`, or `[channels, height, width, n]`, which is
        the faster layout for few channels.
      kernel: HWIO.
      window: Rows and columns of a block of the pooling.
      layout: "NHWC" or "CHWN", of `x` and of the result.

    Raises:
      ValueError: If the channels differ, or the convolution is smaller than the window.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> print(convolve_and_pool(x, jnp.ones((1, 1, 1, 2)), 2)[0, :, :, 0])
    [[ 5.  7.]
     [13. 15.]]
    """
    channels = x.shape[0 if layout == "CHWN" else 3]
    if channels != kernel.shape[2]:
        raise ValueError(
            f"x must have the kernel's {kernel.shape[2]} channels; got {channels} "
            f"(shape {x.shape}, {layout})"
        )
    rows, columns = (x.shape[1 + i] - kernel.shape[i] + 1 for i in range(2))
    _check_window(window, rows, columns)
    turn = (0, 1, 2, 3) if layout == "NHWC" else (3, 1, 2, 0)  # its own inverse

    def apart(x: Array, kernel: Array) -> Array:
        y = convolution(jnp.transpose(x, turn), kernel, (1, 1), "VALID")
        return jnp.transpose(max_pool(y, window), turn)

    seen = channels * math.prod(size + window - 1 for size in kernel.shape[:2])
    if seen > _LARGEST_BLOCK or window > _LARGEST_WINDOW:
        return apart(x, kernel)

    def on_cpu(x: Array, kernel: Array) -> Array:
        features_last = layout == "NHWC"
        wide = _at_least_float32(x if layout == "CHWN" else jnp.transpose(x, (3, 1, 2, 0)))
        y = _block_maxima(window, features_last, *_alike(wide, _at_least_float32(kernel)))
        y = jnp.transpose(y, (2, 0, 1, 3)) if features_last else y
        return y.astype(jnp.result_type(x))

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=apart)


def convolution_chwn(
    x: Float[Array, "channels height width n"],
    kernel: Float[Array, "features kernel_height kernel_width channels"],
    *,
    stride: int = 1,
) -> Float[Array, "features out_height out_width n"]:
    """Convolution of images side by side, padded as "SAME", for half precision on CPUs.

    In this layout what is moved is long runs of memory, and all products, of the gradients
    too, have the form in which a processor's matrix units take bfloat16. Without strides
    the images' columns are moved before the product and its rows after it, unrounded, which
    moves less than patches would. What was moved before it is kept for the gradient:
    `kernel_width` times `x`, or with strides all patches. Half precision is summed in
    float32.

    Args:
      x: Images.
      kernel: OHWI, features first: as the products take it; cast to the type of `x`.
      stride: Rows and columns from one output to the next.

    Raises:
      ValueError: If the channels differ, or `stride` is below 1.

    >>> x, kernel = jnp.ones((1, 2, 2, 5)), jnp.ones((2, 3, 3, 1))
    >>> print(convolution_chwn(x, kernel).shape, convolution_chwn(x, kernel)[0, 0, 0, 0])
    (2, 2, 2, 5) 4.0
    """
    if x.shape[0] != kernel.shape[3]:
        raise ValueError(
            f"x must have the kernel's {kernel.shape[3]} channels; got {x.shape[0]} "
            f"(shape {x.shape}, CHWN)"
        )
    if stride < 1:
        raise ValueError(f"stride must be at least 1; got {stride}")

    def by_lax(x: Array, kernel: Array) -> Array:
        layout = ("CHWN", "OHWI", "CHWN")
        strides = (stride, stride)
        return lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=layout
        )

    def on_cpu(x: Array, kernel: Array) -> Array:
        return _side_by_side(stride, *_alike(x, kernel))

    return lax.platform_dependent(x, kernel.astype(x.dtype), cpu=on_cpu, default=by_lax)


# Convolution ----------------------------------------------------------------------------


def _is_plain(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    """Not grouped, the image not dilated, images NHWC, kernels HWIO."""
    names = ("lhs_dilation", "feature_group_count", "batch_group_count")
    numbers, canonical = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout)
        for layout in (options["dimension_numbers"], ("NHWC", "HWIO", "NHWC"))
    )
    return numbers == canonical and all(_is_one(options.get(name)) for name in names)


def _is_one(option: int | Sequence[int] | None) -> bool:
    return option is None or bool(np.all(np.asarray(option) == 1))


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _best_tilings(
    image: Sequence[int], kernel: Sequence[int]
) -> tuple[_fourier.Tiling, _fourier.Tiling] | None:
    """The tiles of the fastest Fourier form; None where patches are faster."""
    outputs = [image[i] - kernel[i] + 1 for i in range(2)]
    if min(outputs) < 1:
        return None
    seen = math.prod(outputs) * math.prod(kernel[:3])
    best, least = None, float(seen * (kernel[3] + _MOVED))
    choices = (_tilings(kernel[i], outputs[i]) for i in range(2))
    for height, width in itertools.product(*choices):
        work = _fourier.work(height, width, kernel[2], kernel[3])
        cost = work.products + _MOVED * work.numbers
        if cost < least:
            best, least = (height, width), cost
    return best


def _tilings(kernel: int, outputs: int) -> list[_fourier.Tiling]:
    """All that cut an axis evenly: whole, in halves, in thirds ..."""
    steps = {-(-outputs // num) for num in range(1, outputs + 1)}
    return [_fourier.Tiling(step + kernel - 1, kernel, outputs) for step in sorted(steps)]


def _shifted(
    x: Array, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[Array]:
    """What each number of the kernel is multiplied with, row by row."""
    reach = [(size[i] - 1) * dilation[i] for i in range(2)]
    rows, columns = ((x.shape[1 + i] - reach[i] - 1) // strides[i] + 1 for i in range(2))
    ends = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
    return [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(0, reach[0] + 1, dilation[0])
        for j in range(0, reach[1] + 1, dilation[1])
    ]


def _by_patches(
    strides: Sequence[int], dilation: Sequence[int], x: Array, kernel: Array
) -> Array:
    """The shifted images side by side, times the kernel as a matrix."""
    patches = jnp.concatenate(_shifted(_made(x), kernel.shape, strides, dilation), axis=-1)
    *shape, seen = patches.shape
    # two axes only: with more the product of the kernel's gradient is copied around
    y = patches.reshape(math.prod(shape), seen) @ kernel.reshape(seen, -1)
    return y.reshape(*shape, kernel.shape[3])


def _made(x: Array) -> Array:
    """Computed once, here: a fusion would compute it again for every slice it reads."""
    return lax.optimization_barrier(x)


# Images side by side --------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _side_by_side(stride: int, x: Array, kernel: Array) -> Array:
    """By rows of the kernel, or with strides by patches."""
    return _side_by_side_forward(stride, x, kernel)[0]


def _side_by_side_forward(stride: int, x: Array, kernel: Array) -> tuple[Array, Any]:
    pads = _same_pads(stride, x, kernel)
    if stride == 1:
        columns = _moved_columns(pads, kernel, x)
        return _sum_over_rows(columns, kernel), (None, kernel, columns)
    patches, shape = _long_patches(stride, pads, kernel, x)
    y = _product(kernel.reshape(len(kernel), -1), patches, 0)
    return y.astype(x.dtype).reshape(len(kernel), *shape), (x, kernel, patches)


def _side_by_side_backward(stride: int, kept: Any, gradient: Array) -> tuple[Array, Array]:
    x, kernel, moved = kept
    if stride == 1:
        # the way back is the way there, with the kernel turned around and the pads swapped
        pads = _same_pads(1, gradient, kernel)
        turned = jnp.swapaxes(kernel[:, ::-1, ::-1], 0, 3)
        back = _moved_columns([pad[::-1] for pad in pads], turned, gradient)
        return _sum_over_rows(back, turned), _kernel_gradient(moved, kernel, gradient)
    pads = _same_pads(stride, x, kernel)
    flat = gradient.reshape(len(kernel), -1)
    of_kernel = _product(flat, moved, 1).reshape(kernel.shape).astype(kernel.dtype)
    of_patches = _product(kernel.reshape(len(kernel), -1).T, flat, 0).astype(x.dtype)
    _, to_x = jax.vjp(lambda x: _long_patches(stride, pads, kernel, x)[0], x)
    return *to_x(of_patches), of_kernel


_side_by_side.defvjp(_side_by_side_forward, _side_by_side_backward)


def _sum_over_rows(columns: Array, kernel: Array) -> Array:
    """y[r] = sum_i (K_i A)[r + i]: rows of the kernel times the moved columns."""
    features, height = kernel.shape[:2]
    rows_of_kernel = jnp.swapaxes(kernel, 0, 1).reshape(height * features, -1)
    products = _product(rows_of_kernel, columns.reshape(rows_of_kernel.shape[1], -1), 0)
    products = products.reshape(height, features, *columns.shape[1:])
    rows = columns.shape[1] - height + 1
    moved = [products[i, :, i : i + rows] for i in range(height)]
    return sum(moved[1:], moved[0]).astype(columns.dtype)


def _kernel_gradient(columns: Array, kernel: Array, gradient: Array) -> Array:
    """K_i' = sum_r g[r] A[r + i]: moved rows times the moved columns."""
    features, height, width, channels = kernel.shape
    last = height - 1

    def move(g: Array) -> Array:
        g = _made(jnp.pad(g, ((0, 0), (last, last), (0, 0), (0, 0))))
        firsts = range(last, -1, -1)
        moved = [g[:, i : i + columns.shape[1]] for i in firsts]
        return _made(jnp.concatenate(moved, axis=0))

    rows = _by_words(move, gradient).reshape(height * features, -1)
    found = _product(rows, columns.reshape(width * channels, -1), 1)
    found = found.reshape(height, features, width, channels)
    return jnp.swapaxes(found, 0, 1).astype(kernel.dtype)


def _same_pads(stride: int, x: Array, kernel: Array) -> list[tuple[int, int]]:
    return lax.padtype_to_pads(x.shape[1:3], kernel.shape[1:3], (stride, stride), "SAME")


def _moved_columns(pads: Sequence[tuple[int, int]], kernel: Array, x: Array) -> Array:
    """`[width * channels, rows, out_width, n]`: what each column of a kernel meets."""
    width = kernel.shape[2]

    def move(x: Array) -> Array:
        x = _made(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        columns = x.shape[2] - width + 1
        moved = [x[:, :, j : j + columns] for j in range(width)]
        return _made(jnp.concatenate(moved, axis=0))

    return _by_words(move, x)


def _long_patches(
    stride: int, pads: Sequence[tuple[int, int]], kernel: Array, x: Array
) -> tuple[Array, tuple[int, ...]]:
    """`[kernel_height * kernel_width * channels, outputs]`, and the outputs' shape."""

    def patches(x: Array) -> Array:
        x = _made(jnp.pad(x, ((0, 0), *pads, (0, 0))))
        shifted = _shifted(x, kernel.shape[1:3], (stride, stride), (1, 1))
        return _made(jnp.concatenate(shifted, axis=0))

    moved = _by_words(patches, x)
    return moved.reshape(len(moved), -1), moved.shape[1:]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_words(move: Callable[[Array], Array], x: Array) -> Array:
    """Moves half precision numbers as integers: XLA moves them one by one."""
    if x.dtype.itemsize != 2:
        return move(x)
    return lax.bitcast_convert_type(move(lax.bitcast_convert_type(x, jnp.uint16)), x.dtype)


@_by_words.defjvp
def _by_words_jvp(
    move: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """The move is linear; of integers it would have no derivative."""
    return _by_words(move, *primals), move(*tangents)


def _product(a: Array, b: Array, contracted: int) -> Array:
    """Of matrices, over columns of `a` and an axis of `b`; sums are float32 or wider."""
    a, b = _made(a), _made(b)  # XLA on CPU has no bfloat16 product of a transpose
    wide = jnp.promote_types(a.dtype, jnp.float32)
    dimensions = (((1,), (contracted,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=wide)


# Pooling --------------------------------------------------------------------------------


def _check_window(window: int, rows: int, columns: int) -> None:
    if not 1 <= window <= min(rows, columns):
        raise ValueError(
            f"window must be from 1 to {min(rows, columns)}, the smaller side of what is "
            f"pooled; got {window}"
        )


def _pool(window: int, x: Array) -> Array:
    rows, columns = (size // window for size in x.shape[1:3])
    x = x[:, : rows * window, : columns * window]
    blocks = x.reshape(x.shape[0], rows, window, columns, window, x.shape[3])
    return _largest(blocks)


@jax.custom_vjp
def _largest(blocks: Array) -> Array:
    """Over axes 2 and 4 of [a, rows, window, columns, window, b]."""
    return _largest_and_place(blocks)[0]


def _largest_and_place(blocks: Array) -> tuple[Array, Array]:
    window = blocks.shape[2]
    values = [blocks[:, :, i, :, j] for i in range(window) for j in range(window)]
    return _first_largest(values)


def _first_largest(values: Sequence[Array]) -> tuple[Array, Array]:
    """The largest of arrays, and the number of the first that has it."""
    largest = values[0]
    place = jnp.zeros(largest.shape, jnp.uint8)
    for number, value in enumerate(values[1:], 1):
        place = jnp.where(value > largest, jnp.asarray(number, place.dtype), place)
        largest = jnp.maximum(largest, value)
    return largest, place


def _back_to(place: Array, gradient: Array, num: int) -> list[Array]:
    """What each of `num` arrays gets of the gradient of their largest value."""
    zero = jnp.zeros((), gradient.dtype)
    return [
        jnp.where(place == jnp.asarray(number, place.dtype), gradient, zero)
        for number in range(num)
    ]


def _largest_forward(blocks: Array) -> tuple[Array, tuple[Array, int]]:
    largest, place = _largest_and_place(blocks)
    return largest, (place, blocks.shape[2])


def _largest_backward(kept: tuple[Array, int], gradient: Array) -> tuple[Array]:
    place, window = kept
    parts = _back_to(place, _made(gradient), window * window)
    rows = [jnp.stack(parts[i : i + window], 3) for i in range(0, len(parts), window)]
    return (jnp.stack(rows, 2),)


_largest.defvjp(_largest_forward, _largest_backward)


# Blocks ---------------------------------------------------------------------------------


def _alike(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Both vary over the axes of `shard_map` that one does: a gradient sums over them."""
    return x + jnp.zeros_like(kernel, shape=()), kernel + jnp.zeros_like(x, shape=())


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block_maxima(window: int, features_last: bool, x: Array, kernel: Array) -> Array:
    """Pooled correlation of x [channels, height, width, n].

    Returns [features, rows, columns, n], or [rows, columns, n, features].
    """
    return _block_maxima_forward(window, features_last, x, kernel)[0]


def _block_maxima_forward(
    window: int, features_last: bool, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    features, num = kernel.shape[3], window * window
    patches = _block_patches(window, kernel.shape, _made(x))
    shape = patches.shape[3:]
    flat = patches.reshape(math.prod(patches.shape[:3]), math.prod(shape))
    matrix = _block_kernel(window, kernel).reshape(num * features, -1)
    if features_last:
        y = jnp.einsum("kp,fk->pf", flat, matrix).reshape(math.prod(shape), num, features)
        values = [y[:, i] for i in range(num)]
        shape = (*shape, features)
    else:
        y = (matrix @ flat).reshape(num, features, math.prod(shape))
        values = list(y)
        shape = (features, *shape)
    largest, place = _first_largest(values)
    return largest.reshape(shape), (x, kernel, place)


def _block_maxima_backward(
    window: int, features_last: bool, kept: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel, place = kept
    num = window * window
    parts = _back_to(place, _made(gradient).reshape(place.shape), num)
    patches, patches_back = jax.vjp(partial(_block_patches, window, kernel.shape), x)
    matrix, matrix_back = jax.vjp(partial(_block_kernel, window), kernel)
    flat = patches.reshape(math.prod(patches.shape[:3]), math.prod(patches.shape[3:]))
    of_matrix = (num * kernel.shape[3], flat.shape[0])
    if features_last:
        outputs = jnp.stack(parts, 1).reshape(flat.shape[1], of_matrix[0])
        matrix_gradient = (flat @ outputs).T
        flat_gradient = jnp.einsum("fk,pf->kp", matrix.reshape(of_matrix), outputs)
    else:
        outputs = jnp.concatenate(parts)
        matrix_gradient = outputs @ flat.T
        flat_gradient = matrix.reshape(of_matrix).T @ outputs
    (x_gradient,) = patches_back(flat_gradient.reshape(patches.shape))
    (kernel_gradient,) = matrix_back(matrix_gradient.reshape(matrix.shape))
    return _made(x_gradient), kernel_gradient


_block_maxima.defvjp(_block_maxima_forward, _block_maxima_backward)


def _block_patches(window: int, kernel_shape: Sequence[int], x: Array) -> Array:
    """All that a block of outputs sees: [height, width, channels, rows, columns, n]."""
    seen = [size + window - 1 for size in kernel_shape[:2]]
    rows, columns = ((x.shape[1 + i] - kernel_shape[i] + 1) // window for i in range(2))
    ends = (rows - 1) * window + 1, (columns - 1) * window + 1
    patches = [
        x[:, i : i + ends[0] : window, j : j + ends[1] : window]
        for i in range(seen[0])
        for j in range(seen[1])
    ]
    return jnp.stack(patches).reshape(*seen, x.shape[0], rows, columns, x.shape[3])


def _block_kernel(window: int, kernel: Array) -> Array:
    """The kernel at each place of a block: [places, features, height, width, channels]."""
    last = window - 1
    shifted = [
        jnp.pad(kernel, ((i, last - i), (j, last - j), (0, 0), (0, 0)))
        for i in range(window)
        for j in range(window)
    ]
    return jnp.transpose(jnp.stack(shifted), (0, 4, 1, 2, 3))
