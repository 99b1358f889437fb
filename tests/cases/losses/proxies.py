"""Rows of the losses with proxies of classes."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import losses
from tests import oracles
from tests.cases.case import Case, Inputs, Kind, Refusal, Singular, entry_arrays, f32
from tests.cases.losses.inputs import too_small

LABELS = np.array([0, 2, 1, 2, 2, 0])  # of four classes, of which one is absent
OWN_MARGINS = f32([0.3, 0.1, 0.2, 0.4])

# a proxy, its opposite, zero, an ordinary vector twice, and one at a right angle
SINGULAR_ROWS = f32([[2, 0, 0], [-3, 0, 0], [0, 0, 0], [1, 2, 0], [1, 2, 0], [0, 0, 1]])
SINGULAR_PROXIES = f32([[1, 0, 0], [0, 2, 0], [1, 0, 0], [0, 0, 0]])
_X, _L, _W = jnp.ones((3, 2)), jnp.zeros(3, int), jnp.ones((4, 2))


def proxies(rng, *, weights=6):
    args = f32(rng.normal(size=(6, 3))), jnp.asarray(LABELS), f32(rng.normal(size=(4, 3)))
    where = jnp.asarray(rng.permutation(6) > 0)  # one is masked
    return Inputs(args, {"where": where, "weights": f32(rng.uniform(0.5, 2, weights))})


def centers(rng):
    args, arrays = proxies(rng)
    return Inputs((*args[:2], f32(rng.normal(size=(4, 2, 3)))), arrays)


def logits(rng):
    args = f32(2 * rng.normal(size=(6, 4))), jnp.asarray(LABELS)
    return Inputs(args, entry_arrays(rng, 6))


def per_proxy(rng):
    return proxies(rng, weights=4)


def _refusals(scalars, margins, name="proxies", of_weights=3):
    args = _X, _L, _W
    return (
        *(
            Refusal(
                f"{option} is a vector",
                args,
                {option: jnp.ones(4)},
                ValueError,
                f"{option} must be a scalar",
            )
            for option in scalars
        ),
        *(
            Refusal(
                f"{option} has not one for each class",
                args,
                {option: jnp.ones(3)},
                ValueError,
                rf"{option} must have shape \(4,\)",
            )
            for option in margins
        ),
        Refusal(
            "proxies have another dim",
            (_X, _L, _W[:, :1]),
            {},
            ValueError,
            "proxies must have",
        ),
        Refusal(
            "embeddings are a vector", (_X[0], _L, _W), {}, ValueError, "must have 2 axes"
        ),
        Refusal(
            "labels are numbers", (_X, _X[:, 0], _W), {}, TypeError, "labels must be an int"
        ),
        Refusal(
            "labels are too few", (_X, _L[:2], _W), {}, ValueError, "labels must have shape"
        ),
        Refusal(
            "proxies are boolean",
            (_X, _L, _W > 0),
            {},
            TypeError,
            "proxies must be a float",
        ),
        Refusal(
            "where is too short",
            args,
            {"where": _L[:2] > 0},
            ValueError,
            r"where must have shape \(3,",
        ),
        Refusal(
            "where is not boolean",
            args,
            {"where": _L},
            TypeError,
            "where must be a boolean",
        ),
        Refusal(
            "weights are too short",
            args,
            {"weights": jnp.ones(2)},
            ValueError,
            rf"weights must have shape \({of_weights},",
        ),
    )


def _proxy_loss(
    name,
    *,
    scalars=(),
    margins=(),
    more=(),
    words="",
    singular=None,
    learning_rows=(3, 4),
    **row,
):
    args = SINGULAR_ROWS, jnp.asarray(LABELS), SINGULAR_PROXIES
    return Case(
        f"losses.{name}{words}",
        getattr(losses, name),
        Kind.PROXY_LOSS,
        singular=singular or Singular(args, learning_rows),
        **{"inputs": proxies, "refusals": (*_refusals(scalars, margins), *more), **row},
    )


_CENTERS = Singular(
    (
        SINGULAR_ROWS,
        jnp.asarray(LABELS),
        jnp.stack([SINGULAR_PROXIES, SINGULAR_PROXIES[:, ::-1]], axis=1),
    ),
    (3, 4),
)
_NO_CENTERS = (
    Refusal(
        "centres of another dim",
        (_X, _L, jnp.ones((4, 2, 3))),
        {},
        ValueError,
        "must have 2 features",
    ),
)

PROXIES = [
    Case(
        "losses.class_loss",
        losses.class_loss,
        Kind.PROXY_LOSS,
        logits,
        oracle=oracles.class_loss,
        singular=Singular((f32(1e4 * np.eye(6, 4)), jnp.asarray(LABELS))),
        refusals=(
            Refusal(
                "logits are a vector",
                (_X[0], _L),
                {},
                ValueError,
                "logits must have 2 axes",
            ),
            Refusal(
                "logits are boolean", (_X > 0, _L), {}, TypeError, "logits must be a float"
            ),
            Refusal(
                "labels are numbers", (_X, _X[:, 0]), {}, TypeError, "labels must be an int"
            ),
            Refusal(
                "labels are a column", (_X, _L[:, None]), {}, ValueError, "labels must have"
            ),
        ),
    ),
    _proxy_loss(
        "normalized_softmax_loss",
        options=({}, {"temperature": 0.5}),
        oracle=oracles.normalized_softmax,
        scalars=("temperature",),
    ),
    _proxy_loss(
        "cos_face_loss",
        options=({}, {"margin": 0.1, "scale": 5.0}, {"margin": OWN_MARGINS, "scale": 3.0}),
        oracle=oracles.cos_face,
        scalars=("scale",),
        margins=("margin",),
    ),
    _proxy_loss(
        "arc_face_loss",
        options=(
            {},
            {"margin": 80.0, "scale": 4.0},  # some beyond 180 degrees
            {"margin": 100 * OWN_MARGINS, "scale": 3.0},
        ),
        oracle=oracles.arc_face,
        scalars=("scale",),
        margins=("margin",),
    ),
    _proxy_loss(
        "arc_face_loss",
        words=" (sub-centres)",
        inputs=centers,
        options=({"margin": 40.0, "scale": 4.0},),
        oracle=oracles.arc_face,
        singular=_CENTERS,
        refusals=_NO_CENTERS,
    ),
    Case(
        "losses.dynamic_margins",
        losses.dynamic_margins,
        Kind.TREES,
        lambda rng: Inputs((jnp.asarray(rng.integers(1, 100, size=5)),)),
        options=({}, {"power": 0.5, "largest": 40.0, "smallest": 3.0}),
        oracle=oracles.dynamic_margins,
        refusals=(
            Refusal(
                "counts are numbers", (jnp.ones(3),), {}, TypeError, "counts must be an int"
            ),
            Refusal(
                "counts are a column", (_L[:, None],), {}, ValueError, "counts must have 1"
            ),
        ),
    ),
    _proxy_loss(
        "large_margin_softmax_loss",
        options=(
            {},
            {"margin": 1, "scale": 0.5},
            {"margin": 3, "scale": 2.0, "normalize_proxies": True},
        ),
        oracle=oracles.large_margin_softmax,
        scalars=("scale",),
        more=(too_small((_X, _L, _W), "margin", 0),),
    ),
    _proxy_loss(
        "sphere_face_loss",
        options=({}, {"margin": 2, "scale": 3.0}),
        oracle=oracles.sphere_face,
        scalars=("scale",),
        more=(too_small((_X, _L, _W), "margin", 0),),
    ),
    _proxy_loss(
        "soft_triple_loss",
        inputs=centers,
        options=(
            {},
            {"center_temperature": 0.5, "margin": 0.2, "scale": 4.0},
            {"margin": OWN_MARGINS, "scale": 4.0},
        ),
        oracle=oracles.soft_triple,
        singular=_CENTERS,
        refusals=_NO_CENTERS,
    ),
    _proxy_loss(
        "proxy_nca_loss",
        options=(
            {},
            {"temperature": 1 / 9},
            {"temperature": 0.5, "negatives_only": True},
        ),
        oracle=oracles.proxy_nca,
        scalars=("temperature",),
        more=(
            Refusal(
                "one proxy has no negatives",
                (_X, _L, _W[:1]),
                {"negatives_only": True},
                ValueError,
                "the number of proxies must be at least 2; got 1",
            ),
        ),
    ),
    _proxy_loss(
        "proxy_anchor_loss",
        inputs=per_proxy,
        options=({}, {"margin": 0.3, "scale": 5.0}),
        oracle=oracles.proxy_anchor,
        refusals=_refusals(("margin", "scale"), (), of_weights=4),
    ),
    _proxy_loss("p2s_grad_loss", oracle=oracles.p2s_grad),
    _proxy_loss(
        "instance_loss",
        options=({}, {"scale": 4.0}),
        oracle=oracles.instance,
        scalars=("scale",),
        learning_rows=(),  # the logits are so large that one class has it all
    ),
    _proxy_loss("prototypical_loss", oracle=oracles.prototypical),
]
