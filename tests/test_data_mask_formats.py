"""What is found out of masks that other tools wrote: palettes that change from file to file, levels of grey, soft edges, accents."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effbackbones.errors import UserError
from tasks.data.check import check_dataset
from tasks.data.door.masks import masks
from tasks.data.sets.masks import MaskDataset
from tasks.settings.data import DataConfig

NAMES = ["other", "road", "sky"]
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [70, 130, 180]], np.uint8)
TRUTH = [np.array(rows, np.uint8) for rows in ([[0, 1, 2, 2]], [[0, 2, 2, 0]], [[2, 2, 2, 2]], [[1, 1, 0, 2]])]


def pair(root: Path, split: str, name: str, picture: Image.Image, ending: str = "png") -> None:
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", picture.size).save(root / split / "images" / f"{name}.png")
    picture.save(root / split / "masks" / f"{name}.{ending}")


def dropped(mask: np.ndarray, colours: np.ndarray = COLOURS) -> Image.Image:
    """A palette of the colours that occur alone, as tools that save space write it."""
    used, places = np.unique(mask, return_inverse=True)
    picture = Image.fromarray(places.reshape(mask.shape).astype(np.uint8), "P")
    picture.putpalette(colours[used].tobytes())
    return picture


def opened(root: Path, split: str = "train", *, names: list[str] = NAMES, **options: Any) -> MaskDataset:
    data = DataConfig(name="masks", root=str(root), options={"classes": names} | options)
    return masks(data, split, None if split == "train" else tuple(names))


def fill(root: Path, *, swapped: bool = False) -> Path:
    for split in ("train", "val"):
        for number, mask in enumerate(TRUTH):
            colours = COLOURS[[0, 2, 1]] if swapped and split == "val" else COLOURS
            pair(root, split, str(number), dropped(mask, colours))
    return root


def test_colours_decide_where_palettes_differ(tmp_path: Path) -> None:
    root = fill(tmp_path)
    for split in ("train", "val"):
        dataset = opened(root, split)
        for index, mask in enumerate(TRUTH):
            np.testing.assert_array_equal(dataset.mask(index), mask)
        assert "the colours decide, numbered as in" in dataset.notes[0]
        check_dataset(dataset)
    # A colour that none of the masks looked at has is refused when it is met.
    dataset = opened(root)
    pair(root, "train", "1", dropped(TRUTH[1], np.array([[0, 0, 0], [1, 2, 3], [9, 9, 9]], np.uint8)))
    with pytest.raises(UserError, match=r"colour 9,9,9 at x 1, y 0 is no class"):
        dataset.mask(1)


def test_a_full_mask_of_a_gif(tmp_path: Path) -> None:
    """A tool that drops unused colours writes a mask that is all foreground with index 0."""
    white = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    for number, mask in enumerate(([[0, 1, 1]], [[1, 1, 1]], [[1, 0, 0]])):
        pair(tmp_path, "train", str(number), dropped(np.array(mask, np.uint8), white), "gif")
    dataset = opened(tmp_path, names=["background", "lesion"])
    assert [dataset.mask(index).tolist() for index in range(3)] == [[[0, 1, 1]], [[1, 1, 1]], [[1, 0, 0]]]


def test_palettes_that_colours_cannot_reconcile(tmp_path: Path) -> None:
    """Two files with all colours in another order: nothing says which numbers are right."""
    root = fill(tmp_path, swapped=True)
    message = r"palettes differ: 1 is .*128,64,128.* and .*70,130,180|1 is 70,130,180 .* and 128,64,128"
    with pytest.raises(UserError, match=message) as caught:
        opened(root, "val")
    assert 'data.options.colors: ["NAME=0,0,0", "NAME=70,130,180", "NAME=128,64,128"]' in str(caught.value)
    assert "format: index" in str(caught.value)
    assert opened(root, "val", format="index").mask(0).tolist() == TRUTH[0].tolist()
    with pytest.raises(UserError, match="palettes differ"):
        opened(root, "val", format="palette")


def test_a_palette_that_was_not_looked_at_is_checked_when_read(tmp_path: Path) -> None:
    for number in range(3):
        picture = Image.fromarray(TRUTH[0], "P")
        picture.putpalette(COLOURS.tobytes())
        pair(tmp_path, "train", str(number), picture)
    dataset = opened(tmp_path)
    assert "masks are of format palette" in dataset.notes[0]
    picture.putpalette(COLOURS[[0, 2, 1]].tobytes())
    pair(tmp_path, "train", "1", picture)
    with pytest.raises(UserError, match=r"1\.png: has the colour 70,130,180 at index 1, other masks 128,64,128"):
        dataset.mask(1)


def test_declared_values_win(tmp_path: Path) -> None:
    levels = np.array([0, 128, 255], np.uint8)
    for number, mask in enumerate(TRUTH):
        pair(tmp_path, "train", str(number), Image.fromarray(levels[mask]))
    dataset = opened(tmp_path, values=[0, 128, 255])
    for index, mask in enumerate(TRUTH):
        np.testing.assert_array_equal(dataset.mask(index), mask)
    with pytest.raises(
        UserError, match=r"set data\.options\.values: \[0, 128, 255\] \(0 = other, 128 = road, 255 = sky\)"
    ):
        opened(tmp_path).mask(0)
    nearest = opened(tmp_path, values=[10, 120, 255], other="nearest")
    np.testing.assert_array_equal(nearest.mask(0), TRUTH[0])
    assert "read as the nearest value that is known (data.options.other): 43.8% of the pixels" in nearest.notes[1]


def soft_edges(root: Path) -> np.ndarray:
    mask = np.zeros((24, 40), np.uint8)
    mask[6:18, 10:30] = 255
    smooth = Image.fromarray(mask).resize((80, 48), Image.Resampling.BILINEAR)
    pair(root, "train", "0", smooth)
    return (np.asarray(smooth) >= 128).astype(np.uint8)


def test_soft_edges_get_the_remedy_that_helps(tmp_path: Path) -> None:
    cut, names = soft_edges(tmp_path), ["background", "road"]
    with pytest.raises(UserError, match=r"the edges are soft \(\d+% .*format: binary and other: nearest"):
        opened(tmp_path, names=names).mask(0)
    np.testing.assert_array_equal(opened(tmp_path, names=names, format="binary", other="nearest").mask(0), cut)
    told = opened(tmp_path, names=names, other="ignore").notes[1]
    stored = np.asarray(Image.open(tmp_path / "train/masks/0.png"))
    share = np.mean(~np.isin(stored, (0, 1, 255)))
    assert f"values that are no class are ignored (data.options.other): {share:.1%} of the pixels looked at" in told


def test_classes_are_renamed_and_merged(tmp_path: Path) -> None:
    for number, mask in enumerate(TRUTH):
        pair(tmp_path, "train", str(number), Image.fromarray(mask))
    dataset = opened(tmp_path, rename=["sky=other", "road=way"])
    assert dataset.classes == ("other", "way")
    for index, mask in enumerate(TRUTH):
        np.testing.assert_array_equal(dataset.mask(index), np.array([0, 1, 0], np.uint8)[mask])
    with pytest.raises(UserError, match=r"data\.options\.rename: there is no class 'skye'; did you mean sky"):
        opened(tmp_path, rename=["skye=other"])
    coloured = DataConfig(
        name="masks",
        root=str(fill(tmp_path / "c")),
        options={"colors": ["other=0,0,0", "road=128,64,128", "sky=70,130,180"], "rename": ["sky=road"]},
    )
    np.testing.assert_array_equal(masks(coloured, "train", None).mask(0), np.array([0, 1, 1], np.uint8)[TRUTH[0]])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_one_name(tmp_path: Path, form: Any) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    pair(tmp_path, "train", unicodedata.normalize(form, "Straße_ä"), Image.fromarray(TRUTH[0]))
    mask = tmp_path / "train/masks" / f"{unicodedata.normalize(form, 'Straße_ä')}.png"
    mask.rename(mask.with_name(f"{unicodedata.normalize(other, 'Straße_ä')}.png"))
    dataset = opened(tmp_path)
    assert dataset[0].id == unicodedata.normalize("NFC", "Straße_ä")
    np.testing.assert_array_equal(dataset[0].mask, TRUTH[0])
    (tmp_path / "list.txt").write_text(unicodedata.normalize("NFD", "Straße_ä"))
    assert len(opened(tmp_path, images="{split}/images", masks="{split}/masks", list="list.txt")) == 1
    pair(tmp_path, "train", unicodedata.normalize(other, "Straße_ä"), Image.fromarray(TRUTH[0]))
    with pytest.raises(UserError, match="how accents are written"):
        opened(tmp_path)


def lay_classes(root: Path, *, pattern: str = "{name}_{class}", split: str = "train") -> Path:
    """The same masks in a black and white file for each class but the first."""
    for number, mask in enumerate(TRUTH):
        (root / split / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1]).save(root / split / "images" / f"{number}.png")
        for label in np.unique(mask[mask > 0]).tolist():
            file = (
                root
                / split
                / "masks"
                / f"{pattern.replace('{name}', str(number)).replace('{class}', NAMES[label])}.png"
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(mask == label, 255, 0).astype(np.uint8)).save(file)
    return root


@pytest.mark.parametrize("pattern", ["{name}_{class}", "{class}/{name}", "{class}-of-{name}"])
def test_one_mask_for_each_class(tmp_path: Path, pattern: str) -> None:
    dataset = opened(lay_classes(tmp_path, pattern=pattern), mask_names=pattern)
    assert dataset.classes == tuple(NAMES)
    for index, mask in enumerate(TRUTH):
        np.testing.assert_array_equal(dataset.mask(index), mask)
        np.testing.assert_array_equal(dataset[index].mask, mask)
    assert dataset.notes == (
        "one mask for each class; pixels that none covers are other",
        "2 of 8 masks are not there: no pixel of the class in the image",
    )
    check_dataset(dataset)


def test_classes_that_overlap(tmp_path: Path) -> None:
    root = lay_classes(tmp_path)
    Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).save(root / "train/masks/0_road.png")
    with pytest.raises(UserError, match=r"0_sky\.png: covers 25\.0% .*at x 2, y 0; set data\.options\.overlap: last"):
        opened(root, mask_names="{name}_{class}").mask(0)
    found = {
        word: opened(root, mask_names="{name}_{class}", overlap=word).mask(0).tolist() for word in ("first", "last")
    }
    assert found == {"first": [[0, 1, 1, 2]], "last": [[0, 1, 2, 2]]}


def test_masks_of_classes_that_do_not_belong(tmp_path: Path) -> None:
    root, pattern = lay_classes(tmp_path), "{name}_{class}"
    (root / "train/masks/2_sky.png").rename(root / "spare.png")
    with pytest.raises(UserError, match=r"images/2\.png: has no mask of any class .*without_masks: background"):
        opened(root, mask_names=pattern)
    assert opened(root, mask_names=pattern, without_masks="background").mask(2).tolist() == [[0, 0, 0, 0]]
    (root / "spare.png").rename(root / "train/masks/2_skye.png")
    with pytest.raises(UserError, match=r"2_skye\.png: belongs to no image and class by '\{name\}_\{class\}'"):
        opened(root, mask_names=pattern)
    (root / "train/masks/2_skye.png").rename(root / "train/masks/2_sky.png")
    with pytest.raises(UserError, match="has no mask of other, sea; one class may be what no mask covers"):
        opened(root, mask_names=pattern, names=[*NAMES, "sea"])
    for options, message in (
        ({"mask_names": "{name}"}, "mask_names: expected {name} and {class}"),
        ({"mask_names": pattern, "rename": ["sky=road"]}, "rename: does not go with"),
        ({"overlap": "last"}, "overlap: goes with mask_names alone"),
    ):
        with pytest.raises(UserError, match=message):
            opened(root, **options)
