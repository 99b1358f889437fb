"""Tests of the data sets: digits, letters, Omniglot, TFDS sets and their error messages."""

import json
import os
import pathlib
import shutil

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

from experiments import datasets
from experiments.datasets import digits, letters, omniglot, tfds
from experiments.datasets.omniglot import Characters
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation


def test_draws_for_a_test_depend_on_their_purpose_alone():
    key = jax.random.key_data(datasets.evaluation_key("pairs"))
    again = jax.random.key_data(datasets.evaluation_key("pairs"))
    other = jax.random.key_data(datasets.evaluation_key("tasks"))
    np.testing.assert_array_equal(key, again)
    assert (key != other).any()
    draws = [datasets.evaluation_rng(word).random() for word in ("a", "a", "b")]
    assert draws[0] == draws[1] != draws[2]


# Digits ---------------------------------------------------------------------------------


def test_digits_are_split_without_overlap():
    train, test = digits.load_digits("train"), digits.load_digits("test")
    assert len(train.images) + len(test.images) == 1797
    assert train.images.shape[1:] == (8, 8, 1)
    assert train.images.max() == 255
    assert set(test.labels) == set(range(10))


def test_validation_digits_are_those_beyond_the_size_of_the_rarest_digit():
    splits = digits.load_splits("digits")
    labels = digits.load_digits("train").labels
    counts = np.bincount(labels)
    assert np.bincount(splits.train.labels).tolist() == [counts.min()] * 10
    assert len(splits.train.labels) + len(splits.validation.labels) == len(labels)
    np.testing.assert_array_equal(
        np.bincount(splits.validation.labels, minlength=10), counts - counts.min()
    )
    assert splits.test.images.shape[1:] == digits.image_shape("digits")
    with pytest.raises(ValueError, match='must be "train" or "test"; got \'validation\''):
        digits.load_digits("validation")


# TFDS: a set written as TFDS prepares it, in array_record form ---------------------------


def _varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number % 128 + 128]), number // 128
    return out + bytes([number])


def _field(number, payload):
    return _varint(number * 8 + 2) + _varint(len(payload)) + payload


def _example(names, image, label):
    """A tf.train.Example by its wire format: no TensorFlow needed."""
    entries = {
        names[0]: _field(1, _field(1, image)),  # bytes_list
        names[1]: _field(3, _field(1, _varint(label))),  # int64_list, packed
    }
    features = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, feature))
        for name, feature in entries.items()
    )
    return _field(1, features)


def write_tfds(folder, images, labels, *, names=("image", "label"), shape=None):
    """Writes a set; its images may have several sizes if no shape is declared."""
    import io

    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(folder / "tiny-train.array_record-00000-of-00001"), "group_size:1"
    )
    for image, label in zip(images, labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(buffer, format="PNG")
        writer.write(_example(names, buffer.getvalue(), label))
    writer.close()
    python = "tensorflow_datasets.core.features"
    shape = images[0].shape if shape is None else shape
    dimensions = {"dimensions": [str(size) for size in shape]}
    features = {
        names[0]: {
            "image": {"dtype": "uint8", "shape": dimensions},
            "pythonClassName": f"{python}.image_feature.Image",
        },
        names[1]: {
            "classLabel": {"numClasses": "3"},
            "pythonClassName": f"{python}.class_label_feature.ClassLabel",
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "featuresDict": {"features": features},
                "pythonClassName": f"{python}.features_dict.FeaturesDict",
            }
        )
    )
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(len(images))],
    }
    info = {"name": "tiny", "version": folder.name, "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [split]}))


@pytest.mark.filterwarnings("ignore")  # of tensorflow_datasets and what it imports
def test_a_tfds_set_is_read_without_tensorflow_and_decoded_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(5, 6, 4, 1), dtype=np.uint8)
    labels = [0, 1, 2, 1, 0]
    write_tfds(tmp_path / "tfds" / "tiny" / "1.0.0", images, labels)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SIAMESE_JAX_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        found = tfds.load_tfds("tiny", "train")
        np.testing.assert_array_equal(found.images, images)
        assert found.labels.tolist() == labels
        monkeypatch.setattr(tfds, "_decode", None)  # the second time it is not called


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The folder of a set's versions, and an empty cache."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SIAMESE_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tfds" / "tiny"


