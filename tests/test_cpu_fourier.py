"""The Fourier form gives the sums of `lax` for tiles of any size, as exactly."""

import jax
import jax.numpy as jnp
import pytest

from siamese_jax._cpu import fourier
from tests.test_convolution import (
    assert_same,
    by_lax,
    normal,
    pulled_back,
    with_gradients,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_tiles", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [((3, 7), (4, 9)), ((2, 12), (1, 5))])
def test_a_convolution_by_tiles_of_any_size(height, width, num_tiles):
    # kernels and outputs of height and width; tiles of even and of odd sizes; the last of
    # several is ragged, or is not there where the outputs come out even
    with jax.enable_x64(True):
        tilings = [
            fourier.Tiling(-(-outputs // num_tiles) + kernel - 1 + extra, kernel, outputs)
            for (kernel, outputs), extra in zip((height, width), (0, 1), strict=True)
        ]
        sizes = [outputs + kernel - 1 for kernel, outputs in (height, width)]
        args = normal((2, *sizes, 3), (height[0], width[0], 3, 2), dtype=jnp.float64)
        found = with_gradients(lambda x, k: fourier.convolve(x, k, *tilings), *args)
        wanted = with_gradients(by_lax, *args)
    assert_same(found, wanted)


def test_tiles_are_of_all_kinds():
    tilings = [
        fourier.Tiling(-(-outputs // num) + kernel - 1 + extra, kernel, outputs)
        for num in (1, 2, 3)
        for kernel, outputs, extra in ((3, 7, 0), (4, 9, 1), (2, 12, 0), (1, 5, 1))
    ]
    assert {t.size % 2 for t in tilings} == {0, 1}
    assert {t.num_tiles for t in tilings} >= {1, 2, 3}
    assert {t.num_tiles * t.step == t.outputs for t in tilings} == {True, False}


# image, kernel: the second is Koch's second kernel, of few channels
@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((2, 16, 14, 16), (5, 4, 16, 16)),
        ((2, 24, 24, 4), (7, 7, 4, 6)),
        ((2, 48, 48, 2), (7, 7, 2, 3)),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_float32_is_as_exact_as_the_direct_sum(image, kernel, offset):
    # without an offset the sums cancel; with it they do not
    sizes = [(image[i], kernel[i - 1], image[i] - kernel[i - 1] + 1) for i in (1, 2)]
    tilings = [fourier.Tiling(*size) for size in sizes]
    x, k = (a + offset for a in normal(image, kernel))
    found = with_gradients(lambda x, k: fourier.convolve(x, k, *tilings), x, k)
    with jax.enable_x64(True):
        exact = [a.astype(jnp.float64) for a in (x, k)]
        (weights,) = normal(found[0].shape, seed=1)
        weights = weights.astype(jnp.float64)
        wanted = pulled_back(by_lax, weights, *exact)
        # sums of magnitudes, against which errors are measured
        magnitudes = pulled_back(by_lax, *map(jnp.abs, (weights, *exact)))
        rows = zip(*map(jax.tree.leaves, (found, wanted, magnitudes)), strict=True)
        for a, b, magnitude in rows:
            assert a.dtype == jnp.float32
            assert jnp.abs(a - b).max() <= 2e-6 * magnitude.max()
