"""Names of installed packages: entry points as an installer writes them."""

import os
import sys
from importlib import invalidate_caches
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path

import pytest
from tests_support import one_line

from effbackbones import registry
from effbackbones.errors import UserError
from effbackbones.registry import Registry


def install(folder: Path, package: str, *lines: str) -> None:
    """The metadata of an installed package with these entry points of toys."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[effbackbones.toys]", *lines]))


def test_one_name_of_two_packages_is_refused_naming_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "first-nets", "net = os.path:join", "own = os.path:split")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    toys = Registry("toy", {"built": "effbackbones.errors:nearest"})
    assert toys.names() == ["built", "net", "own"]
    assert toys.get("net") is os.path.join
    install(tmp_path / "other", "second-nets", "net = os.path:split", "own = os.path:split")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), *sys.path])
    with pytest.raises(UserError) as error:
        toys.get("net")
    one_line(error, "toy 'net'", "os.path:join (first-nets)", "os.path:split (second-nets)")
    assert toys.get("built")("a", ["a"])  # needs no installed package


def test_an_installed_thing_that_takes_a_name_is_refused_naming_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a built-in, and of what this process registered; a package that uses both doors for one thing is no second owner."""
    install(
        tmp_path,
        "eager-nets",
        "built = os.path:join",
        "x1.5 = os.path:join",
        "own = os.path:split",
        "both = tests_support:one_line",
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    toys = Registry(
        "toy", {"built": "effbackbones.errors:nearest"}, patterns={r"x\d\.\d": "effbackbones.errors:nearest"}
    )
    for name in ("built", "x1.5"):
        with pytest.raises(UserError) as error:
            toys.get(name)
        one_line(
            error, f"toy '{name}'", "effbackbones.errors:nearest", "os.path:join (eager-nets)", "uninstall eager-nets"
        )
    assert toys.names() == ["both", "built", "own"]  # what nobody asks for stops nobody
    with pytest.raises(UserError, match=r"no such name; .*known: both, built, own"):
        toys.get("bulit")
    own = Registry("toy")
    with own.temporary({"own": one_line}):
        with pytest.raises(UserError) as error:
            own.get("own")
        one_line(error, "toy 'own'", "tests_support.py:one_line", "os.path:split (eager-nets)")
    with own.temporary({"both": one_line}):
        assert own.get("both") is one_line


def test_an_installed_thing_that_takes_an_alias_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "eager-nets", "short = os.path:join")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    toys = Registry("toy", {"built": "effbackbones.errors:nearest"}, {"short": "built"})
    assert toys.names() == ["built"]
    for name in ("short", "built"):
        with pytest.raises(UserError, match="eager-nets"):
            toys.get(name)


def test_metadata_of_packages_are_read_once_but_what_is_installed_meanwhile_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def reading(group: str) -> EntryPoints:
        reads.append(group)
        return entry_points(group=group)

    monkeypatch.setattr(registry, "entry_points", reading)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    toys = Registry("toy", {"built": "effbackbones.errors:nearest"})
    for _ in range(5):
        assert toys.get("built")
    assert len(reads) == 1
    install(tmp_path, "late-nets", "late = os.path:join")
    invalidate_caches()
    assert toys.get("late") is os.path.join
    assert toys.names() == ["built", "late"]


def test_names_of_a_pattern_are_built_in() -> None:
    toys = Registry("toy", patterns={r"x\d\.\d": "effbackbones.errors:nearest"})
    assert toys.get("x1.5")("a", ["a"])
    assert toys.names() == []
    assert toys.is_built_in("x1.5")
    with pytest.raises(UserError, match="no such name"):
        toys.get("x1")
    with pytest.raises(UserError, match=r"belongs to effbackbones\.errors"):
        toys.register("x1.5")(one_line)


def test_what_is_registered_for_a_while_is_gone_afterwards() -> None:
    toys = Registry("toy")
    toys.register("a")(one_line)
    with toys.temporary({"b": install}):
        assert toys.names() == ["a", "b"]
        with toys.temporary({}, alone=True):
            toys.register("a")(install)
            assert toys.get("a") is install
        toys.register("c")(Path)
    assert toys.names() == ["a"]
    assert toys.get("a") is one_line
