"""The wheel, installed into an empty folder elsewhere, is all that the three usages need."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from tests_support import ROOT

SOURCES = ("effbackbones", "heads", "tasks", "pyproject.toml", "README.md", "LICENSE")
QUIET = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")


def python(*arguments: str, cwd: Path, target: Path | None = None) -> str:
    """Output of ``python ARGUMENTS`` in ``cwd``; with ``target``, that folder's packages come before installed ones."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EFFBACKBONES_DATA")}
    environment |= {"PYTHONPATH": str(target)} if target else {}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources, so that the checkout stays as it is and holds nothing back."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    python("-m", "pip", "wheel", *QUIET, "--no-build-isolation", "--wheel-dir", str(folder), str(source), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds this project's packages and scripts alone."""
    folder = tmp_path_factory.mktemp("target")
    python("-m", "pip", "install", *QUIET, "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_the_wheel_holds_the_three_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"effbackbones", "heads", "tasks"}
    for room in ("effbackbones", "heads", "tasks"):
        files = [path for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.relative_to(ROOT).as_posix() for path in files} == {
            name for name in names if name.startswith(f"{room}/")
        }
    assert {"effbackbones/py.typed", "tasks/report/page.html.jinja", "tasks/configs/classify/shapes.yaml"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_usage_in_python(target: Path, tmp_path: Path) -> None:
    code = """
        import effbackbones, torch
        from effbackbones import build_model, load_model, save_model
        print(effbackbones.__file__)
        model = build_model(task="cls", backbone="b0", num_classes=5).eval()
        image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
        save_model(model, "model.safetensors", classes=list("abcde"))
        assert torch.equal(load_model("model.safetensors").predict(image), model.predict(image))
        import sys
        print([module.__file__ for name, module in sys.modules.items() if name in ("heads", "heads.classification")])
    """
    out = python("-c", textwrap.dedent(code), cwd=tmp_path, target=target)
    assert out.count(str(target)) == 3
    assert str(ROOT) not in out


def test_usage_on_the_command_line(target: Path, tmp_path: Path) -> None:
    small = ["--data.image_size", "32", "--data.batch_size", "8", "--data.limit_train", "16", "--data.limit_val", "16"]
    quick = ["--optim.max_steps", "2", "--run.progress", "false", "--data.workers", "0"]
    python("-m", "tasks.classify", "--config", "shapes", *small, *quick, cwd=tmp_path, target=target)
    run = tmp_path / "runs/classify/shapes"
    for name in ("best.safetensors", "config.yaml", "metrics.json", "metrics.csv", "report.html"):
        assert (run / name).stat().st_size > 0, name


def test_usage_with_a_head_of_ones_own(target: Path, tmp_path: Path) -> None:
    code = """
        import torch
        from torch import nn
        from effbackbones import BackboneNeeds, Head, build_model, list_heads, register_head

        @register_head("mine")
        class Mine(Head):
            task = "cls"

            def __init__(self, spec, num_classes, **options):
                super().__init__(spec, num_classes, **options)
                self.fc = nn.Linear(spec.channels[0], num_classes)

            @classmethod
            def requires(cls, **options):
                return BackboneNeeds(levels=("C3",))

            def forward(self, features, sizes):
                return self.fc(features[0].mean((2, 3)))

            def loss(self, raw, targets, sizes):
                return {"loss": nn.functional.cross_entropy(raw, targets)}

            def predict(self, raw, sizes):
                return raw.softmax(1)

        model = build_model(task="cls", backbone="lite0", head="mine", num_classes=4)
        model.loss(torch.rand(2, 3, 64, 64), torch.tensor([0, 3]))["loss"].backward()
        assert "mine" in list_heads() and all(p.grad is not None for p in model.parameters())
        print(type(model.head).__name__)
    """
    assert python("-c", textwrap.dedent(code), cwd=tmp_path, target=target) == "Mine\n"


def test_the_console_script_works_beside_a_tasks_folder_of_the_users(target: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").write_text("raise RuntimeError('the user\\'s own package')\n", encoding="utf-8")
    script = target / "bin" / "effbackbones-classify"
    assert "--config" in python(str(script), "--help", cwd=tmp_path, target=target)
