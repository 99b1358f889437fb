"""Lake's runs: the archive, what is wrong with one, the baseline and the accuracy."""

import doctest
import io
import json
import math
import re
import sys
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import lake_runs, model, omniglot_koch, run
from experiments.model import Model
from experiments.run import UserError


def pixels(params, images):
    return images.reshape(len(images), -1)


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
    first, second = lake_runs.read_runs(archive)
    assert (first.name, second.name) == ("run01", "run02")
    assert first.questions.shape == first.candidates.shape == (3, 8, 8, 1)
    assert first.questions.dtype == np.uint8
    assert first.answers.tolist() == [1, 0, 2]
    assert second.answers.tolist() == [1, 0]
    for i, name in enumerate(("item01", "item02", "item03")):
        wanted = IMAGES[f"run01/test/{name}.png"]
        np.testing.assert_array_equal(first.questions[i, :, :, 0], wanted)
    np.testing.assert_array_equal(
        second.candidates[1, :, :, 0], IMAGES["run02/training/class02.png"]
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
    first, _ = lake_runs.read_runs(write_zip(tmp_path / "runs.zip", files))
    np.testing.assert_array_equal(first.questions[0, :, :, 0], IMAGES[name])


def test_grey_stays_grey(tmp_path):
    grey = IMAGES[ITEM].copy()
    grey[0] = (90, 110, 127, 128, 150, 200, 240, 255)
    path = write_zip(tmp_path / "runs.zip", FILES | {ITEM: png(grey, mode="L")})
    found = lake_runs.read_runs(path)[0].questions[0, :, :, 0]
    np.testing.assert_array_equal(found, grey)
    assert lake_runs.is_ink(found)[0].tolist() == [True] * 3 + [False] * 5


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
    found = lake_runs.read_runs(write_zip(tmp_path / "other.zip", files))
    for one, wanted in zip(found, lake_runs.read_runs(archive), strict=True):
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
    runs = lake_runs.read_runs(write_zip(tmp_path / "runs.zip", files))
    assert [one.name for one in runs] == ["run1", "run2", "run10", "run31"]


def test_accuracy_is_what_a_hand_finds_and_a_tie_is_wrong(
    tmp_path, archive, monkeypatch, capsys
):
    monkeypatch.setattr(model, "load_model", lambda workdir: Model((), pixels, (8, 8, 1)))
    out = tmp_path / "lake.json"
    config = lake_runs.Config(runs=archive, workdir=tmp_path / "run", json=out)
    lake_runs.command(config)
    figures = json.loads(out.read_text())
    assert figures == {
        "metrics": {
            "lake_accuracy": 3 / 5,
            # centre (3/5 + 1.96^2 / 10) / (1 + 1.96^2 / 5), half .3260 around it
            "lake_accuracy_low": pytest.approx(0.2307, abs=1e-4),
            "lake_accuracy_high": pytest.approx(0.8824, abs=1e-4),
            "num_trials": 5,
        },
        "runs": [
            {"run": "run01", "accuracy": 2 / 3, "num_trials": 3},
            {"run": "run02", "accuracy": 1 / 2, "num_trials": 2},
        ],
    }
    shown = capsys.readouterr().out
    assert "  run01  0.6667\n  run02  0.5000\n" in shown
    assert "num_trials          5\n" in shown


def test_images_are_resized_to_the_net_s_input(archive):
    def embed_fn(params, images):
        assert images.shape[1:] == (16, 16, 1)
        return pixels(params, images)

    runs = lake_runs.read_runs(archive)
    distances = lake_runs.model_distances(Model((), embed_fn, (16, 16, 1)), runs)
    assert [matrix.shape for matrix in distances] == [(3, 3), (2, 2)]
    assert lake_runs.num_right(distances[0], runs[0].answers) == 2


def test_a_net_that_sees_no_difference_gets_nothing_and_nan_is_refused(archive):
    runs = lake_runs.read_runs(archive)
    blind = Model((), lambda _, images: 0 * pixels((), images), (8, 8, 1))
    figures = lake_runs.judge(runs, lake_runs.model_distances(blind, runs))
    assert figures["metrics"]["lake_accuracy"] == 0
    broken = Model((), lambda _, images: jnp.nan * pixels((), images), (8, 8, 1))
    with pytest.raises(UserError, match="distances that are not numbers in run01"):
        lake_runs.model_distances(broken, runs)


def test_wilson_s_interval_stays_within_0_and_1():
    low, high = lake_runs.wilson_interval(0, 10)
    assert low == 0
    assert high == pytest.approx(1.96**2 / (10 + 1.96**2))
    low, high = lake_runs.wilson_interval(10, 10)
    assert high == 1
    assert low == pytest.approx(10 / (10 + 1.96**2))


# The Hausdorff baseline -----------------------------------------------------------------


def plain_hausdorff(image, other):
    """Dubuisson and Jain 1994, from the paper: plain loops over centred points."""

    def centred(image):
        rows, columns = image.shape
        ink = [(i, j) for i in range(rows) for j in range(columns) if image[i, j] == 0]
        middle = [math.fsum(axis) / len(ink) for axis in zip(*ink, strict=True)]
        return [(i - middle[0], j - middle[1]) for i, j in ink]

    def directed(points, others):
        nearest = [min(math.dist(point, other) for other in others) for point in points]
        return math.fsum(nearest) / len(nearest)

    a, b = centred(image), centred(other)
    return max(directed(a, b), directed(b, a))


def test_the_hausdorff_distance_equals_plain_loops():
    rng = np.random.default_rng(0)
    images = np.where(rng.random((5, 9, 7, 1)) < 0.3, 0, 255).astype(np.uint8)
    one = lake_runs.LakeRun("run01", images[:3], images[2:], np.arange(3))
    found = lake_runs.hausdorff_distances(one)
    assert found.shape == (3, 3)
    for i, question in enumerate(one.questions):
        for j, candidate in enumerate(one.candidates):
            wanted = plain_hausdorff(question[:, :, 0], candidate[:, :, 0])
            assert found[i, j] == pytest.approx(wanted, abs=1e-12)
    assert found[2, 0] == 0  # an image and itself
    assert np.count_nonzero(found) == 8


def test_the_hausdorff_distance_is_that_of_shapes_wherever_they_are():
    bar = picture((1, 1), (1, 2), (1, 3))
    moved = picture((6, 4), (6, 5), (6, 6))
    upright = picture((3, 4), (4, 4), (5, 4))
    images = np.stack([bar, moved, upright])[..., None]
    one = lake_runs.LakeRun("run01", images[:1], images[1:], np.array([0]))
    # upright: the ends are 1 from the nearest point, the middle 0
    np.testing.assert_allclose(lake_runs.hausdorff_distances(one), [[0, 2 / 3]])


def test_the_baseline_needs_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "load_model", None)
    files = {
        "run07/training/class01.png": png(picture((1, 1), (1, 2), (1, 3))),
        "run07/training/class02.png": png(picture((3, 4), (4, 4), (5, 4))),
        "run07/test/item01.png": png(picture((1, 1), (2, 1), (3, 1))),
        "run07/test/item02.png": png(picture((1, 1), (2, 1), (3, 1), (3, 2))),
        "run07/class_labels.txt": b"run07/test/item01.png run07/training/class02.png\n"
        b"run07/test/item02.png run07/training/class01.png\n",
    }
    path, out = write_zip(tmp_path / "runs.zip", files), tmp_path / "lake.json"
    lake_runs.command(lake_runs.Config(runs=path, method="hausdorff", json=out))
    figures = json.loads(out.read_text())
    assert figures["runs"] == [{"run": "run07", "accuracy": 0.5, "num_trials": 2}]


