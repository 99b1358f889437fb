"""Tests of reading the archive of Lake's runs, and of its error messages."""

import io
import re
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.datasets import lake_archive
from siamese_jax.errors import UserError


def picture(*ink, size=(8, 8)):
    image = np.full(size, 255, np.uint8)
    for row, column in ink:
        image[row, column] = 0
    return image


def png(image, *, mode="1"):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


LABELS = "run01/class_labels.txt"
ITEM = "run01/test/item01.png"

# The distance of the pixels is the root of the number of pixels that differ.
IMAGES = {
    "run01/training/class01.png": picture((0, 0), (0, 1)),
    "run01/training/class02.png": picture((3, 3), (3, 4)),
    "run01/training/class03.png": picture((6, 6), (6, 7)),
    "run01/test/item01.png": picture((3, 3), (3, 5)),  # of class02: 2 differ, else 4
    "run01/test/item02.png": picture((0, 0)),  # of class01: 1, else 3
    "run01/test/item03.png": picture((3, 3), (3, 4), (6, 6)),  # class03: 3, but class02: 1
    "run02/training/class01.png": picture((1, 1), (2, 2)),
    "run02/training/class02.png": picture((5, 5), (6, 6)),
    "run02/test/item01.png": picture((5, 5)),  # of class02: 1, else 3
    "run02/test/item02.png": picture((4, 4)),  # of class01: 3, and class02 as well
}
FILES = {name: png(image) for name, image in IMAGES.items()} | {
    "run01/class_labels.txt": b"run01/test/item02.png run01/training/class01.png\r\n"
    b"run01/test/item01.png run01/training/class02.png\r\n\r\n"
    b"run01/test/item03.png run01/training/class03.png\r\n",
    "run02/class_labels.txt": b"run02/test/item01.png run02/training/class02.png\n"
    b"run02/test/item02.png run02/training/class01.png",
}


def claimed(side):
    """A PNG file whose header claims dimensions."""
    content = bytearray(FILES[ITEM])
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def write_zip(path, files, *, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def archive(tmp_path):
    return write_zip(tmp_path / "all_runs.zip", FILES)


def test_an_archive_is_read_in_order_with_its_answers(archive):
    first, second = lake_archive.read_runs(archive)
    assert (first.name, second.name) == ("run01", "run02")
    assert first.test_images.shape == first.train_images.shape == (3, 8, 8, 1)
    assert first.test_images.dtype == np.uint8
    assert first.answers.tolist() == [1, 0, 2]
    assert second.answers.tolist() == [1, 0]
    for i, name in enumerate(("item01", "item02", "item03")):
        wanted = IMAGES[f"run01/test/{name}.png"]
        np.testing.assert_array_equal(first.test_images[i, :, :, 0], wanted)
    np.testing.assert_array_equal(
        second.train_images[1, :, :, 0], IMAGES["run02/training/class02.png"]
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_ink_is_dark_whatever_the_kind_of_png(tmp_path, mode):
    files = FILES | {name: png(image, mode="L") for name, image in IMAGES.items()}
    name = "run01/test/item01.png"
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray(IMAGES[name].astype(np.uint16) * 257).save(buffer, format="PNG")
        files[name] = buffer.getvalue()
    else:
        files[name] = png(IMAGES[name], mode=mode)
    with Image.open(io.BytesIO(files[name])) as opened:
        assert opened.mode == mode
    first, _ = lake_archive.read_runs(write_zip(tmp_path / "runs.zip", files))
    np.testing.assert_array_equal(first.test_images[0, :, :, 0], IMAGES[name])


def test_grey_stays_grey(tmp_path):
    grey = IMAGES[ITEM].copy()
    grey[0] = (90, 110, 127, 128, 150, 200, 240, 255)
    path = write_zip(tmp_path / "runs.zip", FILES | {ITEM: png(grey, mode="L")})
    found = lake_archive.read_runs(path)[0].test_images[0, :, :, 0]
    np.testing.assert_array_equal(found, grey)
    assert lake_archive.is_ink(found)[0].tolist() == [True] * 3 + [False] * 5


def test_a_common_folder_and_what_file_managers_leave_do_not_matter(tmp_path, archive):
    files = {f"python/all_runs/{name}": content for name, content in FILES.items()}
    extras = (
        "__MACOSX/python/all_runs/run01/test/._item01.png",
        "python/all_runs/.DS_Store",
        "python/all_runs/run01/test/.DS_Store",
        "__MACOSX/python/all_runs/run01/test/item01.png",
        "python/all_runs/run01/test/._item01.png",
        "python/all_runs/run02/",
        "python/demo_classification.py",
    )
    files |= dict.fromkeys(extras, b"")
    found = lake_archive.read_runs(write_zip(tmp_path / "other.zip", files))
    for one, wanted in zip(found, lake_archive.read_runs(archive), strict=True):
        assert one.name == wanted.name
        for array, other in zip(one[1:], wanted[1:], strict=True):
            np.testing.assert_array_equal(array, other)


def test_any_number_of_runs_comes_in_the_order_of_their_numbers(tmp_path):
    files = {}
    for number in (10, 2, 1, 31):
        for name, content in FILES.items():
            if name.startswith("run02"):
                changed = content.replace(b"run02", b"run%d" % number)
                files[name.replace("run02", f"run{number}")] = changed
    runs = lake_archive.read_runs(write_zip(tmp_path / "runs.zip", files))
    assert [one.name for one in runs] == ["run1", "run2", "run10", "run31"]


# Archives that are wrong ----------------------------------------------------------------


def refused(tmp_path, files, words):
    """What is said about an archive; `words` is no regular expression."""
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        lake_archive.read_runs(write_zip(tmp_path / "wrong.zip", files))
    assert str(caught.value).startswith(f"{tmp_path / 'wrong.zip'}: ")
    assert [file.name for file in tmp_path.iterdir()] == ["wrong.zip"]


NAMES = ("../run01/x", "run01/test/../../x", "/run01/x", "C:/run01/x", "run01\\x")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    words = f"the entry {name!r} is refused: names must be relative, with '/' and no '..'"
    refused(tmp_path, FILES | {name: b""}, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (None, b"\n", " has no trials"),
        (None, b"\xff\xfe\x00", " is not text: 'utf-8' codec"),
        (
            None,
            b"a b\n\na b c",
            ", line 3: wanted a test and a training image; got 'a b c'",
        ),
        (b"item03", b"item09", " names 'run01/test/item09.png': run01 has no such test im"),
        (b"class02", b"class9", " names 'run01/training/class9.png': run01 has no such tr"),
        (b"item03", b"item01", " names a test image twice"),
    ],
)
def test_what_is_wrong_with_labels_is_named(tmp_path, old, new, words):
    content = FILES[LABELS].replace(old, new) if old else new
    refused(tmp_path, FILES | {LABELS: content}, f"'run01/class_labels.txt'{words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FILES[ITEM][:50], "cannot be read as a PNG image"),
        (b"", "cannot be read as a PNG image"),
        (b"GIF89a", "cannot be read as a PNG image"),
        (png(picture((0, 0), size=(9, 8))), "has 9 x 8 pixels, those before it 8 x 8"),
        (png(picture()), "must have dark ink on light paper; 0% of its pixels are dark"),
        (png(255 - picture((0, 0))), "must have dark ink on light paper; 98% of its"),
        (png(picture((0, 0), size=(3, 2000))), "has 3 x 2,000 pixels; at most 256 x 256"),
        (claimed(9_500), "has 9,500 x 9,500 pixels; at most 256 x 256 are read"),
        (claimed(60_000), "is too large an image"),
        (bytes(300_000), "declares 300,000 bytes; at most 262,144 are read"),
    ],
)
def test_what_is_wrong_with_an_image_is_named(tmp_path, content, words):
    refused(tmp_path, FILES | {ITEM: content}, f"'run01/test/item01.png' {words}")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"run01/test/item04.png": FILES[ITEM]}, "has no line for 'run01/test/item04.png'"),
        ({"run03/test/item01.png": FILES[ITEM]}, "'run03/class_labels.txt' is missing"),
        ({f"more/{ITEM}": FILES[ITEM]}, "'run01/test/item01.png' is there twice"),
        ({"more/run03/a": b""}, "its runs are in several folders: ['', 'more']"),
        ({f"x/{i}": bytes(2**20) for i in range(65)}, "declares 77 entries of 68,15"),
        ({f"x/{i}": b"" for i in range(9_989)}, "declares 10,001 entries of 1,"),
    ],
)
def test_what_does_not_belong_is_named(tmp_path, more, words):
    refused(tmp_path, FILES | more, words)


