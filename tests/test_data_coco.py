"""COCO files as tables of boxes and as samples: what is kept, what is mended, which classes, which size."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxDataset
from tasks.data.check import check_dataset
from tasks.data.door.boxes import coco
from tasks.data.files.images import check_files
from tasks.settings.data import DataConfig

Content = dict[str, Any]
TAG = 274  # EXIF orientation


def annotation(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        **more,
    }


def content(images: int = 2, ids: tuple[int, ...] = (3, 7, 90)) -> Content:
    """Images of 100 x 80 with a box of each category in each of them."""
    boxes = [[10.0, 12.5, 30.0, 20.0], [0.0, 0.0, 100.0, 80.0], [50.25, 3.0, 12.0, 60.0]]
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(1, images + 1)],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in reversed(ids)],
        "annotations": [
            annotation(100 * n + k, n, id_, boxes[k % 3]) for n in range(1, images + 1) for k, id_ in enumerate(ids)
        ],
    }


def write_coco(root: Path, what: Content, split: str = "train") -> DataConfig:
    """``what`` as the annotations of a split, with its images, in COCO's layout."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    for image in what["images"]:
        path = folder / image["file_name"]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (image.get("width") or 100, image.get("height") or 80)).save(path)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(what))
    return DataConfig(name="coco", root=str(root))


def opened(root: Path, what: Content, split: str = "train", **data: Any) -> BoxDataset:
    write_coco(root, what, split)
    return coco(DataConfig(name="coco", root=str(root), **data), split, None)


# --- real files ---


@pytest.mark.peer
@pytest.mark.parametrize(
    ("folder", "files"),
    [("coco_mini", {}), ("bccd", {"train": "annotations/train.json", "val": "annotations/val.json"})],
)
def test_real_files_hold_what_pycocotools_finds(data_root: Path, folder: str, files: dict[str, str]) -> None:
    from pycocotools.coco import COCO

    classes = None
    for split in ("train", "val"):
        dataset = coco(DataConfig(name="coco", root=str(data_root / folder), **files), split, classes)
        classes, table = dataset.classes, dataset.table
        theirs = COCO(data_root / folder / files.get(split, f"annotations/instances_{split}2017.json"))
        assert table.category_ids == tuple(sorted(theirs.getCatIds()))
        assert classes == tuple(category["name"] for category in theirs.loadCats(table.category_ids))
        assert list(table.ids) == [
            str(id_) for id_ in theirs.dataset["images"] and [i["id"] for i in theirs.dataset["images"]]
        ]
        assert table.counts().tolist() == [
            len(theirs.getAnnIds(catIds=[id_], iscrowd=False)) for id_ in table.category_ids
        ]
        assert table.repairs.lines() == []
        for index, id_ in enumerate(table.ids):
            found = theirs.loadAnns(theirs.getAnnIds(imgIds=[int(id_)]))
            truth, rows = table.truth(index), table.rows(index)
            assert table.row_ids[rows].tolist() == [a["id"] for a in found]
            assert truth.boxes.tolist() == [[float(v) for v in a["bbox"]] for a in found]  # bit by bit
            assert truth.area.tolist() == [a["area"] for a in found]
            assert truth.crowd.tolist() == [a["iscrowd"] == 1 for a in found]
            assert [table.category_ids[label] for label in truth.labels] == [a["category_id"] for a in found]
            assert table.sizes[index].tolist() == [theirs.imgs[int(id_)]["height"], theirs.imgs[int(id_)]["width"]]


def test_image_labels_are_the_categories_that_an_image_has(data_root: Path) -> None:
    for split, count in (("train", 80), ("val", 79)):
        file = f"annotations/instances_{split}2017.json"
        dataset = coco(DataConfig(name="coco", root=str(data_root / "coco_mini"), labels=("labels",)), split, None)
        assert (len(dataset), len(dataset.classes)) == (count, 80)
        truth = json.loads((data_root / "coco_mini" / file).read_text())
        pairs = {(item["image_id"], item["category_id"]) for item in truth["annotations"]}
        assert sum(int(dataset[index].labels.sum()) for index in range(len(dataset))) == len(pairs)


