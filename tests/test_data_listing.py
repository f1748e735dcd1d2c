"""Listing of folders, links in them, and names whose accents are written in two ways."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from effbackbones.errors import UserError
from tasks.data.dataset import DATASETS
from tasks.data.files.images import check_files, images_below
from tasks.data.files.listing import Lookup, Spelling, files_below, stem
from tasks.settings.data import DataConfig

NFC, NFD = (unicodedata.normalize(form, "Prüfung") for form in ("NFC", "NFD"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_hidden_names_are_passed_over_and_links_to_folders_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "b/2.png", "b/._2.png", ".git/3.png", "b/.DS_Store", "1.jpg", "note.txt", "store/deep/4.png")
    touch(root, "b/@eaDir/2.png/THUMB.jpg", "__MACOSX/b/2.png", "$RECYCLE.BIN/1.png")
    (root / "linked").symlink_to("store/deep")
    (root / "5.png").symlink_to("1.jpg")
    (root / "nowhere.png").symlink_to("gone.png")
    assert images_below(root) == ["1.jpg", "5.png", "b/2.png", "linked/4.png", "store/deep/4.png"]
    assert files_below(root, lambda name: name.endswith(".txt")) == ["note.txt"]


@pytest.mark.parametrize("target", [".", "..", "../b"])
def test_link_to_a_folder_it_lies_in_is_refused_in_a_line(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "a/b/1.png")
    (tmp_path / "a/b/again").symlink_to(target)
    with pytest.raises(UserError, match=r"again: is a link to .*, a folder it lies in; remove the link"):
        images_below(tmp_path)


def test_links_through_each_other_are_a_loop(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/x").symlink_to("../b")
    (tmp_path / "b/y").symlink_to("../a")
    with pytest.raises(UserError, match="a folder it lies in"):
        images_below(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_that_leave_the_root_need_an_option(tmp_path: Path, kind: str) -> None:
    touch(tmp_path, "out/1.png", "root/set/0.png")
    (tmp_path / "root/set/x.png").symlink_to(tmp_path / ("out/1.png" if kind == "file" else "out"))
    with pytest.raises(UserError, match=r"x.png: is a link that leaves .*; set data.links: anywhere"):
        images_below(tmp_path / "root/set")
    expected = ["0.png", "x.png" if kind == "file" else "x.png/1.png"]
    assert images_below(tmp_path / "root/set", links="anywhere") == expected
    assert images_below(tmp_path / "root/set", root=tmp_path) == expected  # inside of that
    assert check_files(tmp_path / "root/set", expected, str, "", links="anywhere") == expected


def test_what_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: cannot be listed: No such file"):
        files_below(tmp_path / "gone")


@pytest.mark.parametrize(("there", "said"), [(NFC, NFD), (NFD, NFC)])
def test_accents_written_in_the_other_way_are_found(tmp_path: Path, there: str, said: str) -> None:
    touch(tmp_path, f"{there}/{there} 1.png")
    if os.listdir(tmp_path) != [there]:
        pytest.skip("this file system changes names")
    spelling = Spelling(tmp_path)
    assert spelling.find(f"{said}/{said} 1.png") == f"{there}/{there} 1.png"
    assert [spelling.find(name) for name in (f"{said}/{said} 2.png", "x/y")] == [None, None]
    assert check_files(tmp_path, [f"{said}/{said} 1.png"], str, "") == [f"{there}/{there} 1.png"]
    lookup = Lookup([f"{there}.png", "b.c.png"], stem)
    assert [lookup.find(name) for name in (said, "b.c", "b")] == [f"{there}.png", "b.c.png", None]


def test_whole_paths_and_other_slashes_find_what_is_below_the_root(tmp_path: Path) -> None:
    root, linked = tmp_path / "data", tmp_path / "link"
    touch(root, "train/0.png")
    touch(tmp_path, "outside.png")
    linked.symlink_to(root)
    ways = [str(root / "train/0.png"), r"train\0.png", "train/0.png"]
    assert check_files(root, ways, str, "") == ["train/0.png"] * 3
    assert check_files(linked, [str(linked / "train/0.png"), ways[0]], str, "") == ["train/0.png"] * 2
    for outside in (tmp_path / "outside.png", root / "../outside.png", tmp_path / "data2/0.png"):
        with pytest.raises(UserError, match=r"0: .* is not a path inside"):
            check_files(root, [str(outside)], str, "")


def test_names_that_differ_in_their_accents_alone_keep_apart() -> None:
    other = unicodedata.normalize("NFC", "ệ"), unicodedata.normalize("NFD", "ệ")
    lookup = Lookup(other)
    assert [lookup.find(name) for name in other] == list(other)
    assert lookup.find("\u1eb9\u0302") is None  # a third way, that might be either


@pytest.mark.parametrize("kind", ["folder", "table", "masks"])
def test_one_rule_for_links_in_every_reader(tmp_path: Path, kind: str) -> None:
    """A folder outside that a link leads to: refused, or followed where ``data.links`` says so; a loop is one line."""
    root, outside = tmp_path / "data", tmp_path / "outside"
    (root / "train").mkdir(parents=True)
    Image.new("L", (4, 4)).save(write(outside / "0.png"))
    if kind == "folder":
        Image.new("L", (4, 4)).save(write(root / "train/a/1.png"))
        (root / "train/b").symlink_to(outside)
    elif kind == "table":
        (root / "linked").symlink_to(outside)
        (root / "train.csv").write_text("file,labels\nlinked/0.png,a\n")
    else:
        (root / "train/images").symlink_to(outside)
        (root / "train/masks").symlink_to(outside)
        (root / "classes.txt").write_text("a\nb\nc\n")
    opened = DATASETS.get(kind)
    with pytest.raises(UserError, match=r"is a link that leaves .*data\.links: anywhere"):
        opened(DataConfig(name=kind, root=str(root)), "train", None)
    dataset = opened(DataConfig(name=kind, root=str(root), links="anywhere"), "train", None)
    assert dataset[len(dataset) - 1].image.shape == (4, 4, 3)
    if kind == "folder":
        (outside / "loop").symlink_to(outside)
        with pytest.raises(UserError, match="a folder it lies in; remove the link"):
            opened(DataConfig(name=kind, root=str(root), links="anywhere"), "train", None)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
