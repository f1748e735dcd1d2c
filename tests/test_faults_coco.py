"""Malformed COCO files: each is stopped in one line that names file and record, or mended and counted; none is silent or hangs."""

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from test_data_coco import annotation, content, opened, write_coco

from effbackbones.errors import UserError
from tasks.data.boxes.repairs import RepairCount, mend
from tasks.data.door.boxes import coco
from tasks.data.sets.painting import PaintedDataset
from tasks.settings.data import DataConfig

Content = dict[str, Any]
FILE = r"instances_train2017\.json"
NAN, INF = math.nan, math.inf


def sound() -> Content:
    """The two images, two categories and two annotations of the case list."""
    polygon = [[10, 10, 30, 10, 30, 30, 10, 30]]
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in (1, 2)],
        "categories": [{"id": 1, "name": "x"}, {"id": 3, "name": "y"}],
        "annotations": [
            annotation(1, 1, 1, [10, 10, 20, 20], segmentation=polygon),
            annotation(2, 2, 3, [5, 5, 40, 40], segmentation=polygon),
        ],
    }


def edit(what: Content, key: str, index: int, **values: Any) -> None:
    what[key][index].update(values)


def without(what: Content, key: str, index: int, name: str) -> None:
    del what[key][index][name]


A, I, C = "annotations", "images", "categories"  # noqa: E741
ONE, TWO = r"annotations\[0\] \(id 1\): ", r"annotations\[1\] \(id 2\): "
STOPPED: dict[str, tuple[Callable[[Content], Any], str]] = {
    "NaN box": (
        lambda d: edit(d, A, 0, bbox=[NAN] * 4),
        rf"{FILE}:1: NaN is not JSON; it stands in annotations\[0\] \(id 1\)",
    ),
    "NaN height": (
        lambda d: edit(d, A, 1, bbox=[1, 2, 3, NAN]),
        rf"{FILE}:1: NaN is not JSON; it stands in annotations\[1\] \(id 2\)",
    ),
    "NaN area": (
        lambda d: edit(d, A, 1, area=NAN),
        rf"{FILE}:1: NaN is not JSON; it stands in annotations\[1\] \(id 2\)",
    ),
    "infinite box": (
        lambda d: edit(d, A, 1, bbox=[0, 0, INF, INF]),
        rf"{FILE}:1: Infinity is not JSON; .*annotations\[1\] \(id 2\)",
    ),
    "minus infinity": (
        lambda d: edit(d, A, 1, bbox=[-INF, 0, 1, 1]),
        rf"{FILE}:1: -Infinity is not JSON; .*annotations\[1\] \(id 2\)",
    ),
    "NaN elsewhere": (lambda d: d.update(info={"version": NAN}), rf"{FILE}:1: NaN is not JSON; write a number"),
    "polygon NaN": (lambda d: edit(d, A, 0, segmentation=[[NAN, 1, 5, 1, 5, 5]]), rf"{FILE}:1: NaN is not JSON"),
    "box too large for a number": (lambda d: edit(d, A, 1, bbox=[0, 0, 10**400, 1]), TWO + "bbox is not finite"),
    "box of 3": (lambda d: edit(d, A, 0, bbox=[1, 2, 3]), ONE + r"bbox: expected four numbers .*got \[1, 2, 3\]"),
    "box of none": (lambda d: edit(d, A, 0, bbox=[], segmentation=[]), ONE + r"bbox: expected four numbers"),
    "box of strings": (
        lambda d: edit(d, A, 0, bbox=["10", "10", "20", "20"]),
        ONE + r"bbox: expected four numbers .*\"10\"",
    ),
    "one string": (lambda d: edit(d, A, 1, bbox=[1, 1, 2, "2"]), TWO + r"bbox: expected four numbers"),
    "box of truth values": (lambda d: edit(d, A, 1, bbox=[True, 1, 2, 2]), TWO + r"bbox: expected four numbers"),
    "box null": (lambda d: edit(d, A, 1, bbox=None, segmentation=None), TWO + r"has no bbox"),
    "box an object": (lambda d: edit(d, A, 1, bbox={"x": 1}), TWO + r"bbox: expected a list"),
    "area a text": (lambda d: edit(d, A, 1, area="400"), TWO + r"area: expected a number, got \"400\""),
    "area too large": (lambda d: edit(d, A, 1, area=10**400), TWO + r"area is not finite"),
    "iscrowd 2": (lambda d: edit(d, A, 1, iscrowd=2), TWO + r"iscrowd: expected 0 or 1, got 2"),
    "no annotation id": (lambda d: without(d, A, 1, "id"), r"annotations\[1\]: has no id"),
    "no image_id": (lambda d: without(d, A, 1, "image_id"), TWO + r"has no image_id"),
    "no category_id": (lambda d: without(d, A, 1, "category_id"), TWO + r"has no category_id"),
    "no bbox": (lambda d: (without(d, A, 1, "bbox"), edit(d, A, 1, segmentation=[])), TWO + r"has no bbox"),
    "no file_name": (lambda d: without(d, I, 1, "file_name"), r"images\[1\] \(id 2\): has no file_name"),
    "no image id": (lambda d: without(d, I, 1, "id"), r"images\[1\]: has no id"),
    "no category id": (lambda d: without(d, C, 1, "id"), r"categories\[1\]: has no id"),
    "no name": (lambda d: without(d, C, 1, "name"), r"categories\[1\] \(id 3\): has no name"),
    "empty name": (lambda d: edit(d, C, 1, name=" "), r"categories\[1\] \(id 3\): name is empty"),
    "equal names": (
        lambda d: edit(d, C, 1, name="x"),
        r"\(id 3\): name is that of categories\[0\] too; not unique: 1 values \(x\)",
    ),
    "equal category ids": (
        lambda d: edit(d, C, 1, id=1),
        r"categories\[1\] \(id 1\): id is that of categories\[0\] too",
    ),
    "equal annotation ids": (
        lambda d: edit(d, A, 1, id=1),
        r"\(id 1\): id is that of annotations\[0\] too; not unique: 1 values \(1\)",
    ),
    "equal image ids": (lambda d: edit(d, I, 1, id=1), r"images\[1\] \(id 1\): id is that of images\[0\] too"),
    "equal image ids as text": (
        lambda d: edit(d, I, 1, id="1"),
        r"images\[1\] \(id \"1\"\): id is that of images\[0\] too",
    ),
    "annotation id a text": (
        lambda d: edit(d, A, 1, id="two"),
        r"annotations\[1\] \(id \"two\"\): id: expected a whole number",
    ),
    "annotation id of 70 bits": (
        lambda d: edit(d, A, 1, id=2**70),
        r"annotations\[1\] \(id 1180\d+\): id has more than 64 bits",
    ),
    "unknown image": (
        lambda d: edit(d, A, 0, image_id=99),
        ONE + r"image_id 99 is not among the images; in all 1 records",
    ),
    "unknown category": (
        lambda d: edit(d, A, 1, category_id=77),
        TWO + r"category_id 77 is not among the categories; in all 1",
    ),
    "category a truth value": (
        lambda d: edit(d, A, 0, category_id=True),
        ONE + r"category_id: expected a whole number",
    ),
    "no images": (lambda d: d.pop(I), rf"{FILE}: has no images"),
    "no categories": (lambda d: d.pop(C), rf"{FILE}: has no categories"),
    "no annotations": (lambda d: d.pop(A), rf"{FILE}: has no annotations"),
    "empty images": (lambda d: d.update(images=[]), rf"{FILE}: images: is empty"),
    "empty categories": (lambda d: d.update(categories=[]), rf"{FILE}: categories: is empty"),
    "empty annotations": (
        lambda d: d.update(annotations=[]),
        rf"{FILE}: split train has no object: there are no annotations",
    ),
    "annotations an object": (lambda d: d.update(annotations={}), rf"{FILE}: annotations: expected a list, got \{{\}}"),
    "an annotation a number": (lambda d: d[A].append(3), rf"{FILE}: annotations\[2\]: expected an object, got 3"),
    "a line break in a name": (
        lambda d: edit(d, C, 1, name="a\nb"),
        r"\(id 3\): name is too long or holds a character that is no letter",
    ),
    "half a letter in an id": (
        lambda d: edit(d, I, 1, id="\ud800"),
        r"images\[1\] .*: id is too long or holds a character",
    ),
    "an endless file name": (
        lambda d: edit(d, I, 1, file_name="x" * 999),
        r"images\[1\] \(id 2\): 1 of 2 images have no file",
    ),
    "width 0": (
        lambda d: edit(d, I, 1, width=0),
        r"images\[1\] \(id 2\): width: expected a positive whole number, got 0",
    ),
    "width a text": (
        lambda d: edit(d, I, 1, width="100"),
        r"images\[1\] \(id 2\): width: expected a number, got \"100\"",
    ),
    "height 80.5": (
        lambda d: edit(d, I, 1, height=80.5),
        r"images\[1\] \(id 2\): height: expected a positive whole number, got 80.5",
    ),
    "file out of the folder": (
        lambda d: edit(d, I, 1, file_name="../2.png"),
        r"images\[1\] \(id 2\): '../2.png' is not a path inside",
    ),
    "equal file names": (
        lambda d: edit(d, I, 1, file_name="1.png"),
        r"\(id 2\): file_name is that of images\[0\] too; .* merge",
    ),
    "equal files by two names": (
        lambda d: edit(d, I, 1, file_name="./1.png"),
        r"\(id 2\): file_name is that of images\[0\] too; .* merge",
    ),
    "file missing": (
        lambda d: edit(d, I, 1, file_name="gone.png"),
        r"images\[1\] \(id 2\): 1 of 2 images have no file in .*: gone.png",
    ),
    "negative box": (
        lambda d: edit(d, A, 0, bbox=[30, 30, -20, -20]),
        "1 of 2 boxes are not usable: 1 with a width or height of 0 or less, such as id 1; correct them, or set data.allow",
    ),
    "all crowds": (
        lambda d: [a.update(iscrowd=1) for a in d[A]],
        "split train has no object: of 2 boxes none is usable: 2 crowds",
    ),
}


