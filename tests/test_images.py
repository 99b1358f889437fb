"""Tests of reading image files and folders, and of error messages about wrong files."""

import os
import pathlib

import jax
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from PIL import Image

from siamese_jax import images, samplers
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation, prepare


def write_folder(root, sizes=(("a", 2), ("b", 3)), suffix="png", shape=(5, 4)):
    rng = np.random.default_rng(0)
    for name, num in sizes:
        (root / name).mkdir(parents=True)
        for i in range(num):
            image = Image.fromarray(rng.integers(0, 256, size=shape, dtype=np.uint8))
            image.save(root / name / f"{i}.{suffix}")
    return root


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "pgm", "jpg"])
def test_a_folder_has_one_class_a_sub_folder(tmp_path, suffix):
    found, labels = images.load_folder(write_folder(tmp_path, suffix=suffix))
    assert found.shape == (5, 5, 4, 1)
    assert found.dtype == np.uint8
    assert labels.tolist() == ["a", "a", "b", "b", "b"]
    if suffix != "jpg":
        wanted = np.random.default_rng(0).integers(0, 256, size=(5, 4), dtype=np.uint8)
        np.testing.assert_array_equal(found[0, :, :, 0], wanted)


def test_images_can_be_resized_and_kept_in_color(tmp_path):
    folder = write_folder(tmp_path)
    assert images.load_folder(folder, size=(7, 6)).images.shape == (5, 7, 6, 1)
    assert images.load_folder(folder, color=True).images.shape == (5, 5, 4, 3)
    picture = Image.open(folder / "a" / "0.png").resize((6, 7), Image.Resampling.LANCZOS)
    resized = images.load_folder(folder, size=(7, 6)).images[0, :, :, 0]
    np.testing.assert_array_equal(resized, np.asarray(picture))


def test_images_of_many_sizes_can_be_resized_to_one(tmp_path):
    folder = write_folder(tmp_path)
    Image.fromarray(np.zeros((9, 3), np.uint8)).save(folder / "a" / "2.png")
    assert images.load_folder(folder, size=(7, 6)).images.shape == (6, 7, 6, 1)


def test_some_images_are_taken_with_their_labels():
    data = images.LabelledImages(random_images(3, 2, 2, 1), np.array(["a", "b", "c"]))
    assert data.only(data.labels != "b").labels.tolist() == ["a", "c"]
    np.testing.assert_array_equal(data.only(slice(1, 2)).images, data.images[1:2])
    np.testing.assert_array_equal(data.only(np.array([2])).images, data.images[2:])


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        images.load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no sub-folders"):
        images.load_folder(tmp_path)
    folder = write_folder(tmp_path / "faces")
    (folder / "empty").mkdir()
    (folder / "phone").mkdir()
    (folder / "phone" / "0.heic").write_bytes(b"no format of Pillow")
    words = (
        "faces: 2 of 4 classes have fewer than 1 image: class 'empty' has no image, class "
        r"'phone' has no image; passed over 1 file of 6: 1 \.heic \(not an image format"
    )
    with pytest.raises(UserError, match=words):
        images.load_folder(folder)
    (folder / "phone" / "0.heic").unlink()
    (folder / "phone").rmdir()
    (folder / "empty").rmdir()
    (folder / "a" / "1.png").write_bytes((folder / "a" / "0.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"a/1.png cannot be read as an image"):
        images.load_folder(folder)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "a" / "1.png")
    with pytest.raises(UserError, match=r"a/1.png has 3 x 3 pixels.*5 x 4; give a size"):
        images.load_folder(folder)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.png cannot be read as an image"):
        images.read_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="cannot be read as an image"):
        images.read_image(tmp_path)


def test_classes_with_too_few_images_are_named_or_left_out(tmp_path):
    folder = write_folder(tmp_path, sizes=(("a", 1), ("b", 3), ("c", 0), ("d", 2)))
    counts = images.count_images(folder)
    assert counts == {"a": 1, "b": 3, "c": 0, "d": 2}
    assert images.small_classes(counts, 2) == (
        "2 of 4 classes have fewer than 2 images: class 'a' has 1, class 'c' has no image"
    )
    assert images.small_classes(counts, 0) == ""
    many = images.small_classes({f"{i:02}": 1 for i in range(30)}, 2)
    assert many.endswith("class '19' has 1 and 10 more")
    for num, names in ((1, "abbbdd"), (2, "bbbdd"), (3, "bbb")):
        files = images.list_folder(folder, min_images=num)
        assert "".join(images.class_names(files)) == names
    with pytest.raises(UserError, match="4 of 4 classes have fewer than 4 images: class"):
        images.list_folder(folder, min_images=4)


# Names and other files ------------------------------------------------------------------


LITTER = [".DS_Store", "._0.png", ".0.png", "Thumbs.db", "thumbs.db", "desktop.ini"]
LITTER_FOLDERS = [".git", "__MACOSX", "@eaDir", ".thumbnails"]


