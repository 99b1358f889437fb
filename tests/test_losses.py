"""Tests of what one row of the contract table cannot say of losses: identities, limits.

The values, gradients and edge cases of each loss are in `tests/cases/losses`.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from siamese_jax import distances, losses, relations
from siamese_jax.losses._positives import for_each_positive, log_sum_over_negatives
from siamese_jax.reductions import mean_and_count
from tests import oracles
from tests.cases import CASES, Kind
from tests.contract import as_for_a_user
from tests.contract.jaxprs import half_arithmetic, largest_result
from tests.contract.losses import by_options
from tests.contract.trees import float_leaves

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])  # unequal classes, one of which is alone
SAME = jnp.asarray(LABELS[:, None] == LABELS[None])
WHERE = jnp.asarray(~np.eye(9, dtype=bool))


def vectors(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cosines(seed, num_rows=9):
    x = np.asarray(vectors(seed, num_rows, 3), np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return jnp.asarray(x @ x.T, jnp.float32)


def run(fn, *args, **options):
    """A loss under jit, which compiles once what would be many operations."""
    options = {k: jnp.asarray(x) if np.ndim(x) else x for k, x in options.items()}
    return jax.jit(lambda *args: fn(*args, **options))(*args)


def assert_equal(first, second, *args, rtol=1e-5):
    """Both functions agree in value, whatever the tree, and compile as one program."""
    found, wanted = jax.jit(lambda *args: (first(*args), second(*args)))(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


# Identities ----------------------------------------------------------------------------


def test_info_nce_of_aligned_pairs_is_the_n_pairs_loss():
    anchors, positives = vectors(0, 5, 3), vectors(1, 5, 3)
    same, where = relations.aligned(5)
    matrix = distances.dot_similarity_matrix(anchors, positives)
    found = run(losses.info_nce_loss, matrix, same, temperature=1.0, where=where)
    products = np.asarray(anchors, np.float64) @ np.asarray(positives, np.float64).T
    wanted = [
        np.log(1 + sum(np.exp(row[j] - row[i]) for j in range(5) if j != i))
        for i, row in enumerate(products)
    ]
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)


def test_matching_is_supervised_contrastive_inside_up_to_the_number_of_positives():
    num_positives = np.array([3, 3, 3, 3, 1, 1, 1, 1, 0])

    def by_inside(s):
        terms = losses.supervised_contrastive_loss(
            s, SAME, temperature=0.5, inside=True, where=WHERE, reduce_fn=None
        )
        counts = jnp.asarray(np.log(np.maximum(num_positives, 1)), jnp.float32)
        return terms.values - counts

    def by_matching(s):
        return losses.matching_loss(
            s, SAME, temperature=0.5, where=WHERE, reduce_fn=None
        ).values

    assert_equal(by_inside, by_matching, cosines(0))


def test_hard_negatives_without_weights_or_shares_are_info_nce():
    options = {"temperature": 0.4, "where": WHERE, "reduce_fn": None}
    assert_equal(
        lambda s: losses.hard_negative_contrastive_loss(
            s, SAME, concentration=0.0, positive_share=0.0, **options
        ),
        lambda s: losses.info_nce_loss(s, SAME, **options),
        cosines(0),
    )


def test_margins_of_0_leave_the_normalized_softmax():
    x, w, labels = vectors(0, 6, 3), vectors(1, 4, 3), jnp.array([0, 1, 2, 3, 0, 1])
    of_both = [losses.arc_face_loss, losses.cos_face_loss]
    assert_equal(
        lambda x, w: [fn(x, labels, w, margin=0.0, scale=20.0) for fn in of_both],
        lambda x, w: [losses.normalized_softmax_loss(x, labels, w)] * 2,  # 1 / 20
        *(x, w),
    )


def test_one_centre_of_soft_triple_is_cos_face():
    x, w, labels = vectors(0, 6, 3), vectors(1, 4, 3), jnp.array([0, 1, 2, 3, 0, 1])
    assert_equal(
        lambda x, w: losses.soft_triple_loss(x, labels, w[:, None], margin=0.1, scale=5.0),
        lambda x, w: losses.cos_face_loss(x, labels, w, margin=0.1, scale=5.0),
        *(x, w),
    )


def test_sphere_face_is_the_large_margin_with_proxies_of_length_1():
    x, w, labels = vectors(0, 6, 3), vectors(1, 4, 3), jnp.array([0, 1, 2, 3, 0, 1])
    assert_equal(
        lambda x, w: losses.sphere_face_loss(x, labels, w, margin=3),
        lambda x, w: losses.large_margin_softmax_loss(
            x, labels, distances.normalize(w), margin=3
        ),
        *(x, w),
    )


def test_the_logits_of_a_large_margin_fall_with_the_angle():
    angles = np.linspace(0, np.pi, 73)  # some of them where the pieces meet
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
    w = jnp.array([[1.0, 0.0], [0.0, 0.0]])  # the other logit is 0
    labels = np.zeros(73, int)
    terms = run(losses.sphere_face_loss, x, labels, w, reduce_fn=None)
    assert (np.diff(terms.values) > 0).all()
    psi = -np.log(np.expm1(np.float64(terms.values)))
    np.testing.assert_allclose(psi[[0, 36, -1]], [1, -3, -7], atol=1e-4)


@pytest.mark.parametrize("options", [{"soft": True}, {"swap": True}, {}])
def test_all_triplets_are_those_that_loops_list(options):
    matrix = np.asarray(vectors(0, 9, 9)) ** 2
    listed = [
        (matrix[i, j], matrix[i, k], matrix[j, k])
        for i, j, k in product(range(9), repeat=3)
        if i != j and LABELS[i] == LABELS[j] != LABELS[k]
    ]
    positive, negative, swapped = np.array(listed).T
    found = run(losses.all_triplets_loss, matrix, SAME, margin=0.5, where=WHERE, **options)
    swapped = swapped if options.get("swap") else None
    wanted = run(
        losses.triplet_loss,
        positive,
        negative,
        margin=0.5,
        soft=options.get("soft", False),
        swapped_distances=swapped,
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


# Limits --------------------------------------------------------------------------------


def queries():
    """Rows of cosines and masks, of which each has another number of positives."""
    s = np.asarray(cosines(3))
    return [(s[i][WHERE[i]], np.asarray(SAME[i])[WHERE[i]]) for i in range(8)]


def test_smooth_ap_tends_to_the_average_precision():
    found = run(losses.smooth_ap_loss, cosines(3), SAME, temperature=1e-5, where=WHERE)
    wanted = [1 - average_precision_score(hits, s) for s, hits in queries()]
    assert len({int(hits.sum()) for _, hits in queries()}) > 1
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose(
        [1 - oracles.average_precision(s, hits) for s, hits in queries()], wanted
    )


def test_fast_ap_is_the_average_precision_of_distances_on_nodes():
    rng = np.random.default_rng(0)
    matrix = np.stack([rng.permutation(12) for _ in range(6)]) / np.float32(3)
    same = np.arange(6)[:, None] >= np.arange(12)[None] % 7  # other numbers of positives
    found = run(losses.fast_ap_loss, matrix, same, num_bins=12, max_distance=4.0)
    pairs = zip(same, matrix, strict=True)
    wanted = [1 - average_precision_score(hits, -d) for hits, d in pairs]
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)


def test_histogram_loss_is_how_often_a_negative_is_as_similar_on_nodes():
    rng = np.random.default_rng(0)
    matrix = rng.integers(-4, 5, size=(6, 6)) / np.float32(4)
    same = rng.random((6, 6)) < 0.4
    found = run(losses.histogram_loss, matrix, same, num_bins=8)
    wanted = np.mean(matrix[same][:, None] <= matrix[~same][None])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_pnp_tends_to_the_number_of_negatives_before_a_positive():
    found = run(losses.pnp_loss, cosines(3), SAME, temperature=1e-5, where=WHERE)
    wanted = [np.mean([(s[~hits] > x).sum() for x in s[hits]]) for s, hits in queries()]
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)


def test_recall_loss_tends_to_the_share_of_positives_that_are_missed():
    # a positive in the middle between retrieved and not counts half
    found = run(
        losses.recall_loss,
        cosines(3),
        SAME,
        num_retrieved=3,
        temperature=1e-6,
        rank_temperature=1e-3,
        where=WHERE,
    )
    wanted = []
    for s, hits in queries():
        ranks = np.array([(s > x).sum() for x in s[hits]])
        retrieved = np.where(ranks < 2, 1.0, np.where(ranks == 2, 0.5, 0.0))
        wanted.append(1 - retrieved.sum() / min(3, len(ranks)))
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)


def test_lifted_structure_bounds_the_hardest_negative_of_both_ends():
    d = np.array([[0.0, 1.0, 9.0], [1.0, 0.0, 0.1], [9.0, 0.1, 0.0]], np.float32)
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]) > 0
    where = ~np.eye(3, dtype=bool)
    found = run(losses.lifted_structure_loss, d, same, margin=0.0, where=where)
    nearest = 1.0 - 0.1  # the negative is nearer to the second end
    assert nearest**2 / 2 < found < (nearest + np.log(2)) ** 2 / 2


# Constants for the gradient ---------------------------------------------------------------


def slope(fn, x, direction, step=1e-6):
    x, direction = np.asarray(x, np.float64), np.asarray(direction, np.float64)
    return (fn(x + step * direction) - fn(x - step * direction)) / (2 * step)


def test_circle_weights_have_no_gradient():
    s, direction = cosines(0), np.asarray(vectors(1, 9, 9))
    options = {"margin": 0.25, "scale": 4.0}
    gradient = run(jax.grad(losses.circle_loss), s, SAME, where=WHERE, **options)

    def oracle(moved):
        return oracles.circle(moved, SAME, weighted_by=s, where=WHERE, **options)

    wanted = slope(oracle, s, direction)
    np.testing.assert_allclose(np.sum(gradient * direction), wanted, rtol=1e-4)


def test_targets_of_the_negative_cosine_have_no_gradient():
    p, z, direction = vectors(0, 5, 3), vectors(1, 5, 3), np.asarray(vectors(2, 5, 3))
    of_p, of_z = run(jax.grad(losses.negative_cosine_loss, argnums=(0, 1)), p, z)
    wanted = slope(lambda moved: oracles.negative_cosine(moved, z), p, direction)
    np.testing.assert_allclose(np.sum(of_p * direction), wanted, rtol=1e-4)
    assert not of_z.any()


def test_ranks_of_the_dynamic_soft_margin_have_no_gradient():
    p, n = np.abs(vectors(0, 8)), np.abs(vectors(1, 8))
    histogram = jnp.zeros(6)
    fn = losses.dynamic_soft_margin_loss
    gradients = run(jax.grad(lambda p, n: fn(p, n, histogram)[0], argnums=(0, 1)), p, n)
    shares = np.cumsum(run(fn, p, n, histogram).histogram)
    places = np.clip(np.floor((np.asarray(p) - n + 2) / (4 / 6)), 0, 4).astype(int)
    np.testing.assert_allclose(gradients[0], shares[places] / 8, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], -gradients[0])


# Singular points of embeddings ------------------------------------------------------------

MATRIX_CASES = [case for case in CASES if case.kind is Kind.MATRIX_LOSS]
# twice the same, its opposite, zeros, and ordinary rows
SINGULAR = [[1, 2], [1, 2], [-2, -4], [0, 0], [0, 0], [3, 1], [-1, 0.5], [2, 2]]


def test_losses_of_singular_embeddings_are_finite_with_their_gradients():
    labels = jnp.array([0, 0, 0, 1, 1, 2, 2, 0])
    same, where = relations.within(relations.Items(labels))

    def all_losses(copies):
        cosine = [distances.cosine_similarity_matrix(x, x) for x in copies[:2]]
        euclidean = [distances.euclidean_distance_matrix(x, x) for x in copies[2:]]
        values = [
            losses.tuplet_margin_loss(cosine[0], same, where=where),
            losses.angular_loss(cosine[1], same, where=where),
            losses.lifted_structure_loss(euclidean[0], same, where=where),
            losses.all_triplets_loss(euclidean[1], same, where=where, swap=True),
        ]
        return sum(values)

    copies = [jnp.asarray(SINGULAR, jnp.float32)] * 4
    value, gradients = jax.jit(jax.value_and_grad(all_losses))(copies)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.abs(gradient[5:7]).sum() > 0  # the ordinary rows


# Memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MATRIX_CASES, ids=lambda case: case.name)
def test_no_array_has_an_entry_for_each_triplet(case):
    for variant in by_options(case):
        inputs = variant.inputs(0)
        backward = variant.programs.backward.__wrapped__
        program = jax.make_jaxpr(backward)(float_leaves(inputs), inputs).jaxpr
        assert largest_result(program) < len(inputs.args[0]) ** 3, variant.options


def test_an_array_of_triplets_would_be_found():
    def by_loop(matrix):  # the loop keeps a matrix for each row, for the gradient
        return jnp.sum(
            jax.lax.map(lambda row: jnp.sum(jnp.exp(row[:, None] * matrix)), matrix)
        )

    def at_once(matrix):
        return jnp.sum(jnp.exp(matrix[:, :, None] * matrix[:, None, :]))

    for fn in (by_loop, at_once):
        program = jax.make_jaxpr(jax.grad(fn))(jnp.ones((7, 7))).jaxpr
        assert largest_result(program) >= 7**3


def test_arithmetic_in_half_precision_would_be_found():
    x = jnp.ones(3, jnp.bfloat16)
    found = jax.make_jaxpr(jax.jit(lambda x: jax.lax.map(lambda y: 2 * y, x)))(x)
    assert half_arithmetic(found.jaxpr) == {"mul"}
    assert not half_arithmetic(jax.make_jaxpr(lambda x: x.astype(jnp.float32) + 1)(x).jaxpr)


# Work for the positives alone -------------------------------------------------------------


def test_a_loop_over_positives_has_a_step_for_each_of_the_row_with_the_most():
    shares = np.array([0.0, 0.1, 0.5, 1.0])[:, None, None]
    positive = np.random.default_rng(0).random((4, 6, 7)) < shares

    def visits(mask):
        def step(j, state):
            count, visited = state
            return count + 1, visited + (jnp.arange(7)[None, :] == j)

        return for_each_positive(step, mask, (0, jnp.zeros(mask.shape, int)))

    num_steps, visited = jax.jit(jax.vmap(visits))(jnp.asarray(positive))
    np.testing.assert_array_equal(num_steps, positive.sum(axis=2).max(axis=1))
    np.testing.assert_array_equal(visited, positive)


def test_log_sums_over_negatives_of_positives_alone_are_those_of_all_triplets():
    x, weights = 30 * vectors(0, 8, 8), vectors(1, 8, 8)
    positive = jnp.asarray(np.random.default_rng(0).random((8, 8)) < 0.3).at[3].set(False)
    negative = ~positive & jnp.asarray(np.random.default_rng(1).random((8, 8)) < 0.8)
    assert negative.any(axis=1).all()

    def at_once(x):
        sums = jax.nn.logsumexp(
            x[:, None, :] + x[None, :, :],
            axis=2,
            where=jnp.broadcast_to(negative[:, None, :], (8, 8, 8)),
        )
        return jnp.sum(weights * jnp.where(positive, sums, 0))

    def by_loop(x):
        return jnp.sum(weights * log_sum_over_negatives(x, positive, negative))

    assert_equal(jax.value_and_grad(by_loop), jax.value_and_grad(at_once), x)


def ranking_losses(s, temperature, same=SAME, where=WHERE):
    options = {"temperature": temperature, "where": where}
    return (
        losses.smooth_ap_loss(s, same, **options)
        + losses.pnp_loss(s, same, growth="log", **options)
        + losses.recall_loss(s, same, **options)
    )


@pytest.mark.slow
def test_losses_of_ranks_have_second_derivatives():
    def gradients(s, direction):
        ends = jnp.stack([s + 1e-5 * direction, s - 1e-5 * direction])
        return jax.vmap(lambda s: jax.grad(ranking_losses)(s, 0.3))(ends)

    def products(s, direction):
        return jax.jvp(lambda s: jax.grad(ranking_losses)(s, 0.3), (s,), (direction,))[1]

    with jax.enable_x64(True):
        args = [np.asarray(x, np.float64) for x in (cosines(0), vectors(1, 9, 9))]
        found, (after, before) = jax.jit(lambda *a: (products(*a), gradients(*a)))(*args)
        wanted = (after - before) / 2e-5
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_what_losses_of_ranks_cannot_differentiate_is_an_error():
    def forward(s):
        return jax.jvp(lambda s: ranking_losses(s, 0.3), (s,), (s,))

    def twice(s):
        return jax.grad(lambda s: jnp.sum(jax.grad(ranking_losses)(s, 0.3) ** 2))(s)

    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jit(forward).lower(cosines(0))
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.jit(twice).lower(cosines(0))


@pytest.mark.slow
def test_losses_of_ranks_have_the_same_gradient_with_rows_on_two_devices():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()
    s, masks = cosines(0)[:8], (SAME[:8], WHERE[:8])

    def one_device(temperature, s, same, where):
        def total(s, temperature):
            terms = losses.smooth_ap_loss(
                s, same, where=where, temperature=temperature, reduce_fn=None
            )
            return jnp.sum(terms.values)

        return jax.grad(total, argnums=(0, 1))(s, temperature)

    sharded = jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(everywhere, rows, rows, rows),
        out_specs=(rows, everywhere),
    )
    found = jax.jit(sharded)(jnp.float32(0.3), s, *masks)
    wanted = jax.jit(one_device)(jnp.float32(0.3), s, *masks)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Two denominators -------------------------------------------------------------------------


def test_a_loss_apart_weighs_the_rarer_kind_as_much():
    d = np.array([0.6, 0.2, 0.2, 0.2], np.float32)
    same = np.array([True, False, False, False])
    found = run(losses.contrastive_loss, d, same, apart=True, reduce_fn=mean_and_count)
    np.testing.assert_allclose(found.mean, 0.5 * (0.6**2 + 0.8**2), rtol=1e-6)
    assert found.num_terms == 4
    terms = run(losses.contrastive_loss, d, same, apart=True, reduce_fn=None)
    for part, where in zip(terms, (same, ~same), strict=True):
        np.testing.assert_array_equal(part.where, where)


@pytest.mark.parametrize("angle", [40.0, 80.0])
def test_the_angular_loss_is_exact_where_its_product_would_underflow(angle):
    """At 80 degrees the exponents span 250: its sums are then computed one by one."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.arange(8) // 2
    same, where = relations.within(relations.Items(jnp.asarray(labels)))
    similarities = jnp.asarray(points @ points.T, jnp.float32)
    found = jax.jit(
        lambda s: losses.angular_loss(s, same, angle=angle, where=where, reduce_fn=None)
    )(similarities)
    squared_tangent = np.tan(np.deg2rad(angle)) ** 2
    s = np.asarray(similarities, np.float64)
    for a, p in zip(*np.nonzero(found.where), strict=True):
        exponents = [
            4 * squared_tangent * (s[a, n] + s[p, n]) - 2 * (1 + squared_tangent) * s[a, p]
            for n in range(8)
            if labels[n] != labels[a]
        ]
        wanted = np.logaddexp.reduce([0.0, *exponents])
        np.testing.assert_allclose(found.values[a, p], wanted, rtol=1e-4, atol=1e-4)


def test_the_name_of_a_reduction_is_refused():
    words = r"reduce_fn must be a function.*got 'sum'"
    with as_for_a_user(), pytest.raises(TypeError, match=words):
        losses.contrastive_loss(jnp.ones(2), jnp.array([True, False]), reduce_fn="sum")