def refusal(root: Path, what: Content, *labels: str) -> str:
    """The line that refuses the file, written beside images that are sound; at most 300 characters, in less than five seconds."""
    write_coco(root, sound())
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(what))
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        coco(DataConfig(name="coco", root=str(root), labels=labels), "train", None)
    assert time.monotonic() - start < 5
    line = str(caught.value)
    assert "\n" not in line
    assert len(line.replace(str(root), "")) <= 300
    return line


@pytest.mark.parametrize("case", STOPPED)
def test_what_would_have_to_be_guessed_is_stopped_with_file_and_record(tmp_path: Path, case: str) -> None:
    change, says = STOPPED[case]
    what = sound()
    change(what)
    line = refusal(tmp_path, what)
    assert re.search(says, line), line
    assert "instances_train2017.json" in line


def test_the_case_that_nothing_is_wrong_with_passes(tmp_path: Path) -> None:
    dataset = opened(tmp_path, sound())
    assert dataset.table.repairs.lines() == []
    assert dataset.table.counts().tolist() == [1, 1]


def test_numbers_beyond_the_largest_are_not_finite(tmp_path: Path) -> None:
    write_coco(tmp_path, sound())
    file = tmp_path / "annotations" / "instances_train2017.json"
    for box in ("[0, 0, 1e999, 1]", "[-1e999, 0, 10, 10]"):
        file.write_text(json.dumps(sound()).replace("[5, 5, 40, 40]", box, 1))
        with pytest.raises(UserError, match=rf"{FILE}: annotations\[1\] \(id 2\): bbox is not finite"):
            coco(DataConfig(name="coco", root=str(tmp_path)), "train", None)


