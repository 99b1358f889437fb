"""Tests of the yardsticks: splits by class, archives as folders, TFDS, pairs of LFW."""

import hashlib
import re

import numpy as np
import pytest
from PIL import Image

from experiments.datasets import lfw, omniglot, sources, tfds, yardsticks
from experiments.datasets.sources import ImageSource
from experiments.datasets.yardsticks import YARDSTICKS, in_training, open_yardstick
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from tests.test_datasets import plain, write_tfds

PREPARATION = Preparation((8, 8), color=True, resampling="center-crop")

# Number of images of each class of CUB-200-2011: 60, apart from these classes.
OTHER_COUNTS = (
    "3:58 5:44 6:41 7:53 8:48 9:59 12:56 15:58 16:58 17:57 18:45 19:59 20:59 22:56 23:59 "
    "24:52 28:59 32:53 33:59 34:59 37:59 39:59 43:59 58:58 60:59 65:50 75:57 78:59 84:53 "
    "97:59 101:50 105:49 107:59 113:50 115:59 117:59 119:59 124:59 125:59 126:59 135:59 "
    "141:58 149:59 151:51 153:59 157:59 160:59 166:59 168:59 169:59 178:56 179:59 181:59 "
    "187:50 190:58 196:59"
)


def counts_of_birds():
    counts = np.full(200, 60)
    for pair in OTHER_COUNTS.split():
        number, count = map(int, pair.split(":"))
        counts[number - 1] = count
    return counts


# Splits ---------------------------------------------------------------------------------


def test_the_birds_are_split_into_as_many_images_as_in_papers():
    labels = np.repeat(np.arange(200), counts_of_birds())
    is_train = in_training("caltech_birds2011", labels)
    assert len(labels) == 11_788
    assert (is_train.sum(), (~is_train).sum()) == (5_864, 5_924)
    assert YARDSTICKS["caltech_birds2011"].num_images == (5_864, 5_924)


@pytest.mark.parametrize(
    ("name", "num_train", "num_test"),
    [
        ("caltech_birds2011", 100, 100),
        ("cars196", 98, 98),
        ("stanford_online_products", 11_318, 11_316),
        ("omniglot", 964, 659),
    ],
)
def test_the_first_classes_are_for_training(name, num_train, num_test):
    labels = np.arange(num_train + num_test)
    is_train = in_training(name, labels)
    assert is_train[:num_train].all()
    assert not is_train[num_train:].any()
    assert YARDSTICKS[name].num_classes == (num_train, num_test)
    for wrong in (-1, num_train + num_test):
        with pytest.raises(UserError, match=f"{name} has classes 1 to .* {wrong + 1}$"):
            in_training(name, np.append(labels, wrong))


def test_all_images_are_in_one_of_the_parts():
    totals = {name: sum(about.num_images) for name, about in YARDSTICKS.items()}
    assert totals == {
        "caltech_birds2011": 11_788,
        "cars196": 16_185,
        "stanford_online_products": 120_053,
        "omniglot": 32_460,
    }


# Folders --------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Four classes instead of hundreds: two for training, two for the test."""
    for name, about in YARDSTICKS.items():
        four = about._replace(num_classes=(2, 2), num_images=(4, 4))
        monkeypatch.setitem(YARDSTICKS, name, four)


CLASSES = [4, 1, 2, 3, 3, 1, 4, 2]  # by authors, from 1, in the order of the lists


