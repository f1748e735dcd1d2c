"""Pascal VOC's and YOLO's files: the same boxes through every door, and what each mistake in a file is answered with."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import write_picture

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxDataset
from tasks.data.boxes.vocfile import read_voc
from tasks.data.check import check_dataset
from tasks.data.door.boxes import coco, voc, yolo
from tasks.settings.data import DataConfig

SIZE = (80, 100)  # height, width
OBJECTS = {  # id: name, xyxy in continuous pixels, difficult
    "a": [("cat", (9, 19, 50, 60), 0), ("dog", (0, 0, 100, 80), 0)],
    "b": [("cat", (30, 10, 41, 77), 1)],
    "c": [],
}


def xml(
    objects: list[tuple[str, tuple[float, ...], int]], size: str = "<size><width>100</width><height>80</height></size>"
) -> str:
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, (x0, y0, x1, y1), difficult in objects
    ]
    return f"<annotation><filename>other.jpg</filename>{size}{''.join(parts)}</annotation>"


def voc_folder(root: Path, split: str = "train", **texts: str) -> DataConfig:
    """The three images in VOC's layout; ``texts`` replace annotation files."""
    for id_, objects in OBJECTS.items():
        write_picture(root / "JPEGImages" / f"{id_}.png", SIZE)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{id_}.xml").write_text(texts.get(id_, xml(objects)))
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{id_}\n" for id_ in OBJECTS))
    return DataConfig(name="voc", root=str(root))


def yolo_folder(root: Path, split: str = "train", names: str = "names: [cat, dog]\n", **texts: str) -> DataConfig:
    """The three images in YOLO's layout; ``texts`` replace label files."""
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    for id_, objects in OBJECTS.items():
        write_picture(root / "images" / split / f"{id_}.png", SIZE)
        lines = [
            f"{('cat', 'dog').index(name)} {(x0 + x1) / 200:.6f} {(y0 + y1) / 160:.6f} {(x1 - x0) / 100:.6f} {(y1 - y0) / 80:.6f}\n"
            for name, (x0, y0, x1, y1), _ in objects
        ]
        if id_ != "c" or id_ in texts:  # has no label file
            (root / "labels" / split / f"{id_}.txt").write_text(texts.get(id_, "".join(lines)))
    (root / "data.yaml").write_text(names)
    return DataConfig(name="yolo", root=str(root))


def coco_folder(root: Path) -> DataConfig:
    names = {"cat": 1, "dog": 2}
    images = [{"id": id_, "file_name": f"{id_}.png", "width": SIZE[1], "height": SIZE[0]} for id_ in OBJECTS]
    annotations = [
        {
            "image_id": id_,
            "category_id": names[name],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": hard,
            "area": (x1 - x0) * (y1 - y0),
        }
        for id_, objects in OBJECTS.items()
        for name, (x0, y0, x1, y1), hard in objects
    ]
    content = {
        "images": images,
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)],
        "categories": [{"id": id_, "name": name} for name, id_ in names.items()],
    }
    for id_ in OBJECTS:
        write_picture(root / "images" / f"{id_}.png", SIZE)
    (root / "train.json").write_text(json.dumps(content))
    return DataConfig(name="coco", root=str(root), train="train.json")


def with_options(data: DataConfig, **options: Any) -> DataConfig:
    return DataConfig(name=data.name, root=data.root, options=options)


def boxes_of(dataset: BoxDataset) -> list[tuple[str, list[list[float]], list[str], list[bool]]]:
    """Id, boxes xyxy to 1e-4 px, names and crowds of every image."""
    found = []
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.boxes is not None
        assert sample.box_labels is not None
        assert sample.crowd is not None
        boxes = np.round(sample.boxes.astype(np.float64), 3).tolist()
        found.append((sample.id, boxes, [dataset.classes[label] for label in sample.box_labels], sample.crowd.tolist()))
    return found