def test_many_offenders_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    what = content(30)
    for number, record in enumerate(what["annotations"][:50]):
        record["image_id"] = 1000 + number // 10
    write_coco(tmp_path, content(30))
    line = refusal(tmp_path, what)
    assert "image_id 1000 is not among the images; in all 50 records with 5 unknown ids (1000, 1001, 1002, ...)" in line
    what = content(30)
    for record in what["annotations"][10:40]:
        record["id"] = 100 + record["id"] % 5
    assert "not unique: 3 values (101, 102, 100)" in refusal(tmp_path, what)


# --- not JSON ---


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: is empty"),
        (" \n ", ":2: is empty|:1: is empty"),
        ("{}", ": has no categories"),
        ("[]", r": expected an object, got \[\]; name a file of annotations"),
        ("null", ": expected an object, got null"),
        ('{"images": [', ":1: is not JSON: Expecting value at column 13, where the file ends: is it cut off"),
        ('{\n"images": [],\n"categories": oops}', ":3: is not JSON: Expecting value at column 15; write"),
        ("[" * 100_000, ": is not JSON: "),
        ('{"images": ' + "1" * 5000 + "}", ": is not JSON: "),
        ("\ufeff{}", ": has no categories"),
    ],
)
def test_files_that_are_not_json_are_named_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    write_coco(tmp_path, sound())
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=FILE + f"({says})") as caught:
        coco(DataConfig(name="coco", root=str(tmp_path)), "train", None)
    assert "\n" not in str(caught.value)


