"""TIFF files of any bands: nothing of them is lost without a word, and all bands are read where they are asked for."""

import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from effbackbones.errors import UserError
from effbackbones.images.reading import image_size, read_image
from tasks.data.masks.file import read_stored

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def written(folder: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(folder / "a.tif", array, **options)
    return folder / "a.tif"


RGBX = {"photometric": "rgb", "extrasamples": ["unspecified"]}
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize(
    ("shape", "options"),
    [((6, 9, 4), RGBX), ((6, 9, 2), BANDS), ((6, 9, 5), BANDS), ((6, 9, 8), BANDS), ((6, 9, 13), BANDS)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_bands_or_a_line(tmp_path: Path, shape: tuple, options: dict, dtype: type, capfd) -> None:
    array = pixels(*shape, dtype=dtype)
    path = written(tmp_path, array, **options)
    np.testing.assert_array_equal(read_image(path, channels=shape[2], depth="native"), array)
    as_bytes = read_image(path, channels=shape[2])
    np.testing.assert_array_equal(as_bytes, array if dtype == np.uint8 else array // 256)
    assert image_size(path) == shape[:2]
    for channels in {1, 3, 4, 8} - {shape[2]}:
        with pytest.raises(
            UserError, match=rf"has {shape[2]} samples.*asked for are {channels}.*channels: {shape[2]} "
        ):
            read_image(path, channels=channels)
    with pytest.raises(UserError, match="samples in each pixel"):
        read_stored(path)
    assert capfd.readouterr().err == ""  # no line of a library beside ours


def test_planes_pages_and_floats(tmp_path: Path) -> None:
    planes = pixels(5, 6, 9)
    path = written(tmp_path, planes, photometric="minisblack", planarconfig="separate")
    np.testing.assert_array_equal(read_image(path, channels=5), planes.transpose(1, 2, 0))
    path = written(tmp_path, planes, photometric="minisblack")  # five pages
    np.testing.assert_array_equal(read_image(path, channels=5), planes.transpose(1, 2, 0))
    for channels in (1, 3):
        with pytest.raises(UserError, match=r"5 pages of 1 sample in each pixel, asked for are .*channels: 5"):
            read_image(path, channels=channels)
    with pytest.raises(UserError, match="5 pages"):
        read_stored(path)
    unit = RNG.random((6, 9, 6), np.float32)
    np.testing.assert_array_equal(read_image(written(tmp_path, unit, **BANDS), channels=6), unit)
    with pytest.raises(UserError, match=r"0\.\.1"):
        read_image(written(tmp_path, unit * 2, **BANDS), channels=6)
    with pytest.raises(UserError, match="holds int32"):
        read_image(written(tmp_path, (unit * 9).astype(np.int32), **BANDS), channels=6)


def test_pages_of_two_sizes_are_no_bands(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(pixels(6, 9))
        tiff.write(pixels(5, 9))
    with pytest.raises(UserError, match="several sizes"):
        read_image(tmp_path / "a.tif", channels=2)


def test_smaller_copies_are_no_pages(tmp_path: Path) -> None:
    array = pixels(64, 64, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(array, photometric="rgb")
        tiff.write(array[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array)


def test_colours_and_declared_alpha_are_read_as_before(tmp_path: Path) -> None:
    array = pixels(6, 9, 4)
    path = written(tmp_path, array, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(path, channels=4), array)
    np.testing.assert_array_equal(read_image(path), array[..., :3])
    deep = pixels(6, 9, 3, dtype=np.uint16)
    path = written(tmp_path, deep, photometric="rgb")
    np.testing.assert_array_equal(read_image(path, depth="native"), deep)
    np.testing.assert_array_equal(read_image(path), deep // 256)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_bands_is_that_of_colours(tmp_path: Path, orientation: int) -> None:
    array = pixels(6, 9, 4)
    tag = [(274, "H", 1, orientation, True)]
    path = written(tmp_path, array, **RGBX, extratags=tag)
    turned = read_image(path, channels=4)
    assert image_size(path) == turned.shape[:2]
    np.testing.assert_array_equal(read_image(path, channels=4, exif="ignore"), array)
    colours = written(tmp_path, array[..., :3], photometric="rgb", extratags=tag)
    np.testing.assert_array_equal(read_image(colours), turned[..., :3])


def test_without_tifffile_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, pixels(6, 9, 5), **BANDS)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UserError, match=r"5 samples in each pixel.*pip install 'effbackbones\[tiff\]'"):
        read_image(path, channels=5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400), st.integers(0, 255))
def test_flipped_bytes_give_bands_or_one_line(at: int, byte: int, other: int, second: int) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((6, 9, 5), np.uint8), **BANDS)
    data = bytearray(buffer.getvalue())
    for place, value in ((at, byte), (other, second)):
        data[place % len(data)] = value
    with tempfile.NamedTemporaryFile(suffix=".tif") as file:
        file.write(data)
        file.flush()
        for channels in (3, 5):
            try:
                assert read_image(file.name, channels=channels, max_pixels=10_000).shape[2] == channels
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017  # a file may also be sound


def test_pixels_beyond_the_limit_of_pil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``max_pixels`` rules: PIL's own limit, of the whole process, neither adds to it nor is changed."""
    Image.fromarray(pixels(40, 50)).save(tmp_path / "a.png")
    for limit in (100, 1500):  # more than twice it would be an error of PIL's, less a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_image(tmp_path / "a.png", channels=1).shape == (40, 50, 1)
        assert image_size(tmp_path / "a.png") == (40, 50)
        with pytest.raises(UserError, match="allowed are 1,999 pixels"):
            read_image(tmp_path / "a.png", max_pixels=1999)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_frames_of_a_mask(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(6, 9) % 2) for _ in range(3)]
    for kind in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"m.{kind}", save_all=True, append_images=frames[1:], lossless=True)
        with pytest.raises(UserError, match="frames: which of them is the mask"):
            read_stored(tmp_path / f"m.{kind}")


def test_libraries_do_not_log_beside_our_line() -> None:
    for name in ("PIL", "tifffile"):
        assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger(name).handlers)


def test_an_unspecified_sample_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4 samples in each pixel \(3 colours and 1 unspecified\)"):
        read_image(written(tmp_path, pixels(6, 9, 4), **RGBX))


GREY, DEEP = {"photometric": "minisblack"}, np.uint16


@pytest.mark.parametrize("depth", ["8", "native"])
@pytest.mark.parametrize("packing", [{}, {"compression": "deflate"}, {"compression": "deflate", "predictor": True}])
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((6, 9), np.uint8, {"photometric": "miniswhite"}),
        ((6, 9), DEEP, {"photometric": "miniswhite"}),
        ((3, 6, 9), np.uint8, {"photometric": "rgb", "planarconfig": "separate"}),
        ((3, 6, 9), DEEP, {"photometric": "rgb", "planarconfig": "separate"}),
        ((4, 6, 9), DEEP, {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]}),
        ((2, 6, 9), np.uint8, {**GREY, "planarconfig": "separate", "extrasamples": ["unassalpha"]}),
        ((2, 6, 9), DEEP, {**GREY, "planarconfig": "separate", "extrasamples": ["unassalpha"]}),
        ((6, 9, 2), DEEP, {**GREY, "planarconfig": "contig", "extrasamples": ["unassalpha"]}),
    ],
)
def test_numbers_are_those_of_tifffile_with_black_as_0(
    tmp_path: Path, shape: tuple, dtype: type, options: dict, packing: dict, depth: str
) -> None:
    """Where PIL reads the low byte of 16 bits, loses a plane, or leaves 16 bits with white as 0."""
    stored = pixels(*shape, dtype=dtype)
    path = written(tmp_path, stored, **options, **packing)
    shown = np.iinfo(dtype).max - stored if options["photometric"] == "miniswhite" else stored
    expected = np.moveaxis(shown.reshape(-1, 6, 9), 0, 2) if "contig" not in options.values() else shown
    if depth == "8" and dtype == DEEP:
        expected = (expected >> 8).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path, channels=expected.shape[2], depth=depth), expected)