def plain(value, num=2, size=(4, 4)):
    return np.full((num, *size, 1), value, np.uint8)


@pytest.mark.filterwarnings("ignore")
def test_images_of_a_tfds_set_are_read_one_by_one(tiny):
    images = [*plain(10, 3, (4, 6)), *plain(20, 2, (5, 5))]
    write_tfds(tiny / "1.0.0", images, [0, 1, 2, 1, 0], shape=(-1, -1, 1))
    source = tfds.open_tfds("tiny", "train", Preparation((4, 4), color=True, invert=True))
    assert source.labels.tolist() == [0, 1, 2, 1, 0]
    assert source.read(4).shape == source.image_shape == (4, 4, 3)
    assert [source.read(number).mean() for number in (4, 0)] == [235, 245]
    opened = tfds.open_tfds("tiny", "train", Preparation((4, 4)))
    (record,) = (tiny / "1.0.0").glob("*.array_record*")
    record.write_bytes(bytes(record.stat().st_size))
    with pytest.raises(UserError, match=r"tiny/1.0.0, split 'train', example 3 cannot"):
        opened.read(3)


@pytest.mark.filterwarnings("ignore")
def test_the_newest_version_is_chosen_by_its_numbers(tiny):
    versions = ("3.0.9", "3.0.10", "2.11.0")
    for value, version in enumerate(versions):
        write_tfds(tiny / version, plain(value), [0, 1])
    for strange in ("incomplete.AB12CD_4.0.0", "4.0.0.part", "9", "v5.0.0", ".6.0.0"):
        (tiny / strange).mkdir()
        (tiny / strange / "dataset_info.json").write_text("{}")
    assert (tfds.load_tfds("tiny", "train").images == versions.index("3.0.10")).all()


def test_unfinished_downloads_are_no_set(tiny):
    (tiny / "incomplete.AB12CD_1.0.0").mkdir(parents=True)
    (tiny / "incomplete.AB12CD_1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no prepared 'tiny'"):
        tfds.load_tfds("tiny", "train")


@pytest.mark.filterwarnings("ignore")
def test_other_images_in_the_same_folder_are_decoded_again(tiny):
    for value in (5, 6):
        write_tfds(tiny / "1.0.0", plain(value), [0, 1])
        assert (tfds.load_tfds("tiny", "train").images == value).all()
        shutil.rmtree(tiny / "1.0.0")


@pytest.mark.filterwarnings("ignore")
def test_the_same_set_in_another_folder_is_decoded_again(tiny, tmp_path, monkeypatch):
    write_tfds(tiny / "1.0.0", plain(5), [0, 1])
    other = tmp_path / "other" / "tiny" / "1.0.0"
    write_tfds(other, plain(6), [0, 1])
    for path in other.iterdir():  # everything but the place and the images is equal
        twin = (tiny / "1.0.0" / path.name).stat()
        os.utime(path, ns=(twin.st_atime_ns, twin.st_mtime_ns))
    assert (tfds.load_tfds("tiny", "train").images == 5).all()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "other"))
    assert (tfds.load_tfds("tiny", "train").images == 6).all()