def test_real_samples_keep_every_promise(data_root: Path) -> None:
    dataset = coco(DataConfig(name="coco", root=str(data_root / "coco_mini")), "val", None)
    check_dataset(dataset, limit=len(dataset))
    crowds = [index for index in range(len(dataset)) if dataset.table.crowd[dataset.table.rows(index)].any()]
    assert len(crowds) == 5
    sample = dataset[crowds[0]]
    assert sample.truth is not None
    assert sample.crowd is not None
    assert sample.truth.crowd.tolist() == sample.crowd.tolist()


# --- columns ---


def test_labels_are_the_categories_in_the_order_of_their_ids_and_lead_back(tmp_path: Path) -> None:
    dataset = opened(tmp_path, content())
    assert dataset.classes == ("class 3", "class 7", "class 90")
    assert dataset.category_ids == (3, 7, 90)
    sample = dataset[0]
    assert sample.id == "1"
    assert sample.path == str(tmp_path / "train2017" / "1.png")
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [[10, 12.5, 40, 32.5], [0, 0, 100, 80], [50.25, 3, 62.25, 63]]
    assert sample.box_labels is not None
    assert sample.box_labels.tolist() == [0, 1, 2]
    assert sample.truth is not None
    assert sample.truth.boxes.tolist() == [[10, 12.5, 30, 20], [0, 0, 100, 80], [50.25, 3, 12, 60]]
    assert sample.truth.area.tolist() == [600, 8000, 720]
    check_dataset(dataset)


