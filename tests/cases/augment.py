"""Rows of the contract table for distortions of one image."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import augment
from tests import oracles
from tests.cases.case import KEY, Case, Contract, Inputs, Kind, Refusal, f32, key


def image(rng):
    return f32(rng.random((6, 5, 2)))


def some_ink(rng):
    """Sparse, so that the box around it is not all of the image."""
    return Inputs((f32(rng.random((6, 5, 2)) * (rng.random((6, 5, 1)) < 0.2)),))


def matrix(rng):
    return f32(np.eye(2, 3) + rng.normal(size=(2, 3)) * 0.5)


def keyed(rng):
    return Inputs((key(rng), image(rng)))


def only_key(rng):
    return Inputs((key(rng),))


def of_one(oracle):
    """The oracles take batches."""

    def one(*args, **options):
        return oracle(*(arg[None] for arg in args), **options)[0]

    return one


DISTORTION = augment.Affine(
    max_rotation=30.0,
    max_shear=0.3,
    scale_range=(0.8, 1.2),
    max_shift=2.0,
    rotation_probability=0.7,
    shear_probability=0.7,
    scale_probability=0.7,
    shift_probability=0.7,
)
BENDING = augment.Elastic(scale=1.0, sigma=2.0)
_IMAGE = jnp.zeros((4, 4, 1))


def _image_refusals(*before, after=(), name="image", **options):
    return (
        Refusal(
            "a batch of images",
            (*before, _IMAGE[None], *after),
            options,
            ValueError,
            f"{name} must have 3 axes",
        ),
        Refusal(
            "the image is boolean",
            (*before, _IMAGE > 0, *after),
            options,
            TypeError,
            f"{name} must be a floating",
        ),
    )


def _settings(cls, name, *refusals):
    return Case(
        f"augment.{name}",
        cls,
        Kind.SETTINGS,
        lambda rng: Inputs(()),
        refusals=tuple(
            Refusal(name, (), options, ValueError, words)
            for name, options, words in refusals
        ),
    )


AUGMENT = [
    _settings(
        augment.Affine,
        "Affine",
        (
            "negative rotation",
            {"max_rotation": -1.0},
            "max_rotation must be at least 0; got -1",
        ),
        ("negative shift", {"max_shift": -1.0}, "max_shift must be at least 0"),
        ("shear of 1", {"max_shear": 1.0}, r"max_shear must be in \[0, 1\); got 1"),
        ("largest scale first", {"scale_range": (1.2, 0.8)}, "scale_range must be"),
        (
            "probability above 1",
            {"shear_probability": 1.5},
            r"shear_probability must be in \[0, 1\]; got 1.5",
        ),
    ),
    _settings(
        augment.Elastic,
        "Elastic",
        (
            "negative scale",
            {"scale": -1.0, "sigma": 1.0},
            "scale must be at least 0; got -1",
        ),
        ("sigma of 0", {"scale": 1.0, "sigma": 0.0}, "sigma must be positive; got 0"),
    ),
    Case(
        "augment.affine_transform",
        augment.affine_transform,
        Kind.MAP,
        lambda rng: Inputs((image(rng), matrix(rng))),
        options=({}, {"fill": 0.5}),
        oracle=of_one(oracles.affine_transform),
        refusals=(
            *_image_refusals(after=(jnp.zeros((2, 3)),)),
            Refusal(
                "a batch of matrices",
                (_IMAGE, jnp.zeros((1, 2, 3))),
                {},
                ValueError,
                r"matrix must .*\(1, 2, 3\)",
            ),
        ),
    ),
    Case(
        "augment.affine_coordinates",
        augment.affine_coordinates,
        Kind.MAP,
        lambda rng: Inputs((matrix(rng),)),
        options=({"image_size": (3, 4)},),
        oracle=lambda matrix, image_size: oracles.affine_coordinates(
            matrix[None], image_size
        )[0],
        keeps_dtype=False,
        refusals=(
            Refusal(
                "a batch of matrices",
                (jnp.zeros((1, 2, 3)),),
                {},
                ValueError,
                r"matrix must .*\(1, 2, 3\)",
            ),
        ),
    ),
    Case(
        "augment.warp",
        augment.warp,
        Kind.MAP,
        lambda rng: Inputs((image(rng), f32(rng.uniform(-2, 7, (4, 5, 2))))),
        options=({}, {"fill": 0.5}),
        oracle=of_one(oracles.warp),
        refusals=(
            *_image_refusals(after=(jnp.zeros((2, 2, 2)),)),
            Refusal(
                "a batch of coordinates",
                (_IMAGE, jnp.zeros((2, 2, 2, 2))),
                {},
                ValueError,
                "coordinates must have",
            ),
            Refusal(
                "three numbers a coordinate",
                (_IMAGE, jnp.zeros((2, 2, 3))),
                {},
                ValueError,
                "coordinates must have",
            ),
            Refusal(
                "a row of coordinates",
                (_IMAGE, jnp.zeros((2, 2))),
                {},
                ValueError,
                "coordinates must have",
            ),
        ),
    ),
    Case(
        "augment.ink_offsets",
        augment.ink_offsets,
        Kind.MAP,
        some_ink,
        options=({"threshold": 0.5}, {"threshold": 2.0}),
        oracle=of_one(oracles.ink_offsets),
        refusals=_image_refusals(),
        exempt={
            Contract.GRADIENT: "ink is or is not: the offsets change in jumps",
            Contract.HALF: "the offsets are in pixels, float32 whatever the image",
            Contract.NAN: "a NaN is not above the threshold, so it is no ink",
        },
    ),
    Case(
        "augment.center",
        augment.center,
        Kind.MAP,
        some_ink,
        options=({"threshold": 0.5}, {"threshold": 0.5, "fill": 0.3}),
        oracle=of_one(oracles.center),
        refusals=_image_refusals(),
    ),
    Case(
        "augment.random_elastic",
        augment.random_elastic,
        Kind.RANDOM,
        keyed,
        options=({"elastic": BENDING}, {"elastic": BENDING, "fill": 1.0}),
        refusals=_image_refusals(KEY),
    ),
    Case(
        "augment.sample_elastic",
        augment.sample_elastic,
        Kind.RANDOM,
        only_key,
        options=({"image_size": (6, 5), "elastic": BENDING},),
        exempt={Contract.REFUSALS: "the settings are checked when they are made"},
    ),
    Case(
        "augment.random_thickness",
        augment.random_thickness,
        Kind.RANDOM,
        keyed,
        options=({"max_change": 0.5},),
        refusals=(
            *_image_refusals(KEY),
            Refusal(
                "a change above 1",
                (KEY, _IMAGE),
                {"max_change": 1.5},
                ValueError,
                r"max_change must be in \[0",
            ),
        ),
    ),
    Case(
        "augment.random_stretch",
        augment.random_stretch,
        Kind.RANDOM,
        keyed,
        options=({"stretch_range": (1.2, 1.6)}, {"stretch_range": (2.0, 2.0), "fill": 1.0}),
        refusals=(
            *_image_refusals(KEY),
            Refusal(
                "a stretch below 1",
                (KEY, _IMAGE),
                {"stretch_range": (0.5, 2.0)},
                ValueError,
                r"stretch_range must be \(smallest, largest\), both at least 1; got \(0.5",
            ),
            Refusal(
                "the largest stretch first",
                (KEY, _IMAGE),
                {"stretch_range": (2.0, 1.5)},
                ValueError,
                "stretch_range must be",
            ),
        ),
    ),
    Case(
        "augment.random_splice",
        augment.random_splice,
        Kind.RANDOM,
        lambda rng: Inputs((key(rng), image(rng), image(rng))),
        options=({"max_offset": 1.0},),
        refusals=(
            *_image_refusals(KEY, after=(_IMAGE,), name="first"),
            Refusal(
                "a boolean second image",
                (KEY, _IMAGE, _IMAGE > 0),
                {},
                TypeError,
                "second must be a floating",
            ),
            Refusal(
                "images of two sizes",
                (KEY, _IMAGE, _IMAGE[:3]),
                {"max_offset": 0.0},
                ValueError,
                r"second must have shape \(4, 4, 1\) to match first; got \(3",
            ),
            Refusal(
                "negative offset",
                (KEY, _IMAGE, _IMAGE),
                {"max_offset": -1.0},
                ValueError,
                "max_offset must be at least 0; got -1",
            ),
        ),
    ),
    Case(
        "augment.random_gap",
        augment.random_gap,
        Kind.RANDOM,
        keyed,
        options=(
            {"width": 1.5, "max_offset": 1.0},
            {"width": 1.5, "max_offset": 0.0, "fill": 0.5},
        ),
        refusals=(
            *_image_refusals(KEY),
            Refusal(
                "negative width",
                (KEY, _IMAGE),
                {"width": -1.0, "max_offset": 0.0},
                ValueError,
                "width must be at least 0; got -1",
            ),
            Refusal(
                "negative offset",
                (KEY, _IMAGE),
                {"width": 1.0, "max_offset": -1.0},
                ValueError,
                "max_offset must be at least 0; got -1",
            ),
        ),
    ),
    Case(
        "augment.random_copy",
        augment.random_copy,
        Kind.RANDOM,
        keyed,
        options=({"distance": 2.0},),
        refusals=(
            *_image_refusals(KEY),
            Refusal(
                "negative distance",
                (KEY, _IMAGE),
                {"distance": -1.0},
                ValueError,
                "distance must be at least 0; got -1",
            ),
        ),
    ),
    Case(
        "augment.random_affine",
        augment.random_affine,
        Kind.RANDOM,
        keyed,
        options=({"distortion": DISTORTION}, {"distortion": DISTORTION, "fill": 1.0}),
        refusals=_image_refusals(KEY),
    ),
    Case(
        "augment.sample_affine",
        augment.sample_affine,
        Kind.RANDOM,
        only_key,
        options=({"image_size": (6, 5), "distortion": DISTORTION},),
        exempt={Contract.REFUSALS: "the settings are checked when they are made"},
    ),
    Case(
        "augment.random_noise",
        augment.random_noise,
        Kind.RANDOM,
        keyed,
        options=({"scale": 0.1}, {"scale": 0.1, "probability": 0.5}),
        refusals=(
            *_image_refusals(KEY),
            Refusal(
                "negative scale",
                (KEY, _IMAGE),
                {"scale": -1.0},
                ValueError,
                "scale must be at least 0",
            ),
            Refusal(
                "probability above 1",
                (KEY, _IMAGE),
                {"scale": 1.0, "probability": 2.0},
                ValueError,
                "probability",
            ),
        ),
    ),
]