# Archives that are wrong ----------------------------------------------------------------


def refused(tmp_path, files, words):
    """What is said about an archive; `words` is no regular expression."""
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        lake_runs.read_runs(write_zip(tmp_path / "wrong.zip", files))
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
            lake_runs.read_runs(path)
    plain.write_text("no zip")
    with pytest.raises(UserError, match=r"plain\.zip: it cannot be read as a zip archive"):
        lake_runs.read_runs(plain)
    with plain.open("wb") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(UserError, match="33,554,433 bytes; at most 33,554,432 are read"):
        lake_runs.read_runs(plain)


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
        lake_runs.read_runs(path)


def test_methods_of_compression_that_are_not_bounded_are_refused(tmp_path):
    path = tmp_path / "runs.zip"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        write_zip(path, FILES, compression=method)
        with pytest.raises(UserError, match="is compressed by another method than deflate"):
            lake_runs.read_runs(path)
    write_zip(path, FILES, compression=zipfile.ZIP_STORED)
    assert len(lake_runs.read_runs(path)) == 2


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
            lake_runs.read_runs(path)
        except UserError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 200
    assert all("damaged.zip: " in text for text in refusals)


# What is asked --------------------------------------------------------------------------


def test_a_directory_without_a_run_or_a_checkpoint_is_named(tmp_path, archive):
    config = lake_runs.Config(runs=archive, workdir=tmp_path / "run")
    with pytest.raises(UserError, match=r"run holds no run: there is no config\.json"):
        lake_runs.command(config)
    run.start(omniglot_koch.Config(workdir=config.workdir, size="half"))
    with pytest.raises(UserError, match="run holds no checkpoint that was judged"):
        lake_runs.command(config)
    with pytest.raises(UserError, match="--workdir is needed"):
        lake_runs.command(lake_runs.Config(runs=archive))


@pytest.mark.parametrize("place", [".", "a/b"])
def test_a_place_for_figures_that_is_none_is_refused_before_any_work(tmp_path, place):
    words = {".": "is a folder; a file is wanted", "a/b": "the folder .*a does not exist"}
    config = lake_runs.Config(
        runs=tmp_path / "none.zip", workdir=tmp_path, json=tmp_path / place
    )
    with pytest.raises(UserError, match=rf"--json: .*{words[place]}"):
        lake_runs.command(config)


def test_user_errors_end_a_command_with_status_1_and_one_line(
    tmp_path, monkeypatch, capsys
):
    flags = ["--method", "hausdorff", "--runs", str(tmp_path / "none.zip")]
    for more, status, words in (([], 1, "error: "), (["--runz", "3"], 2, "runz")):
        monkeypatch.setattr(sys, "argv", ["lake_runs", *flags, *more])
        with pytest.raises(SystemExit) as caught:
            run.command_line(lake_runs.command, lake_runs.Config)
        assert caught.value.code == status
        assert words in capsys.readouterr().err


def test_examples_in_docstrings_are_true():
    found = doctest.testmod(lake_runs)
    assert found.failed == 0
    assert found.attempted >= 3