@given(
    ids=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=12, unique=True),
    picks=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 4)), min_size=1, max_size=30),
    numbers=st.data(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ids_go_in_and_come_back(
    tmp_path: Path, ids: list[int], picks: list[tuple[int, int]], numbers: st.DataObject
) -> None:
    """Annotations in any order, images and categories with any ids: each row comes back with its own."""
    rows = numbers.draw(st.lists(st.integers(0, 2**62), min_size=len(picks), max_size=len(picks), unique=True))
    images = numbers.draw(
        st.lists(st.one_of(st.integers(0, 2**70), st.text("abc/-", min_size=1)), min_size=5, max_size=5, unique_by=str)
    )
    what = content(0)
    what["images"] = [{"id": id_, "file_name": f"{n}.png", "width": 100, "height": 80} for n, id_ in enumerate(images)]
    what["categories"] = [{"id": id_, "name": f"n{id_}"} for id_ in ids]
    what["annotations"] = [
        annotation(row, images[image], ids[pick % len(ids)], [1 + number, 2, 30, 40])  # type: ignore[arg-type]  # ids of text too
        for number, (row, (pick, image)) in enumerate(zip(rows, picks, strict=True))
    ]
    table = opened(tmp_path, what).table
    assert table.category_ids == tuple(sorted(ids))
    assert table.classes == tuple(f"n{id_}" for id_ in sorted(ids))
    back = {
        int(table.row_ids[row]): (table.ids[image], table.category_ids[table.labels[row]], table.boxes[row].tolist())
        for image in range(len(table))
        for row in range(*table.rows(image).indices(len(table.labels)))
    }
    assert back == {a["id"]: (str(a["image_id"]), a["category_id"], a["bbox"]) for a in what["annotations"]}


def test_a_thousand_images_keep_their_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    what = content(1000)
    (tmp_path / "train2017").mkdir(parents=True)
    for image in what["images"]:
        (tmp_path / "train2017" / image["file_name"]).touch()  # never opened
    owner = rng.integers(1, 801, 9000)  # none in the last 200
    boxes = np.concatenate([rng.random((9000, 2)) * [60, 50], 1 + rng.random((9000, 2)) * [39, 29]], 1).round(2)
    what["annotations"] = [
        annotation(n + 1, int(image), (3, 7, 90)[n % 3], boxes[n].tolist(), iscrowd=int(n % 50 == 0))
        for n, image in enumerate(owner)
    ]
    table = opened(tmp_path, what).table
    assert len(table) == 1000
    assert table.first[-1] == 9000
    for image in (0, 17, 799, 999):
        mine = np.flatnonzero(owner == image + 1)
        rows = table.rows(image)
        assert table.row_ids[rows].tolist() == (mine + 1).tolist()
        np.testing.assert_array_equal(table.boxes[rows], boxes[mine])
    kept = np.arange(9000) % 50 != 0
    assert table.counts().tolist() == [int((kept & (np.arange(9000) % 3 == k)).sum()) for k in range(3)]
    assert set(range(800, 1000)) <= set(table.empty_images().tolist())
    assert table.objects().tolist() == [int((kept & (owner == n)).sum()) for n in range(1, 1001)]
    part = table.take(np.array([5, 999, 5, 0]))
    assert list(part.ids) == ["6", "1000", "6", "1"]
    for new, old in enumerate((5, 999, 5, 0)):
        assert part.row_ids[part.rows(new)].tolist() == table.row_ids[table.rows(old)].tolist()
        assert part.truth(new).boxes.tolist() == table.truth(old).boxes.tolist()
    np.testing.assert_allclose(part.aspects, 1.25)
    np.testing.assert_array_equal(table.rows(-1), table.rows(999))


def test_the_data_set_goes_to_spawned_workers(tmp_path: Path) -> None:
    dataset = opened(tmp_path, content())
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # our own
    assert again[1].truth.boxes.tolist() == dataset[1].truth.boxes.tolist()  # type: ignore[union-attr]
    assert not [
        value for value in vars(dataset.table).values() if isinstance(value, list | dict)
    ]  # forked workers would copy these


def test_changing_a_sample_changes_no_other(tmp_path: Path) -> None:
    dataset = opened(tmp_path, content())
    first = dataset[0]
    for values in (first.boxes, first.box_labels, first.truth.boxes, first.truth.labels):  # type: ignore[union-attr]
        assert values is not None
        values += 1
    check_dataset(dataset)
    assert dataset[0].box_labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert dataset[0].truth.boxes[0].tolist() == [10, 12.5, 30, 20]  # type: ignore[union-attr]


# --- classes ---


def test_a_subset_and_new_names_by_config(tmp_path: Path) -> None:
    options = {"rename": ["class 7=car"], "classes": ["class 90", "car"]}
    dataset = opened(tmp_path, content(), options=options)
    assert dataset.classes == ("car", "class 90")
    assert dataset.category_ids == (7, 90)
    assert dataset.table.counts().tolist() == [2, 2]
    assert dataset[0].truth.boxes.tolist() == [[0, 0, 100, 80], [50.25, 3, 12, 60]]  # type: ignore[union-attr]
    assert dataset.table.repairs.counts == {"other_class": 2}
    assert dataset.table.repairs.dropped == 0
    write_coco(tmp_path, content(), "val")
    assert coco(DataConfig(name="coco", root=str(tmp_path), options=options), "val", dataset.classes).category_ids == (
        7,
        90,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ["class 8"]}, "data.options.classes: there is no class 'class 8'; did you mean class"),
        ({"classes": []}, "data.options.classes: expected a list of names"),
        ({"classes": "class 3"}, "data.options.classes: expected a list of names"),
        ({"classes": ["class 3", "class 3"]}, "twice"),
        ({"rename": ["class 3"]}, "expected old=new, got 'class 3'"),
        ({"rename": ["klass 3=a"]}, "data.options.rename: there is no class 'klass 3'"),
        ({"clases": ["a"]}, "data.options.clases: data set 'coco' has no such option; did you mean classes"),
        ({"images": "nowhere"}, "data.options.images: there is no folder 'nowhere'"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        opened(tmp_path, content(), options=options)


@pytest.mark.parametrize(
    ("ids", "change", "says"),
    [
        ((3, 7, 90, 91), lambda what: None, "not in training: 'class 91'"),
        (
            (3, 7, 90),
            lambda what: what["categories"][0].update(name="Klass"),
            "not in training: 'Klass'; not in this file: 'class 90'",
        ),
    ],
)
def test_other_categories_than_in_training_are_told_name_by_name(
    tmp_path: Path, ids: tuple[int, ...], change: Callable[[Content], Any], says: str
) -> None:
    train = opened(tmp_path, content())
    what = content(ids=ids)
    change(what)
    data = write_coco(tmp_path, what, "val")
    with pytest.raises(UserError, match=says):
        coco(data, "val", train.classes)


# --- images without objects ---


def test_images_without_objects_stay_unless_asked_otherwise_and_then_leave_training_alone(tmp_path: Path) -> None:
    what = content(4)
    what["annotations"] = [a for a in what["annotations"] if a["image_id"] in (2, 4)]
    for a in what["annotations"]:
        a["iscrowd"] = int(a["image_id"] == 4)
    for split in ("train", "val"):
        dataset = opened(tmp_path, what, split)
        assert len(dataset) == 4
        assert dataset[0].boxes.shape == (0, 4)  # type: ignore[union-attr]
        assert dataset.table.empty_images().tolist() == [0, 2, 3]
    check_dataset(dataset)
    assert [opened(tmp_path, what, "train", keep_empty=False)[0].id] == ["2"]
    assert len(opened(tmp_path, what, "train", keep_empty=False)) == 1
    assert len(opened(tmp_path, what, "val", keep_empty=False)) == 4
    assert (
        "4 images, 3 without objects; 3 objects, 3 crowds: class 3 1, class 7 1, class 90 1" in dataset.table.summary()
    )


# --- where files lie ---


@pytest.mark.parametrize(
    ("annotations", "folder", "options"),
    [
        ("annotations/instances_train2017.json", "train2017", {}),
        ("annotations/instances_train2017.json", "images/train2017", {}),
        ("annotations/train.json", "train", {}),
        ("annotations/train.json", "images", {}),
        ("a.json", "", {}),
        ("train/_annotations.coco.json", "train", {}),
        ("a.json", "elsewhere/deep", {"images": "elsewhere/deep"}),
        ("a.json", "elsewhere/deep", {"images": "wrong", "train_images": "elsewhere/deep"}),
    ],
)
def test_images_are_found_in_the_usual_layouts(
    tmp_path: Path, annotations: str, folder: str, options: dict[str, Any]
) -> None:
    what = content()
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for image in what["images"]:
        Image.new("RGB", (100, 80)).save(tmp_path / folder / image["file_name"])
    (tmp_path / annotations).parent.mkdir(exist_ok=True)
    (tmp_path / annotations).write_text(json.dumps(what))
    dataset = coco(DataConfig(name="coco", root=str(tmp_path), train=annotations, options=options), "train", None)
    assert dataset[1].path == str(tmp_path / folder / "2.png")


def test_names_with_folders_are_relative_to_whatever_holds_them(tmp_path: Path) -> None:
    what = content()
    for image in what["images"]:
        image["file_name"] = f"train2017/{image['file_name']}"
    (tmp_path / "train2017").mkdir()
    for image in what["images"]:
        Image.new("RGB", (100, 80)).save(tmp_path / image["file_name"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(what))
    dataset = coco(DataConfig(name="coco", root=str(tmp_path)), "train", None)
    assert dataset[0].path == str(tmp_path / "train2017" / "1.png")


def test_missing_annotation_files_are_told_with_those_that_there_are(tmp_path: Path) -> None:
    data = write_coco(tmp_path, content())
    with pytest.raises(
        UserError, match=r"data.val: there is no file .*; there are annotations/instances_train2017\.json"
    ):
        coco(data, "val", None)
    with pytest.raises(
        UserError,
        match=r"data\.test: names no annotation file; set data\.test, or data\.test: null where there is none",
    ):
        coco(data, "test", None)


def test_folders_are_listed_once_and_links_are_followed_inside_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    names = [f"{part}/{n}.png" for part in "ab" for n in range(50)]
    for name in names:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    calls: list[str] = []
    stat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **more: calls.append(str(path)) or stat(path, **more))
    check_files(tmp_path / "root", names, str, "")
    assert len([path for path in calls if path.endswith(".png")]) <= 2 * 2  # the first of each folder
    monkeypatch.undo()
    (tmp_path / "outside.png").touch()
    (tmp_path / "root" / "in.png").symlink_to("a/0.png")
    (tmp_path / "root" / "out.png").symlink_to(tmp_path / "outside.png")
    check_files(tmp_path / "root", ["a/1.png", "in.png"], str, "")
    with pytest.raises(UserError, match="link that leaves"):
        check_files(tmp_path / "root", ["in.png", "out.png"], str, "")


# --- sizes ---


def turned(path: Path, orientation: int, size: tuple[int, int] = (100, 80)) -> None:
    """A stored image of ``size`` (W, H) with an EXIF orientation, its top left quarter white as stored."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[TAG] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_when_the_annotations_say_so(tmp_path: Path, orientation: int, exif: str) -> None:
    """Stored 100 x 80. Annotations of 100 x 80 describe it as stored, of 80 x 100 upright; both are read as described."""
    what = content(1)
    what["annotations"] = [annotation(1, 1, 3, [0, 0, 40, 40])]
    for size in ((100, 80), (80, 100)):
        what["images"][0].update(width=size[0], height=size[1])
        write_coco(tmp_path, what)
        turned(tmp_path / "train2017" / "1.png", orientation)
        dataset = coco(DataConfig(name="coco", root=str(tmp_path), exif=exif), "train", None)  # type: ignore[arg-type]
        swaps = orientation > 4
        if size == (80, 100) and not swaps:
            with pytest.raises(
                UserError,
                match=r"1\.png: the annotations say 80 x 100 pixels \(width x height\), the file has 100 x 80",
            ):
                dataset[0]
            continue
        image = dataset[0].image
        assert image.shape == (size[1], size[0], 3)
        upright = size == (80, 100) if swaps else exif == "apply"  # where the size does not decide, the config does
        row, column = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
            orientation
        ]
        assert image[(row, column) if upright else (0, 0)].tolist() == [255] * 3
        assert int((image == 255).all(2).sum()) == 2000


def test_another_size_than_the_file_has_is_refused_with_both(tmp_path: Path) -> None:
    what = content(1)
    write_coco(tmp_path, what)
    what["images"][0].update(width=90)
    dataset = opened(tmp_path, what, allow_bad_boxes=True)
    with pytest.raises(
        UserError, match=r"1\.png: the annotations say 90 x 80 pixels \(width x height\), the file has 100 x 80"
    ):
        dataset[0]


def test_sizes_that_are_absent_come_from_the_files(tmp_path: Path) -> None:
    what = content(2)
    write_coco(tmp_path, what)
    turned(tmp_path / "train2017" / "2.png", 6)
    for image in what["images"]:
        del image["width"]
    what["annotations"].append(annotation(7, 2, 3, [70, 10, 25, 80]))
    dataset = opened(tmp_path, what, allow_bad_boxes=True)
    assert dataset.table.sizes.tolist() == [[80, 100], [100, 80]]
    assert dataset[1].image.shape == (100, 80, 3)
    assert dataset[1].truth.boxes[-1].tolist() == [70, 10, 10, 80]  # type: ignore[union-attr]
    check_dataset(dataset)
    (tmp_path / "train2017" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.png"):
        opened(tmp_path, what, allow_bad_boxes=True)
    skipping = opened(tmp_path, what, allow_bad_boxes=True, on_error="skip")
    assert skipping.table.sizes.tolist() == [[80, 100], [-1, -1]]
    assert skipping.aspects.tolist() == [1.25, 1.0]


def test_images_decoded_at_a_reduced_size_take_their_boxes_along(tmp_path: Path) -> None:
    what = content(1)
    what["images"][0].update(file_name="1.jpg", width=333, height=250)
    what["annotations"] = [annotation(1, 1, 3, [33.3, 25, 66.6, 100], area=3000)]
    data = {"image_size": 32, "options": {"reduced": True}}
    reduced, whole = (opened(tmp_path, what, split, **data)[0] for split in ("train", "val"))
    assert whole.image.shape == (250, 333, 3)
    assert reduced.image.shape == (125, 167, 3)
    assert whole.boxes is not None
    assert reduced.boxes is not None
    np.testing.assert_allclose(reduced.boxes, whole.boxes * [167 / 333, 0.5, 167 / 333, 0.5], rtol=1e-6)
    assert reduced.truth is not None
    np.testing.assert_allclose(reduced.truth.area, 3000 * 0.5 * 167 / 333)
