"""``~`` and ``$VARIABLES`` in every key and option that is a path."""

import os
from pathlib import Path

import pytest

from effbackbones.errors import UserError
from tasks.settings.commandline import parse
from tasks.settings.paths import expanded
from tasks.settings.tree import absolute

KEYS = ("run.out", "run.resume", "data.root", "model.init_from", "model.weights")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("written", ["~/x", "$PLACE/x", "${PLACE}/x"])
def test_keys(key: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "x").touch()
    config = absolute(parse("classify", ["--config", "shapes", f"--{key}", written]).config)
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == str(tmp_path / "x")


def test_paths_are_stored_absolute_and_words_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["--config", "shapes", "--run.out", "runs/a", "--plugins", "[own.py, module]"]
    config = absolute(parse("classify", line).config)
    assert config.run.out == str(tmp_path / "runs/a")
    assert config.run.resume == "auto"
    assert config.plugins == (str(tmp_path / "own.py"), "module")


def test_options_and_inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    (tmp_path / "$PLACE").touch()
    extras = parse("classify", ["predict", "--checkpoint=$PLACE/m", "--out=$PLACE/o", "$PLACE/a.jpg"]).extras
    assert (extras.checkpoint, extras.out, extras.inputs) == (
        f"{tmp_path}/m",
        f"{tmp_path}/o",
        (f"{tmp_path}/a.jpg",),
    )
    monkeypatch.chdir(tmp_path)
    assert expanded("$PLACE", "here") == "$PLACE"  # a file of that name


def test_what_has_no_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for written in ("$NOWHERE/x", "${NOWHERE}/x", "~nobody-of-that-name/x"):
        config = parse("classify", ["--config", "shapes", "--run.out", written]).config
        with pytest.raises(UserError, match=r"^run\.out: .*(no value|not known)"):
            absolute(config)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**20 + 7)  # nor has the account one
    if "pwd" in os.path.expanduser.__code__.co_names:
        with pytest.raises(UserError, match="home folder"):
            expanded("~/x", "run.out")
