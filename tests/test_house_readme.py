"""README's Python blocks run as they stand, its commands exist, and so do the parts of one's own that the guide to plug-ins shows."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scenes import write_picture
from tests_support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")


def blocks(text: str, wanted: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language == wanted]


def commands(text: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


COMMANDS = commands(README)


def test_it_is_short_and_shows_what_comes_out() -> None:
    assert len(README.splitlines()) < 200
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+)\)", README)
    assert 10_000 < (ROOT / picture).stat().st_size < 200_000


def test_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    models, asking = blocks(README, "python")
    write_picture(Path("holiday.jpg"))
    names: dict[str, Any] = {}
    exec(compile(models, "README.md", "exec"), names)
    exec(compile(asking, "README.md", "exec"), {"__name__": "__main__"})  # a file of its own
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000_000
    assert "strides=(8, 16, 32)" in capsys.readouterr().out
    assert torch.equal(names["same"].predict(names["images"]), names["probabilities"])


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = [shlex.split(command)[1] for command in COMMANDS if command.startswith("make ")]
    assert asked == ["demo", "test"]
    assert set(asked) <= set(targets)


def test_a_fresh_shell_is_led_to_the_environment() -> None:
    first = COMMANDS.index(". .venv/bin/activate") + 1
    assert COMMANDS[first].startswith("effbackbones train classify ")
    from tasks.settings.commandline import parse

    config = parse("classify", shlex.split(COMMANDS[first])[3:]).config  # the first line needs no network and no files
    assert (config.data.name, config.model.weights) == ("shapes", None)
    bare = [sys.executable, "-S", "-m", "tasks.detect", "--config", "shapes"]  # a Python without packages
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "run `. .venv/bin/activate`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_makefile_says_what_it_downloads() -> None:
    dry = ["make", "-n", "-W", "pyproject.toml", "demo", "VENV=/nowhere/env", "CPU_INDEX=URL"]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "pip install --index-url URL torch torchvision" in done.stdout
    assert "about 6 GB of CUDA libraries" in done.stdout
    assert "--quiet" not in done.stdout
    assert "three minutes" not in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_named_commands_files_and_configs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r'(?<!")effbackbones-\w+', README)) <= set(project["scripts"])
    for path in re.findall(r"\]\(([A-Z]+\.md)\)", README) + re.findall(r"`(effbackbones/\w+\.py)`", README):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("module", ["my_head", "my_data"])
def test_custom_parts_train_from_the_command_line(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lend: Any
) -> None:
    """And the head keeps the promises, as the block after it says."""
    from effbackbones.registry import HEADS
    from tasks.classify import main
    from tasks.data.dataset import DATASETS
    from tasks.settings.commandline import parse

    monkeypatch.chdir(tmp_path)
    for registry in (HEADS, DATASETS):
        lend(registry, {}, alone=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module, ModuleType(module))  # so that what is imported is taken out at the end
    del sys.modules[module]
    parts = blocks(PLUGINS, "python")
    mark = {"my_head": "@register_head", "my_data": "@register_dataset"}[module]
    Path(f"{module}.py").write_text(next(block for block in parts if mark in block), encoding="utf-8")
    line = shlex.split(next(command for command in commands(PLUGINS) if f"{module}.py" in command))
    assert line[:3] == ["effbackbones", "train", "classify"]
    assert parse("classify", line[3:]).config.plugins == (f"{module}.py",)
    small = ["--optim.max_steps", "2", "--data.limit_val", "8", "--data.limit_train", "16", "--data.batch_size", "8"]
    whole = ["--data.workers", "0", "--run.progress", "false"]
    assert main([*line[3:], *(whole if module == "my_data" else small)]) == 0
    if module == "my_data":  # what the page says
        metrics = json.loads(Path("runs/classify/shapes/metrics.json").read_text(encoding="utf-8"))
        assert len(metrics["history"]) == 6
        assert metrics[metrics["best"]]["top1"] == 1.0
    else:
        names: dict[str, Any] = {}
        exec(compile(next(block for block in parts if f"# needs: {module}.py" in block), "plugins.md", "exec"), names)
        assert type(names["model"].head).__name__ == "TwoScales"
    assert (tmp_path / "runs/classify/shapes/report.html").is_file()
