"""Images without a file of labels: the run stops with their number, leaves them out, or takes them as empty, as the config says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import write_picture

from effbackbones.errors import UserError
from tasks.data.door.boxes import voc, yolo
from tasks.data.door.masks import masks
from tasks.data.fingerprint import fingerprint
from tasks.settings.data import DataConfig

OBJECT = "<object><name>a</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"
OPENED = {"voc": voc, "folders": voc, "yolo": yolo, "masks": masks, "listed": masks}


def laid(root: Path, form: str, with_labels: str, without: str, **options: Any) -> DataConfig:
    """Images (one letter each) in a format; what the labels are does not matter."""
    for id_ in with_labels + without:
        place = {"voc": "JPEGImages", "folders": "train", "yolo": "images/train"}.get(form, "train/images")
        write_picture(root / place / f"{id_}.png", (30, 40))
        for folder in ("Annotations", "labels/train", "train/masks", "ImageSets/Main"):
            if (folder == "ImageSets/Main") <= (form == "voc"):
                (root / folder).mkdir(parents=True, exist_ok=True)
        if id_ in without:
            continue
        if form in ("voc", "folders"):
            place = "Annotations" if form == "voc" else "train"
            (root / place / f"{id_}.xml").write_text(f"<annotation>{OBJECT}</annotation>")
        elif form == "yolo":
            (root / "labels/train" / f"{id_}.txt").write_text("0 .5 .5 .2 .2\n")
        else:
            Image.fromarray(np.ones((30, 40), np.uint8)).save(root / "train/masks" / f"{id_}.png")
    listing = root / ("ImageSets/Main/train.txt" if form == "voc" else "list.txt")
    listing.write_text("".join(f"{id_}\n" for id_ in sorted(with_labels + without)))
    options |= {"classes": ["nothing", "thing"]} if form in ("masks", "listed") else {}
    options |= {"list": "list.txt", "images": "{split}/images", "masks": "{split}/masks"} if form == "listed" else {}
    options |= {"names": ["a"]} if form == "yolo" else {}
    name = {"folders": "voc", "listed": "masks"}.get(form, form)
    return DataConfig(name=name, root=str(root), options=options)


@pytest.mark.parametrize("form", OPENED)
def test_images_without_labels_stop_the_run_are_left_out_or_empty(tmp_path: Path, form: str) -> None:
    opened: Any = OPENED[form]
    stop = {"missing": "stop"} if form == "yolo" else {}  # where no label file means that there is no object
    with pytest.raises(UserError) as error:
        opened(laid(tmp_path, form, "bde", "ac", **stop), "train", None)
    said = str(error.value)
    assert "set data.options.missing: skip" in said or "or data.options.missing: skip or empty" in said
    assert "2 of 5 images have no" in said or "and 1 more" in said
    assert "a.png" in said or "'a'" in said
    skipped = opened(laid(tmp_path, form, "bde", "ac", missing="skip"), "train", None)
    assert [skipped[index].id for index in range(len(skipped))] == ["b", "d", "e"]
    assert any(
        "2 of 5 images have no" in note and "they are left out (data.options.missing)" in note for note in skipped.notes
    )
    empty = opened(laid(tmp_path, form, "bde", "ac", missing="empty"), "train", None)
    assert [empty[index].id for index in range(len(empty))] == list("abcde")
    said = " ".join(empty.notes)
    assert "2 of 5 images have no" in said or "2 images have no label file, so no object" in said
    for index, count in enumerate((0, 1, 0, 1, 1)):
        sample = empty[index]
        if sample.mask is None:
            assert len(sample.boxes) == count
        else:
            assert sample.mask.shape == (30, 40)
            assert (sample.mask == count).all()
            assert (empty.mask(index) == count).all()
    assert fingerprint(empty) != fingerprint(skipped)


@pytest.mark.parametrize("form", OPENED)
def test_a_set_without_any_labels_is_refused_whatever_is_said(tmp_path: Path, form: str) -> None:
    opened: Any = OPENED[form]
    with pytest.raises(UserError):
        opened(laid(tmp_path, form, "", "ac", missing="skip"), "train", None)


def test_what_stands_for_a_mask_must_be_a_class(tmp_path: Path) -> None:
    data = laid(tmp_path, "masks", "b", "a", missing="empty", values=[1, 2])
    with pytest.raises(UserError, match=r"a\.png: has no mask, and 0 is the value of no class.*missing: skip"):
        masks(data, "train", None)
    data = laid(tmp_path, "masks", "b", "a", missing="empty", values=[1, 2], ignore=[0])
    assert (masks(data, "train", None).mask(0) == 255).all()  # nobody knows what is there


def test_masks_without_image_stop_all_the_same(tmp_path: Path) -> None:
    data = laid(tmp_path, "masks", "b", "a", missing="skip")
    Image.fromarray(np.ones((30, 40), np.uint8)).save(tmp_path / "train/masks/z.png")
    with pytest.raises(UserError, match=r"z\.png: has no image of that name"):
        masks(data, "train", None)
    Image.fromarray(np.ones((30, 40), np.uint8)).save(tmp_path / "train/masks/a.png")
    options = {**data.options, "mask_names": "{name}_{class}"}
    with pytest.raises(UserError, match=r"data\.options\.missing: .*; set data\.options\.without_masks"):
        masks(DataConfig(name="masks", root=str(tmp_path), options=options), "train", None)


def test_images_apart_from_the_annotated_ones_are_none_of_the_set(tmp_path: Path) -> None:
    """Masks of a VOC export lie below the same folder."""
    data = laid(tmp_path, "voc", "bde", "")
    (tmp_path / "ImageSets/Main/train.txt").unlink()
    for folder in ("ImageSets/Main", "train/masks", "train"):
        (tmp_path / folder).rmdir()
    for id_ in "bd":
        write_picture(tmp_path / "SegmentationClass" / f"{id_}.png", (30, 40))
    found = voc(DataConfig(name="voc", root=data.root, val=0.4), "train", None)
    assert [found[index].id for index in range(len(found))] == ["Annotations/b", "Annotations/d", "Annotations/e"]
    assert [note for note in found.notes if "images in folders without annotations are not used" in note]