def test_the_same_boxes_come_through_every_door(tmp_path: Path) -> None:
    by_coco = coco(coco_folder(tmp_path / "coco"), "train", None)
    by_voc = voc(voc_folder(tmp_path / "voc"), "train", None)
    by_yolo = yolo(yolo_folder(tmp_path / "yolo"), "train", None)
    expected = [
        (
            id_,
            [list(map(float, box)) for _, box, _ in objects],
            [name for name, _, _ in objects],
            [hard == 1 for *_, hard in objects],
        )
        for id_, objects in OBJECTS.items()
    ]
    assert boxes_of(by_coco) == expected
    assert boxes_of(by_voc) == expected
    assert [entry[:3] for entry in boxes_of(by_yolo)] == [entry[:3] for entry in expected]  # YOLO knows no crowds
    for dataset in (by_coco, by_voc, by_yolo):
        check_dataset(dataset)
        assert dataset.classes == ("cat", "dog")
        assert dataset.table.repairs.lines() == []
        assert dataset.table.sizes.tolist() == [[80, 100]] * 3
        assert pickle.loads(pickle.dumps(dataset))[1].id == "b"  # noqa: S301  # our own
    assert by_voc.category_ids == (1, 2)
    assert by_yolo.category_ids == (0, 1)
    np.testing.assert_allclose(by_voc[0].truth.area, [41 * 41, 8000])  # type: ignore[union-attr]


# --- Pascal VOC ---


def test_difficult_objects_are_scored_as_crowds_or_kept(tmp_path: Path) -> None:
    data = voc_folder(tmp_path)
    assert voc(data, "train", None)[1].truth.crowd.tolist() == [True]  # type: ignore[union-attr]
    kept = voc(with_options(data, difficult="keep"), "train", None)
    assert kept[1].truth.crowd.tolist() == [False]  # type: ignore[union-attr]
    assert kept.table.counts().tolist() == [2, 1]
    with pytest.raises(UserError, match=r"data\.options\.difficult: unknown value 'skip'; .*keep"):
        voc(with_options(data, difficult="skip"), "train", None)


def test_voc_classes_by_config(tmp_path: Path) -> None:
    data = voc_folder(tmp_path)
    dataset = voc(with_options(data, classes=["dog"]), "train", None)
    assert dataset.classes == ("dog",)
    assert dataset.table.repairs.counts == {"other_class": 2}
    assert dataset.table.repairs.examples == {"other_class": ("a.xml object 1", "b.xml object 1")}
    assert voc(with_options(data, classes=["dog", "cat"]), "train", None).classes == ("dog", "cat")
    assert voc(with_options(data, rename=["dog=animal", "cat=animal"]), "train", None).table.counts().tolist() == [2]
    with pytest.raises(UserError, match=r"data\.options\.classes: no object is called 'cats'; did you mean cat"):
        voc(with_options(data, classes=["cats"]), "train", None)
    with pytest.raises(UserError, match=r"data\.options\.rename: no object is called 'cats'; did you mean cat"):
        voc(with_options(data, rename=["cats=cat"]), "train", None)


def test_voc_names_that_training_does_not_know_are_refused(tmp_path: Path) -> None:
    data = voc_folder(tmp_path, "val")
    assert voc(data, "val", ("bird", "cat", "dog")).table.counts().tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"a\.xml: object 2: no object of the training split is called 'dog'; .*cat"):
        voc(data, "val", ("cat",))


def test_voc_lists_are_read_line_by_line(tmp_path: Path) -> None:
    data = voc_folder(tmp_path)
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    listing.write_text("b -1\n\na  1\n")
    assert list(voc(data, "train", None).table.ids) == ["b", "a"]
    for text, says in (
        ("a\nb\na\n", r"train\.txt:3: 'a' stands in line 1 already"),
        ("a\n\nx\n", r"train\.txt:3: there is no image 'x' in .*JPEGImages"),
        ("\n", r"train\.txt: lists no image"),
        ("../JPEGImages/a\n", r"train\.txt:1: there is no image"),
    ):
        listing.write_text(text)
        with pytest.raises(UserError, match=says):
            voc(data, "train", None)
    with pytest.raises(
        UserError, match=r"val\.txt: cannot be read: No such file or directory; there are lists train; set data\.val"
    ):
        voc(data, "val", None)
    listing.write_text("a\n")
    other = DataConfig(name="voc", root=str(tmp_path), val="train")
    assert len(voc(other, "val", ("cat", "dog"))) == 1
    write_picture(tmp_path / "JPEGImages" / "a.jpg", SIZE)
    with pytest.raises(UserError, match=r"a\.jpg and a\.png differ in their ending alone"):
        voc(data, "train", None)


