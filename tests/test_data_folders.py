"""Class folders: what is read, in which order, and what each mistake is answered with."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import write_picture

from effbackbones.errors import UserError
from tasks.data.check import check_dataset
from tasks.data.door.labels import folder
from tasks.data.files.reading import ImageReader, PackedNames
from tasks.data.sets.folders import FolderDataset
from tasks.settings.data import DataConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of three classes, with nested folders and hidden files."""
    for number, name in enumerate(["cat/b.png", "cat/a.jpg", "bird/deep/er/x.PNG", "bird/y.webp", "Dog/z.bmp"]):
        write_picture(tmp_path / "train" / name, (6, 8), number * 10)
    write_picture(tmp_path / "val/cat/v.png", (6, 8), 99)
    write_picture(tmp_path / "val/bird/w.png", (6, 8), 98)
    (tmp_path / "train/cat/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/notes.txt").write_text("beside the classes, not in one")
    return tmp_path


def test_classes_files_and_labels_are_sorted(root: Path) -> None:
    dataset = FolderDataset(root / "train")
    assert dataset.classes == ("Dog", "bird", "cat")
    assert list(dataset.names) == ["Dog/z.bmp", "bird/deep/er/x.PNG", "bird/y.webp", "cat/a.jpg", "cat/b.png"]
    assert dataset.labels.tolist() == [0, 1, 1, 2, 2]
    sample = dataset[4]
    assert (sample.id, sample.label, sample.path) == ("cat/b.png", 2, str(root / "train/cat/b.png"))
    assert sample.image.shape == (6, 8, 3)
    assert (sample.image == 0).all()
    check_dataset(dataset)


@pytest.mark.peer
def test_label_map_is_that_of_torchvision(root: Path) -> None:
    from torchvision.datasets import ImageFolder

    (root / "train/.cache").rmdir()  # torchvision takes it for a class
    write_picture(root / "train/10/a.png")
    write_picture(root / "train/9/a.png")
    theirs, ours = ImageFolder(root / "train"), FolderDataset(root / "train")
    assert tuple(theirs.classes) == ours.classes
    assert {(path, label) for path, label in theirs.samples} == {
        (ours[i].path, ours[i].label) for i in range(len(ours))
    }


def test_label_map_of_training_serves_the_other_splits(root: Path) -> None:
    classes = FolderDataset(root / "train").classes
    val = FolderDataset(root / "val", classes)
    assert val.classes == classes
    assert [val[index].label for index in range(2)] == [1, 2]  # not 0 and 1


def test_factory_reads_the_configured_folders(root: Path) -> None:
    data = DataConfig(root=str(root), options={"channels": 1})
    train = folder(data, "train", None)
    assert len(train) == 5
    assert train[0].image.shape == (6, 8, 1)
    assert len(folder(data, "val", train.classes)) == 2
    renamed = DataConfig(root=str(root), train="val", val="train")
    assert folder(renamed, "train", None).classes == ("bird", "cat")
    flat = DataConfig(root=str(root / "train"), train=".")
    assert folder(flat, "train", None).classes == ("Dog", "bird", "cat")


def test_reading_options_reach_the_reader(root: Path) -> None:
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(deep).save(root / "val/cat/deep.png")
    data = DataConfig(root=str(root), options={"channels": 1, "depth": "native"}, max_pixels=48)
    images = {sample.id: sample.image for sample in map(folder(data, "val", None).__getitem__, range(3))}
    np.testing.assert_array_equal(images["cat/deep.png"][..., 0], deep)
    write_picture(root / "val/cat/large.png", (9, 9))
    with pytest.raises(UserError, match=r"large\.png: the header announces 9 x 9"):
        folder(data, "val", None)[2]


