"""Masks and labels of images from COCO files: what is painted over what, in which encodings, and what is counted."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from test_data_coco import Content, annotation, content, turned, write_coco
from tests_support import one_line

from effbackbones.errors import UserError
from effbackbones.images.geometry import resize_nearest
from tasks.data.boxes.table import BoxDataset
from tasks.data.door.boxes import coco
from tasks.data.masks.outlines import Outlines
from tasks.data.sets.painting import PaintedDataset
from tasks.settings.data import DataConfig

W, H = 100, 80


def opened(root: Path, what: Content, split: str = "train", **data: Any) -> BoxDataset:
    write_coco(root, what, split)
    return coco(DataConfig(name="coco", root=str(root), **{"labels": ("mask",), **data}), split, None)


def mask_of(
    root: Path, *annotations: dict[str, Any], ids: tuple[int, ...] = (3, 7, 90), **data: Any
) -> NDArray[np.uint8]:
    dataset = opened(root, {**content(1, ids), "annotations": list(annotations)}, **data)
    assert isinstance(dataset, PaintedDataset)
    return dataset.mask(0)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def outline(number: int, category: int, segmentation: Any, area: float, **more: Any) -> dict[str, Any]:
    box = [0.0, 0, W, H]
    if isinstance(segmentation, list) and segmentation:
        numbers = [number for part in segmentation for number in part]
        low, high = ((min(numbers[side::2]), max(numbers[side::2])) for side in (0, 1))
        box = [low[0], high[0], low[1] - low[0], high[1] - high[0]]
    return {**annotation(number, 1, category, box), "segmentation": segmentation, "area": area, **more}


def runs(pixels: NDArray[np.bool_]) -> list[int]:
    """Uncompressed runs of pixels [H, W]."""
    flat = np.concatenate([[False], pixels.T.ravel(), [not pixels.T.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges])).tolist()  # type: ignore[no-any-return]


def block(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    pixels = np.zeros((H, W), np.bool_)
    pixels[top:bottom, left:right] = True
    return pixels


# --- real files ---


@pytest.mark.peer
@pytest.mark.parametrize("unlabelled", ["background", "ignore"])
def test_all_real_masks_are_those_that_pycocotools_paints(data_root: Path, unlabelled: str) -> None:
    from pycocotools.coco import COCO

    for split in ("train", "val"):
        data = DataConfig(
            name="coco", root=str(data_root / "coco_mini"), labels=("mask",), options={"unlabelled": unlabelled}
        )
        dataset = coco(data, split, None)
        assert isinstance(dataset, PaintedDataset)
        theirs = COCO(data_root / "coco_mini" / f"annotations/instances_{split}2017.json")
        value = {category: k + (unlabelled == "background") for k, category in enumerate(sorted(theirs.getCatIds()))}
        assert dataset.mask_classes == ("background",) * (unlabelled == "background") + dataset.classes
        assert dataset.notes == ()
        for index, id_ in enumerate(dataset.table.ids):
            objects = theirs.loadAnns(theirs.getAnnIds(imgIds=[int(id_)]))
            size = (theirs.imgs[int(id_)]["height"], theirs.imgs[int(id_)]["width"])
            expected = np.full(size, 0 if unlabelled == "background" else 255, np.uint8)
            for one in sorted(objects, key=lambda one: (not one["iscrowd"], -one["area"])):
                expected[theirs.annToMask(one) == 1] = 255 if one["iscrowd"] else value[one["category_id"]]
            np.testing.assert_array_equal(dataset.mask(index), expected)


def test_real_samples_have_what_is_asked(data_root: Path) -> None:
    root = data_root / "coco_mini"
    said = json.loads((root / "annotations/instances_val2017.json").read_text())
    ids = sorted(category["id"] for category in said["categories"])
    both = coco(DataConfig(name="coco", root=str(root), labels=("mask", "labels", "boxes")), "val", None)
    single = coco(DataConfig(name="coco", root=str(root), labels=("label",)), "val", None)
    assert list(single.table.ids) == list(both.table.ids)
    for index in range(0, len(both), 7):
        sample, one = both[index], single[index]
        mine = [record for record in said["annotations"] if str(record["image_id"]) == sample.id]
        assert sample.labels is not None
        assert sample.labels.dtype == np.float32
        assert np.flatnonzero(sample.labels).tolist() == sorted({ids.index(record["category_id"]) for record in mine})
        largest = max((record for record in mine if not record["iscrowd"]), key=lambda record: record["area"])
        assert one.label == ids.index(largest["category_id"])
        assert one.labels is one.boxes is one.mask is one.truth is None
        assert sample.boxes is not None
        assert len(sample.boxes) == len(mine)
        assert sample.mask is not None
        assert sample.mask.shape == sample.image.shape[:2]


# --- encodings ---


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_runs_as_numbers_and_as_text_paint_what_was_encoded(tmp_path: Path, data: st.DataObject) -> None:
    from pycocotools import mask as engine

    lows = data.draw(
        st.lists(
            st.tuples(st.integers(0, W - 1), st.integers(0, H - 1), st.integers(1, W), st.integers(1, H)), max_size=6
        )
    )
    pixels = np.zeros((H, W), np.bool_)
    for left, top, across, down in lows:
        pixels[top : top + down, left : left + across] ^= True  # holes too
    text = engine.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    other = block(0, 0, 10, 5)
    for counts in (runs(pixels), text):
        # Another record before and after: the numbers of one must not run into those of the next.
        beside = {
            "size": [H, W],
            "counts": runs(other)
            if isinstance(counts, str)
            else engine.encode(np.asfortranarray(other.astype(np.uint8)))["counts"].decode(),
        }
        records = [
            outline(1, 3, beside, 90),
            outline(2, 7, {"size": [H, W], "counts": counts}, 80),
            outline(3, 90, beside, 1),
        ]
        expected = np.where(other, 3, np.where(pixels, 2, 0))
        np.testing.assert_array_equal(mask_of(tmp_path, *records), expected)


def test_parts_of_a_polygon_are_united_and_runs_carry_holes(tmp_path: Path) -> None:
    parts = [rectangle(10, 10, 30, 30), rectangle(20, 20, 50, 40), rectangle(60, 60, 70, 70)]
    mask = mask_of(tmp_path, outline(1, 7, parts, 1000))
    np.testing.assert_array_equal(mask == 2, block(10, 10, 30, 30) | block(20, 20, 50, 40) | block(60, 60, 70, 70))
    ring = block(10, 10, 50, 50) & ~block(20, 20, 30, 30)
    mask = mask_of(tmp_path, outline(1, 7, {"size": [H, W], "counts": runs(ring)}, 1000))
    np.testing.assert_array_equal(mask == 2, ring)


def test_polygons_that_reach_out_are_cut_and_counted(tmp_path: Path) -> None:
    what = {
        **content(1),
        "annotations": [outline(5, 3, [rectangle(-20, -5, 30, 20), rectangle(90, 70, 150, 100)], 900)],
    }
    dataset = opened(tmp_path, what)
    assert isinstance(dataset, PaintedDataset)
    np.testing.assert_array_equal(dataset.mask(0) == 1, block(0, 0, 30, 20) | block(90, 70, 100, 80))
    assert dataset.notes == ("1 outlines reach out of their image: clipped (id 5)",)


# --- what lies on what ---


@given(order=st.permutations([0, 1, 2, 3]))
@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_objects_lie_on_large_ones_and_all_on_crowds(tmp_path: Path, order: list[int]) -> None:
    whole = {"size": [H, W], "counts": [0, H * W]}
    records = [
        outline(1, 3, [rectangle(0, 0, 60, 60)], 3600),
        outline(2, 7, [rectangle(10, 10, 40, 40)], 900),
        outline(3, 90, [rectangle(20, 20, 30, 30)], 100),
        outline(4, 3, whole, 5, iscrowd=1),  # its area would put it on top
    ]
    expected = np.full((H, W), 255, np.uint8)
    for value, extent in ((1, 60), (2, 40), (3, 30)):
        low = {60: 0, 40: 10, 30: 20}[extent]
        expected[low:extent, low:extent] = value
    np.testing.assert_array_equal(mask_of(tmp_path, *(records[place] for place in order)), expected)


def test_of_equal_areas_the_later_lies_on_top(tmp_path: Path) -> None:
    first, second = outline(1, 7, [rectangle(0, 0, 20, 20)], 400), outline(2, 3, [rectangle(10, 10, 30, 30)], 400)
    assert mask_of(tmp_path, first, second)[15, 15] == 1
    assert mask_of(tmp_path, second, first)[15, 15] == 2


def test_an_area_that_is_absent_is_that_of_the_outline(tmp_path: Path) -> None:
    large, ring = block(0, 0, 50, 50), block(0, 0, 60, 60) & ~block(2, 2, 58, 58)
    records = [
        outline(1, 3, [rectangle(5, 5, 45, 45), rectangle(50, 50, 52, 52)], 0),
        outline(2, 7, [rectangle(10, 10, 20, 20)], 0),
    ]
    for number, pixels in ((3, large), (4, ring)):
        records.append(outline(number, 90, {"size": [H, W], "counts": runs(pixels)}, 0))
    for record in records:
        del record["area"]
        record["bbox"] = [0, 0, 1, 1]  # says nothing
    for some in (records, records[::-1]):
        mask = mask_of(tmp_path, *some)
        assert (mask[12, 12], mask[30, 30], mask[48, 48], mask[1, 30], mask[70, 70]) == (2, 1, 3, 3, 0)


def test_other_classes_are_unlabelled_and_unlabelled_may_be_ignored(tmp_path: Path) -> None:
    records = [outline(1, 3, [rectangle(0, 0, 50, 50)], 2500), outline(2, 7, [rectangle(10, 10, 20, 20)], 100)]
    options: dict[str, Any] = {"classes": ["class 3", "class 90"]}
    mask = mask_of(tmp_path, *records, options=options)
    np.testing.assert_array_equal(mask, block(0, 0, 50, 50))
    mask = mask_of(tmp_path, *records, options={**options, "unlabelled": "ignore"})
    np.testing.assert_array_equal(mask, np.where(block(0, 0, 50, 50), 0, 255))
    dataset = opened(tmp_path, content(1) | {"annotations": records}, options={**options, "unlabelled": "ignore"})
    assert isinstance(dataset, PaintedDataset)
    assert dataset.mask_classes == ("class 3", "class 90")


# --- what is not there ---


@pytest.mark.parametrize("absent", [None, [], [[1.0, 2.0, 3.0, 4.0]], "key"])
@pytest.mark.parametrize(("option", "value"), [("ignore", 255), ("box", 2)])
def test_objects_without_an_outline_have_their_box_ignored_or_painted(
    tmp_path: Path, absent: Any, option: str, value: int
) -> None:
    bare = annotation(9, 1, 7, [20.5, 10, 30, 20], segmentation=absent)
    if absent == "key":
        del bare["segmentation"]
    over = outline(2, 3, [rectangle(30, 0, 45, 80)], 1e-3)
    mask = mask_of(tmp_path, over, bare, options={"no_segmentation": option})
    expected = np.where(block(20, 10, 51, 30), value, 0)
    expected[:, 30:45] = 1
    np.testing.assert_array_equal(mask, expected)
    dataset = opened(tmp_path, {**content(1), "annotations": [over, bare]}, options={"no_segmentation": option})
    words = {"ignore": "ignored", "box": "painted"}[option]
    assert dataset.notes[0] == f"1 annotations without a segmentation: their boxes are {words} (id 9)"
    assert ("1 annotations with polygons of fewer than three points: these are left out (id 9)" in dataset.notes) == (
        absent not in (None, [], "key")
    )


def test_objects_without_an_outline_stop_when_told_to_or_without_a_box(tmp_path: Path) -> None:
    bare = annotation(9, 1, 7, [20, 10, 30, 20])
    with pytest.raises(UserError) as caught:
        mask_of(tmp_path, bare, options={"no_segmentation": "stop"})
    one_line(caught, "instances_train2017.json: annotations[0] (id 9): has no segmentation; in all 1 records")
    del bare["bbox"]
    with pytest.raises(UserError) as caught:
        mask_of(tmp_path, bare)
    one_line(caught, "annotations[0] (id 9): has no segmentation, and no bbox either")


def test_masks_and_labels_need_no_boxes_and_lose_nothing_to_bad_ones(tmp_path: Path) -> None:
    records = [
        outline(n, category, [rectangle(10 * n, 10, 10 * n + 8, 20)], 80) for n, category in ((1, 3), (2, 7), (3, 90))
    ]
    del records[0]["bbox"]
    records[1]["bbox"] = []
    records[2]["bbox"] = [0, 0, 0, 0]
    assert np.unique(mask_of(tmp_path, *records)).tolist() == [0, 1, 2, 3]
    what = {**content(1), "annotations": records}
    labels = opened(tmp_path, what, labels=("labels",))[0].labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 1]
    with pytest.raises(
        UserError, match="1 of 3 boxes are not usable: 1 with a width or height of 0 or less, such as id 3"
    ):
        opened(tmp_path, what, labels=("boxes", "mask"))


# --- labels of images ---


def test_labels_are_the_classes_present_and_label_that_of_the_largest(tmp_path: Path) -> None:
    what = content(4)
    sizes = {(2, 3): 5.0, (2, 7): 9.0, (2, 90): 9.0, (4, 3): 50.0, (4, 90): 70.0}  # of equal ones the first
    what["annotations"] = [
        annotation(10 * image + category, image, category, [1, 1, 9, 9], area=area, iscrowd=int(area == 70))
        for (image, category), area in sizes.items()
    ]
    what["annotations"].append(annotation(1, 1, 90, [50, 50, 9, 9], iscrowd=1))
    many = opened(tmp_path, what, labels=("labels",))
    found = [many[index].labels for index in range(4)]
    assert [labels.tolist() for labels in found if labels is not None] == [[0, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]]
    assert len(opened(tmp_path, what, labels=("labels",), keep_empty=False)) == 2
    for split in ("train", "val"):
        one = opened(tmp_path, what, split, labels=("label", "mask") if split == "val" else ("label",))
        assert [(one[index].id, one[index].label) for index in range(len(one))] == [("2", 1), ("4", 0)]
        assert one.notes[0] == "2 of 4 images have no object, so no label: left out (such as id 1)"
    assert isinstance(one, PaintedDataset)
    assert one.notes[1].startswith("6 annotations without a segmentation")
    assert [one.mask(index)[:12, :12].sum() for index in range(2)] == [81 * 255] * 2  # of the images that are left


def test_formats_without_masks_say_so(tmp_path: Path) -> None:
    from tasks.data.door.boxes import voc

    with pytest.raises(UserError) as caught:
        voc(DataConfig(name="voc", root=str(tmp_path), labels=("mask",)), "train", None)
    one_line(caught, "data set 'voc' has no masks", "use coco or masks")


# --- images as they are read ---


def test_masks_follow_turned_and_reduced_images(tmp_path: Path) -> None:
    what = {**content(1), "annotations": [outline(1, 3, [rectangle(0, 0, 40, 30)], 1200)]}
    what["images"][0].update(width=80, height=100)
    write_coco(tmp_path, what)
    turned(tmp_path / "train2017" / "1.png", 6)
    for exif in ("apply", "ignore"):  # the annotations speak of the upright image
        sample = coco(DataConfig(name="coco", root=str(tmp_path), labels=("mask",), exif=exif), "train", None)[0]  # type: ignore[arg-type]
        assert sample.image.shape[:2] == (100, 80)
        assert sample.mask is not None
        assert sample.mask.shape == (100, 80)
        assert int((sample.mask == 1).sum()) == 1200
    what["images"][0].update(width=90)
    dataset = opened(tmp_path, what)
    with pytest.raises(UserError, match="the annotations say 90 x 100 pixels"):
        dataset[0]
    what["images"][0].update(file_name="1.jpg", width=333, height=250)
    reduced = opened(tmp_path, what, image_size=32, options={"reduced": True})
    assert isinstance(reduced, PaintedDataset)
    sample = reduced[0]
    assert sample.image.shape[:2] == (125, 167)
    np.testing.assert_array_equal(sample.mask, resize_nearest(reduced.mask(0), (125, 167)))


def test_sizes_that_are_absent_come_from_the_files(tmp_path: Path) -> None:
    what = {**content(2), "annotations": [outline(1, 3, [rectangle(0, 0, 40, 30)], 1200)]}
    write_coco(tmp_path, what)
    for image in what["images"]:
        del image["width"]
    dataset = opened(tmp_path, what)
    assert isinstance(dataset, PaintedDataset)
    assert dataset.mask(0).shape == (H, W)
    (tmp_path / "train2017" / "2.png").write_bytes(b"no image")
    dataset = opened(tmp_path, what, on_error="skip")
    assert isinstance(dataset, PaintedDataset)
    with pytest.raises(UserError, match=r"2\.png: cannot be read"):
        dataset.mask(1)


def test_the_image_is_not_read_for_its_mask_and_the_data_set_goes_to_workers(tmp_path: Path) -> None:
    what = {**content(2), "annotations": [{**outline(1, 3, [rectangle(0, 0, 40, 30)], 1200), "image_id": 2}]}
    dataset = opened(tmp_path, what)
    (tmp_path / "train2017" / "2.png").unlink()
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # our own
    assert again.mask(-1).sum() == again.mask(1).sum() == 1200
    assert again.mask(0).sum() == 0
    held = [*vars(dataset.painting).values(), *vars(dataset.painting.outlines).values()]  # type: ignore[attr-defined]
    assert not [value for value in held if isinstance(value, list | dict)]  # forked workers would copy these


def test_too_many_classes_and_a_class_called_background_are_refused(tmp_path: Path) -> None:
    what = content(1, tuple(range(1, 256)))
    with pytest.raises(UserError) as caught:
        opened(tmp_path, what)
    one_line(caught, "masks have at most 255 classes, these are 256")
    assert len(opened(tmp_path, what, options={"unlabelled": "ignore"}).mask_classes) == 255  # type: ignore[attr-defined]
    with pytest.raises(UserError) as caught:
        opened(tmp_path, content(1), options={"rename": ["class 3=background"]})
    one_line(caught, "a category is called background", "unlabelled: ignore")
    with pytest.raises(UserError) as caught:
        opened(tmp_path, content(1), options={"unlabelled": "ignored"})
    one_line(caught, "data.options.unlabelled", "did you mean ignore")


# --- where outlines lie ---


def swapped(ring: list[float]) -> list[float]:
    return [number for x, y in zip(ring[::2], ring[1::2], strict=True) for number in (y, x)]


def in_rows(pixels: NDArray[np.bool_]) -> list[int]:
    """Runs that go along rows, as others write them."""
    return runs(pixels.reshape(W, H).T)


PLACES = [(50, 30, 60, 45), (70, 5, 90, 15), (40, 50, 50, 60), (70, 40, 85, 50)]


@pytest.mark.parametrize(
    ("segmentation", "box", "says"),
    [
        (lambda at: [rectangle(*at)], None, None),
        (lambda at: {"size": [H, W], "counts": runs(block(*at))}, None, None),
        (lambda at: [swapped(rectangle(*at))], None, "; it looks as if x and y of the outlines are exchanged"),
        (
            lambda at: {"size": [H, W], "counts": in_rows(block(*at))},
            None,
            "; it looks as if the runs go along rows, where COCO's go down columns",
        ),
        (
            lambda at: [rectangle(*at)],
            lambda at: list(at),
            "; it looks as if the boxes are corner boxes (x0, y0, x1, y1)",
        ),
        (lambda at: [rectangle(*at)], lambda at: [at[0] / 3, at[1] / 3, 5, 5], ""),
        (lambda at: [rectangle(*at)], lambda at: [0, 0, 0, 0], None),
    ],
    ids=["polygon", "runs", "swapped", "rows", "corners", "elsewhere", "no box"],
)
def test_outlines_that_lie_elsewhere_than_their_boxes_are_told(
    segmentation: Any, box: Any, says: str | None, tmp_path: Path
) -> None:
    objects = []
    for number, at in enumerate(PLACES, 1):
        left, top, right, bottom = at
        said = [left, top, right - left, bottom - top] if box is None else box(at)
        objects.append({**outline(number, 3, segmentation(at), 0.0), "bbox": said, "area": None})
    dataset = opened(tmp_path, {**content(1, (3, 7)), "annotations": objects}, allow_bad_boxes=True)
    found = [note for note in dataset.notes if "elsewhere" in note]
    if says is None:
        assert found == []
        return
    what = "4 of 4 outlines looked at lie elsewhere than the boxes of their objects: the outlines are painted"
    assert found == [f"warning: {what}{says} (id 1, id 2, id 3, ...)"]


def test_polygons_in_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    said = [outline(1, 3, [[0.1, 0.25, 0.4, 0.25, 0.4, 0.75]], 5.0)]
    with pytest.raises(
        UserError, match=r"1 of 1 polygons lie in 0\.\.1: shares of the image.*; multiply x by the width"
    ):
        opened(tmp_path, {**content(1, (3, 7)), "annotations": said})


def test_holes_that_are_filled_are_told(tmp_path: Path) -> None:
    ell = [10, 10, 50, 10, 50, 20, 20, 20, 20, 50, 10, 50]  # around whose corner there is room
    said = [
        outline(1, 3, [rectangle(10, 10, 50, 50), rectangle(20, 20, 30, 30)], 1600.0),
        outline(2, 3, [rectangle(10, 10, 20, 20), rectangle(30, 30, 50, 50)], 500.0),
        outline(3, 3, [ell, rectangle(30, 30, 40, 40)], 800.0),
    ]
    notes = [note for note in opened(tmp_path, {**content(1, (3, 7)), "annotations": said}).notes if "inside" in note]
    assert notes == [
        "1 objects have a polygon inside another of theirs: both filled, as COCO does (holes are said by runs) (id 1)"
    ]


def test_outlines_without_a_pixel_are_told(tmp_path: Path) -> None:
    said = [
        outline(1, 3, [[10, 20, 10.2, 20, 10.2, 20.2]], 5.0),
        outline(2, 3, [rectangle(10, 20, 12, 22)], 4.0),
        outline(3, 7, {"size": [H, W], "counts": [H * W]}, 4.0),
    ]
    dataset = opened(tmp_path, {**content(1, (3, 7)), "annotations": said})
    assert "2 outlines have no pixel: these objects are not painted (id 1, id 3)" in dataset.notes
    assert (dataset.mask(0) > 0).sum() == 4  # type: ignore[attr-defined]


def test_boxes_of_many_outlines_are_found_at_once() -> None:
    """Objects with several polygons, with none, and with runs, in any order."""
    parts, rings = np.array([0, 2, 2, 3, 3]), [rectangle(1, 2, 3, 4), rectangle(5, 0, 9, 3), rectangle(2, 2, 8, 7)]
    counts = np.array(runs(block(10, 20, 40, 60)), np.uint32)
    outlines = Outlines(
        parts,
        np.array([0, 8, 16, 24]),
        np.concatenate(rings),
        np.array([[0, 0], [0, 0], [0, 0], [0, len(counts)]]),
        counts,
        np.array([[-1, -1]] * 3 + [[H, W]], np.int32),
        np.zeros(4, np.bool_),
    )
    expected = [[1, 0, 8, 4], [np.nan] * 4, [2, 2, 6, 5], [10, 20, 30, 40]]
    np.testing.assert_array_equal(outlines.boxes(), expected)
    expected[3] = [np.nan] * 4
    np.testing.assert_array_equal(outlines.boxes(np.array([0, 1, 2])), expected)
