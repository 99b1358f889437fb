"""Tests of the CPU convolution with the batch axis last, against `lax`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax._cpu import images_last
from tests.test_convolution import (
    assert_same,
    by_lax,
    normal,
    pulled_back,
    with_gradients,
)

pytestmark = pytest.mark.slow


def side_by_side_by_lax(stride, x, kernel):
    layout = ("CHWN", "HWIO", "CHWN")
    return by_lax(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)


def side_by_side(stride, x, kernel):
    return images_last.convolve(x, kernel, stride=stride)


SIDE_BY_SIDE = [
    ((3, 3), 1),
    ((1, 1), 1),
    ((5, 3), 2),
    ((2, 4), 1),
    ((2, 2), 3),
    ((8, 9), 1),
    ((16, 1), 1),  # some rows of the kernel meet no row of the image
]


@pytest.mark.parametrize(("size", "stride"), SIDE_BY_SIDE)
def test_images_side_by_side_are_convolved_as_by_lax(size, stride):
    with jax.enable_x64(True):
        x, kernel = normal((3, 7, 6, 4), (*size, 3, 5), dtype=jnp.float64)
        found, wanted = (
            with_gradients(partial(fn, stride), x, kernel)
            for fn in (side_by_side, side_by_side_by_lax)
        )
    assert_same(found, wanted)


@pytest.mark.parametrize(("size", "stride"), [SIDE_BY_SIDE[i] for i in (0, 2, 3)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_images_side_by_side_in_halves_are_summed_in_float32(size, stride, dtype):
    x, kernel = normal((3, 7, 6, 4), (*size, 3, 5), dtype=dtype)
    (weights,) = normal(jax.eval_shape(partial(side_by_side, stride), x, kernel).shape)
    weights = weights.astype(dtype)
    found = pulled_back(partial(side_by_side, stride), weights, x, kernel)
    wide = (a.astype(jnp.float32) for a in (weights, x, kernel))
    wanted = pulled_back(partial(side_by_side_by_lax, stride), *wide)
    rounding = float(jnp.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == dtype
        # one rounding of the sum; but patches' gradients are rounded before they are added
        rtol, atol = (rounding / 2, 1e-4) if stride == 1 else (0, 4 * rounding)
        atol *= np.abs(b).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_halves_have_gradients(stride):
    """What is moved as integers has a derivative all the same."""
    x, kernel = normal((3, 5, 5, 4), (3, 3, 3, 4), dtype=jnp.bfloat16)

    def of_gradient(fn, x, kernel):
        def loss(*arrays):
            return jnp.sum(jnp.square(fn(stride, *arrays).astype(jnp.float32)))

        norms = (jnp.sum(jnp.square(g)) for g in jax.grad(loss, (0, 1))(x, kernel))
        return sum(norms).astype(jnp.float32)

    found = jax.grad(of_gradient, (1, 2))(side_by_side, x, kernel)
    wide = (a.astype(jnp.float32) for a in (x, kernel))
    wanted = jax.grad(of_gradient, (1, 2))(side_by_side_by_lax, *wide)
    for a, b in zip(found, wanted, strict=True):
        assert np.linalg.norm(a.astype(jnp.float32) - b) < 0.05 * np.linalg.norm(b)


def test_products_are_of_bfloat16_and_summed_in_float32():
    """What matrix units take."""
    x, kernel = normal((3, 16, 8, 8, 16), (3, 3, 16, 32), dtype=jnp.bfloat16)

    def losses(kernel):
        def one(x):
            y = side_by_side(1, side_by_side(1, x, kernel), jnp.swapaxes(kernel, 2, 3))
            return jnp.sum(y.astype(jnp.float32))

        return jnp.sum(jax.lax.map(one, x))

    text = jax.jit(jax.grad(losses)).lower(kernel).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) >= 4  # forward, and back to kernels and images
    for line in products:
        assert "bf16" in line.split(":")[-1].split("->")[0]
        assert "f32" in line.split("->")[-1]


def test_images_side_by_side_under_vmap_and_shard_map():
    x, kernel = normal((2, 3, 6, 5, 4), (3, 3, 3, 5))
    fn = partial(side_by_side, 1)
    found = jax.vmap(fn, (0, None))(x, kernel)
    for one, wanted in zip(found, x, strict=True):
        assert_same(one, side_by_side_by_lax(1, wanted, kernel), rtol=1e-5)
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(fn(x, kernel)))(kernel)

    sharded = jax.shard_map(
        gradient,
        mesh=mesh,
        in_specs=(spec(None, None, None, "devices"), spec()),
        out_specs=spec(),
    )
    assert_same(jax.jit(sharded)(x[0], kernel), gradient(x[0], kernel), rtol=1e-5)
