"""Rows of the contract table for siamese networks."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import siamese
from tests import oracles
from tests.cases.case import FOUR, Case, Contract, Inputs, Kind, Refusal, Singular, f32
from tests.cases.distances import COINCIDING_A, COINCIDING_B


def dense(params, x):
    return jnp.tanh(jnp.matmul(x, params, precision="highest"))


def _dense_oracle(params, x):
    return np.tanh(np.asarray(x, np.float64) @ np.asarray(params, np.float64))


_ANY_TREE = {Contract.REFUSALS: "takes any trees that its function takes"}

SIAMESE = [
    Case(
        "siamese.twin",
        siamese.twin(dense),
        Kind.MAP,
        lambda rng: Inputs((f32(rng.normal(size=(3, 2))), f32(rng.normal(size=(2, 4, 3))))),
        oracle=lambda p, pair: np.stack([_dense_oracle(p, x) for x in pair]),
        exempt=_ANY_TREE,
    ),
    Case(
        "siamese.two_towers",
        siamese.two_towers(dense),
        Kind.MAP,
        lambda rng: Inputs(
            (f32(rng.normal(size=(2, 3, 2))), f32(rng.normal(size=(2, 4, 3))))
        ),
        oracle=lambda p, pair: np.stack(
            [_dense_oracle(q, x) for q, x in zip(p, pair, strict=True)]
        ),
        exempt=_ANY_TREE,
    ),
    Case(
        "siamese.stack_towers",
        siamese.stack_towers,
        Kind.TREES,
        lambda rng: Inputs(
            ({"w": f32(rng.normal(size=3))}, {"w": f32(rng.normal(size=3))})
        ),
        oracle=lambda a, b: {"w": np.stack([a["w"], b["w"]])},
        refusals=(
            Refusal("no tower", (), {}, ValueError, "at least one parameter tree"),
            Refusal("other names", ({"w": FOUR}, {"v": FOUR}), {}, ValueError, "differ"),
            Refusal(
                "other shapes",
                ({"w": FOUR}, {"w": FOUR[:2]}),
                {},
                ValueError,
                r"\(4,\).*\(2,\)",
            ),
        ),
    ),
    Case(
        "siamese.in_chunks",
        siamese.in_chunks(dense, 2),
        Kind.MAP,
        lambda rng: Inputs((f32(rng.normal(size=(3, 2))), f32(rng.normal(size=(4, 3))))),
        oracle=_dense_oracle,
        refusals=(
            Refusal(
                "rows that do not divide",
                (jnp.ones((3, 2)), jnp.ones((5, 3))),
                {},
                ValueError,
                "num_chunks must divide the number of rows, 5; got 2",
            ),
            Refusal(
                "no rows",
                (jnp.ones((3, 2)), jnp.ones((0, 3))),
                {},
                ValueError,
                "x must be arrays with the same number of rows, at least 1",
            ),
            Refusal(
                "an extra of other rows",
                (jnp.ones((3, 2)), jnp.ones((4, 3)), FOUR[:2]),
                {},
                ValueError,
                r"extras\[0\] must have 4 rows, one for each example; got shape \(2,\)",
            ),
        ),
    ),
    Case(
        "siamese.threshold_logits",
        siamese.threshold_logits,
        Kind.MAP,
        lambda rng: Inputs((f32(rng.random(5)),)),
        options=({"threshold": 0.5}, {"threshold": 0.3, "scale": 4.0}),
        oracle=oracles.threshold_logits,
        keeps_dtype=False,
        refusals=(
            Refusal(
                "distances are integers",
                (FOUR,),
                {"threshold": 1.0},
                TypeError,
                "distances must be a floating",
            ),
        ),
    ),
    *(
        Case(
            f"siamese.{name}",
            fn,
            Kind.ROW_DISTANCE,
            lambda rng, shape=shape: Inputs(
                (
                    *(f32(rng.normal(size=size)) for size in ((6, 4), (6, 4), shape)),
                    f32(rng.normal()),
                )
            ),
            oracle=oracle,
            singular=Singular(
                (COINCIDING_A, COINCIDING_B, jnp.ones(of_two), f32(0.5)), (0, -1)
            ),
            refusals=(
                Refusal(
                    "b has fewer rows",
                    (COINCIDING_A, COINCIDING_B[:3], jnp.ones(of_two), 0.0),
                    {},
                    ValueError,
                    "b must have shape",
                ),
                Refusal(
                    "a is a number",
                    (f32(1.0), f32(1.0), jnp.ones(of_two), 0.0),
                    {},
                    ValueError,
                    r"a must have at least 1 axis; got shape \(\)",
                ),
                Refusal(
                    "weights of another dim",
                    (COINCIDING_A, COINCIDING_B, jnp.ones(3), 0.0),
                    {},
                    ValueError,
                    "weights must have shape",
                ),
                Refusal(
                    "weights are integers",
                    (COINCIDING_A, COINCIDING_B, jnp.ones(of_two, int), 0.0),
                    {},
                    TypeError,
                    "weights must be a floating",
                ),
                Refusal(
                    "bias is a vector",
                    (COINCIDING_A, COINCIDING_B, jnp.ones(of_two), jnp.zeros(2)),
                    {},
                    ValueError,
                    "bias must be a scalar",
                ),
            ),
        )
        for name, fn, oracle, shape, of_two in (
            (
                "concatenation_logits",
                siamese.concatenation_logits,
                oracles.concatenation_logits,
                8,
                4,
            ),
            (
                "bilinear_logits",
                siamese.bilinear_logits,
                oracles.bilinear_logits,
                (4, 4),
                (2, 2),
            ),
        )
    ),
    Case(
        "siamese.weighted_l1_logits",
        siamese.weighted_l1_logits,
        Kind.ROW_DISTANCE,
        lambda rng: Inputs(
            (
                *(f32(rng.normal(size=shape)) for shape in ((6, 4), (6, 4), 4)),
                f32(rng.normal()),
            )
        ),
        oracle=oracles.weighted_l1_logits,
        singular=Singular(
            (COINCIDING_A, COINCIDING_B, f32([1.0, 2.0]), f32(0.5)), learning_rows=(0, -1)
        ),
        refusals=(
            Refusal(
                "b has fewer rows",
                (COINCIDING_A, COINCIDING_B[:3], COINCIDING_A[0], 0.0),
                {},
                ValueError,
                "a and b must have equal shapes",
            ),
            Refusal(
                "weights of another dim",
                (COINCIDING_A, COINCIDING_B, jnp.ones(3), 0.0),
                {},
                ValueError,
                "each of the 3 weights",
            ),
            Refusal(
                "weights are a column",
                (COINCIDING_A, COINCIDING_B, jnp.ones((2, 1)), 0.0),
                {},
                ValueError,
                "weights must have 1 axis",
            ),
            Refusal(
                "weights are integers",
                (COINCIDING_A, COINCIDING_B, FOUR, 0.0),
                {},
                TypeError,
                "weights must be a floating",
            ),
        ),
    ),
]
