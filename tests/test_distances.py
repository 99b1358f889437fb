"""Tests of distances between near points, at singular points, and of their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from siamese_jax import distances

NAMES = ("euclidean_distance", "squared_euclidean_distance", "cosine_distance")


def near_points(rng, num, dim, gap):
    """Vectors, and others at `gap` of their norm, in float32; the distance in float64."""
    a = rng.normal(size=(num, dim)) * 10.0 ** rng.uniform(-3, 3, size=(num, 1))
    step = rng.normal(size=(num, dim))
    step *= gap * np.linalg.norm(a, axis=1, keepdims=True)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    a, b = np.float32(a), np.float32(a + step)
    return a, b


def exact(name, a, b):
    a, b = np.float64(a), np.float64(b)
    if name == "cosine_distance":
        a /= np.linalg.norm(a, axis=1, keepdims=True)
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        return ((a - b) ** 2).sum(1) / 2
    squared = ((a - b) ** 2).sum(1)
    return squared if name.startswith("squared") else np.sqrt(squared)


@pytest.mark.parametrize("dim", [2, 64, 512])
@pytest.mark.parametrize("gap", [0.3, 0.03, 1e-3, 1e-5])
@pytest.mark.parametrize("name", NAMES)
def test_near_points_are_exact_in_row_and_matrix_form(name, gap, dim):
    a, b = near_points(np.random.default_rng(0), 24, dim, gap)
    wanted = exact(name, a, b)
    a, b = jnp.asarray(a), jnp.asarray(b)
    rows = getattr(distances, name)(a, b)
    matrix = getattr(distances, f"{name}_matrix")(a, b)
    # unit vectors are themselves rounded, which shows in the cosine of the nearest
    tolerance = 0.01 if gap >= 1e-3 or name != "cosine_distance" else 0.1
    np.testing.assert_allclose(rows, wanted, rtol=tolerance)
    np.testing.assert_allclose(np.diag(matrix), wanted, rtol=tolerance)


def test_the_plain_expansion_would_fail_that_test():
    a, b = near_points(np.random.default_rng(0), 24, 64, 1e-3)
    expansion = (a**2).sum(1) + (b**2).sum(1) - 2 * np.einsum("nd,nd->n", a, b)
    error = np.abs(expansion / exact("squared_euclidean_distance", a, b) - 1)
    assert error.max() > 0.05


@pytest.mark.parametrize("num_columns", [3, 40])
def test_collapsed_points_take_the_way_through_all_rows(num_columns):
    rng = np.random.default_rng(1)
    a = np.float32(1 + 1e-4 * rng.normal(size=(30, 8)))
    b = np.float32(1 + 1e-4 * rng.normal(size=(num_columns, 8)))
    matrix = distances.squared_euclidean_distance_matrix(jnp.asarray(a), jnp.asarray(b))
    wanted = ((np.float64(a)[:, None] - np.float64(b)[None]) ** 2).sum(-1)
    np.testing.assert_allclose(matrix, wanted, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euclidean_distance", "cosine_distance"])
def test_a_set_with_itself_has_a_zero_diagonal_and_finite_gradients(name):
    points = jnp.asarray(np.random.default_rng(2).normal(size=(9, 5)), jnp.float32)
    points = points.at[3].set(points[4])  # two equal rows beside the diagonal
    matrix_fn = getattr(distances, f"{name}_matrix")
    matrix, pullback = jax.vjp(lambda p: matrix_fn(p, p), points)
    assert not np.diag(matrix).any()
    assert matrix[3, 4] == 0
    (gradient,) = pullback(jnp.ones_like(matrix))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).sum(axis=1) > 0).all()


@pytest.mark.slow
def test_gradients_of_the_matrix_equal_those_of_the_rows():
    rng = np.random.default_rng(3)
    a, b = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    weights = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)

    def by_rows(a, b):
        values = distances.euclidean_distance(
            jnp.broadcast_to(a[:, None], (6, 6, 4)), jnp.broadcast_to(b[None], (6, 6, 4))
        )
        return jnp.sum(weights * values)

    def by_matrix(a, b):
        return jnp.sum(weights * distances.euclidean_distance_matrix(a, b))

    for found, wanted in zip(
        jax.grad(by_matrix, (0, 1))(a, b), jax.grad(by_rows, (0, 1))(a, b), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_second_derivatives_exist():
    points = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)), jnp.float32)
    hessian = jax.hessian(lambda p: distances.euclidean_distance_matrix(p, p).sum())(points)
    assert np.isfinite(hessian).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_sets_give_empty_matrices(shape):
    a, b = jnp.zeros((shape[0], 4)), jnp.zeros((shape[1], 4))
    assert distances.euclidean_distance_matrix(a, b).shape == shape


def test_cosine_does_not_depend_on_the_length_of_the_vectors():
    rng = np.random.default_rng(5)
    a, b = (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32) for _ in range(2))
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(
            distances.cosine_similarity(scale * a, b / scale),
            distances.cosine_similarity(a, b),
            rtol=1e-5,
            atol=1e-6,
        )


def test_tiles_do_not_change_the_matrix(monkeypatch):
    rng = np.random.default_rng(6)
    a, b = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (7, 5))
    whole = distances.manhattan_distance_matrix(a, b)
    monkeypatch.setattr(distances.standard, "_TILE_NUMBERS", 3 * b.size)  # 3, 3 and 1 rows
    np.testing.assert_array_equal(distances.manhattan_distance_matrix(a, b), whole)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_gradients_of_collapsed_points_are_exact(spread):
    rng = np.random.default_rng(7)
    points = np.float32(rng.normal(size=(1, 8)) + spread * rng.normal(size=(12, 8)))
    weights = rng.normal(size=(12, 12))
    exact = np.float64(points)
    gaps = exact[:, None] - exact[None]
    lengths = np.sqrt((gaps**2).sum(-1)) + np.eye(12)
    units = gaps / lengths[:, :, None] * weights[:, :, None]
    wanted = units.sum(axis=1) - units.sum(axis=0)
    found = jax.grad(
        lambda p: jnp.sum(
            jnp.asarray(weights, jnp.float32) * distances.euclidean_distance_matrix(p, p)
        )
    )(jnp.asarray(points))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.slow
def test_numpy_arrays_are_taken_too(monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
    points = np.float32(np.random.default_rng(8).normal(size=(4, 3)))
    np.testing.assert_allclose(
        distances.euclidean_distance_matrix(points, points),
        distances.euclidean_distance_matrix(jnp.asarray(points), jnp.asarray(points)),
    )


# Singular points --------------------------------------------------------------------------

ORDERS = {
    "lp_distance": 3,
    "lp_distance of order 1": 1,
    "lp_distance of order inf": jnp.inf,
}
CONES = ("euclidean_distance", "manhattan_distance", "cosine_distance", *ORDERS)


def jacobian(name, a, b, *, suffix=""):
    """Derivative of the distance by `a`, of one pair or of a matrix with one entry."""
    fn = getattr(distances, name.split()[0] + suffix)
    options = {"order": ORDERS[name]} if name in ORDERS else {}
    if suffix:
        a, b = a[None], b[None]
    return jax.jacobian(lambda a: fn(a, b, **options))(a).reshape(-1)


@pytest.mark.parametrize("suffix", ["", "_matrix"])
@pytest.mark.parametrize("name", [*CONES, "squared_euclidean_distance"])
def test_the_gradient_where_two_vectors_coincide_is_zero(name, suffix):
    x = jnp.array([0.3, -1.7, 5.0])
    np.testing.assert_array_equal(jacobian(name, x, x, suffix=suffix), 0)
    np.testing.assert_array_equal(jacobian(name, 0 * x, 0 * x, suffix=suffix), 0)


@pytest.mark.parametrize("suffix", ["", "_matrix"])
@pytest.mark.parametrize("name", ["cosine_distance", "cosine_similarity"])
def test_the_gradient_of_a_cosine_at_a_zero_vector_is_zero(name, suffix):
    found = jacobian(name, jnp.zeros(3), jnp.array([0.3, -1.7, 5.0]), suffix=suffix)
    np.testing.assert_array_equal(found, 0)


def test_the_gradient_of_the_direction_of_a_zero_vector_is_zero():
    found = jax.jacobian(distances.normalize)(jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(found[0], jnp.zeros((2, 2, 2)))
    np.testing.assert_allclose(found[1, :, 1], [[0.128, -0.096], [-0.096, 0.072]], 1e-5)


@pytest.mark.parametrize("suffix", ["", "_matrix"])
@pytest.mark.parametrize("size", [1e-30, 1e-37, 1e-45])
def test_directions_of_tiny_vectors_have_finite_gradients(size, suffix):
    a, b = size * jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])
    found = jacobian("cosine_distance", a, b, suffix=suffix)
    direction = jax.jacobian(distances.normalize)(a)
    if size < 1e-38:  # no normal number: as zero
        assert not found.any()
        assert not direction.any()
        return
    np.testing.assert_allclose(found * size, [-0.128, 0.096], rtol=1e-4)
    wanted = [[0.128, -0.096], [-0.096, 0.072]]
    np.testing.assert_allclose(direction * size, wanted, rtol=1e-4)
    np.testing.assert_allclose(distances.normalize(a), [0.6, 0.8], rtol=1e-6)


# Half precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "_matrix"])
def test_gradients_beyond_float16_are_its_largest_number(suffix):
    a = jnp.array([1e-6, 0.0, 0.0], jnp.float16)
    b = jnp.array([0.0, 1.0, 0.0], jnp.float16)
    largest = float(jnp.finfo(jnp.float16).max)
    found = jacobian("cosine_distance", a, b, suffix=suffix)
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found, [0, -largest, 0])
    direction = jax.jacobian(distances.normalize)(a)
    np.testing.assert_array_equal(direction, np.diag([0, largest, largest]))

    def mean_of_many(a):
        return 1e-3 * distances.cosine_distance(a, b)

    wanted = jax.grad(mean_of_many)(a.astype(jnp.float32))
    np.testing.assert_allclose(jax.grad(mean_of_many)(a), wanted, rtol=1e-3)
    nan = jax.grad(lambda a: jnp.nan * distances.cosine_distance(a, b))(a)
    assert np.isnan(nan).all()
