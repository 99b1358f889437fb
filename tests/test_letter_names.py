"""Tests of the two towers of drawings and names."""

import unicodedata

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets.letters import Letters
from experiments.systems import letter_names
from siamese_jax import reductions


def test_names_are_numbers_of_characters():
    numbers = letter_names.encode_names(["GREEK SMALL LETTER ALPHA", "X-9"])
    assert numbers.shape == (2, letter_names.LENGTH)
    for row, name in zip(numbers, ("GREEK SMALL LETTER ALPHA", "X-9"), strict=True):
        text = "".join(letter_names.CHARACTERS[number - 1] for number in row if number)
        assert text == name


def test_every_letter_has_a_name_that_fits():
    letters = [chr(c) for c in range(0x250) if unicodedata.category(chr(c))[0] == "L"]
    assert letter_names.encode_names(letter_names.names_of(np.array(letters))).any()


def test_padding_after_a_name_changes_nothing():
    tower = letter_names.NameTower(features=4, dim=3)
    names = jnp.asarray(letter_names.encode_names(["LATIN SMALL LETTER A", "B"]))
    params = jax.jit(tower.init)(jax.random.key(0), names)
    apply = jax.jit(tower.apply)
    whole, short = apply(params, names), apply(params, names[:, :24])
    np.testing.assert_allclose(whole, short, rtol=1e-5, atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_recall_is_counted_in_both_directions():
    names = jnp.eye(3)
    images = jnp.array([[1.0, 0, 0], [0.9, 0, 0.1], [0.3, 0.2, 0.1], [0, 0.1, 1.0]])
    labels = np.array([0, 0, 1, 2])  # the third drawing is nearer to the first name
    found = letter_names.both_directions(images, labels, names)
    assert found["image_to_name_recall_at_1"] == 0.75
    assert found["image_to_name_recall_at_5"] == 1
    assert found["name_to_image_recall_at_1"] == 1


def test_the_loss_is_that_of_siglip_over_aligned_pairs():
    rng = np.random.default_rng(0)
    x, y = (v / np.linalg.norm(v, axis=1)[:, None] for v in rng.normal(size=(2, 4, 3)))
    z = 8 * x @ y.T - 3
    wanted = np.mean(np.sum(np.log1p(np.exp(np.where(np.eye(4) == 1, -z, z))), axis=1))
    pair_terms = letter_names.make_pair_terms(None)
    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    terms = pair_terms(*arrays, jnp.array([7, 2, 9, 4]), scale=8.0, bias=-3.0)
    np.testing.assert_allclose(reductions.mean(terms), wanted, rtol=1e-5)


def test_tests_share_no_drawing_with_the_training(monkeypatch):
    names = np.array([*"ABCDEFGHIJKLMNOPQRST", "\u0531", "\u0532"])
    alphabets = np.repeat(["latin", "armenian"], (20, 2))
    everything = Letters(
        np.zeros((22 * 12, 32, 32, 1), np.uint8),
        *(np.repeat(array, 12) for array in (names, alphabets)),
        np.tile(np.arange(12), 22),
    )
    monkeypatch.setattr(letter_names, "draw_letters", lambda: everything)
    split = letter_names.load(letter_names.Config(num_letters=18))
    train, tests = split.train, split.tests
    assert set(train.faces) == set(range(8))
    assert set(tests["new_faces"].faces) == {8, 9, 10, 11}
    assert set(tests["new_faces"].letters) == set(train.letters)
    new = set(tests["new_letters"].letters)
    assert len(new) == 2
    assert not new & set(train.letters)
    assert set(tests["new_alphabets"].alphabets) == {"armenian"}
    data = letter_names.on_device(train)
    assert data.names.shape == (18, letter_names.LENGTH)
    first = unicodedata.name(sorted(set(train.letters))[0])
    np.testing.assert_array_equal(data.names[0], letter_names.encode_names([first])[0])


def test_drawings_reach_the_tower_as_in_the_training(monkeypatch):
    """Ink is 255; `Model.embed` takes pictures of dark ink, which it inverts."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 1)).astype(np.uint8)
    letters = Letters(images, np.array(list("AABB")), np.full(4, "latin"), np.arange(4))
    given = []

    class Tower:
        def embed_prepared(self, images):
            given.append(images)
            return jnp.eye(2)[jnp.array([0, 0, 1, 1])]

    monkeypatch.setattr(letter_names, "embed_names", lambda *_: jnp.eye(2))
    found = letter_names.evaluate(None, None, Tower(), {"test": letters})
    np.testing.assert_array_equal(given, [images])
    assert found["test_image_to_name_recall_at_1"] == 1
    assert found["test_name_to_image_recall_at_1"] == 1
    assert found["test_chance"] == 0.5