def test_voc_boxes_are_mended_like_all_others(tmp_path: Path) -> None:
    box = (
        "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox></object>"
    )
    sound = "".join(box.format(1, 20 + n) for n in range(10))
    text = f"<annotation>{sound}{box.format(0, 30)}{box.format(90, 130)}{box.format(40, 20)}</annotation>"
    data = with_options(voc_folder(tmp_path, a=text, b=xml([])), first_pixel=1)
    table = voc(data, "train", None).table
    assert table.repairs.counts == {"clipped": 2, "empty": 1}
    assert table.repairs.examples["empty"] == ("a.xml object 13",)
    assert table.boxes[table.rows(0)][-2:].tolist() == [[0, 0, 30, 20], [89, 0, 11, 20]]
    assert table.sizes.tolist() == [[80, 100]] * 3  # that of image a from its header


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"a\.xml:1: is not XML: no element found"),
        ("<annotation><object>", r"a\.xml:1: is not XML: no element found"),
        ("<annotation>\n<object>\n</annotation>", r"a\.xml:3: is not XML: mismatched tag"),
        ("garbage", r"a\.xml:1: is not XML: syntax error"),
        ("<robots/>", r"a\.xml: expected <annotation>, got <robots>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', r"a\.xml:1: declares a document type, which is refused"),
        (
            '<?xml version="1.0"?>\n<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>',
            r"a\.xml:2: declares a document type",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"a\.xml:1: is not XML"),
        ("<annotation><object/></annotation>", r"a\.xml: object 1: has no name"),
        ("<annotation><object><name>cat</name></object></annotation>", r"a\.xml: object 1 \(cat\): has no bndbox"),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace("<xmin>2</xmin>", "", 1),
            r"object 1 \(cat\): its bndbox has no xmin; write xmin, ymin, xmax, ymax",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace(">2<", ">nan<", 1),
            r"object 1 \(cat\): xmin: expected a finite number, got 'nan'",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace(">2<", ">2e999<", 1),
            r"object 1 \(cat\): xmin: expected a finite number, got '2e999'",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace(">5<", ">five<", 1),
            r"object 1 \(cat\): xmax: expected a finite number, got 'five'",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0), ("dog", (1, 1, 5, 5), 3)]),
            r"object 2 \(dog\): difficult: expected 0 or 1, got '3'",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace(">5<", ">1_5<", 1),
            r"object 1 \(cat\): xmax: expected a finite number, got '1_5'",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace("<name>", "<name>dog</name><name>", 1),
            r"a\.xml: object 1: has 2 fields name; leave one",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0)]).replace("<xmin>", "<xmin>3</xmin><xmin>", 1),
            r"object 1 \(cat\): has 2 fields xmin; leave one",
        ),
        (xml([], "<size><width>3</width></size><size><width>4</width></size>"), r"a\.xml: has 2 fields size"),
        (xml([], "<size><width>3</width><width>4</width></size>"), r"a\.xml: has 2 fields width"),
        (
            xml([("cat", (1, 1, 5, 5), 0)], f"<objects>{xml([('dog', (1, 1, 5, 5), 0)])[12:-13]}</objects>"),
            r"a\.xml: has <object> where no object is looked for; write each",
        ),
        (
            xml([("cat", (1, 1, 5, 5), 0), ("cat", (1, 1, 5, 5), 0)]).replace("object>", "Object>", 2),
            r"a\.xml: has <Object> where no object is looked for",
        ),
        (xml([], "<size><width>-3</width></size>"), r"a\.xml: width: expected a whole number of pixels, got '-3'"),
        (
            xml([], "<size><height>" + "9" * 5000 + "</height></size>"),
            r"a\.xml: height: expected a whole number of pixels",
        ),
    ],
)
def test_malformed_xml_is_named(tmp_path: Path, text: str, says: str) -> None:
    data = voc_folder(tmp_path, a=text)
    with pytest.raises(UserError, match=says) as caught:
        voc(data, "train", None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_document_types_are_refused_in_any_encoding_and_nothing_expands(tmp_path: Path) -> None:
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "{}"><!ENTITY y "{}">]><annotation>&y;</annotation>'
    (tmp_path / "a.xml").write_text(bomb.format("lol" * 1000, "&x;" * 1000), encoding="utf-16")
    with pytest.raises(UserError, match=r"a\.xml:1: declares a document type"):
        read_voc(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_bytes(b"<annotation>" + b" " * 10_000_000)
    with pytest.raises(UserError, match="larger than 10,000,000 bytes"):
        read_voc(tmp_path / "a.xml")
    with pytest.raises(UserError, match=r"b\.xml: cannot be read: No such file"):
        read_voc(tmp_path / "b.xml")


# --- YOLO ---


def test_yolo_layouts_and_names(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path / "one", names="names:\n  0: cat\n  1: dog\ntrain: images/train\n")
    assert yolo(data, "train", None).classes == ("cat", "dog")
    by_option = yolo(with_options(data, names=["Katze", "Hund"]), "train", None)
    assert by_option.classes == ("Katze", "Hund")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "train").mkdir()
    for part in ("images", "labels"):
        (tmp_path / "one" / part / "train").rename(tmp_path / "two" / "train" / part)
    (tmp_path / "one" / "data.yaml").rename(tmp_path / "two" / "data.yaml")
    other = DataConfig(name="yolo", root=str(tmp_path / "two"))
    assert yolo(other, "train", ("cat", "dog"))[0].path == str(tmp_path / "two" / "train" / "images" / "a.png")
    with pytest.raises(UserError, match=r"data\.val: there is neither .*two/images/val nor .*two/val/images"):
        yolo(other, "val", None)
    with pytest.raises(UserError, match="not in training: 'cat'"):
        yolo(other, "train", ("bird", "dog"))