@pytest.mark.filterwarnings("ignore")
def test_old_and_damaged_entries_of_the_cache_do_no_harm(tiny, tmp_path, capsys):
    write_tfds(tiny / "1.0.0", plain(5), [0, 1])
    (tmp_path / "cache").mkdir()
    np.savez(tmp_path / "cache" / "tiny-1.0.0-train.npz", images=plain(9), labels=[0, 1])
    tfds.load_tfds("tiny", "train")
    (entry,) = (tmp_path / "cache").glob("tiny-1.0.0-train-*.npz")
    whole = entry.read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2], bytes(len(whole))):
        entry.write_bytes(content)
        assert (tfds.load_tfds("tiny", "train").images == 5).all()
        assert "is damaged; it is written anew" in capsys.readouterr().out
        assert (tfds.load_tfds("tiny", "train").images == 5).all()
        assert "damaged" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (
            [*plain(1, size=(4, 6)), *plain(2, size=(5, 5))],
            {"shape": (-1, -1, 1)},
            "has images of several sizes, where one is needed: 4 x 6 x 1, 5 x 5 x 1$",
        ),
        (
            [image for size in range(4, 9) for image in plain(1, 1, (size, 4))],
            {"shape": (-1, -1, 1)},
            "has images of several sizes, .*: 4 x 4 x 1, 5 x 4 x 1, 6 .* and 2 others$",
        ),
        (
            plain(1),
            {"names": ("picture", "label")},
            "has no feature 'image'; it has label, picture$",
        ),
        (
            plain(1),
            {"names": ("image", "kind")},
            "has no feature 'label'; it has image, kind$",
        ),
    ],
)
def test_sets_that_are_no_labelled_images_of_one_size_are_named(
    tiny, images, options, words
):
    labels = [number % 3 for number in range(len(images))]
    write_tfds(tiny / "1.0.0", images, labels, **options)
    with pytest.raises(UserError, match=f"tiny/1.0.0, split 'train', {words}"):
        tfds.load_tfds("tiny", "train")


@pytest.mark.filterwarnings("ignore")
def test_a_split_that_is_not_there_is_one_line(tiny):
    write_tfds(tiny / "1.0.0", plain(1), [0, 1])
    with pytest.raises(UserError, match=r"split 'nope', cannot be read: .*nope") as caught:
        tfds.load_tfds("tiny", "nope")
    assert "\n" not in str(caught.value)


def test_a_missing_tfds_set_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        tfds.load_tfds("mnist", "train")
    assert str(tmp_path) in str(caught.value)
    assert "python -m experiments tfds mnist" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_broken_tfds_set_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    write_tfds(folder, np.zeros((2, 4, 4, 1), np.uint8), [0, 1])
    (folder / "tiny-train.array_record-00000-of-00001").write_bytes(b"cut")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SIAMESE_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"tiny/1.0.0, split 'train', cannot be read"):
        tfds.load_tfds("tiny", "train")
    assert not (tmp_path / "cache").exists()


# Omniglot -------------------------------------------------------------------------------


def test_the_split_of_vinyals_parts_characters_not_alphabets(monkeypatch):
    def load_split(split):
        labels = np.arange(964) if split == "train" else 964 + np.arange(659)
        images = np.zeros((len(labels), 2, 2, 1), np.uint8)
        return Characters(images, labels, np.array(list("abcd"))[labels % 4])

    monkeypatch.setattr(omniglot, "load_split", load_split)
    parts = omniglot.vinyals_split(0)
    train, test = (set(parts[name].labels) for name in ("train", "vinyals"))
    assert (len(train), len(test), len(train & test)) == (1200, 423, 0)
    assert set(parts["train"].alphabets) == set("abcd")
    assert parts["vinyals"].class_index().group_sizes == (("all", 423),)
    assert set(omniglot.vinyals_split(1)["train"].labels) != train


def test_parts_are_chosen_by_alphabet(monkeypatch):
    def load_split(split):
        names = {"train": ["Latin"], "test": ["Angelic", "Kannada", "Tibetan"]}[split]
        labels = np.repeat(np.arange(len(names)), 2)
        images = np.zeros((len(labels), 2, 2, 1), np.uint8)
        return Characters(images, labels, np.array(names)[labels])

    monkeypatch.setattr(omniglot, "load_split", load_split)
    wanted = {
        "background": ["Latin"],
        "validation": ["Angelic"],
        "test": ["Kannada", "Tibetan"],
        "all": ["Angelic", "Kannada", "Tibetan"],
    }
    for part, names in wanted.items():
        assert np.unique(omniglot.load(part).alphabets).tolist() == names
    with pytest.raises(ValueError, match=r"part must be one of .*; got 'train'"):
        omniglot.load("train")


def test_the_first_drawings_of_each_character_are_taken():
    labels = np.array([3, 5, 3, 5, 3, 9])
    images = np.arange(6, dtype=np.uint8)[:, None, None, None]
    characters = Characters(images, labels, np.full(6, "Latin"))
    first = omniglot.first_drawings(characters, 2)
    assert first.images.ravel().tolist() == [0, 1, 2, 3, 5]
    assert first.labels.tolist() == [3, 5, 3, 5, 9]


