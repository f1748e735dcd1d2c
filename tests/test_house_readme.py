"""README's Python blocks run as they stand, and its commands exist."""

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
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("#")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.strip()
]


def test_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from effbackbones.registry import HEADS
    from tasks.data.dataset import DATASETS

    monkeypatch.chdir(tmp_path)
    lend(HEADS, {}, alone=True)
    assert len(PYTHON) == 6
    lend(DATASETS, {}, alone=True)
    Path("my_head.py").write_text(PYTHON[2], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        sys.modules, "my_head", ModuleType("my_head")
    )  # so that what is imported is taken out at the end
    del sys.modules["my_head"]
    write_picture(Path("holiday.jpg"))
    for number, block in enumerate(PYTHON):
        names: dict[str, object] = {"__name__": "__main__"}  # each is a file of its own
        if number != 2:
            exec(compile(block, f"README.md, Python block {number + 1}", "exec"), names)
        if number == 3:
            assert type(names["model"].head).__name__ == "TwoScales"  # type: ignore[attr-defined]
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000_000
    assert "strides=(8, 16, 32)" in capsys.readouterr().out
    first: dict[str, object] = {}
    exec(compile(PYTHON[0], "README.md", "exec"), first)
    images = first["images"]
    assert torch.equal(first["same"].predict(images), first["probabilities"])  # type: ignore[operator]


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = [shlex.split(command)[1] for command in COMMANDS if command.startswith("make ")]
    assert asked == ["demo", "test"]
    assert set(asked) <= set(targets)


def test_a_fresh_shell_is_led_to_the_environment() -> None:
    first = next(place for place, command in enumerate(COMMANDS) if command.startswith("python -m tasks.classify"))
    assert COMMANDS[first - 1] == ". .venv/bin/activate"
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
    flat = README.replace("\n", " ")
    lists = {
        "classify": "Bundled configs",
        "detect": "for detection",
        "segment": "for segmentation",
        "joint": "for joint training",
    }
    for command, words in lists.items():
        listed = re.search(f"{words}: ([^;.]+)[;.]", flat)
        assert listed is not None
        assert set(re.findall(r"`(\w+)`", listed[1])) == {
            path.stem for path in (ROOT / "tasks/configs" / command).glob("*.yaml")
        }


@pytest.mark.parametrize("line", [command for command in COMMANDS if "python -m tasks." in command])
def test_commands_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of README gets through the reader of the command line."""
    from tasks.settings.commandline import parse

    monkeypatch.chdir(tmp_path)
    for run in ("classify/folder", "detect/coco"):
        (tmp_path / "runs" / run / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").write_text("data: {name: shapes}\n", encoding="utf-8")
    python, module, name, *arguments = shlex.split(line)
    assert (python, module) == ("python", "-m")
    verb, config, extras = parse(name.removeprefix("tasks."), arguments)
    assert verb == (arguments[0] if not arguments[0].startswith("-") else "train")
    if "predict " in line:
        assert list(extras.inputs) == ["holiday.jpg"]
    if "my_head" in line:
        assert config.plugins == ("my_head.py",)
        assert config.model.head == "two_scales"


@pytest.mark.parametrize(("module", "block"), [("my_head", 2), ("my_data", 4)])
def test_custom_parts_train_from_the_command_line(
    module: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lend: Any
) -> None:
    from effbackbones.registry import HEADS
    from tasks.classify import main
    from tasks.data.dataset import DATASETS

    monkeypatch.chdir(tmp_path)
    for registry in (HEADS, DATASETS):
        lend(registry, {}, alone=True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, module, ModuleType(module))  # so that what is imported is taken out at the end
    del sys.modules[module]
    Path(f"{module}.py").write_text(PYTHON[block], encoding="utf-8")
    line = next(command for command in COMMANDS if f"{module}.py" in command)
    small = ["--optim.max_steps", "2", "--data.limit_val", "8", "--data.limit_train", "16", "--data.batch_size", "8"]
    whole = ["--data.workers", "0", "--run.progress", "false"]
    assert main([*shlex.split(line)[3:], *(whole if module == "my_data" else small)]) == 0
    if module == "my_data":  # what README says
        metrics = json.loads(Path("runs/classify/shapes/metrics.json").read_text(encoding="utf-8"))
        assert len(metrics["history"]) == 6
        assert metrics[metrics["best"]]["top1"] == 1.0
    assert (tmp_path / "runs/classify/shapes/report.html").is_file()
