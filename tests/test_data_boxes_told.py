"""What annotation files of other people's tools hold beside plain boxes: used, or counted and told, never passed over."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from effbackbones.errors import UserError
from tasks.data.boxes.fields import enclosed
from tasks.data.boxes.repairs import duplicates
from tasks.data.boxes.table import BoxDataset
from tasks.data.door.boxes import coco, voc, yolo
from tasks.data.files.jsonfile import parse
from tasks.data.sets.yolorows import Row, key_points
from tasks.settings.data import DataConfig

SIZE = (80, 100)
BOXES = [[10.0, 20.0, 30.0, 10.0], [50.0, 5.0, 20.0, 60.0], [0.0, 0.0, 40.0, 40.0]]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(path)


def content(*more: dict[str, Any]) -> dict[str, Any]:
    """An image with three boxes of the classes a, b, a, whose annotations have ``more`` fields."""
    extra = [*more, {}, {}, {}]
    return {
        "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1 + n % 2, "bbox": box, "area": 9.0, "iscrowd": 0, **extra[n]}
            for n, box in enumerate(BOXES)
        ],
    }


def opened(
    root: Path, what: dict[str, Any] | str, split: str = "train", classes: Any = None, **options: Any
) -> BoxDataset:
    picture(root / "1.png")
    (root / f"{split}.json").write_text(what if isinstance(what, str) else json.dumps(what), encoding="utf-8")
    data = DataConfig(name="coco", root=str(root), train="train.json", val="val.json", options=options)
    return coco(data, split, classes)


# --- COCO ---


@pytest.mark.parametrize(
    "field",
    [
        {"ignore": 1},
        {"ignored": True},
        {"attributes": {"difficult": "true"}},
        {"extra": {"ignore": 1}},
        {"Ignore": "1"},
    ],
)
def test_marks_to_ignore_are_told_and_read_as_crowds_by_option(tmp_path: Path, field: dict[str, Any]) -> None:
    what = content({}, field)
    table = opened(tmp_path, what).table
    assert table.repairs.examples == {"ignored": ("id 2",)}
    assert not table.crowd.any()
    table = opened(tmp_path, what, ignored="crowd").table
    assert table.repairs.examples == {"ignored_crowd": ("id 2",)}
    assert table.crowd.tolist() == [False, True, False]


def test_marks_that_say_no_are_none(tmp_path: Path) -> None:
    fields = {"ignore": 0, "attributes": {"occluded": True, "difficult": False}, "extra": None}
    assert opened(tmp_path, content(fields, fields)).table.repairs.counts == {}


def test_objects_that_are_there_twice_are_told_and_dropped_by_option(tmp_path: Path) -> None:
    what = content()
    twice = {**what, "annotations": [*what["annotations"], *({**a, "id": a["id"] + 10} for a in what["annotations"])]}
    table = opened(tmp_path, twice).table
    assert table.repairs.examples == {"duplicate": ("id 11", "id 12", "id 13")}
    assert len(table.boxes) == 6
    table = opened(tmp_path, twice, duplicates="drop").table
    assert table.row_ids.tolist() == [1, 2, 3]
    other = {**what, "annotations": [*what["annotations"], {**what["annotations"][0], "id": 9, "category_id": 2}]}
    assert opened(tmp_path, other).table.repairs.examples == {"two_classes": ("id 9",)}
    rounded = [{**a, "id": a["id"] + 10, "bbox": [side + 1e-3 for side in a["bbox"]]} for a in what["annotations"]]
    table = opened(tmp_path, {**what, "annotations": [*what["annotations"], *rounded]}).table
    assert table.repairs.counts == {"duplicate": 3}


def test_areas_that_are_not_those_of_the_boxes_are_told(tmp_path: Path) -> None:
    for area in (1e7, 1e-3):  # of another image; a share of this one
        table = opened(tmp_path, content({"area": area})).table
        assert table.repairs.examples == {"other_area": ("id 1",)}


def test_boxes_that_do_not_fit_their_outlines_are_told(tmp_path: Path) -> None:
    outlines = [[[x, y, x + w, y, x + w, y + h, x, y + h]] for x, y, w, h in BOXES]
    what = content(*({"segmentation": outline} for outline in outlines))
    assert opened(tmp_path, what).notes == ()
    for row in what["annotations"]:
        row["bbox"] = [side / 2 for side in row["bbox"]]  # of a smaller copy of the image
    (note,) = opened(tmp_path, what).notes
    assert note == (
        "warning: 3 of 3 boxes looked at lie elsewhere than the outlines of their objects: the boxes are taken (id 1, id 2, id 3)"
    )
    what["annotations"][0]["segmentation"] = "no outline"  # of no interest here
    assert opened(tmp_path, what).notes == ()


def test_fields_that_are_not_used_are_told(tmp_path: Path) -> None:
    marks = {"isfake": 1, "tiny": 0, "attributes": {"occluded": True, "difficult": False, "rotation": 0.0}}
    what = content(marks, {"num_keypoints": 3, "keypoints": [1, 2, 2]})
    what["images"][0] |= {"split": "train", "coco_url": "http://x", "neg_category_ids": [2]}
    dataset = opened(tmp_path, what)
    assert dataset.table.repairs.examples == {"key_points": ("id 2",)}
    assert [note for note in dataset.notes if "no object" not in note] == [
        "warning: not all objects of 1 images are labelled (not_exhaustive_category_ids, neg_category_ids): those that are not are "
        "trained, and scored, as background",
        "fields of annotations that are not used: attributes.occluded (1), isfake (1)",
        "fields of images that are not used: split (1)",
    ]


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 6), max_size=30))
def test_duplicates_are_those_that_a_set_has_already(rows: list[tuple[int, ...]]) -> None:
    table = np.array(rows, np.int64).reshape(-1, 6)
    seen: set[tuple[int, ...]] = set()
    expected = [row in seen or seen.add(row) is not None for row in rows]
    found = duplicates(table[:, 0], table[:, 1], table[:, 2:].astype(np.float64), np.ones(len(rows), np.bool_))
    assert found.tolist() == expected


@pytest.mark.parametrize(
    "field", [{"attributes": {"rotation": 90.0}}, {"rotation": -90}, {"angle": 270}, {"rotation": "90.0"}]
)
def test_turned_boxes_are_told_and_enclosed_by_option(tmp_path: Path, field: dict[str, Any]) -> None:
    what = content(field, {"attributes": {"rotation": 180.0}}, {"attributes": {"rotation": 0}})
    table = opened(tmp_path, what).table
    assert table.repairs.examples == {"rotated": ("id 1",)}
    assert table.boxes.tolist() == BOXES
    table = opened(tmp_path, what, rotation="enclose").table
    np.testing.assert_allclose(table.boxes[0], [20, 10, 10, 30], atol=1e-9)
    assert table.boxes[1:].tolist() == BOXES[1:]


@given(st.floats(0.5, 50), st.floats(0.5, 50), st.floats(-360, 360))
def test_the_box_around_a_turned_one_is_that_of_its_corners(width: float, height: float, degrees: float) -> None:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[x, y] for x in (-width / 2, width / 2) for y in (-height / 2, height / 2)]) @ turn.T + [7, 9]
    expected = [*corners.min(0), *(corners.max(0) - corners.min(0))]
    box = np.array([[7 - width / 2, 9 - height / 2, width, height]])
    np.testing.assert_allclose(enclosed(box, np.array([degrees]))[0], expected, atol=1e-9)


def test_modes_of_boxes_are_obeyed_or_refused(tmp_path: Path) -> None:
    x, y, width, height = BOXES[0]
    corners = {"bbox": [x, y, x + width, y + height], "bbox_mode": 0}
    table = opened(tmp_path, content(corners, {"bbox_mode": 1})).table
    assert table.boxes.tolist() == BOXES
    assert table.repairs.examples == {"corners": ("id 1",)}
    with pytest.raises(UserError, match=r"annotations\[1\] \(id 2\): bbox_mode 4 is not one of 0 .* and 1"):
        opened(tmp_path, content({}, {"bbox_mode": 4}))
    with pytest.raises(UserError, match="bbox: expected four numbers"):
        opened(tmp_path, content({"bbox": [10, 20, 30, 10, 45]}))


RLE = {"size": [80, 100], "counts": [10 * 80 + 20, 10, 70, 10, 80 * 100 - 10 * 80 - 110]}


@pytest.mark.parametrize("bbox", [None, [], "absent"])
@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[10, 20, 40, 20, 40, 30], [12, 25, 50, 26, 13, 29]], [10, 20, 40, 10]),
        (RLE, [10, 20, 2, 10]),
    ],
)
def test_boxes_of_outlines_stand_in_for_those_that_lack(tmp_path: Path, bbox: Any, segmentation: Any, box: Any) -> None:
    what = content({"bbox": bbox, "segmentation": segmentation}, {"segmentation": "whatever"})
    if bbox == "absent":
        del what["annotations"][0]["bbox"]
    table = opened(tmp_path, what).table
    assert table.boxes.tolist() == [box, *BOXES[1:]]
    assert table.repairs.examples == {"outline_box": ("id 1",)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_shares_for_pixels_are_named_in_every_split(tmp_path: Path, split: str) -> None:
    shares = [{"bbox": [x / 100, y / 80, w / 100, h / 80]} for x, y, w, h in BOXES]
    with pytest.raises(UserError, match=rf"{split}.json: 3 of 3 boxes lie in 0..1: shares of the image, where pixels"):
        opened(tmp_path, content(*shares), split)


def test_a_category_above_the_others_is_left_out_and_told(tmp_path: Path) -> None:
    what = content()
    for category in what["categories"]:
        category["supercategory"] = "things"
    what["categories"].append({"id": 0, "name": "things", "supercategory": "none"})
    dataset = opened(tmp_path, what)
    assert (dataset.classes, dataset.category_ids) == (("a", "b"), (1, 2))
    assert dataset.notes == (
        "left out: 'things', only the supercategory of other categories, without objects "
        "(data.options.supercategories: keep keeps such)",
    )
    assert opened(tmp_path, what, supercategories="keep").classes == ("things", "a", "b")
    assert opened(tmp_path, what, "val", ("things", "a", "b")).classes == ("things", "a", "b")  # trained with it
    what["annotations"][0]["category_id"] = 0
    assert opened(tmp_path, what).classes == ("things", "a", "b")  # has an object
    what = content()
    what["categories"][1]["supercategory"] = "b"
    assert opened(tmp_path, what).classes == ("a", "b")  # its own alone, as COCO's person


def test_keys_that_are_there_twice_are_refused_with_their_line(tmp_path: Path) -> None:
    text = json.dumps(content(), indent=1).replace('"area"', '"bbox": [1, 2, 3, 4],\n "area"', 1)
    line = text[: text.index('"bbox": [1, 2, 3, 4]')].count("\n") + 1
    with pytest.raises(UserError, match=rf"train.json:{line}: the key 'bbox' is there twice in one object; remove one"):
        opened(tmp_path, text)
    path = tmp_path / "x.json"
    path.write_text('{"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}], "d": "\\"b\\": {", "\\u0061": 4}')
    with pytest.raises(UserError, match=r"x.json:1: the key 'a' is there twice"):
        parse(path)


def test_classes_of_splits_are_matched_by_name(tmp_path: Path) -> None:
    what = content()
    what["categories"] = [{"id": 5, "name": "b"}, {"id": 9, "name": "a"}]
    for annotation in what["annotations"]:
        annotation["category_id"] = {1: 9, 2: 5}[annotation["category_id"]]
    val = opened(tmp_path, what, "val", ("a", "b"))
    assert (val.classes, val.category_ids) == (("a", "b"), (9, 5))
    assert val.table.labels.tolist() == [0, 1, 0]
    assert "those of training by their names" in val.notes[0]
    few = opened(tmp_path, what, "val", ("a", "b", "c"))
    assert few.classes == ("a", "b", "c")
    assert len(set(few.category_ids)) == 3
    with pytest.raises(UserError, match="not in training: 'b'; not in this file: 'c'"):
        opened(tmp_path, what, "val", ("a", "c"))


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_classes_are_merged_alike_in_all_formats(tmp_path: Path, form: str) -> None:
    merged = dataset_of(form, tmp_path, rename=["b=a"])
    assert merged.classes == ("a",)
    assert merged.table.labels.tolist() == [0, 0, 0]
    renamed = dataset_of(form, tmp_path, rename=["a=x", "b=x"])
    assert renamed.classes == ("x",)


def dataset_of(form: str, root: Path, **options: Any) -> BoxDataset:
    """The same image through each door."""
    if form == "coco":
        return opened(root, content(), **options)
    if form == "voc":
        return voc(voc_data(root, {"1": BOXES}, **options), "train", None)
    return yolo(yolo_data(root, {"1": rows_of(BOXES)}, **options), "train", None)


# --- names in other ways ---


@pytest.mark.parametrize("way", [r"train\{}", "{root}/train/{}"])
def test_names_of_another_system_and_whole_paths_find_their_files(tmp_path: Path, way: str) -> None:
    what = content()
    picture(tmp_path / "train/1.png")
    what["images"][0]["file_name"] = way.format("1.png", root=tmp_path)
    assert Path(opened(tmp_path, what)[0].path) == tmp_path / "train/1.png"


# --- accents in names ---


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
@pytest.mark.parametrize(("said", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_find_their_files(tmp_path: Path, form: str, said: str, there: str) -> None:
    name = unicodedata.normalize(said, "Prüfung")
    spelled = unicodedata.normalize(there, "Prüfung")
    if form == "coco":
        what = content()
        what["images"][0]["file_name"] = f"{name}.png"
        picture(tmp_path / f"{spelled}.png")
        dataset = opened(tmp_path, what)
    elif form == "voc":
        data = voc_data(tmp_path, {spelled: BOXES})
        (tmp_path / "ImageSets/Main/train.txt").write_text(f"{name}\n", encoding="utf-8")
        (tmp_path / "Annotations" / f"{spelled}.xml").rename(tmp_path / "Annotations" / f"{name}.xml")
        dataset = voc(data, "train", None)
    else:
        data = yolo_data(tmp_path, {spelled: rows_of(BOXES)})
        (tmp_path / "labels/train" / f"{spelled}.txt").rename(tmp_path / "labels/train" / f"{name}.txt")
        dataset = yolo(data, "train", None)
    assert Path(dataset[0].path).name == f"{spelled}.png"
    assert len(dataset.table.boxes) == 3
    assert dataset.notes == ()


# --- YOLO ---


def rows_of(boxes: list[list[float]], *, points: str = "") -> str:
    """Lines of a label file, with the four corners of each box as key points perhaps (``xy`` or ``xyv``)."""
    lines = []
    for n, (x, y, w, h) in enumerate(boxes):
        numbers = [(x + w / 2) / 100, (y + h / 2) / 80, w / 100, h / 80]
        for px, py in ((x, y), (x + w, y), (x, y + h), (x + w, y + h)) if points else ():
            numbers += [px / 100, py / 80, *([2] if points == "xyv" else [])]
        lines.append(" ".join([str(n % 2), *(f"{number:.6f}" for number in numbers)]) + "\n")
    return "".join(lines)


def yolo_data(root: Path, texts: dict[str, str], yaml: str = "names: [a, b]\n", **options: Any) -> DataConfig:
    (root / "labels/train").mkdir(parents=True, exist_ok=True)
    for id_, text in texts.items():
        picture(root / "images/train" / f"{id_}.png")
        (root / "labels/train" / f"{id_}.txt").write_text(text)
    (root / "data.yaml").write_text(yaml)
    return DataConfig(name="yolo", root=str(root), options=options)


@pytest.mark.parametrize("points", ["xy", "xyv"])
@pytest.mark.parametrize("said", [False, True])
def test_boxes_of_poses_are_read_and_their_points_told(tmp_path: Path, points: str, said: bool) -> None:
    shape = f"kpt_shape: [4, {len(points)}]\n" if said else ""
    table = yolo(
        yolo_data(tmp_path, {"1": rows_of(BOXES, points=points)}, f"names: [a, b]\n{shape}"), "train", None
    ).table
    np.testing.assert_allclose(table.boxes, BOXES, atol=1e-4)
    assert table.repairs.examples == {"key_points": ("1.txt:1", "1.txt:2", "1.txt:3")}


def test_rows_that_are_not_as_the_shape_of_poses_says_are_named(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"1": rows_of(BOXES, points="xy")}, "names: [a, b]\nkpt_shape: [4, 3]\n")
    with pytest.raises(
        UserError, match=r"1.txt:1: expected 5 numbers and key points of 3 numbers each, got 13 numbers"
    ):
        yolo(data, "train", None)


@given(st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.02, 0.1), st.floats(0, 3)), min_size=3))
def test_oriented_boxes_are_not_taken_for_poses(objects: list[tuple[float, float, float, float]]) -> None:
    rows = []
    for cx, cy, size, angle in objects:
        corners = [
            (cx + size * np.cos(angle + k * np.pi / 2), cy + size * np.sin(angle + k * np.pi / 2)) for k in range(4)
        ]
        rows.append(Row("", 0, tuple(float(value) for corner in corners for value in corner)))
    assert key_points(rows, None, "") is None


def test_what_rows_are_can_be_said(tmp_path: Path) -> None:
    text = "0 0.1 0.2 0.5 0.25 0.3 0.75 0.2 0.3\n"
    table = yolo(yolo_data(tmp_path, {"1": text}), "train", None).table
    np.testing.assert_allclose(table.boxes, [[10, 16, 40, 44]])
    assert table.repairs.examples == {"outline": ("1.txt:1",)}
    with pytest.raises(UserError, match=r"data.options.rows: the first four numbers do not box the others"):
        yolo(yolo_data(tmp_path, {"1": text}, rows="pose"), "train", None)


def test_images_and_label_files_without_each_other_are_told_with_three_names(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {str(n): rows_of(BOXES) for n in range(5)})
    for n in range(4):
        (tmp_path / "labels/train" / f"{n}.txt").rename(tmp_path / "labels/train" / f"x{n}.txt")
    (tmp_path / "labels/train/classes.txt").write_text("a\nb\n")  # labelImg's
    assert yolo(data, "train", None).notes == (
        "4 images have no label file, so no object: 0.png, 1.png, 2.png, ...",
        "4 label files have no image, and what they label is not used: "
        "labels/train/x0.txt, labels/train/x1.txt, labels/train/x2.txt, ...",
    )


@pytest.mark.parametrize(
    "train",
    ["images/train", "../images/train", "[images/train, images/more]", "list.txt", "[list.txt, images/more]"],
)
def test_a_data_yaml_says_where_the_splits_lie(tmp_path: Path, train: str) -> None:
    root = tmp_path / "set"
    yolo_data(root, {"1": rows_of(BOXES)}, f"path: ../set\nnames: {{0: a, 1: b}}\ntrain: {train}\nval: images/more\n")
    picture(root / "images/more/2.png")
    (root / "labels/more").mkdir()
    (root / "labels/more/2.txt").write_text(rows_of(BOXES[:1]))
    (root / "list.txt").write_text("./images/train/1.png\n\n")
    for given_root in (root, root / "data.yaml"):
        found = yolo(DataConfig(name="yolo", root=str(given_root)), "train", None)
        np.testing.assert_allclose(found.table.boxes[:3], BOXES, atol=1e-4)
        assert len(found) == (2 if "more" in train else 1)
    assert len(yolo(DataConfig(name="yolo", root=str(root / "data.yaml")), "val", ("a", "b"))) == 1
    with pytest.raises(UserError, match=r"data.test: there is neither"):
        yolo(DataConfig(name="yolo", root=str(root / "data.yaml")), "test", ("a", "b"))


def test_faults_of_lists_and_links_out_of_the_data_are_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = yolo_data(root, {"1": rows_of(BOXES)}, "names: [a, b]\ntrain: list.txt\n")
    for text, says in (
        ("images/train/1.png\n./images/train/1.png\n", r"list.txt:2: './images/train/1.png' stands in line 1 already"),
        ("images/train/9.png\n", r"list.txt:1: 1 of 1 images have no file"),
        ("../outside.png\n", r"list.txt:1: '../outside.png' is not a path inside"),
    ):
        (root / "list.txt").write_text(text)
        with pytest.raises(UserError, match=says):
            yolo(data, "train", None)
    picture(tmp_path / "other/images/1.png")
    (tmp_path / "other/labels").mkdir()
    (tmp_path / "other/labels/1.txt").write_text(rows_of(BOXES))
    yolo_data(root, {}, "names: [a, b]\ntrain: ../other/images\n")
    with pytest.raises(UserError, match=r"is a link that leaves .*; set data.links: anywhere"):
        yolo(data, "train", None)
    assert len(yolo(DataConfig(name="yolo", root=str(root), links="anywhere"), "train", None)) == 1


# --- VOC ---


def voc_data(root: Path, images: dict[str, list[list[float]]], first: float = 1, **options: Any) -> DataConfig:
    """VOC's layout; ``first``: the number of the first pixel."""
    for id_, boxes in images.items():
        picture(root / "JPEGImages" / f"{id_}.png")
        path = root / "Annotations" / f"{id_}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml(boxes, first))
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{id_}\n" for id_ in images), encoding="utf-8")
    return DataConfig(name="voc", root=str(root), options=options)


