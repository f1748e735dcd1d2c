"""Loader processes: every wait for them ends, says which one, what it was reading and why; and they end with their reader."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import ONE_THREAD, ROOT, error_of, one_line

from effbackbones import build_model, save_model
from effbackbones.errors import UserError
from tasks.classify import main
from tasks.data.batch import KeyedDataset, Sample
from tasks.data.collating import class_targets, collate
from tasks.data.files.slate import Slate, reading_file
from tasks.engine import loading
from tasks.engine.loading import Loader, _Waited
from tasks.verbs.command import explain

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


class Numbers:
    """Sixteen samples of one number each; ``fault`` happens at sample 5."""

    classes = ("a", "b")

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Sample:
        reading_file(f"{index}.png")
        if index == 5:
            faults = {
                "sleeps": lambda: time.sleep(600),
                "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
                "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "ends": lambda: os._exit(0),
                "raises": lambda: int("seven"),
            }
            faults.get(self.fault, lambda: None)()
        return Sample(np.full((2, 2, 3), index, np.uint8), str(index), label=index % 2)


def loader(fault: str = "", workers: int = 2, timeout: float = 60.0) -> Loader:
    batches = [[(0, index), (0, index + 1)] for index in range(0, 16, 2)]
    made = partial(collate, targets=class_targets, fill=(0.5, 0.5, 0.5))
    return Loader(KeyedDataset(Numbers(fault)), batches, made, workers=workers, timeout=timeout, pin=False, seed=0)


def values(batches: Any) -> list[int]:
    return [int(value) for batch in batches for value in batch.images[:, 0, 0, 0]]


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_all_batches_in_order(workers: int) -> None:
    assert values(loader(workers=workers)) == list(range(16))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("sleeps", ["no batch came within 1 seconds", "data.timeout"]),
        ("is stopped", ["is stopped", "kill -CONT"]),
        ("is killed", ["SIGKILL", "memory may have run out"]),
        ("ends", ["ended by itself with code 0", "data.workers 0"]),
    ],
)
def test_a_loader_that_gives_nothing_more(fault: str, words: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        values(loader(fault, timeout=1.0))
    one_line(error, "worker 0", "sample 5, file 5.png", *words)  # the third batch is that of the first process
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("workers", [0, 2])
def test_code_that_raises_says_where_and_what(workers: int) -> None:
    with pytest.raises(ValueError) as error:
        values(loader("raises", workers))
    line, code = explain(error.value)
    assert line == (
        "data: while reading sample 5 of Numbers: ValueError invalid literal for int() with base 10: 'seven'; "
        "EFFBACKBONES_DEBUG=1 shows where"
    )
    assert code == 1


def test_a_reader_that_leaves_takes_its_processes_along() -> None:
    batches = iter(loader("sleeps"))
    next(batches)
    start = time.monotonic()
    del batches
    assert multiprocessing.active_children() == []  # also the one that sleeps
    assert time.monotonic() - start < 3


def test_no_shared_memory(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "share_memory_", refuse)  # in the loader processes, which are forked
        assert values(loader()) == list(range(16))
    told = capsys.readouterr().err
    assert told.count("cannot hold the batches") == 1
    assert "No space left on device" in told
    assert "--shm-size" in told
    monkeypatch.setattr("tempfile.tempdir", f"/tmp/{'long/' * 20}")
    assert values(loader()) == list(range(16))
    assert "TMPDIR is too long for a socket" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "words"), [(30, "Read-only file system"), (24, "ulimit -n")])
def test_no_means_to_start_loaders(number: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(self: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(loading.DataLoader, "_get_iterator", refuse)
    if number == 24:
        with pytest.raises(UserError) as error:
            iter(loader())
        one_line(error, "data.workers", "Too many open files", words)
    else:
        monkeypatch.undo()
        original = loading.DataLoader._get_iterator
        monkeypatch.setattr(loading.DataLoader, "_get_iterator", lambda s: refuse(s) if s.num_workers else original(s))
        assert values(loader()) == list(range(16))
        assert words in capsys.readouterr().err


LEAVING = """
import sys
sys.path[:0] = ["tests"]
from test_engine_loading import loader
batches = iter(loader("sleeps"))
next(batches)
keep = batches.__next__, [batches]
keep[1].append(keep)  # found by no count of references
raise SystemExit(2)
"""


def test_a_process_ends_although_its_loaders_hang() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert time.monotonic() - start < 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(task="cls", backbone="b0", num_classes=2, backbone_options={"width": 0.25, "depth": 0.3})
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(model, file, classes=("a", "b"))
    return file


@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_predict_of_nothing_but_unreadable_files(workers: str, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    files = [tmp_path / "bad.jpg", tmp_path / "other.webp"]
    for file in files:
        file.write_bytes(b"x")
    line = ["predict", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--data.workers", workers]
    for inputs in (files, files[:1], files[1:]):
        assert main([*line, *map(str, inputs)]) == 2
        assert "cannot be read as an image" in error_of(capsys)
        assert multiprocessing.active_children() == []


def test_a_connection_that_breaks_before_its_process_counts_as_dead_names_the_process() -> None:
    """For a moment a process that ends is alive still, and its connection gone."""
    dying = multiprocessing.get_context("fork").Process(target=_end_soon)
    dying.start()
    waited = object.__new__(_Waited)
    waited.timeout, waited.slate, waited.processes, waited.ended = 5.0, Slate(1), [dying], True
    coming: Future[Any] = Future()
    coming.set_exception(ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(UserError, match="worker 0: ended by itself with code 1"):
        waited._waited_for(coming)
    dying.join()


def _end_soon() -> None:
    time.sleep(0.2)
    os._exit(1)
