"""Convolution and max-pooling in one product equals one after the other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax._cpu import blocks
from siamese_jax.encoders._pooled import pooled_convolution
from tests.test_convolution import (
    CHWN_AXES,
    assert_same,
    by_lax,
    convolve_and_pool,
    fast_jit,
    normal,
    pool_by_lax,
    pooled_by_lax,
    with_gradients,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize(
    ("image", "kernel", "window", "is_block"),
    [
        ((3, 8, 7, 1), (3, 3, 1, 4), 1, True),
        ((3, 8, 7, 2), (3, 3, 2, 4), 2, True),
        ((3, 9, 7, 3), (2, 4, 3, 2), 2, True),
        ((3, 9, 8, 2), (3, 2, 2, 4), 3, True),
        ((3, 5, 6, 2), (3, 4, 2, 4), 3, True),  # one block
        ((3, 5, 6, 2), (5, 6, 2, 4), 1, True),  # one output
        ((3, 9, 8, 16), (5, 4, 16, 16), 2, False),
        ((3, 10, 9, 16), (3, 2, 16, 5), 3, False),
        ((3, 5, 4, 64), (2, 2, 64, 3), 1, False),
    ],
)
def test_one_product_equals_convolution_then_pooling(
    monkeypatch, image, kernel, window, is_block, layout
):
    calls = []
    one_product = blocks.convolve_and_pool
    monkeypatch.setattr(
        blocks,
        "convolve_and_pool",
        lambda *args, **options: calls.append(0) or one_product(*args, **options),
    )
    with jax.enable_x64(True):
        x, k = normal(image, kernel, dtype=jnp.float64)
        x = x if layout == "NHWC" else jnp.transpose(x, CHWN_AXES)
        found = with_gradients(
            lambda x, k: convolve_and_pool(x, k, window, layout=layout), x, k
        )
        wanted = with_gradients(partial(pooled_by_lax, window, layout), x, k)
    assert bool(calls) == (is_block or layout == "CHWN")
    assert_same(found, wanted)


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("features", [2, 64])
def test_of_equal_sums_the_first_is_chosen(layout, features):
    # all sums are equal; `lax` gives the first the gradient
    channels = features  # few: in one; many: apart
    x, k = jnp.ones((2, 5, 4, channels)), jnp.ones((2, 2, channels, 3))
    x = x if layout == "NHWC" else jnp.transpose(x, CHWN_AXES)
    found = with_gradients(lambda x, k: convolve_and_pool(x, k, 2, layout=layout), x, k)
    wanted = with_gradients(partial(pooled_by_lax, 2, layout), x, k)
    assert_same(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("layout", ["NHWC", "CHWN"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_halves_of_blocks_are_summed_in_float32(dtype, layout):
    turn = (0, 1, 2, 3) if layout == "NHWC" else CHWN_AXES
    x, k, weights = normal((3, 8, 7, 4), (3, 3, 4, 4), (3, 3, 2, 4), dtype=dtype)

    @partial(fast_jit, static_argnums=0)
    def apply(fn, x, k, weights):
        y, back = jax.vjp(fn, x, k)
        return y, *back(weights)

    found = apply(
        lambda x, k: jnp.transpose(
            convolve_and_pool(jnp.transpose(x, turn), k, 2, layout=layout), turn
        ),
        *(x, k, weights),
    )
    wide = (a.astype(jnp.float32) for a in (x, k, weights))
    wanted = apply(partial(pooled_by_lax, 2, "NHWC"), *wide)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        # one rounding, at the end
        limit = 0.51 * jnp.finfo(dtype).eps * np.abs(b) + 2e-6 * np.abs(b).max()
        assert (np.abs(a.astype(jnp.float32) - b) <= limit).all()


def test_large_windows_are_those_of_lax():
    x, k = normal((2, 11, 10, 1), (2, 2, 1, 3))
    found = with_gradients(lambda x, k: convolve_and_pool(x, k, 9), x, k)
    wanted = with_gradients(partial(pooled_by_lax, 9, "NHWC"), x, k)
    assert_same(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("strides", [(2, 2), (3, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 0), (1, 0))])
def test_strides_and_padding_are_pooled_too(strides, padding):
    x, k = normal((2, 13, 12, 1), (3, 3, 1, 4))
    pooled = pooled_convolution(2)
    found = with_gradients(lambda x, k: pooled(x, k, strides, padding), x, k)
    wanted = with_gradients(
        lambda x, k: pool_by_lax(by_lax(x, k, strides, padding), 2), x, k
    )
    assert_same(found, wanted, rtol=1e-5)


def test_a_dilated_kernel_is_pooled_too():
    x, k = normal((2, 13, 12, 1), (3, 3, 1, 4))
    found = pooled_convolution(2)(x, k, (1, 1), "VALID", rhs_dilation=(2, 1))
    wanted = pool_by_lax(by_lax(x, k, rhs_dilation=(2, 1)), 2)
    assert_same(found, wanted, rtol=1e-5)


def test_a_window_larger_than_the_convolution_is_refused():
    x, k = normal((1, 6, 9, 1), (3, 3, 1, 2))
    with pytest.raises(ValueError, match=r"from 1 to 4, the smaller .* got 5"):
        pooled_convolution(5)(x, k, (1, 1), "VALID")
