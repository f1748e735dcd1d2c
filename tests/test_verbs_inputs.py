"""What the words of a line name: files, folders, globs, lists through standard input."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests_support import one_line

from effbackbones.errors import UserError
from tasks.verbs.inputs import image_files, listed, named_inputs


def touched(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize(("end", "blank"), [(b"\n", b"\n"), (b"\r\n", b"\r\n"), (b"\0", b"")])
def test_a_list_names_files_with_spaces_accents_and_without_a_last_line_end(
    end: bytes, blank: bytes, tmp_path: Path
) -> None:
    files = touched(tmp_path, "a b.jpg", "größe.png", "日本/x.jpg")
    told: list[str] = []
    for last in (end, b""):
        text = end.join(os.fsencode(file) for file in files) + (last or (b"\0" if end == b"\0" else b""))
        assert listed(io.BytesIO(blank + text), told.append) == files
    assert told == ["standard input: 1 blank lines are passed over"] * 2 * bool(blank)


def test_zero_bytes_keep_a_name_that_holds_a_line_end_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    files = touched(tmp_path, "two\nlines.jpg", os.fsdecode(b"\xff.jpg"))
    assert listed(io.BytesIO(b"\0".join(map(os.fsencode, files)) + b"\0")) == files


def test_what_a_list_has_wrong_is_named_by_its_line(tmp_path: Path) -> None:
    (file,) = touched(tmp_path, "a.jpg")
    text = f"{file}\n\n{tmp_path}\n{tmp_path}/gone.jpg\n".encode()
    with pytest.raises(UserError) as caught:
        listed(io.BytesIO(text))
    one_line(caught, "standard input, line 3", "is a folder", "1 more: line 4")
    with pytest.raises(UserError) as caught:
        listed(io.BytesIO(b"\n\n"))
    one_line(caught, "standard input", "lists no file")
    with pytest.raises(UserError) as caught:
        image_files(["-", "-"])
    one_line(caught, "-", "there twice")


def test_an_image_that_is_named_twice_is_taken_once_and_what_is_passed_over_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, *_ = touched(tmp_path, "a/1.jpg", "a/deep/2.png", "a/.hidden.jpg", "a/t.txt", "a/u.txt", "a/README")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    told: list[str] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(f"{two}\n".encode())))
    folders: Any = [str(tmp_path / "a"), str(tmp_path / "a" / "deep"), str(tmp_path / "b"), "-"]
    assert image_files(folders, tell=told.append) == [one, two]
    assert told == [
        "4 images are named more than once, and predicted once",
        "passed over in folders: 4 .txt, 2 hidden, 2 links that lead nowhere, 2 without an ending",
    ]


def test_videos_in_folders_are_taken_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called like one and is none (TypeScript) is passed over; so are videos beside images where nothing reads them."""
    image, *_ = touched(tmp_path, "a/1.jpg", "a/clip.mp4", "a/deep/clip.MKV", "a/deep/code.ts", "a/stream.ts")
    (tmp_path / "a/stream.ts").write_bytes(b"G" + bytes(187))
    (tmp_path / "a/deep/code.ts").write_text("const a = 1")
    folder, told = str(tmp_path / "a"), list[str]()
    films = [f"{folder}/{name}" for name in ("clip.mp4", "deep/clip.MKV", "stream.ts")]
    monkeypatch.setattr("tasks.verbs.inputs.has_av", lambda: True)
    assert named_inputs([folder, films[1]], tell=told.append) == ([image], films)
    assert told == ["passed over in folders: 1 .ts"]
    monkeypatch.setattr("tasks.verbs.inputs.has_av", lambda: False)
    assert named_inputs([folder], tell=told.append) == ([image], [])
    assert image_files([folder], tell=told.append) == [image]
    assert told[1:] == [
        "passed over in folders: 3 videos, which need PyAV, 1 .ts",
        "passed over in folders: 3 videos, 1 .ts",
    ]
    assert named_inputs([f"{folder}/deep"]).videos == films[1:2]  # for which PyAV is asked by name
    with pytest.raises(UserError) as caught:
        image_files([f"{folder}/deep"])
    one_line(caught, "deep: no image found, but 1 videos", "predict takes videos")