def test_reduced_decoding_is_for_training_alone(root: Path) -> None:
    for split in ("train", "val"):
        write_picture(root / split / "cat/0.jpg", (640, 800), 100)
    data = DataConfig(root=str(root), image_size=(100, 60), options={"reduced": True})
    train, val = folder(data, "train", None), folder(data, "val", None)
    images = [dataset[list(dataset.names).index("cat/0.jpg")].image for dataset in (train, val)]
    assert [image.shape for image in images] == [(320, 400, 3), (640, 800, 3)]
    for options, size in (({"reduced": True}, None), ({"reduced": 2}, 64)):
        with pytest.raises(UserError, match=r"data\.options\.reduced"):
            folder(DataConfig(root=str(root), image_size=size, options=options), "train", None)


def remove_split(root: Path) -> None:
    (root / "train").rename(root / "training")


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no split": (
        remove_split,
        r"train: there is no such folder: expected .*train/CLASS/IMAGE.*holds the folders training, val",
    ),
    "empty class": (lambda root: (root / "train/fish").mkdir(), "train/fish: the class folder holds no image"),
    "class of empty folders": (
        lambda root: (root / "train/fish/deep").mkdir(parents=True),
        "train/fish: the class folder holds no image",
    ),
    "class of hidden files": (
        lambda root: write_picture(root / "train/fish/.a.png"),
        "train/fish: the class folder holds no image",
    ),
    "other file": (
        lambda root: (root / "train/cat/Thumbs.db").write_bytes(b""),
        r"cat/Thumbs\.db: is not an image by its ending",
    ),
    "other file below": (
        lambda root: (root / "train/bird/deep/list.csv").write_bytes(b""),
        r"deep/list\.csv: is not an image",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(root: Path, name: str) -> None:
    change, message = MISTAKES[name]
    change(root)
    with pytest.raises(UserError, match=message) as caught:
        folder(DataConfig(root=str(root)), "train", None)
    assert "\n" not in str(caught.value)


def test_split_without_class_folders(root: Path) -> None:
    write_picture(root / "test/a.png")
    with pytest.raises(UserError, match=r"holds no class folders: expected .*test/CLASS/IMAGE"):
        folder(DataConfig(root=str(root)), "test", None)


def test_class_that_training_lacks_is_named(root: Path) -> None:
    write_picture(root / "val/fish/a.png")
    with pytest.raises(UserError, match=r"val/fish: class 'fish' is not in the training data"):
        folder(DataConfig(root=str(root)), "val", folder(DataConfig(root=str(root)), "train", None).classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, r"data\.root: data set 'folder' needs a folder"),
        ({"root": "/nowhere/at/all"}, r"data\.root: there is no folder /nowhere"),
        ({"options": {"chanels": 1}}, r"data\.options\.chanels.*did you mean channels"),
        ({"options": {"channels": 0}}, r"data\.options\.channels"),
        ({"options": {"channels": True}}, r"data\.options\.channels"),
        ({"options": {"depth": 12}}, r"data\.options\.depth.*known: 8, native"),
        ({"options": {"other_files": "skip"}}, r"data\.options\.other_files"),
    ],
)
def test_wrong_settings_are_named(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        folder(DataConfig(**{"root": str(root)} | changes), "train", None)


def test_other_files_can_be_ignored(root: Path) -> None:
    (root / "train/cat/Thumbs.db").write_bytes(b"")
    dataset = folder(DataConfig(root=str(root), options={"other_files": "ignore"}), "train", None)
    assert len(dataset) == 5
    assert dataset.notes[-1].startswith("1 files are no images by their endings and passed over: cat/Thumbs.db")  # type: ignore[attr-defined]


def test_damaged_image_is_named_when_read(root: Path) -> None:
    (root / "train/cat/a.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"train/cat/a\.jpg: cannot be read"):
        FolderDataset(root / "train")[3]


def test_names_are_packed() -> None:
    names = ["a", "", "näh/ö.jpg", "x" * 300, os.fsdecode(b"caf\xe9.jpg")]
    packed = pickle.loads(pickle.dumps(PackedNames(names)))  # noqa: S301  # our own bytes
    assert list(packed) == names
    assert packed[-1] == names[-1]
    assert packed[-5] == "a"
    with pytest.raises(IndexError):
        packed[5]
    assert len(PackedNames([])) == 0
    assert (
        len(pickle.dumps(PackedNames(f"n01440764/{number:08}.JPEG" for number in range(1000)))) < 1000 * (23 + 8) + 1000
    )


def test_thousands_of_files_are_listed_quickly(tmp_path: Path) -> None:
    for name in range(20):
        (tmp_path / f"c{name}").mkdir()
        for number in range(200):
            (tmp_path / f"c{name}/{number}.jpg").touch()
    dataset = FolderDataset(tmp_path, read=ImageReader(channels=1))
    assert len(dataset) == 4000
    assert np.bincount(dataset.labels).tolist() == [200] * 20
    assert dataset.names[-1] == "c9/99.jpg"


def test_real_pictures(data_root: Path, tmp_path: Path) -> None:
    """The first photographs of CIFAR-10's archive, read where ``data.val`` names the folder ``test``."""
    with tarfile.open(data_root / "cifar10.tar.xz") as archive:
        for count, member in enumerate(member for member in archive if member.isfile()):
            if count == 40:
                break
            archive.extract(member, tmp_path, filter="data")
    split = next(path.name for path in (tmp_path / "cifar10").iterdir())
    dataset = folder(DataConfig(root=str(tmp_path / "cifar10"), val=split), "val", None)
    assert len(dataset) == 40
    assert dataset[0].image.shape == (32, 32, 3)
    check_dataset(dataset)


def test_images_beside_the_class_folders_are_counted(root: Path) -> None:
    assert FolderDataset(root / "train").notes == ()  # a text file is no image
    for name in ("l2.jpg", "l0.jpg", "l1.png", "l3.png", ".l4.png"):
        write_picture(root / "train" / name)
    dataset = FolderDataset(root / "train")
    assert len(dataset) == 5
    assert dataset.notes == (
        "4 images beside the class folders belong to none and are not used: l0.jpg, l1.png, l2.jpg, ...",
    )


def test_one_class_is_no_task(root: Path) -> None:
    (root / "train").rename(root / "photos")
    (root / "train").mkdir()
    (root / "photos").rename(root / "train/photos")
    message = (
        r"train: holds the class folder photos alone.*the folders in it, Dog, bird, cat, set data.train: train/photos"
    )
    with pytest.raises(UserError, match=message):
        folder(DataConfig(root=str(root)), "train", None)
    assert folder(DataConfig(root=str(root), train="train/photos"), "train", None).classes == ("Dog", "bird", "cat")
    alone = DataConfig(root=str(root / "train/photos"), train="bird", options={"other_files": "ignore"})
    with pytest.raises(UserError, match=r"bird: holds the class folder deep alone.*if the classes.*er, set"):
        folder(alone, "train", None)
    assert folder(DataConfig(root=str(root), val="val"), "val", None).classes == (
        "bird",
        "cat",
    )  # a split may lack some


def test_folders_are_renamed_and_merged(root: Path) -> None:
    data = DataConfig(root=str(root), options={"rename": ["Dog=pet", "cat=pet"]})
    train = folder(data, "train", None)
    assert (train.classes, train.labels.tolist()) == (("bird", "pet"), [1, 0, 0, 1, 1])
    val = folder(data, "val", train.classes)  # without a folder Dog
    assert [val[index].label for index in range(2)] == [0, 1]
    for rename, message in (
        (["dog=pet"], r"no class folder 'dog'.*did you mean Dog"),
        (["Dog=x", "cat=x", "bird=x"], "makes one class, 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            folder(DataConfig(root=str(root), options={"rename": rename}), "train", None)


def test_a_split_that_is_not_there_can_be_a_share_of_the_training_data(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(
        UserError, match=r"val: there is no such folder: .*; set data\.val: 0\.2, which takes a fifth of"
    ):
        folder(DataConfig(root=str(root)), "val", None)
