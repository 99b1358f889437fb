"""Rows of the table: siamese, augmentation, convolution."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from siamese_jax import (
    augment,
    convolution,
    siamese,
)
from tests import oracles
from tests.cases.case import KEY, Case, f32, key
from tests.cases.distances import COINCIDING_A, COINCIDING_B
from tests.cases.relations import FOUR


def dense(params, x):
    return jnp.tanh(jnp.matmul(x, params, precision="highest"))


def _dense_oracle(params, x):
    return np.tanh(np.asarray(x, np.float64) @ np.asarray(params, np.float64))


def params_and_pair(rng):
    return f32(rng.normal(size=(3, 2))), f32(rng.normal(size=(2, 4, 3)))


def images(rng):
    return f32(rng.random((3, 6, 5, 2)))


def some_ink(rng):
    """Sparse, so that the box around it is not all of the image."""
    images = rng.random((4, 6, 5, 2)) * (rng.random((4, 6, 5, 1)) < 0.2)
    return f32(images)


def images_and_matrices(rng):
    return images(rng), f32(np.eye(2, 3) + rng.normal(size=(3, 2, 3)) * 0.5)


def _convolve_and_pool_oracle(x, kernel, window=2):
    sums = oracles.convolution(x, kernel, (1, 1), ((0, 0), (0, 0)))
    return oracles.max_pool(sums, window)


DISTORTION = augment.Affine(30.0, 0.3, (0.8, 1.2), 2.0, 0.7, 0.7, 0.7, 0.7)
BENDING = augment.Elastic(scale=1.0, sigma=2.0)
_IMAGE = jnp.zeros((1, 4, 4, 1))
_OF_INK = (
    ((_IMAGE[0],), {"threshold": 0.5}, ValueError, "images must have 4 axes"),
    ((_IMAGE > 0,), {"threshold": 0.5}, TypeError, "images must be a"),
)
_AFFINE_MISUSE = tuple(
    ((KEY, _IMAGE), {"distortion": augment.Affine(**wrong)}, ValueError, words)
    for wrong, words in (
        ({"max_rotation": -1.0}, "max_rotation must be at least 0; got -1"),
        ({"max_shift": -1.0}, "max_shift must be at least 0"),
        ({"max_shear": 1.0}, r"max_shear must be in \[0, 1\); got 1"),
        ({"scale_range": (1.2, 0.8)}, "scale_range must be"),
        ({"shear_probability": 1.5}, r"shear_probability must be in \[0, 1\]; got 1.5"),
    )
)

MODELS = [
    Case(
        "siamese.twin",
        siamese.twin(dense),
        params_and_pair,
        oracle=lambda p, pair: np.stack([_dense_oracle(p, x) for x in pair]),
        gradient=(0, 1),
    ),
    Case(
        "siamese.joint_twin",
        siamese.joint_twin(dense),
        params_and_pair,
        oracle=lambda p, pair: np.stack([_dense_oracle(p, x) for x in pair]),
        gradient=(0, 1),
    ),
    Case(
        "siamese.two_towers",
        siamese.two_towers(dense),
        lambda rng: (f32(rng.normal(size=(2, 3, 2))), f32(rng.normal(size=(2, 4, 3)))),
        oracle=lambda p, pair: np.stack(
            [_dense_oracle(q, x) for q, x in zip(p, pair, strict=True)]
        ),
        gradient=(0, 1),
    ),
    Case(
        "siamese.stack_towers",
        siamese.stack_towers,
        lambda rng: ({"w": f32(rng.normal(size=3))}, {"w": f32(rng.normal(size=3))}),
        oracle=lambda a, b: {"w": np.stack([a["w"], b["w"]])},
        misuse=(
            ((), {}, ValueError, "at least one parameter tree"),
            (({"w": FOUR}, {"v": FOUR}), {}, ValueError, "differ"),
            (({"w": FOUR}, {"w": FOUR[:2]}), {}, ValueError, r"\(4,\).*\(2,\)"),
        ),
    ),
    Case(
        "siamese.threshold_logits",
        siamese.threshold_logits,
        lambda rng: (f32(rng.random(5)),),
        options=({"threshold": 0.5}, {"threshold": 0.3, "scale": 4.0}),
        oracle=oracles.threshold_logits,
        gradient=(0,),
        misuse=(((FOUR,), {"threshold": 1.0}, TypeError, "distances must be a floating"),),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "siamese.weighted_l1_logits",
        siamese.weighted_l1_logits,
        lambda rng: (
            *(f32(rng.normal(size=shape)) for shape in ((6, 4), (6, 4), 4)),
            f32(rng.normal()),
        ),
        oracle=oracles.weighted_l1_logits,
        gradient=(0, 1, 2, 3),
        singular=lambda: (COINCIDING_A, COINCIDING_B, f32([1.0, 2.0]), f32(0.5)),
        misuse=(
            (
                (COINCIDING_A, COINCIDING_B[:3], COINCIDING_A[0], 0.0),
                {},
                ValueError,
                "a and b must have equal shapes",
            ),
            (
                (COINCIDING_A, COINCIDING_B, jnp.ones(3), 0.0),
                {},
                ValueError,
                "each of the 3 weights",
            ),
            (
                (COINCIDING_A, COINCIDING_B, jnp.ones((2, 1)), 0.0),
                {},
                ValueError,
                "weights must have 1 axes",
            ),
            (
                (COINCIDING_A, COINCIDING_B, FOUR, 0.0),
                {},
                TypeError,
                "weights must be a floating",
            ),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "augment.affine_transform",
        augment.affine_transform,
        images_and_matrices,
        options=({}, {"fill": 0.5}),
        oracle=oracles.affine_transform,
        gradient=(0,),
        misuse=(
            ((_IMAGE[0], jnp.zeros((1, 2, 3))), {}, ValueError, "images must have 4 axes"),
            ((_IMAGE, jnp.zeros((2, 2, 3))), {}, ValueError, r"shape \(1, 2, 3\)"),
            ((_IMAGE.astype(int), jnp.zeros((1, 2, 3))), {}, TypeError, "images must be a"),
        ),
    ),
    Case(
        "augment.affine_coordinates",
        partial(augment.affine_coordinates, image_size=(3, 4)),
        lambda rng: (images_and_matrices(rng)[1],),
        oracle=partial(oracles.affine_coordinates, image_size=(3, 4)),
        gradient=(0,),
    ),
    Case(
        "augment.warp",
        augment.warp,
        lambda rng: (images(rng), f32(rng.uniform(-2, 7, (3, 4, 5, 2)))),
        options=({}, {"fill": 0.5}),
        oracle=oracles.warp,
        gradient=(0,),
        misuse=(
            ((_IMAGE[0], jnp.zeros((1, 2, 2, 2))), {}, ValueError, "images must have 4"),
            ((_IMAGE, jnp.zeros((2, 2, 2, 2))), {}, ValueError, r"shape \(1, height"),
            ((_IMAGE, jnp.zeros((1, 2, 2, 3))), {}, ValueError, "coordinates must have"),
            ((_IMAGE, jnp.zeros((1, 2, 2))), {}, ValueError, "coordinates must have"),
            ((_IMAGE > 0, jnp.zeros((1, 2, 2, 2))), {}, TypeError, "images must be a"),
        ),
    ),
    Case(
        "augment.ink_offsets",
        augment.ink_offsets,
        lambda rng: (some_ink(rng),),
        options=({"threshold": 0.5}, {"threshold": 2.0}),
        oracle=oracles.ink_offsets,
        misuse=_OF_INK,
    ),
    Case(
        "augment.center",
        augment.center,
        lambda rng: (some_ink(rng),),
        options=({"threshold": 0.5}, {"threshold": 0.5, "fill": 0.3}),
        oracle=oracles.center,
        gradient=(0,),
        misuse=_OF_INK,
    ),
    Case(
        "augment.random_elastic",
        augment.random_elastic,
        lambda rng: (key(rng), images(rng)),
        options=({"distortion": BENDING}, {"distortion": BENDING, "fill": 1.0}),
        misuse=(
            ((KEY, _IMAGE[0]), {"distortion": BENDING}, ValueError, "images must have 4"),
            ((KEY, _IMAGE > 0), {"distortion": BENDING}, TypeError, "images must be a"),
            (
                (KEY, _IMAGE),
                {"distortion": augment.Elastic(-1.0, 1.0)},
                ValueError,
                "scale must be at least 0; got -1",
            ),
            (
                (KEY, _IMAGE),
                {"distortion": augment.Elastic(1.0, 0.0)},
                ValueError,
                "sigma must be positive; got 0",
            ),
        ),
    ),
    Case(
        "augment.sample_elastic",
        lambda key: augment.sample_elastic(key, 3, (6, 5), BENDING),
        lambda rng: (key(rng),),
    ),
    Case(
        "augment.random_thickness",
        augment.random_thickness,
        lambda rng: (key(rng), images(rng)),
        options=({"max_change": 0.5},),
        misuse=(
            ((KEY, _IMAGE[0]), {"max_change": 0.5}, ValueError, "images must have 4 axes"),
            ((KEY, _IMAGE), {"max_change": 1.5}, ValueError, r"max_change must be in \[0"),
            ((KEY, _IMAGE > 0), {"max_change": 0.5}, TypeError, "images must be a"),
        ),
    ),
    Case(
        "augment.random_affine",
        augment.random_affine,
        lambda rng: (key(rng), images(rng)),
        options=({"distortion": DISTORTION}, {"distortion": DISTORTION, "fill": 1.0}),
        misuse=(
            (
                (KEY, _IMAGE[0]),
                {"distortion": DISTORTION},
                ValueError,
                "images must have 4",
            ),
            ((KEY, _IMAGE > 0), {"distortion": DISTORTION}, TypeError, "images must be a"),
            *_AFFINE_MISUSE,
        ),
    ),
    Case(
        "augment.sample_affine",
        lambda key: augment.sample_affine(key, 3, (6, 5), DISTORTION),
        lambda rng: (key(rng),),
    ),
    Case(
        "augment.random_noise",
        augment.random_noise,
        lambda rng: (key(rng), images(rng)),
        options=({"scale": 0.1}, {"scale": 0.1, "probability": 0.5}),
        misuse=(
            ((KEY, _IMAGE[0]), {"scale": 0.1}, ValueError, "images must have 4 axes"),
            ((KEY, _IMAGE), {"scale": -1.0}, ValueError, "scale must be at least 0"),
            ((KEY, _IMAGE), {"scale": 1.0, "probability": 2.0}, ValueError, "probability"),
            ((KEY, _IMAGE > 0), {"scale": 1.0}, TypeError, "images must be a floating"),
        ),
    ),
    Case(
        "convolution.convolution",
        convolution.convolution,
        lambda rng: (images(rng), f32(rng.normal(size=(3, 2, 2, 4)))),
        options=(
            {"window_strides": (1, 1), "padding": ((0, 0), (0, 0))},
            {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))},
        ),
        oracle=lambda x, k, window_strides, padding: oracles.convolution(
            x, k, window_strides, padding
        ),
        gradient=(0, 1),
    ),
    Case(
        "convolution.max_pool",
        partial(convolution.max_pool, window=2),
        lambda rng: (images(rng),),
        oracle=partial(oracles.max_pool, window=2),
        gradient=(0,),
        misuse=(
            ((_IMAGE,), {"window": 5}, ValueError, "window must be from 1 to 4, .*; got 5"),
            ((_IMAGE,), {"window": 0}, ValueError, "window must be from 1 to 4, .*; got 0"),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "convolution.convolve_and_pool",
        partial(convolution.convolve_and_pool, window=2),
        lambda rng: (images(rng), f32(rng.normal(size=(2, 3, 2, 4)))),
        options=({}, {"window": 1}, {"window": 3}),
        oracle=_convolve_and_pool_oracle,
        gradient=(0, 1),
        misuse=(
            (
                (_IMAGE, jnp.ones((2, 2, 3, 1))),
                {},
                ValueError,
                r"the kernel's 3 channels; got 1 \(shape \(1, 4, 4, 1\), NHWC\)",
            ),
            (
                (_IMAGE, jnp.ones((2, 2, 2, 1))),
                {"layout": "CHWN"},
                ValueError,
                "the kernel's 2 channels; got 1 .* CHWN",
            ),
            ((_IMAGE, jnp.ones((3, 2, 1, 1))), {"window": 3}, ValueError, "1 to 2.*got 3"),
            (
                (_IMAGE, jnp.ones((5, 2, 1, 1))),
                {},
                ValueError,
                "window must be from 1 to 0",
            ),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "convolution.convolution_chwn",
        convolution.convolution_chwn,
        lambda rng: (
            f32(rng.normal(size=(2, 6, 5, 3))),
            f32(rng.normal(size=(4, 3, 2, 2))),
        ),
        options=({}, {"stride": 2}),
        oracle=oracles.convolution_chwn,
        gradient=(0, 1),
        misuse=(
            (
                (_IMAGE, jnp.ones((1, 2, 2, 3))),
                {},
                ValueError,
                r"the kernel's 3 channels; got 1 \(shape \(1, 4, 4, 1\), CHWN\)",
            ),
            ((_IMAGE, jnp.ones((1, 2, 2, 1))), {"stride": 0}, ValueError, "1; got 0"),
        ),
        traits=frozenset({"half", "nan"}),
    ),
]
