"""Right pixels from every kind of image: golden values that follow from the formats, not from our decoder."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests_support import printed_by

from effbackbones.errors import UserError
from effbackbones.images import reading
from effbackbones.images.reading import image_size, is_image_name, read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
BLOCKS = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((16, 16), np.uint8))
"""Six grey blocks of 16 pixels, which survive JPEG: 32 x 48."""

# What the EXIF specification says of each orientation: where in the scene the pixel stored at row r, column c lies.
STORED = {
    1: lambda scene: scene,  # row 0 is the top, column 0 the left
    2: lambda scene: scene[:, ::-1],  # top, right
    3: lambda scene: scene[::-1, ::-1],  # bottom, right
    4: lambda scene: scene[::-1],  # bottom, left
    5: lambda scene: scene.T,  # left, top
    6: lambda scene: scene[:, ::-1].T,  # right, top
    7: lambda scene: scene[::-1, ::-1].T,  # right, bottom
    8: lambda scene: scene[::-1].T,  # left, bottom
}


def saved(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_colour_comes_back_unchanged(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, f"a.{suffix}", Image.fromarray(COLOUR))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, COLOUR)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize("suffix", ["webp", "jp2", "avif"])
def test_rarer_formats(tmp_path: Path, suffix: str) -> None:
    options = {
        "webp": {"lossless": True},
        "jp2": {"irreversible": False},
        "avif": {"quality": 100, "subsampling": "4:4:4"},
    }[suffix]
    path = saved(tmp_path, f"a.{suffix}", Image.fromarray(np.stack([BLOCKS] * 3, 2)), **options)
    np.testing.assert_allclose(read_image(path, channels=1)[..., 0].astype(int), BLOCKS, atol=1)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(tmp_path: Path, tag: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = np.ascontiguousarray(STORED[tag](BLOCKS))
    path = saved(
        tmp_path, f"a.{suffix}", Image.fromarray(stored), exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    for exif_option, expected in (("apply", BLOCKS), ("ignore", stored)):
        upright = read_image(path, channels=1, exif=exif_option)[..., 0]
        assert upright.shape == expected.shape == image_size(path, exif=exif_option)
        np.testing.assert_allclose(upright.astype(int), expected, atol=3)


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_senseless_orientation_is_no_orientation(tmp_path: Path, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    np.testing.assert_array_equal(
        read_image(saved(tmp_path, "a.png", Image.fromarray(GREY), exif=exif), channels=1)[..., 0], GREY
    )


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    # Full cyan, magenta, yellow, black, none: the colours that ink leaves of white.
    inks = np.zeros((16, 80, 4), np.uint8)
    for band in range(4):
        inks[:, 16 * band : 16 * band + 16, band] = 255
    image = read_image(saved(tmp_path, "a.jpg", Image.fromarray(inks, "CMYK"), quality=100, subsampling=0))
    expected = [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]]
    np.testing.assert_allclose(image[8, 8::16].astype(int), expected, atol=3)


def test_grey_is_repeated_and_colour_becomes_luma(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path, "g.png", Image.fromarray(GREY))), np.stack([GREY] * 3, 2))
    luma = COLOUR @ np.array([299, 587, 114]) / 1000  # ITU-R 601-2
    grey = read_image(saved(tmp_path, "c.png", Image.fromarray(COLOUR)), channels=1)
    assert grey.shape == (20, 30, 1)
    np.testing.assert_allclose(grey[..., 0], luma, atol=0.51)


def test_palette_with_transparency_is_looked_up_and_alpha_dropped(tmp_path: Path) -> None:
    indices = np.arange(20, dtype=np.uint8).reshape(4, 5) % 4
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.ravel().tolist())
    for name, transparency in (("one.png", 0), ("each.png", bytes([0, 128, 255, 3]))):
        path = saved(tmp_path, name, image, transparency=transparency)
        np.testing.assert_array_equal(read_image(path), colours[indices])
    alpha = read_image(path, channels=4)[..., 3]
    np.testing.assert_array_equal(alpha, np.array([0, 128, 255, 3], np.uint8)[indices])


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = GREY > 127
    np.testing.assert_array_equal(
        read_image(saved(tmp_path, "a.png", Image.fromarray(bits)), channels=1)[..., 0], np.where(bits, 255, 0)
    )


def test_alpha_is_dropped_added_or_kept(tmp_path: Path) -> None:
    pixels = np.dstack([COLOUR, GREY])
    path = saved(tmp_path, "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image(path), COLOUR)  # not composited: colours under transparent pixels stay
    np.testing.assert_array_equal(read_image(path, channels=4), pixels)
    opaque = read_image(saved(tmp_path, "b.png", Image.fromarray(COLOUR)), channels=4)
    np.testing.assert_array_equal(opaque, np.dstack([COLOUR, np.full_like(GREY, 255)]))
    grey_alpha = np.dstack([GREY, COLOUR[..., 1]])
    path = saved(tmp_path, "c.png", Image.fromarray(grey_alpha, "LA"))
    np.testing.assert_array_equal(read_image(path, channels=2), grey_alpha)
    np.testing.assert_array_equal(read_image(path, channels=1)[..., 0], GREY)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(BLOCKS), Image.fromarray(255 - BLOCKS)]
    path = saved(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path, channels=1)[..., 0], BLOCKS)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_or_kept(tmp_path: Path, suffix: str) -> None:
    deep = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 30 20 65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(path)
    np.testing.assert_array_equal(read_image(path), np.stack([deep >> 8] * 3, 2))
    native = read_image(path, channels=1, depth="native")
    assert native.dtype == np.uint16
    np.testing.assert_array_equal(native[..., 0], deep)
    with_alpha = read_image(path, channels=4, depth="native")
    np.testing.assert_array_equal(with_alpha, np.dstack([deep, deep, deep, np.full_like(deep, 65535)]))


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG file by hand: ``kind`` 2 is RGB; each of ``rows`` begins with its filter byte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "ppm"])
def test_sixteen_bit_colour_is_scaled_and_refused_at_full_depth(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    deep = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    content = deep.astype(">u2")
    if suffix == "ppm":
        path.write_bytes(b"P6 30 20 65535\n" + content.tobytes())
    else:
        path.write_bytes(png(30, 20, 16, 2, b"".join(b"\0" + row.tobytes() for row in content)))
    np.testing.assert_allclose(read_image(path).astype(int), deep >> 8, atol=1)
    with pytest.raises(UserError, match="full depth"):
        read_image(path, depth="native")


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 5), (np.uint16, 2), (np.float32, 12)])
def test_arrays_of_any_channels(tmp_path: Path, dtype: type, channels: int) -> None:
    values: NDArray = (RNG.random((7, 9, channels)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    path = tmp_path / "a.npy"
    np.save(path, values)
    np.testing.assert_array_equal(read_image(path, channels=channels, depth="native"), values)
    assert image_size(path) == (7, 9)
    if dtype == np.uint16:
        np.testing.assert_array_equal(read_image(path, channels=channels), values >> 8)
    with pytest.raises(UserError, match=f"{channels} channels"):
        read_image(path, channels=channels + 1)


@pytest.mark.parametrize("stored", [">u2", ">f4", "f8", ">f8", "f2", "?"])
def test_arrays_of_other_types_hold_the_same_image(tmp_path: Path, stored: str) -> None:
    """The other order of bytes, floating point of other precision, and truth values, which are black and white."""
    kind = np.dtype(stored)
    values: NDArray = RNG.integers(0, 65536, (7, 9, 5)) if kind.kind == "u" else RNG.random((7, 9, 5))
    values = (values > 0.5) if kind.kind == "b" else values.astype(kind)
    np.save(tmp_path / "a.npy", values)
    found = read_image(tmp_path / "a.npy", channels=5, depth="native")
    assert found.dtype == {"u": np.uint16, "f": np.float32, "b": np.uint8}[kind.kind]
    np.testing.assert_array_equal(found, values * 255 if kind.kind == "b" else values.astype(found.dtype))


@pytest.mark.parametrize(("shape", "channels"), [((3, 6, 7), 3), ((8, 40, 32), 3), ((1, 6, 7), 1), ((8, 40, 32), 5)])
def test_an_array_with_its_channels_in_front_is_called_so(
    tmp_path: Path, shape: tuple[int, int, int], channels: int
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    count, height, width = shape
    what = rf"got \[{count}, {height}, {width}\]: are these {count} channels of {height} x {width} pixels\?; store the channels last"
    with pytest.raises(UserError, match=what):
        read_image(tmp_path / "a.npy", channels=channels)


def test_reduced_decoding_keeps_to_its_bound_and_its_looks(tmp_path: Path) -> None:
    smooth = Image.fromarray(RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize(
        (1200, 800), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    for path, bound, shape in (
        (saved(tmp_path, "a.jpg", smooth, quality=95), (200, 200), (200, 300, 3)),
        (saved(tmp_path, "b.jpg", smooth, quality=95), (201, 10), (400, 600, 3)),
        (saved(tmp_path, "c.jpg", smooth, quality=95, exif=exif), (300, 200), (300, 200, 3)),
        (saved(tmp_path, "d.png", smooth), (200, 200), (800, 1200, 3)),
    ):
        reduced, whole = read_image(path, at_least=bound), read_image(path)
        assert reduced.shape == shape
        small = [
            np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC), dtype=int)
            for image in (reduced, whole)
        ]
        assert np.abs(small[0] - small[1]).max() <= 3


def test_names_of_images() -> None:
    assert all(is_image_name(name) for name in ("a.jpg", "b.JPEG", "x.y.png", "deep.npy"))
    assert not any(is_image_name(name) for name in ("jpg", "a.txt", "Thumbs.db", "a.jpg.part", "a."))


def test_decoding_imports_neither_torch_nor_opencv() -> None:
    code = "import sys, effbackbones.images.reading; print({'torch', 'cv2', 'torchvision'} & set(sys.modules))"
    assert printed_by(code) == "set()"


@pytest.mark.peer
def test_photographs_equal_those_of_the_reference_loader(data_root: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    for path in sorted((data_root / "coco_mini" / "val2017").glob("*.jpg"))[:10]:
        np.testing.assert_array_equal(read_image(path), np.asarray(pil_loader(str(path))))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_a_file_is_opened_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is replaced in between would be judged by another's header; and on a network each opening takes milliseconds."""
    path, opened = tmp_path / name, []
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    honest = reading.opened_file
    monkeypatch.setattr(reading, "opened_file", lambda path: opened.append(path) or honest(path))
    assert read_image(path).shape == (8, 8, 3)
    assert opened == [path]