def test_any_cut_is_named(tmp_path: Path) -> None:
    """A file cut off at any place, over several lines."""
    write_coco(tmp_path, sound())
    file = tmp_path / "annotations" / "instances_train2017.json"
    text = json.dumps(sound(), indent=1)
    for length in range(0, len(text) - 1, 7):
        file.write_text(text[:length])
        with pytest.raises(UserError, match=FILE + r":\d+: is (empty|not JSON)") as caught:
            coco(DataConfig(name="coco", root=str(tmp_path)), "train", None)
        line = int(str(caught.value).partition(".json:")[2].partition(":")[0])
        assert abs(line - text[:length].count("\n") - 1) <= 1, length
    file.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 12\)"):
        coco(DataConfig(name="coco", root=str(tmp_path)), "train", None)


def test_the_line_of_a_nan_is_told_and_quoted_ones_are_text(tmp_path: Path) -> None:
    what = sound()
    what["info"] = {"description": 'NaN "NaN" \\'}
    what["categories"][0]["name"] = "Infinity"
    assert opened(tmp_path, what).classes == ("Infinity", "y")
    what["annotations"][1]["bbox"][3] = NAN
    text = json.dumps(what, indent=1)
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
    line = text[: text.index(" NaN\n")].count("\n") + 1
    with pytest.raises(UserError, match=rf"json:{line}: NaN is not JSON; it stands in annotations\[1\] \(id 2\)"):
        coco(DataConfig(name="coco", root=str(tmp_path)), "train", None)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10.0, 10.0, 20.0, 20.0]],
        [[1e9, 1, 5, 1, 5, 5]],
        [[10**400, 1, 5, 1, 5, 5]],
        [[1, 2, 3]],
        [],
        None,
        "garbage",
        {"size": [4, 4], "counts": [2, 1000000]},
        {"size": [40, 40], "counts": [2, 3]},
        {"size": [40, 40], "counts": "zzzz~~~~"},
        {"size": [40, 40], "counts": "o"},
        {"size": [-4, 4], "counts": "0"},
        {"size": [200000, 200000], "counts": "0"},
        {"size": [1 << 31, 2], "counts": "0"},
    ],
)
def test_outlines_and_masks_of_any_kind_do_not_touch_boxes(tmp_path: Path, segmentation: Any) -> None:
    """They are for tasks on masks to check; the box reader lets go of them unread."""
    what = sound()
    what["annotations"][0]["segmentation"] = segmentation
    start = time.monotonic()
    dataset = opened(tmp_path, what)
    assert time.monotonic() - start < 5
    assert dataset.table.boxes.tolist() == [[10, 10, 20, 20], [5, 5, 40, 40]]