def test_a_missing_image_is_named(tmp_path):
    files = {name: content for name, content in FILES.items() if name != ITEM}
    refused(tmp_path, files, "names 'run01/test/item01.png': run01 has no such test image")


def test_what_is_no_archive_of_runs_is_named(tmp_path):
    refused(tmp_path, {}, "it holds no runs: there are no folders run01, run02 ...")
    refused(tmp_path, {"readme": b"", "runs/a.png": b"", "run01/": b""}, "holds no runs")
    plain = tmp_path / "plain.zip"
    for path in (plain, tmp_path):
        with pytest.raises(UserError, match="there is no such file"):
            lake_archive.read_runs(path)
    plain.write_text("no zip")
    with pytest.raises(UserError, match=r"plain\.zip: it cannot be read as a zip archive"):
        lake_archive.read_runs(plain)
    with plain.open("wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(UserError, match="33,554,433 bytes; at most 33,554,432 are read"):
        lake_archive.read_runs(plain)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file_size": 50}, "cannot be unpacked: Bad CRC-32"),
        ({"file_size": 900}, r"declares 900 bytes and has \d+$"),
        ({"flag_bits": 1}, "cannot be unpacked: .* is encrypted"),
    ],
)
def test_a_file_that_is_not_what_the_archive_declares_is_named(tmp_path, changes, words):
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        for name, value in changes.items():
            setattr(archive.getinfo(ITEM), name, value)
    with pytest.raises(UserError, match=rf"lie\.zip: 'run01/test/item01\.png' {words}"):
        lake_archive.read_runs(path)


def test_methods_of_compression_that_are_not_bounded_are_refused(tmp_path):
    path = tmp_path / "runs.zip"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        write_zip(path, FILES, compression=method)
        with pytest.raises(UserError, match="is compressed by another method than deflate"):
            lake_archive.read_runs(path)
    write_zip(path, FILES, compression=zipfile.ZIP_STORED)
    assert len(lake_archive.read_runs(path)) == 2


def test_an_archive_damaged_anywhere_ends_in_a_user_error(tmp_path, archive):
    whole = archive.read_bytes()
    rng = np.random.default_rng(0)
    path, refusals = tmp_path / "damaged.zip", []
    for trial in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=1 + trial % 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole))] if trial % 5 == 0 else damaged)
        try:
            lake_archive.read_runs(path)
        except UserError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 200
    assert all("damaged.zip: " in text for text in refusals)
