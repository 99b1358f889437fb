"""`vmap` over images joins them in one product; every derivative is that of the sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import convolution
from siamese_jax._cpu import blocks, maps
from siamese_jax.encoders._dense import dot_general
from tests.test_convolution import by_lax, normal, pool_by_lax

pytestmark = pytest.mark.slow

WAYS = {
    "patches": ((2, 3, 6, 5, 2), (3, 2, 2, 4)),
    "Fourier": ((2, 2, 9, 8, 16), (5, 4, 16, 16)),
    "blocks": ((2, 3, 6, 5, 2), (3, 2, 2, 4)),
    "blocks, images last": ((2, 2, 6, 5, 3), (3, 2, 2, 4)),
    "patches of single columns": ((2, 3, 6, 6, 2), (3, 2, 2, 4)),
    "dense, joined": ((2, 3, 5), (5, 4)),
    "dense, one by one": ((2, 64, 5), (5, 4)),
}
MATRIX_PRODUCT = (((1,), (0,)), ((), ()))
EACH = pytest.mark.parametrize("way", WAYS)
AXES = (3, 1, 2, 0)


def functions(way):
    """Ours and that of `lax`."""
    if way == "blocks":
        return (
            lambda x, k: blocks.convolve_and_pool(x, k, 2),
            lambda x, k: pool_by_lax(by_lax(x, k), 2),
        )
    if way == "blocks, images last":
        return (
            lambda x, k: blocks.convolve_and_pool(x, k, 2, images_last=True),
            lambda x, k: pool_by_lax(by_lax(jnp.transpose(x, AXES), k), 2).transpose(AXES),
        )
    if way.startswith("dense"):
        return lambda x, k: dot_general(x, k, MATRIX_PRODUCT), lambda x, k: x @ k
    return (
        partial(convolution.convolution, window_strides=(1, 1), padding="VALID"),
        by_lax,
    )


def loss(fn, k, x):
    return jnp.sum(jnp.sin(fn(x, k)))


def assert_close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * (np.abs(b).max() + 1))


@EACH
def test_gradients_of_each_example_are_those_of_a_loop(way):
    fn, of_lax = functions(way)
    with jax.enable_x64(True):
        x, k = normal(*WAYS[way], dtype=jnp.float64)
        each = jax.vmap(jax.grad(partial(loss, fn), (0, 1)), in_axes=(None, 0))
        found = jax.jit(each)(k, x)
        loop = [jax.grad(partial(loss, of_lax), (0, 1))(k, one) for one in x]
        assert_close(found, jax.tree.map(lambda *parts: jnp.stack(parts), *loop))


@EACH
@pytest.mark.parametrize("num_kernels", [3, 6])
def test_gradients_over_kernels_and_over_both(way, num_kernels):
    fn, of_lax = functions(way)
    with jax.enable_x64(True):
        x, k = normal(*WAYS[way], dtype=jnp.float64)
        kernels = jnp.stack([k, 2 * k, -k, 3 * k, k / 2, -2 * k][:num_kernels])

        def found(fn):
            pairs = jax.vmap(fn, (0, None))  # pairs inside, seeds outside
            gradient = jax.grad(partial(loss, pairs), (0, 1))
            return jax.vmap(gradient, (0, None))(kernels, x)

        assert_close(jax.jit(partial(found, fn))(), found(of_lax))
        together = jax.vmap(jax.grad(partial(loss, fn)))(kernels[:2], x)
        loop = [jax.grad(partial(loss, of_lax))(kernels[i], x[i]) for i in range(2)]
        assert_close(together, jnp.stack(loop))


@EACH
def test_gradients_over_many_images_at_once(way):
    fn, of_lax = functions(way)
    with jax.enable_x64(True):
        x, k = normal(*WAYS[way], dtype=jnp.float64)
        many = jnp.concatenate([x, 2 * x, -x])
        found, wanted = (
            jax.grad(partial(loss, jax.vmap(f, (0, None))), (0, 1))(k, many)
            for f in (fn, of_lax)
        )
        assert_close(found, wanted)


@EACH
def test_second_derivatives(way):
    fn, of_lax = functions(way)
    with jax.enable_x64(True):
        x, k = normal(*WAYS[way], dtype=jnp.float64)

        def of_gradient(fn, k, x):
            gradients = jax.grad(partial(loss, jax.vmap(fn, (0, None))), (0, 1))(k, x)
            return sum(jnp.sum(jnp.sin(3 * g)) for g in gradients)

        found, wanted = (
            jax.jit(jax.grad(partial(of_gradient, f), (0, 1)))(k, x) for f in (fn, of_lax)
        )
        assert_close(found, wanted)
        ahead, exact = (
            jax.jvp(jax.grad(partial(loss, f)), (k, x[0]), (k, x[1])) for f in (fn, of_lax)
        )
        assert_close(ahead, exact)


@EACH
@pytest.mark.parametrize("num", [1, 3])  # twice as many at once: one by one or joined
def test_forward_derivatives(way, num):
    fn, of_lax = functions(way)
    with jax.enable_x64(True):
        x, k = normal(*WAYS[way], dtype=jnp.float64)
        x = jnp.concatenate([x, 2 * x, -x][:num])
        found, wanted = (
            jax.jvp(jax.vmap(f, (0, None)), (x, k), (x[::-1], 2 * k)) for f in (fn, of_lax)
        )
        assert_close(found, wanted)


def test_pooling_has_derivatives_of_every_order_and_direction():
    pooled, of_lax = partial(convolution.max_pool, window=2), partial(pool_by_lax, window=2)
    with jax.enable_x64(True):
        x, change = normal((2, 3, 5, 4, 2), (2, 3, 5, 4, 2), dtype=jnp.float64)
        for over in (lambda f: f, jax.vmap):
            given = (x, change) if over is jax.vmap else (x[0], change[0])
            found, wanted = (
                jax.jvp(over(f), given[:1], given[1:]) for f in (pooled, of_lax)
            )
            assert_close(found, wanted)
            _, ahead = jax.linearize(over(pooled), given[0])
            assert_close(ahead(given[1]), wanted[1])
            assert_close(
                jax.linear_transpose(ahead, given[0])(wanted[1])[0],
                jax.vjp(over(of_lax), given[0])[1](wanted[1])[0],
            )
        second = [
            jax.jit(jax.hessian(lambda x, f=f: jnp.sum(jnp.sin(f(x)))))(x[0, :1])
            for f in (pooled, of_lax)
        ]
        assert_close(*second)
        assert second[0].any()


def test_no_entries_are_mapped_to_nothing():
    pooled = partial(convolution.max_pool, window=2)
    for num in (0, 3):
        found, back = jax.vjp(jax.vmap(pooled), jnp.ones((0, num, 6, 4, 2)))
        assert found.shape == (0, num, 3, 2, 2)
        assert back(found)[0].shape == (0, num, 6, 4, 2)


def products(fn, *args):
    """Shapes of the operands of all matrix products, forward and backward."""
    text = jax.jit(fn).lower(*args).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    return sorted(line.split(" : ")[-1] for line in lines)


@pytest.mark.parametrize("way", ["patches", "Fourier", "blocks", "dense, joined"])
def test_pairs_take_the_products_of_one_batch(way):
    fn, _ = functions(way)
    x, k = normal(*WAYS[way])

    def of_pairs(k, x):
        return loss(jax.vmap(fn, (0, None)), k, x)

    batch = jnp.concatenate(list(x))
    found = products(jax.grad(of_pairs, (0, 1)), k, x)
    assert found == products(jax.grad(partial(loss, fn), (0, 1)), k, batch)
    assert len(found) >= 3


def test_each_of_two_long_products_has_its_own():
    fn, _ = functions("dense, one by one")
    x, k = normal(*WAYS["dense, one by one"])
    found = products(jax.vmap(fn, (0, None)), x, k)
    assert found == products(fn, x[0], k) * 2


def test_a_linear_map_is_its_transposes_transpose():
    x, y = normal((4, 3), (4, 6))

    def twice(x):
        return jnp.concatenate([x, 2 * x], axis=1)

    fn = partial(maps.linear_by_transposition, twice)
    (back,) = jax.vjp(fn, x)[1](y)
    np.testing.assert_allclose(back, y[:, :3] + 2 * y[:, 3:], rtol=1e-6)
    (again,) = jax.vjp(lambda y: jax.vjp(fn, x)[1](y)[0], y)[1](x)
    np.testing.assert_allclose(again, twice(x), rtol=1e-6)