SIZE = [80, 100]
POLYGON_STOPPED: dict[str, tuple[Any, str]] = {
    "a text": ("garbage", r"segmentation: expected polygons .* got \"garbage\""),
    "a number": (3, r"segmentation: expected polygons .* got 3"),
    "one flat list": ([10, 10, 30, 10, 30, 30], r"segmentation: expected polygons .* got \[10, 10"),
    "an object within": ([{"size": SIZE, "counts": [8000]}], r"segmentation: expected polygons"),
    "an odd count": ([[10, 10, 30, 10, 30, 30, 10]], r"segmentation: a polygon of 7 numbers"),
    "an odd count under three points": (
        [[10, 10, 30, 10, 30, 30], [10, 10, 3]],
        r"segmentation: a polygon of 3 numbers",
    ),
    "texts": ([["10", "10", "30", "10", "30", "30"]], r"segmentation: expected numbers .*\"10\""),
    "null": ([[10, 10, 30, 10, None, 30]], r"segmentation: expected numbers .*null"),
    "truth values": ([[True, 10, 30, 10, 30, 30]], r"segmentation: expected numbers .*true"),
    "lists": ([[[10, 10], [30, 10], [30, 30], [1, 1], [2, 2], [3, 3]]], r"segmentation: expected numbers"),
    "a number of 400 digits": ([[10, 10, 30, 10, 10**400, 30]], r"segmentation is not finite"),
    "a billion": ([[1e9, 1, 5, 1, 5, 5]], r"segmentation reaches 1e\+09 pixels out of its image"),
    "minus a billion": ([[10, 10, 30, 10, 30, -1e9]], r"segmentation reaches 1e\+09 pixels out of its image"),
    "1e300": ([[10, 10, 30, 10, 30, 1e300]], r"segmentation reaches 1e\+300 pixels out of its image"),
    "far out": ([[10, 10, 30, 10, 201, 30]], r"segmentation reaches 101 pixels out of its image"),
}
RUNS_STOPPED: dict[str, tuple[Any, str]] = {
    "nothing": ({}, r"segmentation.size: expected the height and width of the image, got null"),
    "no counts": ({"size": SIZE}, r"segmentation.counts: expected a list or a text, got null"),
    "counts a number": ({"size": SIZE, "counts": 8000}, r"segmentation.counts: expected a list or a text, got 8000"),
    "no size": ({"counts": [8000]}, r"segmentation.size: .*got null"),
    "size of one": ({"size": [80], "counts": [8000]}, r"segmentation.size: .*got \[80\]"),
    "size of texts": ({"size": ["80", "100"], "counts": [8000]}, r"segmentation.size"),
    "size of fractions": ({"size": [80.0, 100], "counts": [8000]}, r"segmentation.size"),
    "size negative": ({"size": [-80, -100], "counts": [8000]}, r"segmentation.size"),
    "size huge": ({"size": [1 << 31, 2], "counts": "0"}, r"segmentation.size"),
    "size of 200 digits": ({"size": [10**200, 1], "counts": "0"}, r"segmentation.size"),
    "size of another image": (
        {"size": [100, 80], "counts": [8000]},
        r"segmentation.size is \[100, 80\], that of its image \[80, 100\]",
    ),
    "too short": ({"size": SIZE, "counts": [2, 3]}, r"segmentation: its counts are 5 pixels, its size has 8,000"),
    "too long": ({"size": SIZE, "counts": [2, 1000000]}, r"segmentation: its counts are 1,000,002 pixels"),
    "empty": ({"size": SIZE, "counts": []}, r"segmentation: its counts are 0 pixels"),
    "negative": ({"size": SIZE, "counts": [10, -10, 8000]}, r"segmentation.counts: expected lengths in pixels"),
    "fractions": ({"size": SIZE, "counts": [10, 10.5, 7979.5]}, r"segmentation.counts: expected lengths in pixels"),
    "70 bits": ({"size": SIZE, "counts": [2**70, 8000 - 2**70]}, r"segmentation.counts: expected lengths in pixels"),
    "truth": ({"size": SIZE, "counts": [True, 7999]}, r"segmentation.counts: expected lengths in pixels"),
    "an empty text": ({"size": SIZE, "counts": ""}, r"segmentation: its counts are 0 pixels"),
    "a short text": ({"size": SIZE, "counts": "0"}, r"segmentation: its counts are 0 pixels"),
    "garbage": (
        {"size": SIZE, "counts": "zzzz~~~~"},
        r"segmentation.counts is no text as COCO's tools write it: \"zzzz~~~~\"",
    ),
    "cut off": ({"size": SIZE, "counts": "o"}, r"segmentation.counts is no text"),
    "without an end": ({"size": SIZE, "counts": "o" * 9999 + "0"}, r"segmentation.counts is no text"),
    "letters beyond": ({"size": SIZE, "counts": "\u00e9\u0434"}, r"segmentation.counts is no text"),
    "half a letter": ({"size": SIZE, "counts": "\ud800"}, r"segmentation.counts is no text"),
    "a negative text": ({"size": SIZE, "counts": "@PjW1"}, r"segmentation.counts: a run of -16 pixels"),
}