def write_pictures(root, names):
    """Writes a picture of one grey for each name: 10 times its number in the list."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 12), (10 * number,) * 3).save(root / name, quality=100)
    return names


def write_birds(root):
    root = root / "CUB_200_2011"
    names = [f"{c:03}.Bird/Bird_{i}.png" for i, c in enumerate(CLASSES)]
    write_pictures(root / "images", names)
    numbered = list(enumerate(names, 1))
    (root / "images.txt").write_text("".join(f"{n} {name}\n" for n, name in numbered))
    labels = "".join(f"{n} {c}\n" for n, c in enumerate(CLASSES, 1))
    (root / "image_class_labels.txt").write_text(labels)


def write_annotations(file, field, names, classes):
    from scipy.io import savemat

    kinds = [(field, object), ("bbox_x1", object), ("class", object)]
    rows = [(name, 5, c) for name, c in zip(names, classes, strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"annotations": np.array(rows, dtype=kinds)})


def write_cars(root):
    names = [f"car_ims/{i:06}.png" for i in range(len(CLASSES))]
    write_pictures(root, names)
    write_annotations(root / "cars_annos.mat", "relative_im_path", names, CLASSES)


def write_cars_kit(root):
    for split, rows in (("train", range(5)), ("test", range(5, 8))):
        names = [f"{i:05}.png" for i in rows]
        kit = root / ("devkit" if split == "train" else ".")
        ending = "" if split == "train" else "_withlabels"
        file = kit / f"cars_{split}_annos{ending}.mat"
        write_annotations(file, "fname", names, [CLASSES[i] for i in rows])
        for i, name in zip(rows, names, strict=True):
            (root / f"cars_{split}").mkdir(exist_ok=True)
            picture = Image.new("RGB", (9, 12), (10 * i,) * 3)
            picture.save(root / f"cars_{split}" / name)


def write_products(root):
    names = [f"chair_final/{c}_{i}.png" for i, c in enumerate(CLASSES)]
    write_pictures(root, names)
    for split, wanted in (("train", (1, 2)), ("test", (3, 4))):
        rows = [
            f"{i} {c} 1 {name}"
            for i, (c, name) in enumerate(zip(CLASSES, names, strict=True), 1)
            if c in wanted
        ]
        lines = ["image_id class_id super_class_id path", *rows, ""]
        (root / f"Ebay_{split}.txt").write_text("\n".join(lines))


ARCHIVES = {
    "caltech_birds2011": write_birds,
    "cars196": write_cars,
    "cars196 kit": write_cars_kit,
    "stanford_online_products": write_products,
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_folder_as_the_authors_packed_it_is_split_by_class(
    archive, small, tmp_path, capsys
):
    ARCHIVES[archive](tmp_path)
    name = archive.split()[0]
    parts = open_yardstick(name, tmp_path, PREPARATION)
    wanted = f"{name}: 4 training images of 2 classes, 4 test images of 2 classes\n"
    assert capsys.readouterr().out == wanted
    for part, rows in ((parts.train, (1, 2, 5, 7)), (parts.test, (0, 3, 4, 6))):
        classes = [CLASSES[row] - 1 for row in rows]
        greys = [part.source.read(number).mean() for number in range(4)]
        found = sorted(zip(greys, part.source.labels.tolist(), strict=True))
        assert found == [(10.0 * row, c) for row, c in zip(rows, classes, strict=True)]
        assert part.source.read(0).shape == (8, 8, 3)
        assert all((tmp_path / file).is_file() for file in part.names)


def test_numbers_that_differ_from_the_papers_are_said(small, tmp_path, capsys):
    write_birds(tmp_path)
    for name in ("images.txt", "image_class_labels.txt"):
        file = tmp_path / "CUB_200_2011" / name
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    open_yardstick("caltech_birds2011", tmp_path, PREPARATION)
    line = "the papers have 4 training images of 2 classes, 4 test images of 2 classes"
    assert capsys.readouterr().out.splitlines()[1].startswith(line)


@pytest.mark.parametrize(
    "name", ["caltech_birds2011", "cars196", "stanford_online_products"]
)
def test_a_wrong_folder_says_what_it_should_have(name, tmp_path):
    layout = re.escape(tfds.ARCHIVES[name])
    with pytest.raises(
        UserError, match=f"--data-dir: .* The folder of {name} has {layout}"
    ):
        open_yardstick(name, tmp_path, PREPARATION)
    with pytest.raises(UserError, match="omniglot is read from TensorFlow Datasets alone"):
        open_yardstick("omniglot", tmp_path, PREPARATION)


def test_damaged_lists_are_named(small, tmp_path):
    write_birds(tmp_path)
    file = tmp_path / "CUB_200_2011" / "image_class_labels.txt"
    lines = file.read_text().splitlines()
    for text, words in (
        ("\n".join(lines[:-1]), "differ in numbers"),
        ("1 2 3", "a line must have 2 words; got '1 2 3'"),
        ("1 one", "word 2 must be a number; got '1 one'"),
        ("\n".join([*lines, "3 1"]), "_labels.txt: number 3 is there more than once"),
        ("\n".join([*lines[:-1], "8 5"]), "has classes 1 to 4; there is one of number 5"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            open_yardstick("caltech_birds2011", tmp_path, PREPARATION)
    images = file.with_name("images.txt")
    images.write_text(images.read_text() + "8 001.Bird/Bird_0.png\n")
    with pytest.raises(UserError, match=r"images.txt: number 8 is there more than once"):
        open_yardstick("caltech_birds2011", tmp_path, PREPARATION)
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars" / "cars_annos.mat").write_bytes(b"no MATLAB file, but long enough")
    with pytest.raises(UserError, match=r"cars_annos.mat cannot be read as annotations"):
        open_yardstick("cars196", tmp_path / "cars", PREPARATION)


# TFDS -----------------------------------------------------------------------------------


def test_both_splits_of_tfds_are_joined_and_split_by_class(small, monkeypatch):
    asked = []

    def open_tfds(name, split, preparation, *, label):
        asked.append((name, split, label))
        labels = np.array({"train": [0, 3, 1, 2], "test": [3, 0, 2, 1]}[split])
        value = 100 if split == "test" else 0
        return ImageSource(
            lambda number: np.full((8, 8, 3), value + number, np.uint8), labels, (8, 8, 3)
        )

    monkeypatch.setattr(yardsticks, "open_tfds", open_tfds)
    for name, label in (("cars196", "label"), ("stanford_online_products", "class_id")):
        parts = open_yardstick(name, None, PREPARATION)
        assert asked[-2:] == [(name, "train", label), (name, "test", label)]
        assert parts.train.source.labels.tolist() == [0, 1, 0, 1]
        assert parts.test.source.labels.tolist() == [3, 2, 3, 2]
        assert parts.test.names.tolist() == ["train/1", "train/3", "test/0", "test/2"]
        read = [parts.test.source.read(number)[0, 0, 0] for number in range(4)]
        assert read == [1, 3, 100, 102]


def test_omniglot_has_background_characters_for_training(small, monkeypatch):
    def load_split(split):
        labels = np.array({"train": [0, 1, 1, 0], "test": [2, 3, 2, 3]}[split])
        images = plain(7, 4, (5, 5))
        return omniglot.Characters(images, labels, np.full(4, "Latin"))

    monkeypatch.setattr(omniglot, "load_split", load_split)
    parts = open_yardstick("omniglot", None, Preparation((5, 5), invert=True))
    assert parts.train.source.labels.tolist() == [0, 1, 1, 0]
    assert parts.test.source.labels.tolist() == [2, 3, 2, 3]
    assert (parts.test.source.read(3) == 248).all()


@pytest.mark.filterwarnings("ignore")  # of tensorflow_datasets and what it imports
def test_labels_of_a_prepared_set_are_read_without_its_images(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SIAMESE_JAX_CACHE", str(tmp_path / "cache"))
    write_tfds(tmp_path / "tiny" / "1.0.0", plain(9), [2, 0], names=("image", "class_id"))

    def decode(*args):
        raise AssertionError("an image is decoded")

    from tensorflow_datasets.core.features.image_feature import Image as Feature

    with monkeypatch.context() as patch:
        patch.setattr(Feature, "decode_example_np", decode)
        source = tfds.open_tfds("tiny", "train", Preparation((4, 4)), label="class_id")
    assert source.labels.tolist() == [2, 0]
    assert (source.read(1) == 9).all()
    with pytest.raises(UserError, match="label"):  # not what is cached of "class_id"
        tfds.open_tfds("tiny", "train", Preparation((4, 4)))


@pytest.mark.filterwarnings("ignore")
def test_a_failed_download_says_what_to_unpack_instead(tmp_path, monkeypatch):
    import tensorflow_datasets

    class Builder:
        def download_and_prepare(self):
            raise ConnectionError("404\nnot found")

    monkeypatch.setattr(tensorflow_datasets, "builder", lambda *_, **__: Builder())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in tfds.ARCHIVES:
        words = f"{name}' cannot be prepared: 404 not found. Or unpack it to a folder with"
        with pytest.raises(
            UserError, match=f"{words} .*, and give the folder as --data-dir"
        ):
            tfds.main(tfds.Config((name,)))
        with pytest.raises(FileNotFoundError, match=f"tfds {name}` .* Or unpack it to a"):
            tfds.open_tfds(name, "train", PREPARATION)


# LFW ------------------------------------------------------------------------------------

PAIRS = """2\t2
Ann\t1\t2
Bea\t1\t3
Ann\t1\tBea\t2
Bea\t3\tAnn\t3
Cid\t2\t1
Dan\t1\t2
Cid\t1\tDan\t1
Cid\t2\tDan\t2
"""


def write_pairs(folder, text=PAIRS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.txt").write_text(text)
    return folder / "pairs.txt"


def test_pairs_in_folds_are_read(tmp_path):
    pairs = lfw.read_pairs(write_pairs(tmp_path))
    assert pairs.names.shape == (2, 8)
    assert pairs.names[:, 0].tolist() == ["Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg"]
    assert pairs.names[:, 3].tolist() == ["Bea/Bea_0003.jpg", "Ann/Ann_0003.jpg"]
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.folds.tolist() == [0] * 4 + [1] * 4
    assert pairs.people[:, 6].tolist() == ["Cid", "Dan"]


@pytest.mark.parametrize(
    ("head", "num_folds", "num_pairs"), [("10\t300", 10, 300), ("1100", 1, 1_100)]
)
def test_lists_as_long_as_those_of_lfw_are_read(head, num_folds, num_pairs, tmp_path):
    one = "".join(f"P{i}\t1\t2\n" for i in range(num_pairs))
    two = "".join(f"P{i}\t1\tQ{i}\t4\n" for i in range(num_pairs))
    file = write_pairs(tmp_path, f"{head}\n" + (one + two) * num_folds)
    pairs = lfw.read_pairs(file)
    assert np.bincount(pairs.folds, pairs.same).tolist() == [num_pairs] * num_folds
    assert np.bincount(pairs.folds, ~pairs.same).tolist() == [num_pairs] * num_folds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: wanted one number or two; got ''"),
        ("0\n", "declares no pairs; its first line is '0'"),
        ("10 0\n", "declares no pairs; its first line is '10 0'"),
        (PAIRS.replace("Cid\t2\t1", "\n\nCid\ttwo\t1"), "line 8: wanted NAME NUMBER N"),
        ("Ann 1 2\n", "line 1: wanted one number or two"),
        (PAIRS.replace("2\t2\n", "2\t3\n", 1), r"declares 2 x 2 x 3 pairs, and has 8"),
        (
            PAIRS.replace("Ann\t1\t2", "Ann\t1"),
            "line 2: wanted NAME NUMBER NUMBER; got 'Ann",
        ),
        (
            PAIRS.replace("Ann\t1\tBea\t2", "Ann\t1\t2"),
            "line 4: wanted NAME NUMBER NAME NUMBER",
        ),
        (PAIRS.replace("Cid\t2\t1", "Cid\ttwo\t1"), "line 6: wanted NAME NUMBER NUMBER"),
    ],
)
def test_a_damaged_list_of_pairs_is_named_with_its_line(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        lfw.read_pairs(write_pairs(tmp_path, text))
    with pytest.raises(UserError, match=r"list of pairs .*nowhere.txt cannot be read"):
        lfw.read_pairs(tmp_path / "nowhere.txt")


def test_the_list_of_pairs_is_found_beside_the_images(tmp_path):
    with pytest.raises(UserError, match=r"--pairs: the list of pairs of LFW, pairs.txt"):
        lfw.find_pairs(tmp_path, None)
    file = write_pairs(tmp_path)
    assert lfw.find_pairs(tmp_path, None) == lfw.find_pairs(tmp_path / "lfw", None) == file
    assert lfw.find_pairs(None, file) == file


def test_faces_are_read_from_folders(tmp_path):
    names = np.unique(lfw.read_pairs(write_pairs(tmp_path)).names)
    write_pictures(tmp_path / "lfw_funneled", names.tolist())
    for folder in (tmp_path, tmp_path / "lfw_funneled"):
        part = lfw.open_faces(names, folder, PREPARATION)
        assert part.source.labels.tolist() == [name.split("/")[0] for name in names]
        assert part.source.read(5).mean() == 50
        assert part.names.tolist() == names.tolist()
    (tmp_path / "lfw_funneled" / names[-1]).unlink()
    with pytest.raises(UserError, match=r"1 images are missing, first .*Dan_0002.jpg"):
        lfw.open_faces(names, tmp_path, PREPARATION)
    with pytest.raises(UserError, match=r"The folder of lfw has one sub-folder a person"):
        lfw.open_faces(names, tmp_path / "lfw_funneled" / "Ann", PREPARATION)


@pytest.mark.filterwarnings("ignore")
def test_faces_of_tfds_are_found_by_the_order_of_their_hashes(tmp_path, monkeypatch):
    pairs = lfw.read_pairs(write_pairs(tmp_path))
    names = np.unique(pairs.names)

    def digest(name):
        return hashlib.md5(b"train" + name.encode()).hexdigest()

    stored = sorted(names.tolist(), key=digest)
    people = [name.split("/")[0].encode() for name in stored]

    def load_columns(name, split, columns, *, skipped):
        assert (name, split, skipped) == ("lfw", "train", ("image",))
        (read,) = columns.values()
        return {"people": np.array([read({"label": label}) for label in people])}

    def open_tfds(name, split, preparation):
        values = {row: number for number, row in enumerate(stored)}
        return ImageSource(
            lambda number: np.full((8, 8, 3), number, np.uint8),
            np.array(list(values)),
            (8, 8, 3),
        )

    monkeypatch.setattr(lfw, "load_columns", load_columns)
    monkeypatch.setattr(lfw, "open_tfds", open_tfds)
    part = lfw.open_faces(names, None, PREPARATION)
    for number, name in enumerate(names):
        assert stored[part.source.read(number)[0, 0, 0]] == name
    assert part.source.labels.tolist() == [name.split("/")[0] for name in names]
    with pytest.raises(UserError, match="1 images are not in TFDS, first Eve/Eve_0001"):
        lfw.open_faces(np.append(names, "Eve/Eve_0001.jpg"), None, PREPARATION)
    people.reverse()
    with pytest.raises(UserError, match="the images of TFDS are in an unknown order"):
        lfw.open_faces(names, None, PREPARATION)


def test_sources_of_several_shapes_are_not_joined():
    one = ImageSource(lambda number: np.zeros((1, 1, 1)), np.arange(3), (1, 1, 1))
    with pytest.raises(ValueError, match="sources must have images of one shape"):
        sources.joined(one, one._replace(image_shape=(2, 1, 1)))