def xml(boxes: list[list[float]], first: float) -> str:
    objects = [
        f"<object><name>{'ab'[n % 2]}</name><bndbox><xmin>{x + first:g}</xmin><ymin>{y + first:g}</ymin>"
        f"<xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax></bndbox></object>"
        for n, (x, y, w, h) in enumerate(boxes)
    ]
    return f"<annotation><size><width>100</width><height>80</height></size>{''.join(objects)}</annotation>"


def test_pixels_counted_from_0_are_seen_told_and_can_be_said(tmp_path: Path) -> None:
    data = voc_data(tmp_path, {"1": BOXES}, first=0)
    dataset = voc(data, "train", None)
    assert dataset.table.boxes.tolist() == BOXES
    assert dataset.notes[0].startswith(
        "corners are taken as counted from pixel 0, not from 1: an object in 1.xml begins at 0"
    )
    voc_data(tmp_path, {"2": BOXES[:1]}, first=0)  # does not show it by itself
    (tmp_path / "ImageSets/Main/train.txt").write_text("2\n")
    assert voc(data, "train", None).table.boxes.tolist() == BOXES[:1]
    by_option = voc(DataConfig(name="voc", root=str(tmp_path), options={"first_pixel": 1}), "train", None)
    assert by_option.table.boxes.tolist() == [[9, 19, 31, 11]]
    assert by_option.notes == ()


