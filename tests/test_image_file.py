"""Tests of reading one image file: every depth, transparency, orientation and format."""

import struct
import zlib

import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from PIL import Image

from siamese_jax import images
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation, prepare, read_image, read_prepared

SIXTEEN = np.array([[0, 255, 256], [1023, 40000, 65535]], np.uint16)
EIGHT = np.array([[10, 100, 200], [0, 50, 255]], np.uint8)
TURN = 6  # the EXIF orientation of a phone held upright: a quarter turn to the right


def grey(file, **options):
    pixels = read_image(file, **options)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 1
    return pixels[:, :, 0].tolist()


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


def png(path, rows, *, bits, kind, transparent=b""):
    """Writes a PNG file of a kind that Pillow reads and does not write."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    height, (width, row) = len(rows), rows[0]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", transparent))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    return path


def shorts(*values):
    return struct.pack(f">{len(values)}H", *values)


# Depth ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("a.png", "<u2", {}),
        ("a.pgm", "<u2", {}),
        ("a.jp2", "<u2", {}),
        ("little.tif", "<u2", {}),
        ("big.tiff", ">u2", {}),
        ("packed.tif", "<u2", {"compression": "tiff_lzw"}),
        ("deflated.tif", ">u2", {"compression": "tiff_deflate"}),
    ],
)
def test_sixteen_bits_of_grey_are_cut_to_eight(tmp_path, name, dtype, options):
    file = saved(tmp_path / name, Image.fromarray(SIXTEEN.astype(dtype)), **options)
    assert grey(file) == (SIXTEEN // 256).tolist()
    colored = read_image(file, color=True)
    np.testing.assert_array_equal(colored, np.repeat(SIXTEEN[..., None] // 256, 3, axis=2))


def test_a_tiff_file_whose_0_is_white(tmp_path):
    white_is_0 = {"tiffinfo": {262: 0}}
    # Pillow inverts what it writes and reads with 1 and 8 bits, not with 16.
    for name, pixels, wanted in (
        ("1.tif", EIGHT > 99, 255 * (EIGHT > 99)),
        ("8.tif", EIGHT, EIGHT),
        ("16.tif", SIXTEEN, (65535 - SIXTEEN) // 256),
    ):
        file = saved(tmp_path / name, Image.fromarray(pixels), **white_is_0)
        with Image.open(file) as picture:
            assert picture.tag_v2[262] == 0
        assert grey(file) == wanted.tolist()


def test_twelve_bits_of_a_scanner(tmp_path):
    file = tmp_path / "scan.tif"
    data = bytes.fromhex("000 010 800 fff".replace(" ", ""))
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, 1), (279, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    count, end = struct.pack("<H", len(tags)), struct.pack("<I", 0)
    file.write_bytes(start + data + count + directory + end)
    assert grey(file) == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("header", "values", "wanted"),
    [
        (b"P5 4 1 65535\n", shorts(0, 255, 256, 65535), [0, 0, 1, 255]),
        (b"P5 4 1 1023\n", shorts(0, 4, 512, 1023), [0, 1, 128, 255]),
        (b"P5 3 1 300\n", shorts(0, 150, 300), [0, 128, 255]),
        (b"P5 3 1 100\n", bytes([0, 50, 100]), [0, 128, 255]),
        (b"P2 4 1 1023\n", b"0 4 512 1023\n", [0, 1, 128, 255]),
        (b"P6 1 1 65535\n", shorts(256, 512, 65535), [1, 2, 255]),
        (b"P6 1 1 1023\n", shorts(0, 512, 1023), [0, 128, 255]),
        (b"P3 1 1 1023\n", b"0 512 1023\n", [0, 128, 255]),
    ],
)
def test_the_largest_value_of_a_portable_map_is_white(tmp_path, header, values, wanted):
    file = tmp_path / "a.pnm"
    file.write_bytes(header + values)
    found = read_image(file, color=header[1:2] in b"36")
    assert found.ravel().tolist() == wanted


def test_sixteen_bits_of_a_colour_and_of_its_transparency(tmp_path):
    colors = shorts(256, 65535, 512, 32768, 255, 3)
    file = png(tmp_path / "a.png", [(2, colors)], bits=16, kind=2)
    assert read_image(file, color=True).tolist() == [[[1, 255, 2], [128, 0, 0]]]
    file = png(tmp_path / "b.png", [(2, shorts(256, 65535, 512, 0))], bits=16, kind=4)
    assert grey(file) == [[1, 255]]


def test_fractions_from_0_to_1_are_scaled_and_others_refused(tmp_path):
    fractions = np.array([[0, 0.5, 1]], np.float32)
    for name in ("a.tif", "a.pfm"):
        assert grey(saved(tmp_path / name, Image.fromarray(fractions))) == [[0, 128, 255]]
    for bad in (255 * fractions, -fractions, fractions * np.nan, fractions + np.inf):
        file = saved(tmp_path / "bad.tif", Image.fromarray(bad.astype(np.float32)))
        with pytest.raises(UserError, match=r"bad.tif has floating-point .*0, black, to 1"):
            read_image(file)


def test_integers_of_32_bits_are_refused_by_name(tmp_path):
    file = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 300]], np.int32)))
    with pytest.raises(UserError, match=r"a.tif has integers of 32 .*\(mode I\)"):
        read_image(file)


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "bmp", "pbm", "pcx", "msp"])
def test_one_bit_is_black_or_white(tmp_path, suffix):
    bits = np.zeros((8, 8), bool)
    bits[2, 5] = True
    file = saved(tmp_path / f"a.{suffix}", Image.fromarray(bits))
    np.testing.assert_array_equal(read_image(file)[..., 0], 255 * bits)


def test_what_printers_and_laboratories_use(tmp_path):
    for suffix in ("tif", "jpg", "jp2"):
        file = saved(tmp_path / f"a.{suffix}", Image.new("CMYK", (8, 8), (0, 0, 0, 0)))
        assert read_image(file).min() == 255  # no ink
    lab = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (255, 128, 128)])
    assert read_image(saved(tmp_path / "lab.tif", lab)).min() >= 254
    assert read_image(tmp_path / "lab.tif", color=True).min() >= 250


# Transparency ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *[("png", mode) for mode in ("RGBA", "LA")],
        *[("tif", mode) for mode in ("RGBA", "LA", "PA")],
        *[("webp", "RGBA"), ("jp2", "RGBA"), ("tga", "RGBA"), ("ico", "RGBA")],
        *[("qoi", "RGBA"), ("avif", "RGBA"), ("dds", "RGBA"), ("sgi", "RGBA")],
        *[("png", "P"), ("gif", "P"), ("gif", "RGBA")],
    ],
)
def test_a_drawing_on_a_transparent_ground_is_laid_on_white(tmp_path, suffix, mode):
    options = {"lossless": True} if suffix == "webp" else {}
    if mode == "P":  # black above another black, which is transparent
        drawing = Image.fromarray(np.repeat([0, 1], 8).astype(np.uint8)[:, None])
        drawing = drawing.resize((16, 16), Image.Resampling.NEAREST)
        drawing.putpalette([0] * 6)
        options["transparency"] = 1
    else:
        drawing = Image.new(mode, (16, 16), (0,) * len(mode))
        drawing.paste((*(0,) * (len(mode) - 1), 255), (0, 0, 16, 8))
    file = saved(tmp_path / f"a.{suffix}", drawing, **options)
    for background in (255, 0, 90):
        pixels = read_image(file, background=background)[..., 0]
        np.testing.assert_allclose(pixels[:8], 0, atol=2)
        np.testing.assert_allclose(pixels[8:], background, atol=2)
    assert read_image(file, color=True)[12, 3].tolist() == [255, 255, 255]


def test_half_transparent_ink_lets_the_ground_through(tmp_path):
    file = saved(tmp_path / "a.png", Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert grey(file) == [[127]]
    assert grey(file, background=0) == [[0]]
    opaque = np.dstack([np.repeat(EIGHT[..., None], 3, axis=2), np.full((2, 3), 255)])
    picture = Image.fromarray(opaque.astype(np.uint8))
    assert grey(saved(tmp_path / "b.png", picture), background=0) == EIGHT.tolist()
    palette = Image.new("P", (1, 1))
    palette.putpalette([0, 0, 0])
    assert grey(saved(tmp_path / "c.png", palette, transparency=b"\x80")) == [[127]]


def test_one_transparent_value_of_any_depth(tmp_path):
    file = tmp_path / "a.png"
    png(file, [(4, b"\x1b")], bits=2, kind=0, transparent=shorts(1))
    assert grey(file, background=7) == [[0, 7, 170, 255]]
    png(file, [(2, b"\x5f")], bits=4, kind=0, transparent=shorts(5))
    assert grey(file, background=7) == [[7, 255]]
    png(file, [(4, b"\x50")], bits=1, kind=0, transparent=shorts(1))
    assert grey(file, background=7) == [[0, 7, 0, 7]]
    png(file, [(4, b"\x50")], bits=1, kind=0, transparent=shorts(0))
    assert grey(file, background=7) == [[7, 255, 7, 255]]
    png(file, [(2, b"\x05\x06")], bits=8, kind=0, transparent=shorts(5))
    assert grey(file) == [[255, 6]]
    png(file, [(2, shorts(256, 257))], bits=16, kind=0, transparent=shorts(256))
    assert grey(file) == [[255, 1]]
    png(file, [(2, b"abcabd")], bits=8, kind=2, transparent=shorts(*b"abc"))
    assert read_image(file, color=True).tolist() == [[[255] * 3, [97, 98, 100]]]
    png(file, [(1, shorts(256, 0, 3))], bits=16, kind=2, transparent=shorts(256, 0, 3))
    assert grey(file) == [[255]]


def test_the_ground_is_part_of_the_preparation(tmp_path):
    file = saved(tmp_path / "a.png", Image.new("RGBA", (2, 2), (0, 0, 0, 0)))
    white, black = Preparation((2, 2)), Preparation((2, 2), background=0)
    assert read_prepared([file], white).min() == 255
    assert read_prepared([file, file], black).max() == 0
    inverted = Preparation((2, 2), background=0, invert=True)
    assert read_prepared([file], inverted).min() == 255
    with pytest.raises(
        ValueError, match="background must be a whole number in 0 to 255; got 256"
    ):
        Preparation((2, 2), background=256)
    with pytest.raises(ValueError, match="files must have at least one file"):
        read_prepared([], white)


# Orientation ----------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "jp.tif", "lzw.tif", "16.tif", "16.png"])
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, suffix, orientation):
    turned = {
        1: EIGHT,
        2: EIGHT[:, ::-1],
        3: EIGHT[::-1, ::-1],
        4: EIGHT[::-1],
        5: EIGHT.T,
        6: np.rot90(EIGHT, -1),
        7: EIGHT[::-1, ::-1].T,
        8: np.rot90(EIGHT),
    }
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tiffinfo": {274: orientation}} if "tif" in suffix else {"exif": exif}
    if suffix.startswith("lzw"):
        options["compression"] = "tiff_lzw"
    pixels = EIGHT.astype(np.uint16) * 257 if suffix.startswith("16") else EIGHT
    options |= {"lossless": True} if suffix == "webp" else {}
    file = saved(tmp_path / f"a.{suffix}", Image.fromarray(pixels), **options)
    assert grey(file) == turned[orientation].tolist()


def test_a_phone_picture_stands_upright(tmp_path):
    scene = np.zeros((16, 32), np.uint8)
    scene[:, :16] = 255  # bright to the left, which is up once it is turned
    exif = Image.Exif()
    exif[274] = TURN
    for suffix in ("jpg", "avif"):
        file = saved(tmp_path / f"a.{suffix}", Image.fromarray(scene), exif=exif)
        pixels = read_image(file)
        assert pixels.shape == (32, 16, 1)
        assert pixels[:14].min() > 240
        assert pixels[18:].max() < 15
    file = saved(tmp_path / "b.jpg", Image.fromarray(scene), exif=b"Exif\0\0no such data")
    assert read_image(file).shape == (16, 32, 1)


# Formats, sizes and damage --------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "png", "apng", "webp", "tif", "avif"])
def test_the_first_frame_is_read_and_that_is_said(tmp_path, suffix):
    frames = [Image.new("L", (8, 8), value) for value in (10, 200, 90)]
    options = {"lossless": True} if suffix == "webp" else {}
    options |= {"format": "PNG"} if suffix == "apng" else {}
    file = tmp_path / f"a.{suffix}"
    frames[0].save(file, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_allclose(read_image(file), 10, atol=1)
    single = saved(tmp_path / "single.png", frames[0])
    assert images.remarks([], [single, file, file]) == [
        f"read only the first frame of 2 files of 3: a.{suffix}, a.{suffix}"
    ]
    assert images.remarks([], [single, tmp_path / "nowhere.gif"]) == []


def test_the_second_picture_of_a_phone_is_no_frame(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert images.remarks([], [tmp_path / "a.jpg"]) == []
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), 10, atol=1)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = saved(tmp_path / "whole.png", Image.fromarray(SIXTEEN)).read_bytes()
    jpeg = saved(tmp_path / "whole.jpg", Image.effect_noise((99, 99), 50)).read_bytes()
    for name, data, words in (
        ("empty.png", b"", "it is empty"),
        ("text.png", b"no image", "no format that Pillow reads"),
        ("cut.png", whole[:50], "image file is truncated"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "image file is truncated"),
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no format"),
    ):
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} cannot be read as an image: {words}"):
            read_image(file)


def test_what_is_no_name_of_a_file_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    with pytest.raises(TypeError, match="file must be the name of a file; got ndarray"):
        read_image(EIGHT)


def test_no_damage_of_a_file_goes_unnamed(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "a"
    picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "ICO", "TGA"):
        whole = saved(file, picture, format=kind).read_bytes()
        for _ in range(40):
            data = np.frombuffer(whole, np.uint8).copy()
            places = rng.integers(0, min(len(data), 200), 3)
            data[places] = rng.integers(0, 256, 3)
            file.write_bytes(data.tobytes())
            try:
                assert read_image(file).ndim == 3
            except UserError as error:
                assert str(file) in str(error)  # noqa: PT017, either is right


def test_an_image_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    file = saved(tmp_path / "a.png", Image.new("L", (10, 10)))
    for limit in (99, 49):  # Pillow warns of the first and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match=rf"a.png is too large.*at most {limit} pixels"):
            read_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(file).shape == (10, 10, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_very_small_and_thin_images_are_prepared(tmp_path, size):
    file = saved(tmp_path / "a.png", Image.new("L", size, 77))
    pixels = read_image(file)
    assert pixels.shape == (size[1], size[0], 1)
    for resampling in ("lanczos", "every-second-pixel"):
        for color in (False, True):
            found = prepare(pixels[None], Preparation((16, 12), color, False, resampling))
            assert found.shape == (1, 16, 12, 3 if color else 1)
            assert (found == 77).all()
