"""Damage in PNG files that PIL does not see."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effbackbones.errors import UserError
from effbackbones.images.checksums import check_png
from effbackbones.images.reading import read_image
from tasks.data.masks.file import MaskReader


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # so that a flipped bit is a flipped pixel
    return file.getvalue()


@pytest.mark.parametrize("bit", range(0, 16 * 16 * 8, 97))
def test_one_flipped_bit_is_refused(bit: int, tmp_path: Path) -> None:
    content = bytearray(png(np.zeros((16, 16), np.uint8)))
    start = content.index(b"IDAT") + 4 + 7  # behind the heads of the stream and its first block
    content[start + bit // 8] ^= 1 << bit % 8
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    read = MaskReader("index", ((0, 0), (1, 1)))
    for reader in (read, read_image):
        with pytest.raises(UserError, match=rf"{path}.*checksum is wrong") as error:
            reader(path)
        assert "\n" not in str(error.value)


def test_whole_files_and_the_place_in_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = io.BytesIO(png(pixels))
    assert file.getvalue().count(b"IDAT") > 1
    file.seek(33)
    check_png(file)
    assert file.tell() == 33
    check_png(io.BytesIO(file.getvalue()[:-3000]))  # cut off: the decoder says so
