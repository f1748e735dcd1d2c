"""Bad, odd and hostile masks and options: one line that names file and value; never a guess, never a class too many."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile
from tests_support import one_line

from effbackbones.errors import UserError
from tasks.data.door.masks import masks
from tasks.data.masks.file import MaskReader
from tasks.data.sets.masks import MaskDataset
from tasks.settings.data import DataConfig

NAMES = ["a", "b", "c"]
MASK = np.array([[0, 1, 2, 255], [2, 2, 1, 0]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pairs of 2 x 4 pixels, and a mask that is outside."""
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / "data" / split / folder).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 2)).save(tmp_path / "data" / split / "images" / f"{number}.jpg")
            Image.fromarray(MASK).save(tmp_path / "data" / split / "masks" / f"{number}.png")
    Image.fromarray(MASK).save(tmp_path / "outside.png")
    return tmp_path / "data"


def opened(root: Path, split: str = "train", **options: Any) -> MaskDataset:
    """A split; an option of None is not given."""
    options = {key: value for key, value in ({"classes": NAMES} | options).items() if value is not None}
    return masks(DataConfig(name="masks", root=str(root), options=options), split, None)


def refused(call: Callable[[], object], *words: str) -> None:
    """``call`` raises one short line that says ``words``; the room that paths of a test take is not counted."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    parts = [part for part in line.split() if part.startswith(os.sep)]
    short = line
    for part in parts:
        short = short.replace(part, part[-40:])
    assert "\n" not in line
    assert len(short) <= 300, line
    for word in words:
        assert word in line, line


def replaced(root: Path, picture: Image.Image, name: str = "1.png", **options: Any) -> Path:
    """Mask 1 of the training split replaced."""
    (root / "train/masks/1.png").unlink()
    path = root / "train/masks" / name
    picture.save(path, **options)
    return path


def with_alpha(picture: Image.Image, alpha: int) -> Image.Image:
    picture.putalpha(Image.fromarray(np.array([[255, 255, 255, 255], [255, alpha, 255, 255]], np.uint8)))
    return picture


COLORED = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
GREY = Image.fromarray(MASK)
CMYK = Image.new("CMYK", (4, 2))
BAD: dict[str, tuple[Callable[[], tuple[Image.Image, str, dict[str, Any]]], tuple[str, ...]]] = {
    "value": (
        lambda: (Image.fromarray(np.where(MASK == 1, 7, MASK).astype(np.uint8)), "1.png", {}),
        ("value 7 at x 1, y 0", "0..2"),
    ),
    "value of 16 bits": (
        lambda: (Image.fromarray(MASK.astype(np.uint16) + 300), "1.png", {}),
        ("value 300 at x 0, y 0",),
    ),
    "negative value": (
        lambda: (Image.fromarray(MASK.astype(np.int32) - 1), "1.tif", {}),
        ("value -1 at x 0, y 0", "16 bits"),
    ),
    "huge value": (
        lambda: (Image.fromarray(MASK.astype(np.int32) * 1000), "1.tif", {}),
        ("value 255000 at x 3, y 0", "16 bits"),
    ),
    "floats": (lambda: (Image.fromarray(MASK.astype(np.float32)), "1.tif", {}), ("kind F",)),
    "cmyk": (lambda: (CMYK, "1.tif", {}), ("kind CMYK",)),
    "colours": (lambda: (COLORED, "1.png", {}), ("colours", "x 0, y 0", "data.options.colors")),
    "jpeg": (lambda: (GREY, "1.jpg", {}), ("JPEG", "keep values exactly", "PNG")),
    "transparent": (lambda: (with_alpha(GREY.copy(), 0), "1.png", {}), ("transparent at x 1, y 1",)),
    "half transparent colours": (lambda: (with_alpha(COLORED.copy(), 128), "1.png", {}), ("transparent at x 1, y 1",)),
    "size": (lambda: (GREY.resize((5, 2), Image.Resampling.NEAREST), "1.png", {}), ("5 x 2", "4 x 2")),
    "interpolated": (lambda: (GREY.resize((4, 2), box=(0.5, 0, 3.5, 2)), "1.png", {}), ("is no class", "0..2")),
    "turned": (lambda: (GREY.transpose(Image.Transpose.ROTATE_90), "1.png", {}), ("2 x 4", "4 x 2")),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("alone", [True, False])
def test_a_bad_mask_is_named(root: Path, name: str, alone: bool) -> None:
    made, words = BAD[name]
    picture, file, options = made()
    path = replaced(root, picture, file, **options)
    dataset = opened(root, format="index")
    assert dataset[0].mask is not None
    refused(lambda: dataset.mask(1) if alone else dataset[1], str(path), *words)


def test_a_palette_beyond_the_classes(root: Path) -> None:
    for number in range(3):
        picture = Image.fromarray(MASK + (MASK == 2) * np.uint8(number), "P")
        picture.putpalette(bytes(range(256)) * 3)
        picture.save(root / "train/masks" / f"{number}.png")
    dataset = opened(root)
    assert "masks are of format palette" in dataset.notes[0]
    assert "0, 1, 2, 3, 4, 255" in dataset.notes[0]
    refused(lambda: dataset[1], "1.png", "value 3 at x 2, y 0", "0..2")


def test_a_damaged_mask_is_named(root: Path) -> None:
    path = root / "train/masks/1.png"
    dataset = opened(root, format="index")
    path.write_bytes(path.read_bytes()[:-30])
    refused(lambda: dataset[1], str(path), "cannot be read")
    path.write_bytes(b"")
    refused(lambda: dataset.mask(1), str(path), "empty")
    refused(lambda: opened(root), str(path), "empty")  # in the look that finds out the format
    data = DataConfig(root=str(root), on_error="skip", options={"classes": NAMES})
    assert "2 of 3 looked at" in masks(data, "train", None).notes[0]


def test_a_bomb_is_not_unpacked(root: Path) -> None:
    replaced(root, Image.new("1", (9000, 9000)))
    dataset = opened(root, format="index")
    refused(lambda: dataset[1], "1.png", "81,000,000 pixels", "64,000,000")
    small = DataConfig(root=str(root), max_pixels=7, options={"classes": NAMES, "format": "index"})
    refused(lambda: masks(small, "train", None).mask(0), "0.png", "8 pixels")


def test_truncated_images_are_not_filled_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(root)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused(lambda: dataset[0], "LOAD_TRUNCATED_IMAGES")


def test_arrays(root: Path) -> None:
    (root / "train/masks/1.png").unlink()
    for array, word in (
        (MASK.astype(np.float32) / 255, "float32"),
        (np.stack([MASK] * 3, 2), "[2, 4, 3]"),
        (MASK[0], "expected [H, W]"),
    ):
        np.save(root / "train/masks/1.npy", array)
        refused(lambda: opened(root, format="index")[1], "1.npy", word)


@given(st.binary(max_size=200), st.sampled_from(["png", "bmp", "tif", "pgm", "npy"]), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_noise_is_one_line(tmp_path_factory: pytest.TempPathFactory, noise: bytes, ending: str, place: int) -> None:
    from tasks.data.masks.file import read_stored

    path = tmp_path_factory.mktemp("noise") / f"a.{ending}"
    np.save(path, MASK) if ending == "npy" else GREY.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    said, depth = f"{path}: nothing", np.dtype(np.uint8)
    try:
        depth = read_stored(path, max_pixels=10_000).pixels.dtype
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert depth in (np.uint8, np.uint16)


def fill(root: Path, split: str, *values: list[int], kind: str = "L") -> None:
    for number, row in enumerate(values):
        array = np.array([row] * 2, np.uint8)
        picture = Image.fromarray(array, kind) if kind != "RGB" else Image.fromarray(np.stack([array] * 3, 2))
        if kind == "P":
            picture.putpalette(bytes(range(256)) * 3)
        picture.save(root / split / "masks" / f"{number}.png")


@pytest.mark.parametrize(
    ("ending", "options", "exact"),
    [
        ("webp", {"lossless": True}, True),
        ("webp", {"quality": 80}, False),
        ("webp", {"quality": 80, "exif": b"Exif\0\0"}, False),
        ("jp2", {}, True),
        ("jp2", {"irreversible": True}, False),
        ("jp2", {"irreversible": True, "quality_layers": [20]}, False),
    ],
)
def test_formats_that_keep_values_or_not_say_which(tmp_path: Path, ending: str, options: dict, exact: bool) -> None:
    """Classes 0, 1, 2 come out of a lossy file as others of the three, which nothing else would show."""
    truth = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8), 5, 0), 5, 1)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.dstack([truth] * 3)).save(path, **options)
    read = MaskReader("index", ((0, 0), (1, 1), (2, 2)))
    if exact:
        np.testing.assert_array_equal(read(path), truth)
        return
    with pytest.raises(UserError, match="does not keep values exactly; store masks as PNG"):
        read(path)


def test_what_is_ambiguous_is_refused(root: Path) -> None:
    two = ["x", "y"]
    fill(root, "train", *[[0, 255, 0, 0]] * 3)
    assert opened(root, classes=two).read_mask.format == "binary"
    refused(lambda: opened(root), "0 and 255 alone", "binary", "index", "data.options.format")
    fill(root, "train", *[[0, 0, 0, 0]] * 3)
    refused(lambda: opened(root, classes=two), "hold 0 alone", "index", "binary", "data.options.format")
    fill(root, "train", *[[0, 1, 1, 0]] * 3, kind="RGB")
    refused(lambda: opened(root), "0.png", "RGB", "greys", "index", "binary", "data.options.format")
    COLORED.save(root / "train/masks/0.png")
    refused(lambda: opened(root), "0.png", "RGB file with 8 colours", "data.options.colors")
    fill(root, "train", [0, 1, 1, 0], kind="P")
    fill(root, "train", [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0])
    fill(root, "train", [0, 1, 1, 0], kind="P")
    refused(lambda: opened(root), "two kinds", "palette", "grey", "data.options.format")
    assert opened(root, format="index").mask(0).tolist() == [[0, 1, 1, 0]] * 2
    refused(lambda: opened(root, format="palette").mask(1), "1.png", "no palette file", "index")
    GREY.save(root / "train/masks/0.png", "JPEG")
    refused(lambda: opened(root), "0.png", "JPEG", "binary")


def test_splits_are_of_one_format(root: Path) -> None:
    two = ["x", "y"]
    fill(root, "train", *[[0, 1, 255, 0]] * 3)
    fill(root, "val", *[[0, 255, 0, 0]] * 3)
    refused(lambda: opened(root, "val", classes=two), "look binary", "training index", "data.options.format")
    assert opened(root, "val", classes=two, format="index").mask(0).max() == 255
    fill(root, "val", *[[1, 1, 0, 0]] * 3)
    assert opened(root, "val", classes=two).mask(0).tolist() == [[1, 1, 0, 0]] * 2
    os.rename(root / "train", root / "elsewhere")
    assert opened(root, "val", classes=two).mask(0).tolist() == [[1, 1, 0, 0]] * 2


def test_binary_values(root: Path) -> None:
    fill(root, "train", [0, 1, 0, 0])
    refused(
        lambda: opened(root, classes=["x", "y"], format="binary").mask(0),
        "0.png",
        "value 1 at x 1, y 0",
        "format: index",
    )
    refused(lambda: opened(root, format="binary"), "2 classes, background first", "got 3")
    fill(root, "train", [0, 128, 255, 0])
    assert opened(root, classes=["x", "y"], format="binary", ignore=[128]).mask(0)[0].tolist() == [0, 255, 1, 0]


def test_a_colour_that_is_no_class(root: Path) -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[1, 2] = (1, 2, 3)
    Image.fromarray(pixels).save(root / "train/masks/0.png")
    black = {"classes": None, "colors": ["x=0,0,0"]}
    refused(lambda: opened(root, **black)[0], "0.png", "colour 1,2,3 at x 2, y 1", "data.options.colors")
    assert opened(root, **black, ignore=["1,2,3"]).mask(0)[1].tolist() == [0, 0, 255, 0]
    assert opened(root, **black, other="ignore").mask(0)[1].tolist() == [0, 0, 255, 0]
    refused(lambda: opened(root, **black).mask(1), "1.png", "colour 1,1,1 at x 1, y 0")  # a grey file
    Image.fromarray(MASK.astype(np.uint16)).save(root / "train/masks/0.png")
    refused(lambda: opened(root, **black).mask(0), "0.png", "16-bit greys")


def test_partners_that_are_missing(root: Path) -> None:
    (root / "train/masks/1.png").unlink()
    (root / "train/masks/2.png").unlink()
    refused(lambda: opened(root), "train/images/1.jpg", "no mask of that name in train/masks", "1 more")
    for number in range(3):
        GREY.save(root / "train/masks" / f"{number}.png")
    (root / "train/images/0.jpg").unlink()
    refused(lambda: opened(root), "train/masks/0.png", "no image of that name in train/images")
    GREY.save(root / "train/images/0.png")
    GREY.save(root / "train/images/0.bmp")
    refused(lambda: opened(root), "train/images/0.bmp and train/images/0.png differ in their ending alone")


def test_folders_that_are_missing(root: Path) -> None:
    refused(
        lambda: opened(root, "test"),
        str(root),
        "test/images with test/masks or images/test with masks/test",
        "train, val",
        "or set data.test, or data.test: null where there is none",
    )
    (root / "test/images").mkdir(parents=True)
    refused(lambda: opened(root, "test"), "test/masks", "no such folder of masks")
    (root / "test/masks").mkdir()
    refused(lambda: opened(root, "test"), "test/images", "holds no image")
    refused(lambda: opened(root, images="{split}/images"), "data.options.masks", "not given")
    refused(lambda: opened(root, images="train/images", masks="train/masks"), "the same for all splits", "{split}")


def test_nothing_leads_out_of_the_root(root: Path) -> None:
    for path in ("../outside", "/etc", "a/../../b", r"..\x", "C:/x"):
        refused(lambda path=path: opened(root, images=path, masks="{split}/masks"), "data.options.images", "inside")  # type: ignore[misc]
        refused(lambda path=path: opened(root, images="{split}/images", masks=path), "data.options.masks", "inside")  # type: ignore[misc]
        data = DataConfig(name="masks", root=str(root), train=path)
        refused(lambda data=data: masks(data, "train", None), "data.train", "inside")  # type: ignore[misc]
    refused(lambda: opened(root, list="../{split}.txt"), "data.options.list", "inside")
    (root / "train.txt").write_text("../../outside\n")
    refused(lambda: opened(root, list="{split}.txt"), "train.txt:1", "there is no image '../../outside'")
    (root / "train/masks/1.png").unlink()
    (root / "train/masks/1.png").symlink_to(root.parent / "outside.png")
    refused(lambda: opened(root), "1.png", "leaves")
    os.rename(root / "train/masks", root.parent / "masks")
    (root.parent / "masks/1.png").unlink()
    GREY.save(root.parent / "masks/1.png")
    (root / "train/masks").symlink_to(root.parent / "masks")
    refused(lambda: opened(root), "leaves")


def test_lists(root: Path) -> None:
    refused(lambda: opened(root, list="{split}.txt"), "train.txt", "cannot be read", "data.train")
    for text, words in (
        ("", ("lists no image",)),
        ("0\n\n7\n", (":3", "no image '7'")),
        ("0\n1\n0.jpg\n", (":3", "'0' stands in line 1 already")),
    ):
        (root / "train.txt").write_text(text)
        refused(lambda: opened(root, list="{split}.txt"), "train.txt", *words)
    (root / "train.txt").write_text("2\n")
    (root / "train/masks/2.png").unlink()
    refused(lambda: opened(root, list="{split}.txt"), ":1", "no mask '2'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "x"}, ("data.options.mask", "did you mean mask")),
        ({"format": "pallete"}, ("data.options.format", "palette")),
        ({"other": "skip"}, ("data.options.other", "stop")),
        ({"classes": None}, ("data.options.classes", "classes.txt", "name them")),
        ({"classes": "names.txt"}, ("names.txt", "cannot be read")),
        ({"classes": [str(k) for k in range(256)]}, ("at most 255 classes", "256")),
        ({"format": "rgb"}, ("data.options.colors", "format rgb")),
        ({"format": "index", "colors": ["x=1,2,3"], "classes": None}, ("data.options.colors", "index")),
        ({"colors": ["x=1,2,3"]}, ("data.options.classes", "colors")),
        ({"colors": ["x=1,2,3"], "values": [1], "classes": None}, ("data.options.values", "colors")),
        ({"colors": ["1,2,3"], "classes": None}, ("data.options.colors", "name=red,green,blue", "1,2,3")),
        ({"colors": ["x=1,2"], "classes": None}, ("data.options.colors", "red,green,blue in 0..255", "1,2")),
        ({"colors": ["x=1,2,256"], "classes": None}, ("data.options.colors", "1,2,256")),
        ({"colors": ["x=1,2,3", "y=1,2,3"], "classes": None}, ("data.options.colors", "1,2,3", "twice")),
        ({"colors": [], "classes": None}, ("data.options.colors", "empty")),
        ({"colors": "x=1,2,3", "classes": None}, ("data.options.colors", "expected a list")),
        ({"colors": ["x=1,2,3"], "ignore": [11], "classes": None}, ("data.options.ignore", "red,green,blue", "11")),
        ({"colors": ["x=1,2,3"], "ignore": ["1,2,3"], "classes": None}, ("data.options.ignore", "1,2,3 is ignored")),
        ({"ignore": [1]}, ("data.options.ignore", "1 is ignored, and the value of class 1", "data.options.values")),
        ({"ignore": ["1"]}, ("data.options.ignore", "whole numbers")),
        ({"ignore": 11}, ("data.options.ignore", "list")),
        ({"ignore": [True]}, ("data.options.ignore", "whole numbers")),
        ({"ignore": [70000]}, ("data.options.ignore", "70000")),
        ({"values": [1, 2]}, ("data.options.values", "got 2 for 3 classes")),
        ({"values": [1, 2, 2]}, ("data.options.values", "twice")),
        ({"values": [0, 1, 255], "ignore": [255]}, ("data.options.ignore", "255 is ignored", "binary")),
        ({"list": 5}, ("data.options.list", "text")),
        ({"channels": 0}, ("data.options.channels",)),
    ],
)
def test_options_are_checked(root: Path, options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    one_line(caught, *words)
