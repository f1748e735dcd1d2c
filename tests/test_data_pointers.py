"""Pointers of Git LFS in the place of files, whichever reader meets them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from effbackbones.errors import UserError
from effbackbones.images.opening import Encoded
from effbackbones.images.reading import read_image
from effbackbones.images.recordings import read_header
from effbackbones.images.video import Video
from effbackbones.weights.tensorfile import read_bytes
from tasks.data.boxes.vocfile import read_voc
from tasks.data.division import Division
from tasks.data.files.decoding import decoded
from tasks.data.files.jsonfile import parse
from tasks.data.files.reading import listed_classes
from tasks.data.lettering.typefaces import typefaces
from tasks.data.masks.pairs import _listed
from tasks.data.sets.vocfolders import _lines as voc_list
from tasks.data.sets.yolo import _lines as yolo_rows
from tasks.data.sets.yololists import images_listed
from tasks.data.sets.yolonames import _lines as yolo_names
from tasks.strictyaml import read_tree

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
READERS: dict[str, Callable[[Path], object]] = {
    "a.jpg": read_image,
    "a.png": read_image,
    "a.tif": read_image,
    "a.npy": read_image,
    "a.wav": read_header,
    "a.json": parse,
    "results.json": read_bytes,
    "outcomes.npz": read_bytes,
    "split.json": Division.read,
    "a.xml": read_voc,
    "a.csv": decoded,
    "a.txt": yolo_rows,
    "obj.names": yolo_names,
    "train.txt": lambda path: images_listed(path, path.parent, "inside"),
    "ImageSets.txt": lambda path: voc_list(path, "train"),
    "masks.txt": lambda path: _listed(path.parent, path.name, {}, {}, "", "train", "stop"),
    "classes.txt": lambda path: listed_classes(path.name, path.parent),
    "data.yaml": lambda path: read_tree(path, str(path)),
    "a.ttf": lambda path: typefaces([path.name], path.parent, "data.options.fonts"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_called_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"{name}: is a pointer of Git LFS.*; run git lfs pull"):
        READERS[name](path)


def test_a_video_too(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"a\.mp4: is a pointer of Git LFS"), Video(tmp_path / "a.mp4"):
        pass


def test_in_memory_too() -> None:
    with pytest.raises(UserError, match=r"a\.jpg: is a pointer of Git LFS"):
        read_image(Encoded("a.jpg", POINTER))
