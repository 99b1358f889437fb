import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from siamese_jax import augment


def images(shape=(4, 9, 7, 2)):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def test_affine_transform_equals_scipy():
    rng = np.random.default_rng(1)
    x = images()
    matrices = np.float32(np.eye(2, 3) + 0.4 * rng.normal(size=(4, 2, 3)))
    matrices[:, :, 2] *= 3
    found = augment.affine_transform(x, jnp.asarray(matrices), fill=0.25)
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
    (matrix,) = np.asarray(augment.sample_affine(jax.random.key(0), 1, (9, 7), distortion))
    np.testing.assert_allclose(matrix[:, :2], wanted, atol=1e-6)
    np.testing.assert_allclose(matrix @ [4, 3, 1], [4, 3], atol=1e-5)


def test_each_component_stays_in_its_range_and_comes_with_its_probability():
    distortion = augment.Affine(max_rotation=30.0, rotation_probability=0.25)
    matrices = np.asarray(
        augment.sample_affine(jax.random.key(0), 4000, (8, 8), distortion)
    )
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert np.abs(angles).max() <= 30.001
    assert abs((angles != 0).mean() - 0.25) < 0.03
    assert abs(np.abs(angles[angles != 0]).mean() - 15) < 1

    distortion = augment.Affine(max_shift=2.0, shift_probability=0.5)
    matrices = np.asarray(
        augment.sample_affine(jax.random.key(1), 4000, (8, 8), distortion)
    )
    shifts = matrices[:, :, 2]
    assert np.abs(shifts).max() <= 2
    np.testing.assert_allclose((shifts != 0).mean(axis=0), 0.5, atol=0.03)

    distortion = augment.Affine(scale_range=(0.5, 1.5))
    matrices = np.asarray(
        augment.sample_affine(jax.random.key(2), 4000, (8, 8), distortion)
    )
    scales = 1 / np.diagonal(matrices[:, :, :2], axis1=1, axis2=2)
    assert 0.5 - 1e-3 <= scales.min() <= scales.max() <= 1.5 + 1e-3
    np.testing.assert_allclose(scales.mean(axis=0), 1.0, atol=0.03)

    distortion = augment.Affine(max_shear=0.3)
    matrices = np.asarray(
        augment.sample_affine(jax.random.key(3), 4000, (8, 8), distortion)
    )
    forward = np.linalg.inv(matrices[:, :, :2])
    assert np.abs(forward[:, 0, 1]).max() <= 0.3 + 1e-4
    np.testing.assert_allclose(forward[:, 0, 0], 1, atol=1e-4)


def test_rotation_and_shift_move_the_content_as_said():
    """A quarter turn and a shift, against scipy's own turn."""
    image = images((1, 8, 8, 1))
    matrix = augment.sample_affine(
        jax.random.key(0), 1, (8, 8), augment.Affine(max_rotation=90.0)
    )
    cos, sin = matrix[0, 0, 0], matrix[0, 1, 0]
    angle = np.rad2deg(np.arctan2(sin, cos))
    found = augment.affine_transform(image, matrix)[0, 1:-1, 1:-1, 0]
    wanted = ndimage.rotate(
        np.asarray(image[0, :, :, 0]), -angle, reshape=False, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(found, wanted[1:-1, 1:-1], atol=1e-4)


def test_an_image_s_distortion_depends_on_its_own_place_only():
    x = images()
    changed = x.at[1:].set(0.0)
    for fn in (
        lambda x: augment.random_affine(jax.random.key(3), x, augment.KOCH_AFFINE),
        lambda x: augment.random_noise(jax.random.key(3), x, scale=0.1),
        lambda x: augment.random_elastic(jax.random.key(3), x, augment.Elastic(1.0, 2.0)),
        lambda x: augment.random_thickness(jax.random.key(3), x, max_change=0.5),
    ):
        np.testing.assert_array_equal(fn(x)[0], fn(changed)[0])


def test_noise_has_its_deviation_and_probability():
    x = jnp.zeros((400, 10, 10, 1))
    noise = np.asarray(
        augment.random_noise(jax.random.key(0), x, scale=0.2, probability=0.5)
    )
    noisy = noise.any(axis=(1, 2, 3))
    assert abs(noisy.mean() - 0.5) < 0.08
    assert abs(noise[noisy].std() - 0.2) < 0.005
    assert abs(noise[noisy].mean()) < 0.005


def test_content_is_scaled_then_sheared_then_rotated_then_shifted():
    """The composed map, with its components read from draws of each alone."""
    key, size = jax.random.key(5), (9, 7)
    full = augment.Affine(40.0, 0.4, (0.7, 1.4), 2.0)

    def forward(**kept):
        neutral = {
            "max_rotation": 0.0,
            "max_shear": 0.0,
            "scale_range": (1.0, 1.0),
            "max_shift": 0.0,
        }
        distortion = full._replace(**(neutral | kept))
        (matrix,) = np.asarray(augment.sample_affine(key, 1, size, distortion), np.float64)
        return np.linalg.inv(matrix[:, :2]), matrix

    rotation, _ = forward(max_rotation=40.0)
    shear, _ = forward(max_shear=0.4)
    scale, _ = forward(scale_range=(0.7, 1.4))
    _, shifted = forward(max_shift=2.0)
    shift = -shifted[:, 2]
    found, matrix = forward(**full._asdict())
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
    found = augment.warp(x, jnp.asarray(coordinates), fill=0.25)
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
    fields = augment.sample_elastic(
        jax.random.key(0), 4000, (9, 7), augment.Elastic(scale, sigma)
    )
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
    x, distortion = images(), augment.Elastic(1.0, 3.0)
    found = augment.random_elastic(jax.random.key(4), x, distortion, fill=0.5)
    moved = np.asarray(augment.sample_elastic(jax.random.key(4), 4, (9, 7), distortion))
    wanted = ndimage.map_coordinates(
        np.float64(x[2, :, :, 1]),
        np.mgrid[:9, :7] + np.moveaxis(moved[2], -1, 0),
        order=1,
        mode="grid-constant",
        cval=0.5,
    )
    np.testing.assert_allclose(found[2, :, :, 1], wanted, atol=1e-5)


def test_strokes_grow_and_shrink_towards_scipy_s_grey_morphology():
    x = images((6, 9, 7, 2))
    found = np.asarray(augment.random_thickness(jax.random.key(1), x, max_change=0.8))
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
    image = jnp.zeros((1, 300, 300, 1), jnp.bfloat16).at[0, 280:284, 280:284].set(1.0)
    np.testing.assert_array_equal(augment.ink_offsets(image, threshold=0.5), [[132, 132]])
    image = image.at[0, 284, 280:285].set(1.0)
    offsets = augment.ink_offsets(image, threshold=0.5)
    np.testing.assert_array_equal(offsets, [[132.5, 132.5]])
    centred = augment.center(image, threshold=0.5)
    assert centred.dtype == jnp.bfloat16
    assert float(jnp.sum(centred.astype(jnp.float32))) == pytest.approx(21, rel=0.01)