@pytest.mark.parametrize(
    "case", [*(("polygon", name) for name in POLYGON_STOPPED), *(("runs", name) for name in RUNS_STOPPED)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_outlines_are_checked_before_anything_is_drawn(tmp_path: Path, case: tuple[str, str], place: int) -> None:
    kind, name = case
    segmentation, says = (POLYGON_STOPPED if kind == "polygon" else RUNS_STOPPED)[name]
    what = sound()
    what["annotations"][1 - place]["segmentation"] = {
        "size": SIZE,
        "counts": ":fi7" if place else [10, 7990],
    }  # sound, before or after
    what["annotations"][place]["segmentation"] = segmentation
    line = refusal(tmp_path, what, "mask")
    assert re.search(rf"{FILE}: annotations\[{place}\] \(id {place + 1}\): {says}", line), line


@pytest.mark.parametrize("box", ["[0, 0, 1, 1]", None])
@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_polygons_that_are_not_finite_are_named(tmp_path: Path, word: str, box: str | None) -> None:
    write_coco(tmp_path, sound())
    file = tmp_path / "annotations" / "instances_train2017.json"
    text = json.dumps(sound())
    at = text.rindex("[[10, 10, 30")
    file.write_text(f"{text[:at]}[[{word}, 10, 30{text[at + 12 :]}")
    with pytest.raises(UserError) as caught:
        coco(DataConfig(name="coco", root=str(tmp_path), labels=("mask",)), "train", None)
    says = (
        rf"{FILE}: annotations\[1\] \(id 2\): segmentation is not finite"
        if word == "1e999"
        else rf"{FILE}:1: {word} is not JSON.*\(id 2\)"
    )
    assert re.search(says, str(caught.value)), caught.value


def test_images_of_a_size_that_no_file_has_are_not_painted(tmp_path: Path) -> None:
    what = sound()
    edit(what, I, 1, width=200000, height=200000)
    assert re.search(
        rf"{FILE}: image id 2: 200000 x 200000 pixels are more than data.max_pixels", refusal(tmp_path, what, "mask")
    )


segmentations = st.one_of(
    st.lists(
        st.lists(st.one_of(st.floats(-99, 199), st.integers(-(2**40), 2**40), st.floats(allow_nan=False)), max_size=9),
        max_size=3,
    ),
    st.fixed_dictionaries(
        {
            "size": st.one_of(st.just(SIZE), st.lists(st.integers(-1, 2**33), max_size=3)),
            "counts": st.one_of(
                st.lists(st.integers(-5, 8000), max_size=6),
                st.text(max_size=9),
                st.text(st.characters(min_codepoint=48, max_codepoint=111)),
                st.integers(0, 8000).map(lambda n: [n, 8000 - n]),
            ),
        }
    ),
)


@given(segmentation=segmentations, unlabelled=st.sampled_from(["background", "ignore"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_outline_stands_in_the_file_it_is_painted_or_refused_in_one_line(
    tmp_path: Path, segmentation: Any, unlabelled: str
) -> None:
    if not (tmp_path / "annotations").exists():
        write_coco(tmp_path, sound())
    what = sound()
    what["annotations"][0]["segmentation"] = segmentation
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(what))
    start = time.monotonic()
    try:
        dataset = coco(
            DataConfig(name="coco", root=str(tmp_path), labels=("mask",), options={"unlabelled": unlabelled}),
            "train",
            None,
        )
    except UserError as error:
        line = str(error).replace(str(tmp_path), "")
        assert "\n" not in line
        assert len(line) <= 300
        assert "annotations[0] (id 1)" in line
    else:
        assert isinstance(dataset, PaintedDataset)
        masks = [dataset.mask(index) for index in range(2)]
        assert all(mask.shape == (80, 100) and mask.dtype == np.uint8 for mask in masks)
        assert set(np.unique(masks)) <= {0, 1, 2, 255}
    assert time.monotonic() - start < 5


# --- what is mended ---


def crowded() -> Content:
    """Twenty images with 60 sound boxes, ids 100 to 2002."""
    return content(20)


def test_every_repair_is_counted_with_examples(tmp_path: Path) -> None:
    what = crowded()
    rows = what["annotations"]
    rows[0]["bbox"] = [-5, -4, 30, 20]  # clipped to [0, 0, 25, 16]
    rows[1]["bbox"] = [90, 70, 30, 30]  # clipped to [90, 70, 10, 10]
    rows[2]["bbox"] = [10, 10, 0, 20]  # empty
    rows[3]["bbox"] = [30, 30, -20, -20]  # empty
    rows[4]["bbox"] = [200, 10, 20, 20]  # outside
    rows[5]["bbox"] = [10, 10, 0.5, 20]  # thin
    rows[6]["bbox"] = [99.5, 10, 20, 20]  # thin after clipping
    del rows[7]["area"]
    rows[8]["area"] = 0
    rows[9]["area"] = -3.5
    del rows[10]["iscrowd"]
    rows[11]["id"] = 0
    rows[12]["iscrowd"] = None
    rows[13]["area"] = None
    table = opened(tmp_path, what).table
    assert table.repairs.counts == {
        "clipped": 2,
        "empty": 2,
        "outside": 1,
        "thin": 2,
        "area": 4,
        "other_area": 1,
        "iscrowd": 2,
        "id_zero": 1,
    }
    assert table.repairs.dropped == 5
    assert table.repairs.boxes == 60
    assert len(table.boxes) == 55
    examples = {kind: list(found) for kind, found in table.repairs.examples.items()}
    assert examples["empty"] == ["id 102", "id 200"]
    assert examples["area"] == ["id 301", "id 302", "id 400"]
    lines = table.repairs.lines()
    assert "4 boxes without a positive area: that of the box taken (id 301, id 302, id 400, ...)" in lines
    assert lines[-1] == "warning: 5 of 60 boxes dropped (8.3%)"
    assert [row["boxes"] for row in table.repairs.rows()] == [2, 2, 1, 2, 4, 1, 2, 1]
    assert table.boxes[table.row_ids == 100].tolist() == [[0, 0, 25, 16]]
    assert table.boxes[table.row_ids == 101].tolist() == [[90, 70, 10, 10]]
    assert table.area[table.row_ids == 301].tolist() == [8000]
    assert table.area[table.row_ids == 302].tolist() == [720]
    assert (table.row_ids == 0).sum() == 1
    assert not table.crowd.any()


def test_one_dropped_in_a_hundred_is_no_warning(tmp_path: Path) -> None:
    what = content(34)  # 102 boxes
    what["annotations"][5]["bbox"] = [10, 10, 0, 0]
    repairs = opened(tmp_path, what).table.repairs
    assert repairs.lines() == ["1 boxes with a width or height of 0 or less: dropped (id 202)"]


def test_a_fifth_dropped_is_a_warning_and_more_is_a_stop(tmp_path: Path) -> None:
    what = crowded()
    for row in what["annotations"][:12]:
        row["bbox"] = [10, 10, 0, 0]
    assert opened(tmp_path, what).table.repairs.dropped == 12
    what["annotations"][12]["bbox"] = [500, 500, 10, 10]
    line = refusal(tmp_path, what)
    assert (
        "13 of 60 boxes are not usable: 12 with a width or height of 0 or less, 1 wholly outside of their image, such as id 100"
        in line
    )
    table = opened(tmp_path, what, allow_bad_boxes=True).table
    assert table.repairs.dropped == 13
    assert len(table.boxes) == 47


def test_boxes_that_look_like_corners_are_said_to(tmp_path: Path) -> None:
    what = crowded()
    for row in what["annotations"]:
        row["bbox"] = [40, 40, 95, 75]  # x0, y0, x1, y1 in 100 x 80
    write_coco(tmp_path, what)
    says = "60 of 60 boxes reach out of their image, such as id 100; these look like corner boxes (x0, y0, x1, y1)"
    assert says in refusal(tmp_path, what)
    assert opened(tmp_path, what, allow_bad_boxes=True).table.repairs.counts["clipped"] == 60
    for row in what["annotations"]:
        row["bbox"] = [40, 40, 95, 30]  # no corners either
    line = refusal(tmp_path, what)
    assert "60 of 60 boxes reach out of their image" in line
    assert "corner" not in line
    for row in what["annotations"][:30]:
        row["bbox"] = [10, 10, 20, 20]
    assert opened(tmp_path, what).table.repairs.counts["clipped"] == 30


def test_no_usable_box_stops_training_and_validation_but_not_a_test(tmp_path: Path) -> None:
    what = sound()
    what["annotations"] = []
    for split in ("train", "val"):
        with pytest.raises(UserError, match=f"split {split} has no object: there are no annotations"):
            opened(tmp_path, what, split)
    write_coco(tmp_path, what, "test")
    dataset = coco(
        DataConfig(name="coco", root=str(tmp_path), test="annotations/instances_test2017.json"), "test", ("x", "y")
    )
    assert len(dataset) == 2
    assert dataset.table.summary() == "2 images, 2 without objects; 0 objects: x 0, y 0"
    what = sound()
    what["categories"].append({"id": 9, "name": "z"})
    with pytest.raises(UserError, match="split train has no object: of 2 boxes none is usable: 2 of other classes"):
        opened(tmp_path, what, options={"classes": ["z"]})
    for row in what["annotations"]:
        row["bbox"] = [0, 0, 0, 0]
    with pytest.raises(UserError, match="of 2 boxes none is usable: 2 dropped as bad"):
        opened(tmp_path, what, allow_bad_boxes=True)


def test_bad_boxes_of_other_classes_are_not_counted_but_malformed_ones_stop(tmp_path: Path) -> None:
    what = crowded()
    for row in what["annotations"]:
        if row["category_id"] == 90:
            row["bbox"] = [0, 0, 0, 0]
    options = {"classes": ["class 3", "class 7"]}
    assert opened(tmp_path, what, options=options).table.repairs.counts == {"other_class": 20}
    what["annotations"][2]["bbox"] = [1, 2]
    with pytest.raises(UserError, match=r"annotations\[2\] \(id 102\): bbox"):
        opened(tmp_path, what, options=options)


finite = st.one_of(
    st.floats(-200, 300), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1.0, 100.0, 80.0])
)


@given(st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_mended_boxes_lie_in_their_image_and_sound_ones_stay(boxes: list[tuple[float, ...]]) -> None:
    given_boxes = np.array(boxes, np.float64)
    sides = np.tile(np.array([100.0, 80.0]), (len(boxes), 1))
    count = RepairCount(str)
    mended, keep = mend(given_boxes, sides, np.ones(len(boxes), np.bool_), count)
    kept = mended[keep]
    assert np.isfinite(kept).all()
    assert (kept[:, 2:] >= 1 - 1e-6).all()
    assert (kept[:, :2] >= -1e-6).all()
    assert (kept[:, :2] + kept[:, 2:] <= sides[keep] + 2e-6).all()
    x, y, w, h = given_boxes.T
    with np.errstate(over="ignore"):
        inside = (x >= 0) & (y >= 0) & (x + w <= 100) & (y + h <= 80) & (w >= 1) & (h >= 1)
    assert keep[inside].all()
    np.testing.assert_array_equal(mended[inside], given_boxes[inside])
    repairs = count.result(len(boxes))
    assert repairs.dropped == (~keep).sum()
    assert repairs.counts.get("clipped", 0) == (keep & (mended != given_boxes).any(1)).sum()


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.floats(allow_nan=False),
        st.text(max_size=6),
        st.sampled_from(
            ["\ud800", "a\nb", "x" * 2000, "../x", "/etc/passwd", "1.png", "\0", "1", 1, 2, 3, 1e308, -1e308, 10**400]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.sampled_from(["id", "name", "bbox", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    place=st.one_of(
        st.tuples(st.sampled_from([A, I, C, "info"])),
        st.tuples(st.sampled_from([A, I, C]), st.integers(0, 1)),
        st.tuples(st.just(A), st.integers(0, 1), st.sampled_from(list(sound()[A][0]))),
        st.tuples(st.just(I), st.integers(0, 1), st.sampled_from(list(sound()[I][0]))),
        st.tuples(st.just(C), st.integers(0, 1), st.sampled_from(list(sound()[C][0]))),
        st.tuples(st.just(A), st.integers(0, 1), st.just("bbox"), st.integers(0, 3)),
    ),
    value=json_values,
    split=st.sampled_from(["train", "val", "test"]),
    allow=st.booleans(),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_the_file_it_is_read_or_refused_in_one_line(
    tmp_path: Path, place: tuple[Any, ...], value: Any, split: str, allow: bool
) -> None:
    if not (tmp_path / "annotations").exists():
        write_coco(tmp_path, sound())
    what: Any = sound()
    holder = what
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    name = "annotations/instances_train2017.json"
    (tmp_path / name).write_text(json.dumps(what))
    try:
        table = coco(
            DataConfig(name="coco", root=str(tmp_path), test=name, val=name, allow_bad_boxes=allow), split, None
        ).table
    except UserError as error:
        line = str(error).replace(str(tmp_path), "")
    else:
        line = ""
    assert "\n" not in line
    assert len(line) <= 300
    if line:
        return
    assert np.isfinite(table.boxes).all()
    assert np.isfinite(table.area).all()
    assert (table.area > 0).all()
    assert len(set(table.ids)) == len(table) == 2
    assert len(table.repairs.lines()) < 10
