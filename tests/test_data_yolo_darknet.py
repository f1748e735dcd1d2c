"""What labelling tools and darknet leave without a ``data.yaml``: names of classes in text files, lists of images of another folder."""

from pathlib import Path

import pytest
from scenes import write_picture

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxDataset
from tasks.data.door.boxes import yolo
from tasks.settings.data import DataConfig

ROW = "1 0.5 0.5 0.25 0.5\n"
BOX = [37.5, 20.0, 62.5, 60.0]  # of 100 x 80 pixels


def images(root: Path, *files: str, labels: str | None = None) -> None:
    """Images with a label file each, beside them or in the folder ``labels``."""
    for file in files:
        write_picture(root / file, (80, 100))
        text = (root / labels / Path(file).name if labels else root / file).with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(ROW)


def opened(root: Path, split: str = "train", train: str | None = None) -> BoxDataset:
    return yolo(DataConfig(name="yolo", root=str(root), train=train, val=train), split, None)


def is_read(found: BoxDataset, count: int) -> bool:
    boxes = [sample.boxes.tolist() for sample in map(found.__getitem__, range(len(found)))]  # type: ignore[union-attr]
    return boxes == [[BOX]] * count and all(
        sample.box_labels.tolist() == [1] for sample in map(found.__getitem__, range(count))
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("classes.txt", "."),  # label-studio
        ("classes.txt", "labels/train"),  # labelImg
        ("classes.txt", "labels"),
        ("_darknet.labels", "labels/train"),
        ("obj.names", "."),
        ("voc.names", "cfg"),
    ],
)
def test_names_are_found_among_the_labels_and_told(tmp_path: Path, file: str, place: str) -> None:
    images(tmp_path, "images/train/a.png", "images/train/b.png", labels="labels/train")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / file).write_text("\ufeffcat\n Prüf ling \n\n", encoding="utf-8")
    found = opened(tmp_path)
    assert found.classes == ("cat", "Prüf ling")
    assert is_read(found, 2)
    told = f"names of the 2 classes are those in {tmp_path / place / file}: cat, Prüf ling"
    assert found.notes == (told,)


def test_files_of_names_must_agree_and_config_and_yaml_win(tmp_path: Path) -> None:
    images(tmp_path, "images/train/a.png", labels="labels/train")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "obj.names").write_text("cat\ndog")
    assert opened(tmp_path).classes == ("cat", "dog")
    (tmp_path / "labels/train/classes.txt").write_text("dog\ncat\n")
    with pytest.raises(
        UserError, match=r"data\.options\.names: is not set, and .*classes.txt says cat, dog, .* says dog, cat;"
    ):
        opened(tmp_path)
    listed = DataConfig(name="yolo", root=str(tmp_path), options={"names": ["a", "b"]})
    assert yolo(listed, "train", None).classes == ("a", "b")
    (tmp_path / "data.yaml").write_text("names: [x, y]\n")
    assert opened(tmp_path).classes == ("x", "y")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"cat\n", r"a\.txt:1: class 1 is not in 0\.\.0"),
        (b"", r"classes\.txt: expected a list of names"),
        (b"cat\n\ndog\n", r"classes\.txt: expected a list of names"),
        (b"cat\ncat\n", r"classes\.txt: 'cat' stands there twice"),
        (b"1 cat\n0 dog\n", r"classes\.txt: line 1 says '1 cat', and the number of a class is that of its line"),
        (b"\xff\xfec\n", r"classes\.txt, line 1: expected UTF-8, got UTF-16"),
    ],
)
def test_faults_of_files_of_names_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    images(tmp_path, "images/train/a.png", labels="labels/train")
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        opened(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "data/obj_train_data/{}",
        "/content/darknet/data/obj_train_data/{}",
        "C:\\data\\obj_train_data\\{}",
        "build/x64/{}",
        "{}",
    ],
)
def test_lists_of_another_folder_are_found_by_the_ends_of_their_lines(tmp_path: Path, line: str) -> None:
    images(tmp_path, "obj_train_data/a b.png", "obj_train_data/c.png")
    images(tmp_path, "obj_val_data/v.png")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("".join(f"{line.format(name)}\n" for name in ("a b.png", "c.png")))
    for name in ("train.txt", None):
        found = opened(tmp_path, train=name)
        assert is_read(found, 2)
        assert found.table.files[0] == "obj_train_data/a b.png"
        assert (
            f"train.txt: 2 of 2 images are found by the ends of their paths, such as {line.format('a b.png')}".replace(
                "\\", "/"
            )
            in (found.notes[1])
        )


def test_the_longest_end_decides_and_ambiguous_lines_are_refused(tmp_path: Path) -> None:
    images(tmp_path, "one/x/a.png", "two/x/a.png", "two/y/a.png")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("data/two/x/a.png\n")
    assert opened(tmp_path).table.files[0] == "two/x/a.png"
    (tmp_path / "train.txt").write_text("data/y/a.png\ndata/x/a.png\n")
    with pytest.raises(
        UserError,
        match=r"train\.txt:2: 'data/x/a\.png' is not in the data, and 2 images end so: one/x/a\.png, two/x/a\.png",
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            "one/b.png\n",
            r"train\.txt:1: 1 of 1 images have no file",
        ),  # its folder is there: it is missing, and not in another
        ("one/a.png\ndata/two/b.png\n", r"train\.txt:2: 1 of 2 images have no file"),  # the list is of this folder
        ("data/one/a.png\ndata/one/c.png\n", r"train\.txt:2: 1 of 2 images have no file"),
        ("data/one/a.png\nother/one/a.png\n", r"train\.txt:2: 'other/one/a\.png' stands in line 1 already"),
    ],
)
def test_images_that_are_missing_are_not_replaced_by_others(tmp_path: Path, lines: str, says: str) -> None:
    images(tmp_path, "one/a.png", "two/b.png")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text(lines)
    with pytest.raises(UserError, match=says):
        opened(tmp_path)
