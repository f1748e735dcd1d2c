"""Graphs kept on disk are found again by what they depend on, whole whatever ends the process that makes them, and bounded."""

import copy
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import nn

from effbackbones import Model, build_model
from effbackbones.inference.backends import cache
from effbackbones.inference.backends.cache import fingerprint, graph_folder, kept


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFBACKBONES_CACHE", str(tmp_path))
    return tmp_path / "graphs"


def network() -> Model:
    torch.manual_seed(0)
    return build_model("cls", "lite0", num_classes=2, backbone_options={"width": 0.25, "depth": 0.3}).eval()


def test_a_graph_is_known_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    own = fingerprint(model, (32, 32))
    assert fingerprint(copy.deepcopy(model), (32, 32)) == own
    others = {own, fingerprint(model, (32, 64))}
    changed = copy.deepcopy(model)
    changed.use_image_spec(replace(model.image_spec, mean=(0.1, 0.2, 0.3)))
    others.add(fingerprint(changed, (32, 32)))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).mul_(1.001)
    others.add(fingerprint(changed, (32, 32)))
    changed = copy.deepcopy(model)
    changed.head.fc = nn.Sequential(changed.head.fc, nn.Identity())  # the same numbers under other names
    others.add(fingerprint(changed, (32, 32)))
    changed = copy.deepcopy(model)
    changed.config["head_options"] = {"dropout": 0.1}
    others.add(fingerprint(changed, (32, 32)))
    monkeypatch.setattr(cache, "versions", lambda: {"torch": "1"})
    others.add(fingerprint(model, (32, 32)))
    assert len(others) == 7


def test_a_file_is_made_once_and_whole(folder: Path) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept("a", broken)
    assert list(folder.iterdir()) == []
    together = Barrier(2)

    def slow(path: Path) -> None:
        together.wait()  # both are making it
        path.write_bytes(b"whole")

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: kept("a", slow), range(2)))
    assert [(path.name, path.read_bytes(), made) for path, made in found] == [("a.onnx", b"whole", True)] * 2
    assert kept("a", broken) == (folder / "a.onnx", False)
    assert kept("a", lambda path: path.write_bytes(b"new") and None, anew=True)[0].read_bytes() == b"new"
    assert [path.name for path in folder.iterdir()] == ["a.onnx"]


def test_what_was_not_used_for_longest_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 25)
    for number, name in enumerate("abc"):
        path, _ = kept(name, lambda path: path.write_bytes(b"1234567890") and None)
        if path.exists():
            os.utime(path, (1000 + number, 1000 + number))
        if name == "b":
            kept("a", lambda path: pytest.fail("it is there"))  # used now
    left = folder / ".killed.onnx"
    left.write_bytes(b"part")
    kept("d", lambda path: path.write_bytes(b"1234567890") and None)
    assert left.exists()  # somebody may be writing it
    os.utime(left, (time.time() - 7200,) * 2)
    kept("e", lambda path: path.write_bytes(b"1234567890") and None)
    assert {path.name for path in folder.iterdir()} <= {"a.onnx", "d.onnx", "e.onnx"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25
    monkeypatch.setattr(cache, "MOST_BYTES", 5)
    larger, _ = kept("f", lambda path: path.write_bytes(b"1234567890") and None)
    assert list(folder.iterdir()) == [larger]  # what is being used stays


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFBACKBONES_CACHE", str(tmp_path / "file"))
    path, made = kept("a", lambda path: path.write_bytes(b"whole") and None)
    assert made
    assert path.read_bytes() == b"whole"
    assert path.parent != graph_folder()
    path.unlink()


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_no_graph(folder: Path) -> None:
    program = (
        "import time\nfrom effbackbones.inference.backends.cache import kept\n"
        "def make(path):\n    path.write_bytes(b'half')\n    print('now', flush=True)\n    time.sleep(60)\n"
        "kept('a', make)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert not (folder / "a.onnx").exists()
    assert kept("a", lambda path: path.write_bytes(b"whole") and None)[0].read_bytes() == b"whole"
