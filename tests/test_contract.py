"""The contracts of the library, one test each, over every row of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from siamese_jax import distances, relations
from siamese_jax.reductions import mean_and_count, total
from tests.cases import CASES

VARIANTS = [
    pytest.param(case, options, arrays, id=f"{case.name}-{number}{'-masked' * arrays}")
    for case in CASES
    for number, (options, arrays) in enumerate(
        [(options, False) for options in case.options]
        + [(case.options[0], True)] * (case.arrays is not None)
    )
]


def with_trait(trait):
    return [pytest.param(case, id=case.name) for case in CASES if trait in case.traits]


def sample(case, arrays, seed):
    rng = np.random.default_rng(seed)
    args = case.make(rng)
    return args, case.arrays(rng, args) if arrays else {}


def assert_trees_close(found, wanted, rtol=1e-5, atol=1e-6):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )


def to_float64(tree):
    return jax.tree.map(
        lambda leaf: (
            leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        tree,
    )


def float_leaves(tree):
    return [
        leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("case", "options", "arrays"),
    # what is random has no single right value: its test module states its properties
    [variant for variant in VARIANTS if variant.values[0].oracle],
)
def test_value_equals_the_oracle(case, options, arrays, seed):
    args, extra = sample(case, arrays, seed)
    found = case.fn(*args, **extra, **options)
    assert_trees_close(found, case.oracle(*args, **extra, **options), rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize(("case", "options", "arrays"), VARIANTS)
def test_jit_and_vmap_change_nothing_and_nothing_retraces(case, options, arrays):
    num_traces = 0

    def fn(args, extra):
        nonlocal num_traces
        num_traces += 1
        return case.fn(*args, **extra, **options)

    samples = [sample(case, arrays, seed) for seed in (0, 1)]
    compiled = jax.jit(fn)
    results = [compiled(*inputs) for inputs in samples]
    assert num_traces == 1
    assert_trees_close(results[0], fn(*samples[0]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)
    mapped = jax.jit(jax.vmap(fn))(*stacked)
    for number, result in enumerate(results):
        assert_trees_close(jax.tree.map(lambda leaf, i=number: leaf[i], mapped), result)


@pytest.mark.parametrize(
    ("case", "options", "arrays"),
    [variant for variant in VARIANTS if variant.values[0].gradient],
)
def test_gradient_equals_central_differences(case, options, arrays):
    with jax.enable_x64(True):
        args, extra = to_float64(sample(case, arrays, 0))
        rng = np.random.default_rng(7)
        moved = [args[place] for place in case.gradient]
        direction = [jnp.asarray(rng.normal(size=x.shape)) for x in moved]
        shapes = jax.eval_shape(lambda: case.fn(*args, **extra, **options))
        weights = [rng.normal(size=leaf.shape) for leaf in float_leaves(shapes)]

        @jax.jit
        def scalar(moved):
            full = list(args)
            for place, value in zip(case.gradient, moved, strict=True):
                full[place] = value
            leaves = float_leaves(case.fn(*full, **extra, **options))
            return sum(jnp.sum(w * leaf) for w, leaf in zip(weights, leaves, strict=True))

        gradients = jax.grad(scalar)(moved)
        slope = sum(jnp.sum(g * v) for g, v in zip(gradients, direction, strict=True))
        step = 1e-6
        ahead, behind = (
            scalar([x + sign * step * v for x, v in zip(moved, direction, strict=True)])
            for sign in (1, -1)
        )
        assert float(jnp.abs(slope)) > 1e-6
        np.testing.assert_allclose(
            slope, (ahead - behind) / (2 * step), rtol=2e-6, atol=1e-8
        )


@pytest.mark.parametrize(
    ("case", "options"),
    [
        pytest.param(case, options, id=f"{case.name}-{number}")
        for case in CASES
        if case.singular
        for number, options in enumerate(case.options)
    ],
)
def test_gradient_is_finite_at_singular_points_among_ordinary_ones(case, options):
    args = case.singular()

    def scalar(*moved):
        full = list(args)
        for place, value in zip(case.gradient, moved, strict=True):
            full[place] = value
        out = case.fn(*full, **options)
        return jnp.sum(out * jnp.arange(1.0, out.size + 1).reshape(out.shape))

    value, gradients = jax.value_and_grad(scalar, argnums=tuple(range(len(case.gradient))))(
        *(args[place] for place in case.gradient)
    )
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    if case.name.startswith("distances."):
        assert np.abs(gradients[0][0]).sum() > 0  # the ordinary row still learns
        assert np.abs(gradients[0][-1]).sum() > 0


@pytest.mark.parametrize("case", with_trait("loss"))
def test_a_mask_equals_deletion(case):
    for options in case.options:
        args = case.make(np.random.default_rng(3))
        size = args[0].shape[0]
        keep = np.arange(size) % 3 != 1
        where, kept = keep, tuple(array[keep] for array in args)
        if args[0].ndim == 2:
            where = keep[:, None] & keep[None, :]
            kept = tuple(array[:, keep] for array in kept)

        def value(numbers, where, args=args, options=options):
            return case.fn(numbers, *args[1:], where=where, **options)

        found, gradient = jax.value_and_grad(value)(args[0], jnp.asarray(where))
        wanted, wanted_gradient = jax.value_and_grad(
            lambda numbers, kept=kept, options=options: case.fn(
                numbers, *kept[1:], **options
            )
        )(kept[0])
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert not np.asarray(gradient)[~where].any()
        np.testing.assert_allclose(
            np.asarray(gradient)[where], np.ravel(wanted_gradient), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("case", with_trait("loss"))
def test_the_order_of_the_batch_does_not_matter(case):
    args = case.make(np.random.default_rng(4))
    order = np.random.default_rng(5).permutation(args[0].shape[0])
    shuffled = [array[order] for array in args]
    if args[0].ndim == 2:
        shuffled = [array[:, order] for array in shuffled]
    np.testing.assert_allclose(case.fn(*args), case.fn(*shuffled), rtol=1e-6)


def test_the_names_of_the_labels_do_not_matter():
    labels = jnp.array([0, 0, 1, 2, 2])
    renamed = jnp.array([7, 3, 5])[labels]
    for a, b in zip(
        relations.within(relations.Items(labels)),
        relations.within(relations.Items(renamed)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


# labels and validity of batches with nothing, or little, to learn from
DEGENERATE = {
    "one class": ([0] * 6, [1] * 6),
    "all different": (range(6), [1] * 6),
    "one pair": ([0, 0, 1, 2, 3, 4], [1] * 6),
    "one row": ([0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]),
    "nothing": ([0, 0, 0, 1, 1, 1], [0] * 6),
    "padding": ([0, 0, 1, 1, 9, 9], [1, 1, 1, 1, 0, 0]),
    "ordinary": ([0, 0, 0, 1, 1, 1], [1] * 6),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", with_trait("loss"))
def test_degenerate_batches_are_finite_and_zero_where_nothing_counts(case, dtype):
    labels, valid = (jnp.asarray(list(x)) for x in zip(*DEGENERATE.values(), strict=True))
    # two coinciding points, and a zero vector
    points = jnp.array(
        [[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [3.0, 1.0], [-1.0, 0.5], [2, 2]]
    )

    @jax.jit
    @jax.vmap
    def batch_loss(labels, valid):
        def loss(points):
            items = relations.Items(labels, valid=valid > 0)
            same, where = relations.within(items)
            matrix = distances.euclidean_distance_matrix(points, points)
            return case.fn(matrix, same, where=where, reduce_fn=mean_and_count)

        return jax.value_and_grad(loss, has_aux=True)(points.astype(dtype))

    (values, counts), gradients = batch_loss(labels, valid)
    assert values.dtype == dtype
    for name, value, count, gradient in zip(
        DEGENERATE, values, counts, gradients, strict=True
    ):
        assert np.isfinite(value.astype(jnp.float32)), name
        assert np.isfinite(gradient.astype(jnp.float32)).all(), name
        if count == 0:
            assert value == 0, name
            assert not gradient.any(), name
    by_name = dict(zip(DEGENERATE, counts.tolist(), strict=True))
    assert by_name["nothing"] == by_name["one row"] == 0
    assert by_name["ordinary"] > 0
    if "matrix" in case.traits:
        assert by_name["all different"] == 0  # no positive
        assert 0 < by_name["one pair"] <= 2


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("case", with_trait("half"))
def test_the_dtype_is_kept_and_large_numbers_stay_finite(case, dtype):
    for options in case.options:
        args = case.make(np.random.default_rng(6))
        # float16 ends at 65504; the others are tried at magnitude 1e4
        scale = 1.0 if dtype == jnp.float16 else 1e4
        large = jax.tree.map(
            lambda x, scale=scale: (
                (scale * x).astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
            ),
            args,
        )
        if options.get("order") == 3 and dtype != jnp.float16:
            assert np.isfinite(case.fn(*large, **{"order": 40}).astype(jnp.float32)).all()
        result = case.fn(*large, **options)
        assert result.dtype == dtype
        assert np.isfinite(result.astype(jnp.float32)).all()
        if scale == 1.0:
            exact = case.fn(*args, **options)
            np.testing.assert_allclose(
                result.astype(jnp.float32), exact, rtol=2e-2, atol=2e-2
            )


@pytest.mark.parametrize("case", with_trait("nan"))
def test_nan_in_gives_nan_out(case):
    args = list(case.make(np.random.default_rng(8)))
    first = np.array(args[0])
    if first.ndim == 2 and first.shape[0] == first.shape[1]:
        first[0, 4] = np.nan  # a negative of row 0, which a sort would move to the end
    else:
        first[(0,) * first.ndim] = np.nan
    args[0] = jnp.asarray(first)
    for options in case.options:
        leaves = float_leaves(case.fn(*args, **options))
        assert any(np.isnan(leaf).any() for leaf in leaves)


@pytest.mark.parametrize("case", with_trait("loss"))
def test_unreduced_terms_sum_to_the_total(case):
    rng = np.random.default_rng(9)
    args = case.make(rng)
    terms = case.fn(*args, **case.arrays(rng, args), reduce_fn=None)
    rng = np.random.default_rng(9)
    args = case.make(rng)
    whole = case.fn(*args, **case.arrays(rng, args), reduce_fn=total)
    np.testing.assert_allclose(jnp.sum(terms.values * terms.weights), whole, rtol=1e-5)
    assert not terms.values[~terms.where].any()
    assert not terms.weights[~terms.where].any()


@pytest.mark.parametrize(
    ("case", "args", "options", "error", "words"),
    [
        pytest.param(case, *row, id=f"{case.name}-{number}")
        for case in CASES
        for number, row in enumerate(case.misuse)
    ],
)
def test_bad_input_is_refused_when_traced_with_names(case, args, options, error, words):
    options = case.options[0] | options if "distortion" not in options else options
    jaxtyping_config.update("jaxtyping_disable", True)  # as for a user
    try:
        with pytest.raises(error, match=words):
            jax.eval_shape(lambda: case.fn(*args, **options))
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