def test_what_systems_leave_behind_is_never_data(tmp_path):
    folder = write_folder(tmp_path)
    whole = (folder / "a" / "0.png").read_bytes()
    for place in (folder, folder / "a"):
        for name in LITTER:
            (place / name).write_bytes(whole)
        for name in LITTER_FOLDERS:
            (place / name).mkdir()
            (place / name / "9.png").write_bytes(whole)
            (place / name / "notes.txt").write_bytes(b"")
    files = images.list_folder(folder)
    assert images.class_names(files) == ["a", "a", "b", "b", "b"]
    assert images.list_images([folder]) == files
    assert images.remarks([folder], files) == []
    assert images.count_images(folder) == {"a": 2, "b": 3}
    given = [*files, *(folder / "a" / name for name in LITTER + LITTER_FOLDERS)]
    assert images.list_images(given) == files
    hidden = write_folder(
        tmp_path / ".cache" / "new"
    )  # below a hidden folder that is named
    assert len(images.list_folder(hidden)) == len(images.list_images([hidden])) == 5


def test_files_that_are_passed_over_are_counted_by_reason(tmp_path):
    folder = write_folder(tmp_path)
    for name in ("a/1.heic", "b/2.HEIC", "b/notes.txt", "b/README"):
        (folder / name).write_bytes(b"no image")
    files = images.list_folder(folder)
    assert len(files) == 5
    others = "2 .heic, 1 .txt, 1 without an ending (not an image format that Pillow reads)"
    assert images.remarks([folder], files) == [f"passed over 4 files of 9: {others}"]
    write_folder(folder / "a" / "older", sizes=(("x", 2),))
    (folder / "c.png").write_bytes(b"")
    assert images.remarks([folder], images.list_folder(folder)) == [
        f"passed over 7 files of 12: {others}, "
        "3 .png (not directly in the folder of a class)"
    ]
    everything = images.list_images([folder])
    assert len(everything) == 8
    assert images.remarks([folder], everything) == [f"passed over 4 files of 12: {others}"]


@pytest.mark.parametrize("suffix", ["webp", "tif", "TIFF", "gif", "jfif", "avif", "JPG"])
def test_all_formats_of_pillow_are_images(tmp_path, suffix):
    assert images.load_folder(write_folder(tmp_path, suffix=suffix)).images.shape[0] == 5


def test_links_are_followed_once(tmp_path):
    folder = write_folder(tmp_path / "all")
    (folder / "c").symlink_to(folder / "a")
    (folder / "a" / "above").symlink_to(folder)
    assert images.class_names(images.list_folder(folder)) == list("aabbbcc")
    assert len(images.list_images([folder])) == 7


def test_names_that_are_one_text_are_one_class(tmp_path):
    composed, decomposed = "Jos\u00e9", "Jose\u0301"
    sizes = ((composed, 2), (decomposed, 1), ("Josef", 1))
    folder = write_folder(tmp_path / "all", sizes=sizes)
    labels = images.load_folder(folder).labels
    assert labels.tolist() == ["Josef", decomposed, decomposed, decomposed]
    assert images.count_images(folder) == {"Josef": 1, decomposed: 3}
    alone = write_folder(tmp_path / "alone", sizes=((decomposed, 2),))
    assert set(images.load_folder(alone).labels) == {decomposed}  # as it is given
    queries = [f"elsewhere/{composed}/9.png", "elsewhere/Josefa/9.png"]
    files = images.list_folder(alone)
    assert images.class_names([*files, *queries])[2:] == [decomposed, "Josefa"]