def test_yolo_subset_keeps_the_numbers_of_the_files(tmp_path: Path) -> None:
    dataset = yolo(with_options(yolo_folder(tmp_path), classes=["dog"]), "train", None)
    assert dataset.category_ids == (1,)
    assert dataset.table.counts().tolist() == [1]
    assert dataset.table.repairs.examples == {"other_class": ("a.txt:1", "b.txt:1")}


def test_images_without_a_label_file_are_empty_and_folders_nest(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path)
    write_picture(tmp_path / "images" / "train" / "deep" / "er.er" / "d.png", (20, 40))
    (tmp_path / "labels" / "train" / "deep" / "er.er").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "deep" / "er.er" / "d.txt").write_text(
        "\ufeff1 0.5 0.5 0.5 0.5\r\n\r\n", encoding="utf-8"
    )
    dataset = yolo(data, "train", None)
    assert list(dataset.table.ids) == ["a", "b", "c", "deep/er.er/d"]
    assert dataset.table.empty_images().tolist() == [2]
    assert dataset[3].boxes.tolist() == [[10, 5, 30, 15]]  # type: ignore[union-attr]


def test_outlines_become_their_box_and_rounding_is_no_repair(tmp_path: Path) -> None:
    lines = ["0 0.1 0.2 0.5 0.25 0.3 0.75\n", "1 0.833333 0.833333 0.333335 0.333335\n", "1 0.9 0.5 0.4 0.5\n"]
    table = yolo(yolo_folder(tmp_path, a="".join(lines)), "train", None).table
    np.testing.assert_allclose(table.boxes[0], [10, 16, 40, 44], atol=1e-9)
    np.testing.assert_allclose(table.boxes[1], [66.66655, 53.33324, 33.33345, 26.66676], atol=1e-9)
    np.testing.assert_allclose(table.boxes[2], [70, 20, 30, 40], atol=1e-9)
    assert table.repairs.examples == {"clipped": ("a.txt:3",), "outline": ("a.txt:1",)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 0.5 0.5 0.2\n", r"a\.txt:1: expected 5 numbers, or an outline of 3 or more points, got 4 numbers"),
        ("0 0.5 0.5 0.2 0.2\n0 1 1 1 1 1\n", r"a\.txt:2: expected 5 numbers, .* got 6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4\n", r"a\.txt:1: expected 5 numbers, .* got 8 numbers"),
        ("0\n", r"a\.txt:1: expected 5 numbers, .* got 1 numbers"),
        ("0 0.5 0.5 0.2_5 0.2\n", r"a\.txt:1: expected numbers, got '0 0.5 0.5 0.2_5"),
        ("\u0660 0.5 0.5 0.2 0.2\n", r"a\.txt:1: expected numbers"),
        ("cat 0.5 0.5 0.2 0.2\n", r"a\.txt:1: expected numbers, got 'cat 0.5"),
        ("0 0.5 0.5 nan 0.2\n", r"a\.txt:1: a number is not finite"),
        ("inf 0.5 0.5 0.1 0.2\n", r"a\.txt:1: a number is not finite"),
        ("2 0.5 0.5 0.1 0.2\n", r"a\.txt:1: class 2 is not in 0\.\.1"),
        ("-1 0.5 0.5 0.1 0.2\n", r"a\.txt:1: class -1 is not in 0\.\.1"),
        ("0.5 0.5 0.5 0.1 0.2\n", r"a\.txt:1: class 0.5 is not in 0\.\.1"),
        ("\n0 320 240 50 60\n", r"a\.txt:2: 320 is no share of the image: pixels\?"),
        ("0 -1e30 0.5 0.1 0.2\n", r"a\.txt:1: -1e\+30 is no share of the image"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, text: str, says: str) -> None:
    data = yolo_folder(tmp_path, a=text)
    with pytest.raises(UserError, match=says):
        yolo(data, "train", None)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("names: [cat, cat]", r"data\.yaml: names: 'cat' stands there twice"),
        ("names: {0: cat, 2: dog}", r"data\.yaml: names: expected the numbers 0 to 1, got 0, 2"),
        ("nc: 2", r"data\.yaml: names: expected a list of names, got None"),
        ("names: cat", r"data\.yaml: names: expected a list of names, got cat"),
        ("names: [true, false]", r"data\.yaml: names: expected a list of names, got \[True, False\]"),
        ("names: !!python/object/apply:os.system [ls]", r"data\.yaml:1: holds the tag"),
        ("names: [", r"data\.yaml:\d: is not valid YAML"),
    ],
)
def test_bad_lists_of_names_are_named(tmp_path: Path, names: str, says: str) -> None:
    data = yolo_folder(tmp_path, names=names)
    with pytest.raises(UserError, match=says):
        yolo(data, "train", None)


def test_yolo_faults_of_folders_are_named(tmp_path: Path) -> None:
    data = yolo_folder(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"data\.options\.names: is not set, and there is no .*data\.yaml"):
        yolo(data, "train", None)
    data = with_options(data, names=["cat", "dog"])
    (tmp_path / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(UserError, match=r"b\.txt, line 1: expected UTF-8, got UTF-16"):
        yolo(data, "train", None)
    (tmp_path / "labels" / "train" / "b.txt").unlink()
    write_picture(tmp_path / "images" / "train" / "a.jpg", SIZE)
    with pytest.raises(UserError, match=r"a\.txt: two images differ in their ending alone"):
        yolo(data, "train", None)
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"none of 3 images has a label file there"):
        yolo(data, "train", None)
    (tmp_path / "labels" / "train").rename(tmp_path / "labels" / "other")
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path / 'labels' / 'train'}: there is no such folder of label files")
    ):
        yolo(data, "train", None)
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    (tmp_path / "labels" / "other").rename(tmp_path / "labels" / "train")
    with pytest.raises(UserError, match=r"b\.png: cannot be read as an image"):
        yolo(data, "train", None)