def test_pages_of_white_as_0_are_turned_too(tmp_path: Path) -> None:
    stored = pixels(3, 6, 9)
    path = written(tmp_path, stored, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path, channels=3), 255 - stored.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float16, np.float64])
def test_numbers_without_a_range_are_named_as_what_they_are(tmp_path: Path, dtype: type) -> None:
    path = written(tmp_path, np.zeros((6, 9), dtype), **GREY)
    with pytest.raises(UserError, match=r"(TIFF file of 1 sample|with a sign|32 bits).*store 8 or 16 bits") as error:
        read_image(path)
    assert "not in one of the formats" not in str(error.value)


def test_masks_of_16_bits_with_white_as_0_or_in_planes(tmp_path: Path) -> None:
    stored = np.where(pixels(6, 9) > 99, 0, 65535).astype(np.uint16)
    read = read_stored(written(tmp_path, stored, photometric="miniswhite"))
    np.testing.assert_array_equal(read.pixels, 65535 - stored)
    planes = written(tmp_path, pixels(3, 6, 9, dtype=DEEP), photometric="rgb", planarconfig="separate")
    with pytest.raises(UserError, match="planes of 16 bits"):
        read_stored(planes)
    with pytest.raises(UserError, match="without a sign"):
        read_stored(written(tmp_path, np.full((6, 9), -1, np.int8), **GREY))
