"""Tests of the strong changes that make new classes, against plain loops and SciPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from siamese_jax import augment

pytestmark = pytest.mark.slow

SIZE = (9, 7)
NUM = 40  # classes
CENTRE = (np.array(SIZE) - 1) / 2
CHANGES = {
    "stretch": partial(augment.random_stretch, stretch_range=(1.3, 1.9)),
    "splice": lambda key, image: augment.random_splice(
        key, image, image[::-1], max_offset=1.5
    ),
    "gap": partial(augment.random_gap, width=1.4, max_offset=1.5),
    "copy": partial(augment.random_copy, distance=2.3),
}


@pytest.fixture(scope="module")
def drawings():
    return jnp.asarray(np.random.default_rng(0).random((3, *SIZE, 2)), jnp.float32)


@pytest.fixture(scope="module")
def made(drawings):
    """By each change: the drawings as those of each class, [classes, drawings, ...]."""

    def of_class(key):
        return {name: jax.vmap(partial(fn, key))(drawings) for name, fn in CHANGES.items()}

    keys = jax.random.split(jax.random.key(0), NUM)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(of_class))(keys))


def sides(line):
    """Signed distance of each pixel to the line through the centre: angle and offset."""
    angle, offset = line
    found = np.empty(SIZE)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            down, right = row - CENTRE[0], column - CENTRE[1]
            found[row, column] = np.sin(angle) * down + np.cos(angle) * right - offset
    return found


def drawn_line(key, max_offset):
    angle_key, offset_key = jax.random.split(key)
    return (
        float(jax.random.uniform(angle_key, maxval=2 * np.pi)),
        float(jax.random.uniform(offset_key, minval=-max_offset, maxval=max_offset)),
    )


def keys(num):
    return jax.random.split(jax.random.key(0), NUM)[:num]


def test_values_stay_in_the_range_of_the_drawings(made, drawings):
    for name, images in made.items():
        assert images.shape == (NUM, *drawings.shape), name
        assert images.min() >= 0, name
        assert images.max() <= float(drawings.max()) + 1e-6, name


def test_drawings_of_a_class_are_changed_alike_and_classes_differ(made, drawings):
    """A change is a map of pixels: which pixel comes from where is one for a class."""
    coordinates = jnp.stack(jnp.mgrid[: SIZE[0], : SIZE[1]], axis=-1).astype(float) + 1
    for name, fn in CHANGES.items():
        images = made[name]
        first = jax.random.split(jax.random.key(0), NUM)[0]
        again = np.asarray(jax.vmap(partial(fn, first))(drawings))
        np.testing.assert_allclose(images[0], again, atol=1e-6, err_msg=name)
        flat = images.reshape(NUM, -1)
        between = np.abs(flat[:, None] - flat[None]).max(axis=2)[np.triu_indices(NUM, 1)]
        assert np.mean(between > 0.05) > 0.8, name
    # which pixels a splice and a gap take depends on the class, not on the drawing
    for fn, where in (
        (CHANGES["gap"], lambda image, drawing: image == 0),
        (CHANGES["splice"], lambda image, drawing: image == drawing),
    ):
        first, second = (coordinates, 2 * coordinates)
        found = [
            where(fn(jax.random.key(1), drawing), drawing) for drawing in (first, second)
        ]
        np.testing.assert_array_equal(*found)


def test_a_stretch_is_a_map_of_that_length_along_one_direction(drawings):
    lengths = []
    for key in keys(5):
        angle_key, stretch_key = jax.random.split(key)
        angle = float(jax.random.uniform(angle_key, maxval=2 * np.pi))
        s = float(jax.random.uniform(stretch_key, minval=1.3, maxval=1.9))
        turn = np.array([[np.sin(angle), -np.cos(angle)], [np.cos(angle), np.sin(angle)]])
        forward = turn @ np.diag([s, 1 / s]) @ turn.T
        along = turn[:, 0]
        np.testing.assert_allclose(forward @ along, s * along)
        back = np.linalg.inv(forward)
        wanted = ndimage.affine_transform(
            np.float64(drawings[0, :, :, 0]),
            back,
            offset=CENTRE - back @ CENTRE,
            order=1,
            mode="grid-constant",
        )
        found = CHANGES["stretch"](key, drawings[0])[:, :, 0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        lengths.append(s)
    assert len(set(lengths)) == 5


def test_a_splice_has_each_image_on_its_side_of_the_line(drawings):
    offsets = []
    for key in keys(5):
        line = drawn_line(key, 1.5)
        found = augment.random_splice(key, drawings[0], drawings[1], max_offset=1.5)
        wanted = np.where(sides(line)[:, :, None] >= 0, drawings[0], drawings[1])
        np.testing.assert_array_equal(found, wanted)
        offsets.append(line[1])
    assert min(offsets) < 0 < max(offsets)


def test_a_gap_removes_what_is_within_half_its_width_of_the_line(drawings):
    for key in keys(5):
        cut = np.abs(sides(drawn_line(key, 1.5)))[:, :, None] < 0.7
        for fill in (0.0, 0.5):
            found = augment.random_gap(
                key, drawings[0], width=1.4, max_offset=1.5, fill=fill
            )
            np.testing.assert_array_equal(found, np.where(cut, fill, drawings[0]))
        assert cut.any()


def test_a_copy_is_moved_by_whole_pixels_and_added(drawings):
    moves = set()
    for key in keys(5):
        angle = float(jax.random.uniform(key, maxval=2 * np.pi))
        down, right = (round(2.3 * x) for x in (np.sin(angle), np.cos(angle)))
        moved = ndimage.shift(np.asarray(drawings[0]), (down, right, 0), order=0)
        found = CHANGES["copy"](key, drawings[0])
        np.testing.assert_array_equal(found, np.maximum(drawings[0], moved))
        moves.add((down, right))
    assert len(moves) > 2


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_dtype_is_kept_and_no_key_is_used_twice(dtype, drawings):
    image = drawings[0].astype(dtype)
    for fn in CHANGES.values():
        with jax.enable_x64(True):  # draws are float64 here
            assert jax.eval_shape(fn, jax.random.key(0), image).dtype == dtype
        with jax.debug_key_reuse(True):
            jax.make_jaxpr(fn)(jax.random.key(0), image)
