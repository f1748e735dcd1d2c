"""CSV tables of images and labels."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from scenes import write_picture

from effbackbones.errors import UserError
from tasks.data.check import check_dataset
from tasks.data.door.labels import table
from tasks.data.sets.table import TableDataset
from tasks.settings.data import DataConfig
from tasks.verbs.check import _class_counts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images, and one that is outside."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b,c.png", "sub/d.png", "../outside.png"]):
        Image.new("RGB", (5, 4), (number,) * 3).save(folder / name)
    return folder


def write_table(root: Path, *lines: str, name: str = "train.csv", encoding: str = "utf-8") -> Path:
    path = root / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return path


def test_several_labels(root: Path) -> None:
    dataset = TableDataset(
        write_table(root, "file,labels", "a.png,dog;cat", '"b,c.png",', "sub/d.png, cat ; bird"), multilabel=True
    )
    assert dataset.classes == ("bird", "cat", "dog")
    assert [dataset[index].labels.tolist() for index in range(3)] == [[0, 1, 1], [0, 0, 0], [1, 1, 0]]  # type: ignore[union-attr]
    assert dataset[-1].id == "sub/d.png"
    assert dataset[-3].labels.tolist() == [0, 1, 1]  # type: ignore[union-attr]  # it has labels
    assert dataset[1].path == str(root / "b,c.png")
    assert (dataset[1].image == 1).all()
    check_dataset(dataset)


def test_one_label_other_column_order_and_a_byte_order_mark(root: Path) -> None:
    dataset = TableDataset(write_table(root, "labels, file", "dog,a.png", "", "cat,sub/d.png", encoding="utf-8-sig"))
    assert dataset.classes == ("cat", "dog")
    assert [dataset[index].label for index in range(2)] == [1, 0]
    check_dataset(dataset)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "expected the columns file,labels"),
        (["name,label", "a.png,x"], "expected the columns file,labels, got 'name,label'"),
        (["a.png,x"], "expected the columns file,labels"),
        (
            ["filename,width,class,xmin,ymin,x_max,y_max", "a.png,9,x,1,1,2,2"],
            "its rows are boxes: for detection write them as COCO",
        ),
        (["file,labels"], "has no rows"),
        (["file,labels", "a.png,x", "b,c.png,x"], r":3: expected 2 cells, got 3"),
        (["file,labels", "a.png"], r":2: expected 2 cells, got 1"),
        (["file,labels", "a.png,x", "missing.png,x"], r":3: there is no file .*missing\.png"),
        (["file,labels", "sub,x"], r":2: .*sub is not a file"),
        (["file,labels", ",x"], r":2: '' is not a path inside"),
        (["file,labels", "a.png,x", "sub/d.png,x", "a.png,x"], r":4: 'a\.png' stands in line 2 already"),
        (["file,labels", "a.png,x", "./a.png,y"], r":3: 'a\.png' stands in line 2 already"),
        (["file,labels", "sub/d.png,x", "sub//./d.png,y"], r":3: 'sub/d\.png' stands in line 2 already"),
        (["file,labels", "a.png,"], r":2: expected one label, got 0"),
        (["file,labels", "a.png,x;y"], r":2: expected one label, got 2.*data\.multilabel"),
        (["file,labels", "a.png,x;;y"], r":2: a label is empty"),
        (["file,labels", "a.png,x;x"], r":2: a label stands there twice"),
        (["file,labels", 'a.png,"x'], "cannot be read as a CSV file"),
        (["file,labels", "a.png,x", f"{'b' * 5000}.png,y"], r":3: there is no file"),
    ],
)
def test_mistakes_are_named_with_their_line(root: Path, lines: list[str], message: str) -> None:
    path = write_table(root, *lines)
    with pytest.raises(UserError, match=message) as caught:
        TableDataset(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding_is_refused_by_its_line(root: Path) -> None:
    for encoding, line in (("latin-1", 3), ("utf-16", 1)):
        path = write_table(root, "file,labels", "a.png,x", "sub/d.png,schön", encoding=encoding)
        with pytest.raises(
            UserError, match=rf"train\.csv, line {line}: expected UTF-8, got .*; save the file as UTF-8"
        ):
            TableDataset(path)


ESCAPES = (
    "../outside.png",
    "sub/../../outside.png",
    "/etc/hostname",
    "..",
    r"..\outside.png",
    r"C:\a.png",
    r"\a",
    "link.png",
    "links/o.png",
)


@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_leads_out_of_the_folder(root: Path, name: str) -> None:
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere/o.png").touch()
    (root / "links").symlink_to(root.parent / "elsewhere")
    with pytest.raises(UserError, match=r"train\.csv:2: .*(not a path inside|a link that leaves)"):
        TableDataset(write_table(root, "file,labels", f"{name},x"))


def test_links_inside_the_folder_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to(root / "sub/d.png")
    assert (TableDataset(write_table(root, "file,labels", "link.png,x"))[0].image == 2).all()


def test_factory(root: Path) -> None:
    write_table(root, "file,labels", "a.png,dog", "sub/d.png,cat")
    write_table(root, "file,labels", "a.png,cat;dog", name="v.csv")
    data = DataConfig(name="table", root=str(root), val="v.csv")
    train = table(data, "train", None)
    assert (train.classes, train[0].label) == (("cat", "dog"), 1)
    several = table(DataConfig(name="table", root=str(root), val="v.csv", multilabel=True), "val", train.classes)
    assert several[0].labels.tolist() == [1, 1]  # type: ignore[union-attr]  # it has labels
    with pytest.raises(UserError, match=r"v\.csv:2: unknown class 'cat'.*known: dog, mouse"):
        table(DataConfig(name="table", root=str(root), val="v.csv", multilabel=True), "val", ("dog", "mouse"))


def test_classes_by_list_or_file_and_images_elsewhere(root: Path) -> None:
    (root / "tables").mkdir()
    write_table(root, "file,labels", "a.png,dog", name="tables/train.csv")
    (root / "names.txt").write_text("zebra\ndog\n\n")
    for classes in ("names.txt", ["zebra", "dog"]):
        data = DataConfig(
            name="table", root=str(root), train="tables/train.csv", options={"classes": classes, "image_root": "."}
        )
        assert table(data, "train", None).classes == ("zebra", "dog")
    for options, message in (
        ({"classes": "none.txt"}, r"none\.txt: cannot be read"),
        ({"classes": ["dog", "dog"]}, r"data\.options\.classes: expected different"),
        ({"classes": []}, r"data\.options\.classes"),
        ({"image_root": "nowhere"}, r"data\.options\.image_root: there is no folder 'nowhere'"),
        ({"image_rot": "."}, "did you mean image_root"),
    ):
        with pytest.raises(UserError, match=message):
            table(DataConfig(name="table", root=str(root), train="tables/train.csv", options=options), "train", None)


def test_missing_table(root: Path) -> None:
    with pytest.raises(UserError, match=r"test\.csv: cannot be read: No such file"):
        table(DataConfig(name="table", root=str(root)), "test", None)


def opened(root: Path, *, multilabel: bool = False, **options: object) -> TableDataset:
    return table(DataConfig(name="table", root=str(root), multilabel=multilabel, options=options), "train", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(root: Path, delimiter: str) -> None:
    write_table(
        root, delimiter.join(("file", "labels")), delimiter.join(("a.png", "7")), delimiter.join(("sub/d.png", "3"))
    )
    dataset = opened(root)
    assert (dataset.classes, dataset[0].label, dataset[1].label) == (("3", "7"), 1, 0)


def test_other_columns_need_no_second_guess(root: Path) -> None:
    """The first line that is refused names all options that the table needs."""
    write_table(root, "when,id_code,diagnosis", "x,d,0", "y,e,1", "z,f,1")
    for name in ("e", "f"):
        write_picture(root / f"sub/{name}.png")
    with pytest.raises(UserError) as caught:
        opened(root)
    said = dict(
        part.removeprefix("data.options.").split(": ")
        for part in str(caught.value).rpartition("; set ")[2].split(", data.options.")
    )
    assert said == {"columns": "[id_code, diagnosis]", "image_root": str(root / "sub"), "suffix": ".png"}
    said["columns"] = said["columns"].strip("[]").split(", ")
    dataset = opened(root, **said)
    assert (dataset.classes, len(dataset), dataset[0].id, dataset[0].path) == (
        ("0", "1"),
        3,
        "d",
        str(root / "sub/d.png"),
    )
    assert dataset.notes == ("columns passed over: when",)
    with pytest.raises(
        UserError, match=r"there is no file .*/d; set data\.options\.image_root: .*sub and .*suffix: \.png"
    ):
        opened(root, columns=["id_code", "diagnosis"])
    with pytest.raises(UserError, match=r"there is no column 'diagnose'; did you mean diagnosis"):
        opened(root, columns=["id_code", "diagnose"])
    with pytest.raises(
        UserError,
        match=r"data\.options\.columns: expected the column of files, and that of labels or those of all classes",
    ):
        opened(root, columns=["id_code"])


JOINED = {
    "|": ("scab", "scab|rust", "rust", "well"),
    ",": ('"scab,rust"', '"rust,mould"', "well", "well"),
    " ": ("scab", "scab rust", "rust", "well"),
    "-": ("scab", "scab-rust", "rust", "well"),
}


@pytest.mark.parametrize("character", JOINED)
def test_labels_joined_by_another_character_are_asked_for(root: Path, character: str) -> None:
    for name in ("e", "f"):
        write_picture(root / f"{name}.png")
    files = ("a.png", "sub/d.png", "e.png", "f.png")
    write_table(root, "file,labels", *map(",".join, zip(files, JOINED[character], strict=True)))
    with pytest.raises(UserError, match=r"no row has ';'.*look like several.*data\.options\.separator") as caught:
        opened(root, multilabel=True)
    assert repr(character) in str(caught.value)
    several = opened(root, multilabel=True, separator=character)
    assert set(several.classes) <= {"scab", "rust", "mould", "well"}
    assert len(opened(root, separator=";").classes) == len(set(JOINED[character]))


def test_class_names_with_spaces_are_no_lists(root: Path) -> None:
    write_table(root, "file,labels", "a.png,traffic light", "sub/d.png,traffic sign")
    assert opened(root).classes == ("traffic light", "traffic sign")


def test_backslashes_and_accents(root: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Prüfung.png") for form in ("NFC", "NFD"))
    write_picture(root / "sub" / decomposed, level=9)
    write_table(root, "file,labels", rf"sub\{composed},x", r"sub\d.png,y")
    dataset = opened(root)
    assert [int(dataset[index].image[0, 0, 0]) for index in range(2)] == [9, 2]
    write_table(root, "file,labels", rf"sub\{composed},x", f"sub/{decomposed},x")
    with pytest.raises(UserError, match="stands in line 2 already"):
        opened(root)


def test_labels_are_renamed_and_merged(root: Path) -> None:
    write_table(root, "file,labels", "a.png,car;bus", "sub/d.png,tree")
    dataset = opened(root, multilabel=True, rename=["car=vehicle", "bus=vehicle"])
    assert dataset.classes == ("tree", "vehicle")
    assert [dataset[index].labels.tolist() for index in range(2)] == [[0, 1], [1, 0]]  # type: ignore[union-attr]  # it has labels
    with pytest.raises(UserError, match=r"data\.options\.rename: there is no label 'cart'.*did you mean car"):
        opened(root, multilabel=True, rename=["cart=vehicle"])
    with pytest.raises(UserError, match=r"'car' is renamed twice"):
        opened(root, multilabel=True, rename=["car=vehicle", "car=auto"])


def test_whole_numbers_are_names(root: Path) -> None:
    write_table(root, "file,labels", "a.png,2", "sub/d.png,0")
    assert opened(root, classes=[2, 1, 0]).classes == ("2", "1", "0")
    for classes, message in (([0, 0], "'0' stands there twice"), ([0, True], "in quotes"), ([], "at least one")):
        with pytest.raises(UserError, match=message):
            opened(root, classes=classes)


def test_groups(root: Path) -> None:
    write_table(root, "file,labels,patient", "a.png,x,p1", "sub/d.png,y,p2")
    assert opened(root, group="patient").groups == ("p1", "p2")
    assert opened(root).notes == ("columns passed over: patient",)


def test_check_counts_the_labels_of_a_table(root: Path) -> None:
    write_table(root, "file,labels", "a.png,x", "sub/d.png,y", '"b,c.png",x')
    assert _class_counts(opened(root)) == "2 classes: x 2, y 1"
