"""Tests of the distortions against SciPy, and of their random draws."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from siamese_jax import augment

pytestmark = pytest.mark.slow


def images(shape=(4, 9, 7, 2)):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


@partial(jax.jit, static_argnums=0)
def of_each(fn, key, images):
    """Applies a random function to each image, with a key for each."""
    return jax.vmap(fn)(jax.random.split(key, len(images)), images)


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def draws(fn, key, num, size, settings):
    """Many draws of a map or a field."""
    return jax.vmap(lambda key: fn(key, size, settings))(jax.random.split(key, num))


def affine_maps(key, distortion):
    """Maps of 4000 images of 8 x 8."""
    return np.asarray(draws(augment.sample_affine, key, 4000, (8, 8), distortion))


def test_affine_transform_equals_scipy():
    rng = np.random.default_rng(1)
    x = images()
    matrices = np.float32(np.eye(2, 3) + 0.4 * rng.normal(size=(4, 2, 3)))
    matrices[:, :, 2] *= 3
    found = jax.vmap(partial(augment.affine_transform, fill=0.25))(x, jnp.asarray(matrices))
    for n in range(4):
        for channel in range(2):
            wanted = ndimage.affine_transform(
                np.float64(x[n, :, :, channel]),
                matrices[n, :, :2],
                offset=matrices[n, :, 2],
                order=1,
                mode="grid-constant",
                cval=0.25,
            )
            np.testing.assert_allclose(found[n, :, :, channel], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("distortion", "wanted"),
    [
        (augment.Affine(), np.eye(2)),
        (augment.Affine(scale_range=(2.0, 2.0)), np.eye(2) / 2),  # content grows
    ],
)
def test_the_centre_stays(distortion, wanted):
    matrix = np.asarray(augment.sample_affine(jax.random.key(0), (9, 7), distortion))
    np.testing.assert_allclose(matrix[:, :2], wanted, atol=1e-6)
    np.testing.assert_allclose(matrix @ [4, 3, 1], [4, 3], atol=1e-5)


def test_each_component_stays_in_its_range_and_comes_with_its_probability():
    distortion = augment.Affine(max_rotation=30.0, rotation_probability=0.25)
    matrices = affine_maps(jax.random.key(0), distortion)
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() <= 30.001
    assert abs((angles != 0).mean() - 0.25) < 0.03
    assert abs(np.abs(angles[angles != 0]).mean() - 15) < 1

    distortion = augment.Affine(max_shift=2.0, shift_probability=0.5)
    matrices = affine_maps(jax.random.key(1), distortion)
    shifts = matrices[:, :, 2]
    assert np.abs(shifts).max() <= 2
    np.testing.assert_allclose((shifts != 0).mean(axis=0), 0.5, atol=0.03)

    distortion = augment.Affine(scale_range=(0.5, 1.5))
    matrices = affine_maps(jax.random.key(2), distortion)
    scales = 1 / np.diagonal(matrices[:, :, :2], axis1=1, axis2=2)
    assert 0.5 - 1e-3 <= scales.min() <= scales.max() <= 1.5 + 1e-3
    np.testing.assert_allclose(scales.mean(axis=0), 1.0, atol=0.03)

    distortion = augment.Affine(max_shear=0.3)
    matrices = affine_maps(jax.random.key(3), distortion)
    forward = np.linalg.inv(matrices[:, :, :2])
    assert np.abs(forward[:, 0, 1]).max() <= 0.3 + 1e-4
    np.testing.assert_allclose(forward[:, 0, 0], 1, atol=1e-4)


def test_rotation_and_shift_move_the_content_as_said():
    """A quarter turn and a shift, against scipy's own turn."""
    image = images((8, 8, 1))
    matrix = augment.sample_affine(
        jax.random.key(0), (8, 8), augment.Affine(max_rotation=90.0)
    )
    cos, sin = matrix[0, 0], matrix[1, 0]
    angle = np.rad2deg(np.arctan2(sin, cos))
    found = augment.affine_transform(image, matrix)[1:-1, 1:-1, 0]
    wanted = ndimage.rotate(
        np.asarray(image[:, :, 0]), -angle, reshape=False, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(found, wanted[1:-1, 1:-1], atol=1e-4)


def test_an_image_s_distortion_depends_on_its_own_place_only():
    x = images()
    changed = x.at[1:].set(0.0)
    for fn in (
        partial(augment.random_affine, distortion=augment.KOCH_AFFINE),
        partial(augment.random_noise, scale=0.1),
        partial(augment.random_elastic, elastic=augment.Elastic(scale=1.0, sigma=2.0)),
        partial(augment.random_thickness, max_change=0.5),
    ):
        found = of_each(fn, jax.random.key(3), x)
        np.testing.assert_array_equal(found[0], of_each(fn, jax.random.key(3), changed)[0])
        assert np.any(found[0] != x[0])


def test_noise_has_its_deviation_and_probability():
    x = jnp.zeros((400, 10, 10, 1))
    fn = partial(augment.random_noise, scale=0.2, probability=0.5)
    noise = np.asarray(of_each(fn, jax.random.key(0), x))
    noisy = noise.any(axis=(1, 2, 3))
    assert abs(noisy.mean() - 0.5) < 0.08
    assert abs(noise[noisy].std() - 0.2) < 0.005
    assert abs(noise[noisy].mean()) < 0.005


def test_content_is_scaled_then_sheared_then_rotated_then_shifted():
    """The composed map, with its components read from draws of each alone."""
    key, size = jax.random.key(5), (9, 7)
    full = augment.Affine(
        max_rotation=40.0, max_shear=0.4, scale_range=(0.7, 1.4), max_shift=2.0
    )

    def forward(**kept):
        neutral = {
            "max_rotation": 0.0,
            "max_shear": 0.0,
            "scale_range": (1.0, 1.0),
            "max_shift": 0.0,
        }
        distortion = dataclasses.replace(full, **(neutral | kept))
        matrix = np.asarray(augment.sample_affine(key, size, distortion), np.float64)
        return np.linalg.inv(matrix[:, :2]), matrix

    rotation, _ = forward(max_rotation=40.0)
    shear, _ = forward(max_shear=0.4)
    scale, _ = forward(scale_range=(0.7, 1.4))
    _, shifted = forward(max_shift=2.0)
    shift = -shifted[:, 2]
    found, matrix = forward(**dataclasses.asdict(full))
    np.testing.assert_allclose(found, rotation @ shear @ scale, rtol=1e-4, atol=1e-5)
    centre = np.array([4.0, 3.0])
    # what is at the centre of the input arrives at the centre plus the shift
    arrived = np.append(centre + shift, 1.0)
    np.testing.assert_allclose(matrix @ arrived, centre, atol=1e-4)


# Bending, thickness ---------------------------------------------------------------------


def test_warp_equals_scipy_also_outside_and_at_another_size():
    rng = np.random.default_rng(2)
    x = images()
    coordinates = rng.uniform(-2, 10, (4, 5, 6, 2)).astype(np.float32)
    found = jax.vmap(partial(augment.warp, fill=0.25))(x, jnp.asarray(coordinates))
    assert found.shape == (4, 5, 6, 2)
    for n in range(4):
        for channel in range(2):
            wanted = ndimage.map_coordinates(
                np.float64(x[n, :, :, channel]),
                np.moveaxis(coordinates[n], -1, 0),
                order=1,
                mode="grid-constant",
                cval=0.25,
            )
            np.testing.assert_allclose(found[n, :, :, channel], wanted, atol=1e-5)


def test_an_elastic_field_is_normal_and_as_smooth_as_said():
    """White noise smoothed by a Gaussian of s correlates as exp(-d^2 / 4 s^2)."""
    scale, sigma = 1.5, 2.0
    elastic = augment.Elastic(scale=scale, sigma=sigma)
    fields = draws(augment.sample_elastic, jax.random.key(0), 4000, (9, 7), elastic)
    fields = np.asarray(fields, np.float64)
    assert fields.shape == (4000, 9, 7, 2)
    np.testing.assert_allclose(fields.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(fields.std(0), scale, rtol=0.06)  # at the borders too
    corner = fields[:, 0, 0] / scale
    for down, across in ((1, 0), (0, 2), (3, 1), (8, 0)):
        found = (corner * fields[:, down, across] / scale).mean(0)
        wanted = np.exp(-(down**2 + across**2) / (4 * sigma**2))
        np.testing.assert_allclose(found, wanted, atol=0.06)
    assert abs((corner[:, 0] * corner[:, 1]).mean()) < 0.06  # down tells nothing of across


def test_an_elastic_image_is_the_warp_of_its_field():
    x, elastic = images()[2], augment.Elastic(scale=1.0, sigma=3.0)
    found = augment.random_elastic(jax.random.key(4), x, elastic, fill=0.5)
    moved = np.asarray(augment.sample_elastic(jax.random.key(4), (9, 7), elastic))
    wanted = ndimage.map_coordinates(
        np.float64(x[:, :, 1]),
        np.mgrid[:9, :7] + np.moveaxis(moved, -1, 0),
        order=1,
        mode="grid-constant",
        cval=0.5,
    )
    np.testing.assert_allclose(found[:, :, 1], wanted, atol=1e-5)


def test_strokes_grow_and_shrink_towards_scipy_s_grey_morphology():
    x = images((6, 9, 7, 2))
    fn = partial(augment.random_thickness, max_change=0.8)
    found = np.asarray(of_each(fn, jax.random.key(1), x))
    signs = set()
    for image, changed in zip(np.asarray(x), found, strict=True):
        dilated = ndimage.grey_dilation(image, size=(3, 3, 1), mode="nearest")
        eroded = ndimage.grey_erosion(image, size=(3, 3, 1), mode="nearest")
        grown = changed.sum() > image.sum()
        other = dilated if grown else eroded
        change = np.sum(changed - image) / np.sum(other - image)
        assert 0 < change <= 0.8
        np.testing.assert_allclose(changed, image + change * (other - image), atol=1e-5)
        signs.add(grown)
    assert signs == {True, False}


def test_large_images_in_halves_are_centred_to_half_a_pixel():
    """bfloat16 has no 132.5."""
    image = jnp.zeros((300, 300, 1), jnp.bfloat16).at[280:284, 280:284].set(1.0)
    np.testing.assert_array_equal(augment.ink_offsets(image, threshold=0.5), [132, 132])
    image = image.at[284, 280:285].set(1.0)
    offsets = augment.ink_offsets(image, threshold=0.5)
    np.testing.assert_array_equal(offsets, [132.5, 132.5])
    centred = augment.center(image, threshold=0.5)
    assert centred.dtype == jnp.bfloat16
    assert float(jnp.sum(centred.astype(jnp.float32))) == pytest.approx(21, rel=0.01)


# Interpolation, settings, keys ----------------------------------------------------------


def test_far_coordinates_show_the_fill_and_nan_shows_nan():
    image = images((9, 7, 1))
    far = jnp.array([[[jnp.inf, 3], [-jnp.inf, 3], [1e20, -1e20], [3, 7], [-1, 3]]])
    np.testing.assert_array_equal(augment.warp(image, far, fill=0.25), 0.25)
    lost = jnp.array([[[jnp.nan, 3.0], [3.0, jnp.nan]]])
    assert np.isnan(augment.warp(image, lost)).all()


def test_a_pixel_at_whole_coordinates_is_copied_exactly():
    image = images((9, 7, 2)) * 1000
    coordinates = jnp.stack(jnp.mgrid[:9, :7], axis=-1).astype(jnp.float32)
    np.testing.assert_array_equal(augment.warp(image, coordinates, fill=-1.0), image)


def test_half_precision_maps_lose_no_pixels():
    height, width = 300, 301  # bfloat16 has no odd number beyond 256
    still = jnp.eye(2, 3, dtype=jnp.bfloat16)
    coordinates = augment.affine_coordinates(still, (height, width))
    assert coordinates.dtype == jnp.float32
    np.testing.assert_array_equal(
        coordinates, jnp.stack(jnp.mgrid[:height, :width], axis=-1)
    )
    image = images((height, width, 1))
    found = augment.affine_transform(image, still)
    np.testing.assert_array_equal(found, image)
    half = image.astype(jnp.bfloat16)
    np.testing.assert_array_equal(augment.affine_transform(half, still), half)
    beyond = jnp.array([[[3, width + 1]]], jnp.bfloat16)
    assert augment.warp(image, beyond, fill=-1.0) == -1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_dtype_of_the_image_is_kept(dtype):
    key, image = jax.random.key(0), images((9, 7, 1)).astype(dtype)

    def results(key, image):
        return (
            augment.random_affine(key, image, augment.KOCH_AFFINE),
            augment.random_elastic(key, image, augment.Elastic(scale=1.0, sigma=2.0)),
            augment.random_thickness(key, image, max_change=0.5),
            augment.random_noise(key, image, scale=0.1),
            augment.center(image, threshold=0.9),
        )

    with jax.enable_x64(True):  # draws are float64 here
        shapes = jax.eval_shape(results, key, image)
    for result in shapes:
        assert result.dtype == dtype


def test_settings_are_static_and_take_keywords_only():
    with pytest.raises(TypeError, match="positional"):
        augment.Affine(10.0)
    with pytest.raises(TypeError, match="positional"):
        augment.Elastic(1.0, 2.0)
    compiled = jax.jit(augment.random_affine, static_argnames="distortion")
    image = images((9, 7, 1))
    for _ in range(2):  # equal settings, made anew, are not compiled again
        settings = augment.Affine(max_shift=2.0, scale_range=(0.9, 1.1))
        compiled(jax.random.key(0), image, distortion=settings)
    assert compiled._cache_size() == 1


def test_no_key_is_used_twice():
    image = images((9, 7, 1))
    elastic = augment.Elastic(scale=1.0, sigma=2.0)
    with jax.debug_key_reuse(True):
        for fn in (
            lambda key: augment.random_affine(key, image, augment.KOCH_AFFINE),
            lambda key: augment.random_elastic(key, image, elastic),
            lambda key: augment.random_thickness(key, image, max_change=0.5),
            lambda key: augment.random_noise(key, image, scale=0.1, probability=0.5),
        ):
            jax.jit(fn)(jax.random.key(0))

        def twice(key):
            image = augment.random_noise(key, images((9, 7, 1)), scale=0.1)
            return augment.random_affine(key, image, augment.KOCH_AFFINE)

        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(twice)(jax.random.key(0))