@pytest.mark.filterwarnings("ignore")  # of tensorflow_datasets and what it imports
def test_drawings_are_dark_ink_on_light_paper_whatever_the_decoder(monkeypatch):
    def load_columns(name, split, columns):
        assert (name, split) == ("omniglot", "small1")
        drawing = np.array([[0, 1], [1, 0]], np.uint8)[:, :, None]
        examples = [
            {"image": drawing, "label": 7, "alphabet": 1},
            {"image": np.repeat(255 * drawing, 3, axis=2), "label": 8, "alphabet": 0},
        ]
        rows = [[read(example) for read in columns.values()] for example in examples]
        return dict(zip(columns, map(np.array, zip(*rows, strict=True)), strict=True))

    monkeypatch.setattr(omniglot, "load_columns", load_columns)
    monkeypatch.setattr(omniglot, "class_names", lambda *_: ["Greek", "Latin"])
    images, labels, alphabets = omniglot.load_split("small1")
    assert images.dtype == np.uint8
    assert images[..., 0].tolist() == [[[0, 255], [255, 0]]] * 2
    assert labels.tolist() == [7, 8]
    assert alphabets.tolist() == ["Latin", "Greek"]


# Letters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return letters.draw_letters()


@pytest.mark.slow
def test_letters_come_in_twelve_faces_and_five_alphabets(drawn):
    assert drawn.images.shape[1:] == (32, 32, 1)
    names, counts = np.unique(drawn.letters, return_counts=True)
    assert (counts == 12).all()
    assert len(names) > 1100
    assert drawn.only(letters.TEST).num_letters > 100
    assert set(drawn.alphabets) == {*letters.TRAINING, *letters.TEST}
    assert (drawn.images.reshape(len(drawn.images), -1).max(axis=1) > 100).all()


def test_letters_of_one_shape_are_one_class_and_training_shapes_are_not_tested(drawn):
    names = set(drawn.letters.tolist())
    for latin, others in (("A", "\u0391\u0410"), ("o", "\u03bf\u043e")):
        assert latin in names
        assert not names & set(others)
    assert not names & {"\u0555", "\u0585"}  # the Armenian letters drawn as O and o
    assert {"\u0531", "\u10d0"} <= names  # the first letters of both test alphabets


@pytest.mark.slow
def test_fonts_of_the_user_are_added_and_bad_ones_named(tmp_path, drawn):
    source = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "copy.ttf").write_bytes(source.read_bytes())
    more = letters.draw_letters(tmp_path / "mine")
    assert set(np.unique(more.letters, return_counts=True)[1]) == {13}
    (tmp_path / "mine" / "broken.ttf").write_bytes(b"not a font")
    with pytest.raises(UserError, match=r"broken.ttf cannot be read as a font"):
        letters.draw_letters(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .ttf or .otf file under"):
        letters.draw_letters(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        letters.draw_letters(tmp_path / "nowhere")


# The command ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "error", [ImportError("no module\ntensorflow"), "DatasetNotFoundError"]
)
def test_a_set_that_cannot_be_prepared_is_one_line(error, monkeypatch):
    import tensorflow_datasets

    if error == "DatasetNotFoundError":
        error = tensorflow_datasets.core.DatasetNotFoundError("no module\ntensorflow")

    def builder(*args, **options):
        raise error

    monkeypatch.setattr(tensorflow_datasets, "builder", builder)
    with pytest.raises(UserError, match="'x' cannot be prepared: no module tensorflow"):
        tfds.prepare_tfds("x")


def test_names_of_sets_are_prepared_one_after_the_other(monkeypatch):
    prepared = []
    monkeypatch.setattr(tfds, "prepare_tfds", prepared.append)
    tfds.main(tfds.Config(("mnist", "omniglot")))
    assert prepared == ["mnist", "omniglot"]
    with pytest.raises(UserError, match="names of data sets are wanted"):
        tfds.main(tfds.Config(()))
