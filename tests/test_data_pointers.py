"""Pointers of Git LFS in the place of files, whichever reader meets them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from effbackbones.errors import UserError
from effbackbones.images.opening import Encoded
from effbackbones.images.reading import read_image
from effbackbones.images.recordings import read_header
from tasks.data.boxes.vocfile import read_voc
from tasks.data.files.decoding import decoded
from tasks.data.files.jsonfile import parse
from tasks.data.sets.yolo import _lines

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
READERS: dict[str, Callable[[Path], object]] = {
    "a.jpg": read_image,
    "a.png": read_image,
    "a.tif": read_image,
    "a.npy": read_image,
    "a.wav": read_header,
    "a.json": parse,
    "a.xml": read_voc,
    "a.csv": decoded,
    "a.txt": _lines,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_called_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"{name}: is a pointer of Git LFS.*; run git lfs pull"):
        READERS[name](path)


def test_in_memory_too() -> None:
    with pytest.raises(UserError, match=r"a\.jpg: is a pointer of Git LFS"):
        read_image(Encoded("a.jpg", POINTER))