def test_fractions_of_pixels_are_no_numbers_of_pixels(tmp_path: Path) -> None:
    boxes = [[x + 0.25, y + 0.5, w, h] for x, y, w, h in BOXES[:2]]
    assert voc(voc_data(tmp_path, {"1": boxes}, first=0), "train", None).table.boxes.tolist() == boxes
    many = voc_data(tmp_path / "many", {"1": [[n % 60, n % 40, 5, 5] for n in range(200)], "2": boxes[:1]})
    dataset = voc(many, "train", None)  # one in 201, as in VOC's own files
    assert dataset.table.boxes[0].tolist() == [0, 0, 5, 5]
    assert dataset.notes == ()


@pytest.mark.parametrize("id_", ["Screenshot 2024-05-01 train", "train/000", "a b 1", "x.y"])
@pytest.mark.parametrize(
    "line", ["{}", "{} 1", "{}  -1", "{} 0", "/data/VOC2012/JPEGImages/{}.png", "JPEGImages\\{}.png 1"]
)
def test_lines_of_lists_are_read_whole(tmp_path: Path, id_: str, line: str) -> None:
    data = voc_data(tmp_path, {id_: BOXES, "other": BOXES})
    (tmp_path / "ImageSets/Main/train.txt").write_text(f"{line.format(id_)}\n")
    dataset = voc(data, "train", None)
    assert list(dataset.table.ids) == [id_]
    assert len(dataset.table.boxes) == 3


