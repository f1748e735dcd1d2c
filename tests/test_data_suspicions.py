"""What can be read, but not in the way that it was probably meant: told, or refused with what it looks like."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import write_picture
from test_data_boxes_told import content, opened as coco_opened, voc_data, yolo_data
from test_data_mask_formats import opened as masks_opened, pair
from test_data_table import opened as table_opened, write_table

from effbackbones.errors import UserError
from effbackbones.images.reading import read_image
from tasks.data.boxes.repairs import RepairCount, mend, refuse_bad_boxes, refuse_corners
from tasks.data.door.boxes import voc, yolo
from tasks.data.door.labels import folder
from tasks.data.files.reading import ImageReader, listed_classes
from tasks.data.suspicions import told_of_data
from tasks.settings.data import DataConfig

RNG = np.random.default_rng(0)
SIDES = np.array([[160.0, 120.0]])


def some_boxes(count: int = 50) -> np.ndarray:
    """x, y, width, height inside of an image of 160 x 120, many of them far from its corner."""
    low, high = RNG.random((count, 2)) * 0.6, RNG.random((count, 2)) * 0.3 + 0.1
    return np.concatenate([low, high], 1) * np.tile(SIDES, 2)


def refused(boxes: np.ndarray, centred: bool) -> str:
    sides, count = np.repeat(SIDES, len(boxes), 0), RepairCount(str)
    mend(boxes, sides, np.ones(len(boxes), np.bool_), count)
    try:
        refuse_bad_boxes("file", boxes, sides, count.result(len(boxes)), centred)
    except UserError as error:
        return str(error)
    return ""


def test_boxes_in_another_layout_are_called_that() -> None:
    """Also where fewer than half reach out of their image."""
    boxes = some_boxes()
    low, extent = boxes[:, :2], boxes[:, 2:]
    assert refused(boxes, False) == refused(boxes, True) == ""
    as_corners = np.concatenate([low, low + extent], 1)
    assert "corner boxes" in refused(as_corners, False)
    assert "middle" in refused(np.concatenate([low + extent / 2, extent], 1), False)
    portrait = np.repeat(SIDES[:, ::-1], len(boxes), 0)  # the annotations say 120 x 160, the images are as they were
    count = RepairCount(str)
    mend(boxes, portrait, np.ones(len(boxes), np.bool_), count)
    with pytest.raises(UserError, match="images whose width and height are exchanged"):
        refuse_bad_boxes("file", boxes, portrait, count.result(len(boxes)))
    # In YOLO's files the first two numbers are the middle: what is read is half an extent further up and left.
    for numbers, name in ((as_corners, "corner boxes"), (boxes, "upper left corner")):
        read = np.concatenate([numbers[:, :2] - numbers[:, 2:] / 2, numbers[:, 2:]], 1)
        assert name in refused(read, True)


def test_corner_boxes_that_lie_in_their_images_are_known_by_their_areas() -> None:
    boxes = np.array([[10.0, 20, 30, 40], [5, 5, 20, 10], [0, 0, 40, 30], [30, 10, 15, 25], [12, 40, 9, 9]])
    as_corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    assert not refused(as_corners, False)

    def by_area(numbers: np.ndarray, areas: np.ndarray) -> str:
        try:
            refuse_corners("file", numbers, areas, lambda row: f"id {row}")
        except UserError as error:
            return str(error)
        return ""

    areas = boxes[:, 2:].prod(1)
    said = "file: the areas of 4 of 4 boxes are those of corner boxes (x0, y0, x1, y1), such as id 0; write x, y, width, height"
    assert by_area(as_corners, areas).startswith(said)
    assert by_area(boxes, areas) == by_area(boxes, areas / 2) == by_area(as_corners, areas / 2) == ""
    assert by_area(as_corners[:4], areas[:4]) == by_area(as_corners, np.full(5, np.nan)) == ""


@pytest.mark.parametrize("heading", ["Name", "class_name", "CLASSES:", "# of my street", "id,name"])
def test_a_heading_over_names_is_refused(heading: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(
        f"{heading}\n0,road\n1,kerb\n" if "," in heading else f"{heading}\nroad\nkerb\n"
    )
    with pytest.raises(UserError, match=rf"classes\.txt: line 1 says '{heading}', which would name class 0"):
        listed_classes("classes.txt", tmp_path)


@pytest.mark.parametrize("first", ["2: dog\n1: cat\n", "1 cat\n0 dog\n", "0=dog\n2=cat\n1=cow\n"])
def test_names_numbered_in_another_order_are_refused(first: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(first)
    with pytest.raises(
        UserError, match=r"classes\.txt: line \d says '.*', and the number of a class is that of its line"
    ):
        listed_classes("classes.txt", tmp_path)
    for fine in (
        "#\n$\n",
        "classic\njazz\n",
        "road\n1 lane\n2 lanes\n3 lanes\n",
        "0 cat\n1 dog\n",
        "cat 2\ndog 1\n",
        "3 wheels\n2 wheels\n",
        "cat\ndog\n",
    ):
        (tmp_path / "classes.txt").write_text(fine)
        assert listed_classes("classes.txt", tmp_path) == tuple(fine.splitlines())


def test_whole_numbers_with_a_decimal_point(tmp_path: Path) -> None:
    said = content()
    for row in said["annotations"]:
        row |= {"category_id": float(row["category_id"]), "image_id": 1.0, "iscrowd": 0.0}
    dataset = coco_opened(tmp_path, said)
    assert dataset.table.labels.tolist() == [0, 1, 0]
    said["annotations"][1]["category_id"] = 1.5
    with pytest.raises(UserError, match=r"category_id: expected a whole number, got 1\.5"):
        coco_opened(tmp_path, said)


def test_scores_among_the_annotations_are_told(tmp_path: Path) -> None:
    dataset = coco_opened(tmp_path, content({"score": 0.4}))
    assert dataset.table.repairs.counts == {"scored": 1}


def voc_edited(root: Path, old: str, new: str) -> DataConfig:
    data = voc_data(root, {"1": [[10.0, 20.0, 30.0, 10.0], [50.0, 5.0, 20.0, 60.0]]})
    for path in root.rglob("*.xml"):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    return data


@pytest.mark.parametrize(
    "field",
    ["<deleted>1</deleted>", "<attributes><attribute><name>ignore</name><value>1</value></attribute></attributes>"],
)
def test_marks_in_voc_files(tmp_path: Path, field: str) -> None:
    data = voc_edited(tmp_path, "<bndbox>", f"{field}<bndbox>")
    assert voc(data, "train", None).table.repairs.counts == {"ignored": 1}
    crowd = DataConfig(name="voc", root=data.root, options={"ignored": "crowd"})
    assert voc(crowd, "train", None).table.crowd.tolist() == [True, False]


def test_turned_boxes_in_voc_files(tmp_path: Path) -> None:
    turn = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    data = voc_edited(tmp_path, "<bndbox>", f"{turn}<bndbox>")
    kept = voc(data, "train", None).table
    assert kept.repairs.counts == {"rotated": 1}
    assert kept.boxes[0].tolist() == [10, 20, 30, 10]
    around = voc(DataConfig(name="voc", root=data.root, options={"rotation": "enclose"}), "train", None).table
    np.testing.assert_allclose(around.boxes[0], [20, 10, 10, 30])


def test_what_voc_files_say_besides(tmp_path: Path) -> None:
    data = voc_edited(tmp_path, "<object>", "<filename>other.jpg</filename><object><part><name>head</name></part>")
    notes = " ".join(voc(data, "train", None).notes)
    assert "1 parts of objects are not used" in notes
    assert "other.jpg for 1." in notes
    for path in tmp_path.rglob("*.xml"):
        path.write_text(path.read_text().replace("<bndbox>", "<bndbox></bndbox><bndbox>", 1))
    with pytest.raises(UserError, match=r"object 1 \(a\): has 2 bndbox"):
        voc(data, "train", None)


def test_yolo_without_label_files_or_with_another_number_of_classes(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"1": "0 .5 .5 .2 .2"}, yaml="nc: 3\nnames: [a, b]\n")
    with pytest.raises(UserError, match=r"nc: is 3, and names has 2 classes"):
        yolo(data, "train", None)
    data = yolo_data(tmp_path, {"1": "0 .5 .5 .2 .2"}, yaml="nc: '2'\nnames: [a, b]\n")
    with pytest.raises(UserError, match=r"nc: expected a whole number, got '2'; write it without quotes"):
        yolo(data, "train", None)
    data = yolo_data(tmp_path, {"1": "0 .5 .5 .2 .2"})
    for path in list(tmp_path.rglob("1.txt")):
        path.rename(path.with_suffix(".TXT"))
    assert len(yolo(data, "train", None).table.boxes) == 1
    for path in list(tmp_path.rglob("1.TXT")):
        path.rename(path.with_suffix(".label"))
    with pytest.raises(UserError, match=r"none of \d images has a label file there, such as 1\.txt of "):
        yolo(data, "train", None)


def test_a_column_for_each_class(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    write_table(tmp_path, "image,red,green,blue", "a.png,1,0,0", "b.png,1.0,1,0", "c.png,0,0,0.0")
    with pytest.raises(UserError, match=r"set data\.options\.columns: \[image, red, green, blue\]"):
        table_opened(tmp_path)
    dataset = table_opened(tmp_path, multilabel=True, columns=["image", "red", "green", "blue"])
    assert dataset.classes == ("red", "green", "blue")
    assert [dataset[index].labels.tolist() for index in range(3)] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(UserError, match=r"train\.csv:3: expected one label, got 2"):
        table_opened(tmp_path, columns=["image", "red", "green", "blue"])
    write_table(tmp_path, "image,red,green", "a.png,1,0", "b.png,-1,0")
    with pytest.raises(UserError, match=r"train\.csv:3: column 'red': expected 1 or 0, got '-1'"):
        table_opened(tmp_path, multilabel=True, columns=["image", "red", "green"])
    for row in ("a.png,1,-1", "a.png,True,FALSE"):
        write_table(tmp_path, "image,red,green", row, "b.png,-1,1" if "1" in row else "b.png,false,true")
        with pytest.raises(UserError, match=r"set data\.options\.columns: \[image, red, green\]"):
            table_opened(tmp_path)
        dataset = table_opened(tmp_path, multilabel=True, columns=["image", "red", "green"])
        assert [dataset[index].labels.tolist() for index in range(2)] == [[1, 0], [0, 1]]
        assert dataset.notes == (
            ("columns of classes hold 1 and -1 alone: -1 is read as not there",) if "1" in row else ()
        )


def test_tables_without_a_header_and_with_lists(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    write_table(tmp_path, "a.png,red", "b.png,green")
    with pytest.raises(UserError, match=r"the first line names a file already: write file,labels above it"):
        table_opened(tmp_path)
    write_table(tmp_path, "sep=;", "file;labels", "a.png;red", "b.png;green")
    with pytest.raises(UserError, match=r"remove that line, which is for Excel alone"):
        table_opened(tmp_path)
    write_table(tmp_path, "file,labels", "a.png,\"['red', 'green']\"", "b.png,\"['green']\"")
    with pytest.raises(UserError, match=r"are lists as a program writes them"):
        table_opened(tmp_path, multilabel=True)


@pytest.mark.parametrize("kind", [bool, np.int64, np.int16, np.uint8, np.uint32])
@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (2, 3, 1)])
def test_masks_of_any_whole_numbers(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    mask = np.array([[0, 1, 1], [1, 0, 1]])
    pair(tmp_path, "train", "1", Image.new("L", (3, 2)))
    (tmp_path / "train/masks/1.png").unlink()
    np.save(tmp_path / "train/masks/1.npy", mask.astype(kind).reshape(shape))
    dataset = masks_opened(tmp_path, names=["bg", "a"], format="index")
    np.testing.assert_array_equal(dataset[0].mask, mask)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((2, 3), np.float32), "expected whole numbers, got float32"),
        (np.zeros((2, 3, 4), np.uint8), r"expected \[H, W\], got \[2, 3, 4\]"),
        (np.full((2, 3), -100), "value -100 at x 0, y 0"),
    ],
)
def test_arrays_that_are_no_masks(tmp_path: Path, array: np.ndarray, what: str) -> None:
    pair(tmp_path, "train", "1", Image.new("L", (3, 2)))
    (tmp_path / "train/masks/1.png").unlink()
    np.save(tmp_path / "train/masks/1.npy", array)
    with pytest.raises(UserError, match=what):
        masks_opened(tmp_path, names=["bg", "a"], format="index")[0]


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_several_frames_are_asked_about(tmp_path: Path, ending: str) -> None:
    frames = [Image.fromarray(RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"has 3 frames: .*data\.options\.frames: first"):
        ImageReader()(str(path))
    np.testing.assert_array_equal(ImageReader(frames="first")(str(path)), read_image(path))


def folders(root: Path, *names: str) -> dict[str, Any]:
    for name in names:
        (root / "train" / name).mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / "train" / name / "1.png")
    return {"train": folder(DataConfig(name="folder", root=str(root)), "train", None)}


def test_names_that_are_nearly_alike_or_no_names(tmp_path: Path) -> None:
    lines = list(told_of_data(folders(tmp_path, "traffic light", "traffic_Light", "nan", "cat")))
    assert len(lines) == 2
    assert "data.options.rename: [traffic_Light=traffic light]" in lines[0]
    assert "'nan'" in lines[1]
    assert list(told_of_data(folders(tmp_path / "other", "cat", "cats", "dog"))) == []
    (line,) = told_of_data(folders(tmp_path / "ignored", "car", "Don't Care"))
    assert 'the class "Don\'t Care" looks like what is to be ignored' in line
    (line,) = told_of_data(folders(tmp_path / "numbers", "1", "01", "1.0", "2", "1e0"))
    assert "the classes '01' and '1' and '1.0' are one number" in line
    assert "data.options.rename: [1=01, 1.0=01]" in line
    (line,) = told_of_data(folders(tmp_path / "accents", "caf\u00e9", "cafe\u0301", "dog"))
    assert "differ in how accents are written alone (correct the names in the files)" in line


def test_copies_under_other_names_are_told(tmp_path: Path) -> None:
    """A training image that validation has too, and one that is in two classes; nothing of copies in one class of one split."""
    for level, name in enumerate(["train/cat/a", "train/cat/b", "train/dog/c", "val/cat/d", "val/dog/e"], 1):
        write_picture(tmp_path / f"{name}.png", (9 + level, 9), 20 * level)
    shutil.copy(tmp_path / "train/cat/a.png", tmp_path / "train/cat/again.png")
    data = DataConfig(name="folder", root=str(tmp_path), labels=("label",))
    opened = {split: folder(data, split, None) for split in ("train", "val")}
    assert list(told_of_data(opened)) == []
    shutil.copy(tmp_path / "train/cat/b.png", tmp_path / "val/cat/same.png")
    shutil.copy(tmp_path / "train/cat/b.png", tmp_path / "train/dog/wrong.png")
    opened = {split: folder(data, split, None) for split in ("train", "val")}
    shared, odd = told_of_data(opened)
    assert "1 images of val are training images too, byte by byte" in shared
    assert "val/cat/same.png: " in shared
    assert "1 training images are there more than once with other classes" in odd
    assert "cat/b.png and " in odd
    assert "dog/wrong.png" in odd
    assert list(told_of_data(opened, compared=3)) == []


def test_transparency_is_told(tmp_path: Path) -> None:
    datasets = folders(tmp_path, "a", "b")
    clear = np.dstack([np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8) * 255])
    Image.fromarray(clear).save(tmp_path / "train/a/1.png")
    assert ["1 of 2 images looked at (1.png) are transparent in parts" in line for line in told_of_data(datasets)] == [
        True
    ]
    Image.fromarray(clear | np.array([0, 0, 0, 255], np.uint8)).save(tmp_path / "train/a/1.png")
    assert list(told_of_data(datasets)) == []


@pytest.mark.parametrize(("orientation", "told"), [(3, True), (2, True), (1, False)])
def test_orientations_that_no_size_confirms(tmp_path: Path, orientation: int, told: bool) -> None:
    for number in range(2):
        pair(tmp_path, "train", str(number), Image.fromarray(np.array([[0, 1, 2]], np.uint8)))
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", (3, 1)).save(tmp_path / "train/images/0.png", exif=exif)
    lines = list(told_of_data({"train": masks_opened(tmp_path, format="index")}))
    assert [line for line in lines if "data.exif: ignore" in line and "0.png" in line] == (lines if told else [])
    assert bool(lines) == told


def test_images_that_no_annotation_file_names_are_told(tmp_path: Path) -> None:
    dataset = coco_opened(tmp_path, content())
    assert list(told_of_data({"train": dataset})) == []
    Image.new("RGB", (4, 4)).save(tmp_path / "left.png")
    (told,) = told_of_data({"train": dataset})
    assert "1 of 2 image files below" in told
    assert told.endswith("left.png")
    (tmp_path / "left.png").unlink()
    (tmp_path / "more.HEIC").write_bytes(b"")
    (told,) = told_of_data({"train": dataset})
    assert "1 files below" in told
    assert "more.HEIC; write them as PNG or JPEG" in told


def test_training_images_of_which_few_have_objects_are_told(tmp_path: Path) -> None:
    data = yolo_data(tmp_path, {"1": "", "2": "", "3": "0 0.5 0.5 0.2 0.2\n"})
    told = " ".join(told_of_data({"train": yolo(data, "train", None)}))
    assert "2 of 3 images have no object, and are trained on as background (such as 1.png)" in told


@pytest.mark.parametrize(("most", "told"), [(100.0, True), (160.0, False)])
def test_boxes_of_smaller_copies_are_told(tmp_path: Path, most: float, told: bool) -> None:
    """Of images of 200 x 160: numbers in 0..100, of all parts of the image, or pixels."""
    lows, sides = RNG.random((60, 2)) * 0.6 * most, RNG.random((60, 2)) * 0.4 * most
    sides[0] = most - lows[0]
    for number in range(20):
        write_picture(tmp_path / f"{number}.png", (160, 200), number * 9)
    what = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 160} for n in range(20)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": n + 1, "image_id": n % 20, "category_id": 1 + n % 2, "bbox": [*lows[n], *sides[n]], "iscrowd": 0}
            for n in range(60)
        ],
    }
    lines = list(told_of_data({"train": coco_opened(tmp_path, what)}))
    said = [line for line in lines if "boxes lie in the upper left 50% by 62% of their images" in line]
    assert bool(said) == told


def test_what_voc_objects_say_besides_is_told(tmp_path: Path) -> None:
    more = "<occluded>1</occluded><kind>Unspecified</kind><robndbox><cx>1</cx></robndbox><breed>poodle</breed><bndbox>"
    notes = voc(voc_edited(tmp_path, "<bndbox>", more), "train", None).notes
    assert notes == ("fields of objects that are not used: robndbox (1), breed (1)",)