def test_names_that_are_no_text_are_read(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    folder = write_folder(tmp_path, sizes=((name, 1), ("two\nlines", 1)))
    assert set(images.load_folder(folder).labels) == {name, "two\nlines"}
    assert images.small_classes(images.count_images(folder), 2).endswith(
        r"class 'caf\udce9' has 1, class 'two\nlines' has 1"
    )
    (folder / name / "a.\udce9").write_bytes(b"")
    line = images.remarks([folder], images.list_folder(folder))[0]
    assert line.encode().endswith(rb": 1 .\udce9 (not an image format that Pillow reads)")


def test_a_class_with_one_image_is_named_by_the_sampler(tmp_path):
    folder = write_folder(tmp_path, sizes=(("anna", 2), ("bert", 1)))
    index = samplers.class_index(images.load_folder(folder).labels)
    with pytest.raises(ValueError, match="class 'bert' has 1"):
        samplers.sample_pairs(jax.random.key(0), index, 2)


def test_folders_in_a_list_stand_for_all_their_images(tmp_path):
    folder = write_folder(tmp_path / "all")
    (folder / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    found = images.list_images([folder / "b" / "1.png", folder])
    names = [file.relative_to(folder).as_posix() for file in found]
    assert names == ["b/1.png", "a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"]
    with pytest.raises(UserError, match="empty has no image"):
        images.list_images([tmp_path / "empty"])


@pytest.mark.parametrize("name", ["ab.png", pathlib.Path("ab.png")])
def test_one_name_is_not_a_list_of_its_letters(name, monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    for read in (
        images.list_images,
        images.class_names,
        lambda files: images.read_prepared(files, Preparation((4, 5))),
    ):
        with pytest.raises(TypeError, match="list of files is wanted; got one name, 'ab"):
            read(name)


# Preparation ----------------------------------------------------------------------------


def test_preparation_inverts_before_it_resizes():
    source = random_images(2, 9, 7, 1)
    found = prepare(source, Preparation((4, 5), invert=True))
    for image, wanted in zip(found, 255 - source, strict=True):
        picture = Image.fromarray(wanted[:, :, 0])
        picture = picture.resize((5, 4), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image[:, :, 0], np.asarray(picture))


@pytest.mark.parametrize(("height", "width"), [(30, 47), (41, 30), (33, 33), (300, 9)])
def test_the_middle_is_cut_out_of_an_image_in_its_proportions(height, width):
    pixels = random_images(2, height, width, 3)
    found = prepare(pixels, Preparation((14, 14), color=True, resampling="center-crop"))
    for image, wanted in zip(found, pixels, strict=True):  # the shorter side gets 16 pixels
        short = min(height, width)
        size = int(16 * width / short), int(16 * height / short)
        picture = Image.fromarray(wanted).resize(size, Image.Resampling.BILINEAR)
        left, top = (round((side - 14) / 2) for side in size)
        cut = picture.crop((left, top, left + 14, top + 14))
        np.testing.assert_array_equal(image, np.asarray(cut))


def test_the_middle_of_another_shape_is_cut_out():
    flat = np.full((1, 40, 10, 1), 9, np.uint8)
    found = prepare(flat, Preparation((7, 21), resampling="center-crop"))
    assert found.shape == (1, 7, 21, 1)
    assert (found == 9).all()


def test_every_second_pixel_is_taken_of_an_image_of_twice_the_size():
    preparation = Preparation((4, 5), resampling="every-second-pixel")
    twice = random_images(2, 8, 10, 1)
    np.testing.assert_array_equal(prepare(twice, preparation), twice[:, ::2, ::2])
    other = random_images(1, 30, 20, 1)
    picture = Image.fromarray(other[0, :, :, 0]).resize((10, 8), Image.Resampling.LANCZOS)
    wanted = np.asarray(picture)[::2, ::2]
    np.testing.assert_array_equal(prepare(other, preparation)[0, :, :, 0], wanted)
    small = random_images(1, 4, 5, 1)  # of the right shape, and prepared all the same
    assert (prepare(small, preparation) != small).any()


def test_an_image_of_the_right_shape_is_still_inverted():
    source = random_images(2, 4, 5, 1)
    np.testing.assert_array_equal(prepare(source, Preparation((4, 5))), source)
    inverted = prepare(source, Preparation((4, 5), invert=True))
    np.testing.assert_array_equal(inverted, 255 - source)


def test_images_become_grey_or_colored():
    colored = random_images(2, 4, 5, 3)
    grey = prepare(colored, Preparation((4, 5)))
    for image, source in zip(grey, colored, strict=True):
        wanted = np.asarray(Image.fromarray(source).convert("L"))
        np.testing.assert_array_equal(image[:, :, 0], wanted)
    again = prepare(grey, Preparation((4, 5), color=True))
    np.testing.assert_array_equal(again, np.repeat(grey, 3, axis=3))
    kept = prepare(colored, Preparation((8, 10), color=True))
    picture = Image.fromarray(colored[1]).resize((10, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(kept[1], np.asarray(picture))


def test_files_and_their_arrays_are_prepared_alike(tmp_path):
    source = random_images(9, 7, 3)
    Image.fromarray(source).save(tmp_path / "a.png")
    preparation = Preparation((4, 5), invert=True)
    from_file = prepare(images.read_image(tmp_path / "a.png")[None], preparation)
    np.testing.assert_array_equal(from_file, prepare(source[None], preparation))


def test_a_preparation_that_makes_no_sense_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    with pytest.raises(ValueError, match="size must be a height and a width"):
        Preparation((0, 5))
    with pytest.raises(ValueError, match=r"size must be .* got \(5, 5, 1\)"):
        Preparation((5, 5, 1))
    for size in (28, (2.5, 2), "28", (True, 5)):
        with pytest.raises(ValueError, match="size must be a height and a width, whole"):
            Preparation(size)
    with pytest.raises(ValueError, match="resampling must be one of lanczos, every-"):
        Preparation((5, 5), resampling="nearest")
    for background in (256, 0.5):
        with pytest.raises(ValueError, match=f"whole number in 0 to 255; got {background}"):
            Preparation((5, 5), background=background)
    with pytest.raises(TypeError, match="invert must be boolean; got 'no'"):
        Preparation((5, 5), invert="no")


def test_what_is_no_image_is_refused():
    preparation = Preparation((4, 5))
    with pytest.raises(TypeError, match="images must be uint8; got float32"):
        prepare(np.zeros((2, 4, 5, 1), np.float32), preparation)
    for shape in ((4, 5, 1), (2, 4, 5, 2), (0, 4, 5, 1)):
        with pytest.raises(ValueError, match=r"images must be \[n, height, width, 1 or 3"):
            prepare(np.zeros(shape, np.uint8), preparation)