def test_ids_are_looked_for_in_sub_folders_and_loose_annotations_told(tmp_path: Path) -> None:
    data = voc_data(tmp_path, {"deep/1": BOXES, "2": BOXES})
    (tmp_path / "ImageSets/Main/train.txt").write_text("1\n2\n")
    (tmp_path / "JPEGImages/2.png").rename(tmp_path / "JPEGImages/deep/2.png")
    (tmp_path / "Annotations/9.xml").write_text(xml(BOXES, 1))
    dataset = voc(data, "train", None)
    assert list(dataset.table.files) == ["deep/1.png", "deep/2.png"]
    assert dataset.notes == (f"1 annotation files have no image in {tmp_path}/JPEGImages: 9.xml",)


@pytest.mark.parametrize("layout", ["beside", "apart", "split"])
def test_annotations_without_lists_are_found_beside_or_apart(tmp_path: Path, layout: str) -> None:
    images, texts = {"beside": ("", ""), "apart": ("images/", "Annotations/"), "split": ("train/", "train/")}[layout]
    for n in range(4):
        picture(tmp_path / f"{images}{n}.png")
        (tmp_path / texts).mkdir(exist_ok=True)
        if n:
            (tmp_path / f"{texts}{n}.xml").write_text(xml(BOXES, 1))
    shares: dict[str, Any] = {} if layout == "split" else {"val": 0.25}
    with pytest.raises(
        UserError, match=r"1 of 4 images have no annotation file \(\*\.xml\): .*0\.png; add them, or set data\.op"
    ):
        voc(DataConfig(name="voc", root=str(tmp_path), **shares), "train", None)
    data = DataConfig(name="voc", root=str(tmp_path), options={"missing": "skip"}, **shares)
    dataset = voc(data, "train", None)
    assert [len(Path(file).name) for file in dataset.table.files] == [5, 5, 5]
    assert len(dataset.table.boxes) == 9
    alone = f"{'' if layout == 'split' else images}0.png"
    assert dataset.notes == (
        f"1 of 4 images have no annotation file (*.xml): {alone}: they are left out (data.options.missing)",
    )


def test_without_lists_folders_or_shares_the_remedy_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"data.train: there is neither .*ImageSets/Main .* data.val: 0.2"):
        voc(DataConfig(name="voc", root=str(tmp_path)), "train", None)
