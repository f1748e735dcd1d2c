"""Signals are answered wherever a run is, and what was done is saved; handlers are put back, and left alone outside of the main thread."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_support import ONE_THREAD, ROOT, TINY

from effbackbones.weights.tensorfile import read_tensors
from tasks.classification.task import TASK
from tasks.classify import main
from tasks.data.batch import KeyedDataset
from tasks.engine import signals
from tasks.engine.judging import Judge
from tasks.engine.signals import Signals, StoppedError

HANDLED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGCHLD")


@pytest.fixture(autouse=True)
def hears_of_hang_ups() -> Iterator[None]:
    """Also under nohup, which leaves SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def run(folder: Path, *more: str) -> int:
    return main([*TINY, "--optim.epochs", "1", "--run.out", str(folder), *more])


def state(folder: Path) -> dict[str, bytes]:
    tensors, _ = read_tensors(sorted((folder / "checkpoints").glob("step-*.safetensors"))[-1])
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The end of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(folder) == 0
    return state(folder)


def hanging(after: int, number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, but its call number ``after`` asks the training process to stop and does not return."""
    calls, training = [0], os.getpid()

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == after:
            os.kill(training, number)
            time.sleep(600)
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("place", "name", "after", "workers", "step"),
    [
        (KeyedDataset, "_read", 20, "0", "2"),
        (KeyedDataset, "_read", 20, "1", "[012]"),  # that process reads ahead
        (type(TASK), "augment", 3, "0", "2"),
        (type(TASK), "restored", 2, "0", "4"),  # in the evaluation
    ],
)
def test_what_hangs_is_left_and_nothing_is_lost(
    place: type,
    name: str,
    after: int,
    workers: str,
    step: str,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.2)
    before, start = [signal.getsignal(getattr(signal, name)) for name in HANDLED], time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, hanging(after, signal.SIGHUP, getattr(place, name)))
        assert run(tmp_path / "run", "--data.workers", workers) == 143
    assert time.monotonic() - start < 10
    assert re.search(f"stopped by SIGTERM after step {step}, which is saved", capsys.readouterr().err)
    assert [signal.getsignal(getattr(signal, name)) for name in HANDLED] == before
    assert run(tmp_path / "run", "--data.workers", workers) == 0
    assert state(tmp_path / "run") == whole


def test_signals_in_set_up_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def at(place: type, name: str, *numbers: int) -> None:
        real = getattr(place, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            for number in numbers:
                os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        monkeypatch.setattr(place, name, call)

    at(type(TASK), "preflight", signal.SIGUSR1, signal.SIGTERM)
    assert run(tmp_path / "run") == 143
    assert capsys.readouterr().err.splitlines()[-1] == "stopped by SIGTERM"
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    at(type(TASK), "preflight", signal.SIGUSR1)
    at(Judge, "finish", signal.SIGUSR1, signal.SIGINT)
    assert run(tmp_path / "run") == 130
    monkeypatch.undo()
    assert run(tmp_path / "run") == 0
    assert "continuing after step 4 of 4" in capsys.readouterr().err


def test_outside_of_the_main_thread_nothing_is_changed(tmp_path: Path) -> None:
    before, codes = signal.getsignal(signal.SIGTERM), list[int]()
    thread = threading.Thread(target=lambda: codes.append(run(tmp_path / "run", "--data.workers", "1")))
    thread.start()
    thread.join(60)
    assert codes == [0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as found:
            os.kill(os.getpid(), signal.SIGHUP)
            assert found.level == 0
            with pytest.raises(StoppedError):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


DEAF = """
import hashlib, os, signal
from tasks.engine import signals
signals.GRACE, signals.LAST = 0.2, 0.5
with signals.Signals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # many minutes, in which Python hears of nothing
"""


def test_a_call_that_does_not_return_ends_with_the_process() -> None:
    command = [sys.executable, "-c", DEAF]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)  # it is in that call by now
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 143, told
    assert told.startswith("stopped by SIGTERM in the midst")


def test_a_process_that_lives_on_does_not_keep_the_watch() -> None:
    """A loader process has a copy of all that was open; an evaluation that fails ends while it is still there."""
    with Signals():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
    assert child.is_alive()
    child.kill()
    child.join()
