"""What a command says: no failure of a stream ends it; lines in the place of bars where nobody looks."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests_support import ONE_THREAD, ROOT

from tasks import telling
from tasks.telling import Teller, unfailing_streams


class Failing(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        self.write("")


@pytest.mark.parametrize("number", [28, 32])
def test_streams_that_cannot_be_written(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Failing(number), Failing(number)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    with unfailing_streams(), unfailing_streams():
        print("a")
        print("b", file=sys.stderr, flush=True)
        Teller(True)("c")
        assert list(Teller(True).watch([1, 2], "d")) == [1, 2]
    assert (sys.stdout, sys.stderr) == (out, err)


def test_a_poor_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(stored, "ascii"))
    with unfailing_streams():
        print("Prüfung \udcff.jpg")
    assert stored.getvalue() == b"Pr\\xfcfung \\udcff.jpg\n"


def test_lines_in_the_place_of_bars(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    tell = Teller(True)
    with tell.bar(100, 0, "train", "step"):
        for step in range(1, 31):
            now[0] += 1.0
            figures = {"loss": "0.1234", "lr": "0.00123", "img/s": "1234", "data wait": "100%"}
            tell.step(step, 5, figures)
    for _ in tell.watch(range(25), "evaluate"):
        now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "step 10/100",
        "step 20/100",
        "step 30/100",
        "evaluate 10/25",
        "evaluate 20/25",
    ]
    assert "\r" not in "".join(lines)
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("target", ["full disk", "reader gone"])
def test_help_into_a_pipe_that_closes(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.classify", "--help"]
    if target == "reader gone":
        source, sink = os.pipe()
        os.close(source)
    elif not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full")
    else:
        sink = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, stdout=sink, stderr=subprocess.PIPE, text=True)
    os.close(sink)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert ("No space left" in done.stderr) == (target == "full disk")
