"""Names of installed packages: entry points as an installer writes them."""

import os
import sys
from pathlib import Path

import pytest
from tests_support import one_line

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
