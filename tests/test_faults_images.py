"""Bad, odd and hostile image files: right pixels, or one line that names the file; never a crash, a hang or a guess."""

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from tests_support import PEAK_MEMORY, printed_by

from effbackbones.errors import UserError
from effbackbones.images.opening import Encoded
from effbackbones.images.reading import image_size, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of_zeros(width: int, height: int, *, kind: int = 0, depth: int = 1, bytes_per_row: int | None = None) -> bytes:
    """A PNG whose pixels are all zero: very small, however large the image."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (bytes_per_row or (width + 7) // 8))
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


JPEG = encoded(Image.fromarray(PIXELS), "JPEG", quality=90)
PNG = encoded(Image.fromarray(PIXELS), "PNG")
GIF = encoded(Image.fromarray(PIXELS), "GIF")
TIFF = encoded(Image.fromarray(PIXELS), "TIFF")
WEBP = encoded(Image.fromarray(PIXELS), "WEBP")
GREY_FLOAT = Image.fromarray(PIXELS[..., 0].astype(np.float32))


def changed(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "one byte": (b"\xff", "not in one of the formats"),
    "zeros": (bytes(5000), "not in one of the formats"),
    "text": (b"<html><body>404 not found</body></html>", "not in one of the formats"),
    "json": (b'{"error": "no such key"}', "not in one of the formats"),
    "git pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "is a pointer of Git LFS",
    ),
    "eps, which would start a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "not in one of the formats",
    ),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not in one of the formats"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg without its last tenth": (JPEG[: len(JPEG) * 9 // 10], "truncated"),
    "jpeg header alone": (JPEG[:20], "cannot be read"),
    "half a png": (PNG[: len(PNG) // 2], "truncated"),
    "png without its last chunks": (PNG[:-40], "cannot be read"),
    "half a gif": (GIF[: len(GIF) // 2], "truncated"),
    "half a tiff": (TIFF[: len(TIFF) // 2], "cannot be read"),
    "half a webp": (WEBP[: len(WEBP) // 2], "cannot be read"),
    "png with a flipped bit": (changed(PNG, len(PNG) // 2, bytes([PNG[len(PNG) // 2] ^ 1])), "cannot be read"),
    "png of 400 million pixels": (png_of_zeros(20000, 20000), "allowed are"),
    "png of 121 million pixels, of which PIL only warns": (png_of_zeros(11000, 11000), "allowed are"),
    "png of 65 million pixels": (png_of_zeros(6500, 10000), "65,000,000 pixels"),
    "png that claims 2 ** 31 - 1 squared": (
        changed(PNG, 16, struct.pack(">II", 2**31 - 1, 2**31 - 1)),
        "cannot be read|allowed are",
    ),
    "png of no pixels": (changed(PNG, 16, struct.pack(">II", 0, 64)), "cannot be read"),
    "gif that claims 65535 squared": (changed(GIF, 6, struct.pack("<HH", 65535, 65535)), "allowed are"),
    "float tiff": (encoded(GREY_FLOAT, "TIFF"), "no stated range"),
    "32-bit tiff": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.int32)), "TIFF"), "no stated range"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    content, why = BAD[name]
    path = tmp_path / "photo 1.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        read_image(path)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert len(line) < 300 + len(str(path))


def array_bytes(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


BAD_ARRAYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "not an array": (JPEG, "cannot be read"),
    "truncated": (array_bytes(PIXELS)[:1000], "cannot be read"),
    "pickle": (array_bytes(np.array([[{}]], dtype=object), allow_pickle=True), "got .* of object"),
    "one axis": (array_bytes(np.zeros(5, np.uint8)), "expected"),
    "no pixels": (array_bytes(np.zeros((0, 5, 3), np.uint8)), "expected"),
    "int32": (array_bytes(np.zeros((4, 5, 3), np.int32)), "of int32"),
    "doubles above 1": (array_bytes(np.full((4, 5, 3), 255.0)), r"0\.\.1"),
    "floats above 1": (array_bytes(np.full((4, 5, 3), 1.5, np.float32)), r"0\.\.1"),
    "not a number": (array_bytes(np.full((4, 5, 3), np.nan, np.float32)), r"0\.\.1"),
    "header of a giant": (
        array_bytes(PIXELS).replace(b"(64, 96, 3)", b"(99999, 99999, 3)"),
        "allowed are|cannot be read",
    ),
}


def test_files_in_memory_are_judged_like_files(tmp_path: Path) -> None:
    odd = {f"good {kind}": (content, "") for kind, content in enumerate((JPEG, PNG, GIF, TIFF, WEBP))}
    for name, (content, _) in (BAD | {f"{name}.npy": one for name, one in BAD_ARRAYS.items()} | odd).items():
        path = tmp_path / name.replace("/", " ")
        path.write_bytes(content)
        found = []
        for given in (path, Encoded(str(path), content)):
            try:
                found.append(read_image(given, max_pixels=64_000_000).tobytes())
            except UserError as error:
                found.append(str(error).partition(" ValueError ")[0].encode())  # NumPy words it by the kind of file
        assert found[0] == found[1], name


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, name: str) -> None:
    content, why = BAD_ARRAYS[name]
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("read", [read_image, image_size])
def test_missing_folder_and_forbidden(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "missing.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path / "folder.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "nul\0byte.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="not a regular file"):
        read(tmp_path / "pipe.jpg")
    locked = tmp_path / "locked.jpg"
    locked.write_bytes(JPEG)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root may read everything
        with pytest.raises(UserError, match="permission"):
            read(locked)


def test_wrong_ending_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(PNG)
    np.testing.assert_array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_decode(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "thin.png"
    Image.new("RGB", size[::-1], (1, 2, 3)).save(path)
    assert read_image(path).shape == (*size, 3)


def test_limit_of_pixels_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    assert read_image(path, max_pixels=64 * 96).shape == (64, 96, 3)
    with pytest.raises(UserError, match="6,144"):
        read_image(path, max_pixels=64 * 96 - 1)


def test_filling_up_truncated_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG[: len(JPEG) // 2])
    with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "npy"])
def test_flipped_bits_give_pixels_or_a_user_error(tmp_path: Path, kind: str) -> None:
    """A flipped bit in a JPEG usually still decodes, to wrong pixels: nothing in the file tells. PNG has checksums."""
    content = array_bytes(PIXELS) if kind == "npy" else encoded(Image.fromarray(PIXELS), kind)
    path = tmp_path / ("a.npy" if kind == "npy" else "a.img")
    draw, errors = random.Random(1), 0
    for _ in range(150):
        at = draw.randrange(min(len(content), 4000))
        path.write_bytes(changed(content, at, bytes([content[at] ^ (1 << draw.randrange(8))])))
        try:
            image = read_image(path)
        except UserError:
            errors += 1
        else:
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
    if kind == "PNG":
        assert errors == 150


@pytest.mark.slow
@pytest.mark.parametrize("kind", [6, 4, 0])
def test_peak_memory_of_a_small_file(tmp_path: Path, kind: int) -> None:
    """At most 1 GB for a file below 1 MB: RGBA, grey with alpha, 16-bit grey, at the limit of 64 million pixels."""
    path = tmp_path / "large.png"
    depth = 16 if kind == 0 else 8
    path.write_bytes(png_of_zeros(8000, 8000, kind=kind, depth=depth, bytes_per_row=8000 * {6: 4, 4: 2, 0: 2}[kind]))
    assert path.stat().st_size < 1_000_000
    code = f"{PEAK_MEMORY}\nimport sys; from effbackbones.images.reading import read_image; "
    code += "image = read_image(sys.argv[1]); assert image.shape == (8000, 8000, 3); print(peak_memory())"
    assert int(printed_by(code, str(path))) < 1e9
