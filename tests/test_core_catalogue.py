"""What there is, as rows; what a file of weights is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import one_line
from torch.utils.flop_counter import FlopCounterMode

from effbackbones import UserError, build_model, create_backbone, save_model
from effbackbones.backbones.costs import costs
from effbackbones.backbones.scaling import SCALINGS, scaling
from effbackbones.catalogue import backbone_rows, head_rows, weight_rows
from effbackbones.describing import describe_file, lines_of
from effbackbones.registry import BACKBONES, HEADS
from effbackbones.weights.classifiers import SOURCES
from tasks.data.dataset import ABOUT, DATASETS
from tasks.run import main

SMALL = {"width": 0.25, "depth": 0.3}


def measured(name: str, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Parameters and multiply-adds, as torch counts them."""
    with torch.device("meta"):
        backbone = create_backbone(name).eval()
    images = torch.zeros(1, 3, *(size or backbone.image_spec.size), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(images)
    return sum(p.numel() for p in backbone.parameters()), counter.get_total_flops() // 2


FAST = ("b0", "lite3")
LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("b2.5", *SCALINGS) if name not in FAST]


@pytest.mark.parametrize("name", [*FAST, *LONG])
def test_costs_are_those_that_torch_counts(name: str) -> None:
    assert tuple(costs(scaling(name))) == measured(name)


def test_costs_follow_the_size_of_the_image() -> None:
    assert tuple(costs(scaling("b1"), (75, 133))) == measured("b1", (75, 133))


def test_a_row_for_each_backbone_says_what_the_network_says() -> None:
    rows = {row["name"]: row for row in backbone_rows()}
    assert list(rows) == BACKBONES.names()
    for name in ("b3", "lite4"):
        with torch.device("meta"):
            backbone = create_backbone(name)
        spec, row = backbone.feature_spec, rows[name]
        assert (row["levels"], row["channels"], row["strides"]) == ([*spec.names], [*spec.channels], [*spec.strides])
        assert row["image_size"] == [*backbone.image_spec.size]
    between, other = backbone_rows(["efficientnet_b0", "timm:resnet18"])
    assert (between["name"], between["parameters"]) == ("b0", 3_595_388)
    assert (other["channels"], other["parameters"] > 11e6, other["multiply_adds"] > 1.8e9) == (
        [64, 64, 128, 256, 512],
        True,
        True,
    )
    for name in ("b99", "timm:nothing"):
        with pytest.raises(UserError) as error:
            backbone_rows([name])
        assert name.removeprefix("timm:") in str(error.value)


def test_heads_have_the_tasks_that_their_classes_say() -> None:
    assert {row["name"]: row["task"] for row in head_rows()} == {name: HEADS.get(name).task for name in HEADS.names()}
    assert {"efficientdet", "fcos", "retinanet", "ssd", "yolo"} == {row["name"] for row in head_rows(["det"])}
    assert [row["name"] for row in head_rows() if row["default"]] == ["classification", "efficientdet", "unet"]


def test_heads_on_a_backbone_are_counted(lend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in head_rows(["det"], on="efficientnet_b0") if row["default"])
    model = build_model("det", "b0")
    images = torch.zeros(1, 3, *model.image_spec.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    assert row["parameters"] == sum(p.numel() for p in model.head.parameters())
    assert (row["multiply_adds"], row["num_classes"]) == (counter.get_total_flops() // 2, 80)

    class Broken(type(model.head)):  # type: ignore[misc]  # a class that is known now
        def forward(self, features: Any, sizes: Any) -> Any:
            raise ValueError("not today")

    lend(HEADS, {"broken": Broken}, alone=True)
    row = next(row for row in head_rows(["det"], on="b0") if row["name"] == "broken")
    assert (row["multiply_adds"], row["error"]) == (None, "ValueError: not today")
    for line, said in (
        ("list heads --on b99", "backbone 'b99'"),
        ("list backbones --on b0", "--on: is for list heads"),
    ):
        assert main(line.split()) == 2
        assert said in capsys.readouterr().err


def test_weights_have_a_row_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFBACKBONES_CACHE", str(tmp_path))
    (tmp_path / "efficientnet_b0_rwightman-7f5810bc.pth").write_bytes(b"12345")
    rows = weight_rows()
    assert len(rows) == len(SOURCES)
    assert all(row["licence"] and row["file"] and (row["url"] or row["package"]) for row in rows)
    of_b0 = {row["name"]: row for row in weight_rows(["efficientnet_b0"])}
    first = of_b0["torchvision:IMAGENET1K_V1"]
    told = ("default", "top1", "image_size", "sha256", "bytes", "here", "licence")
    assert [first[key] for key in told] == ["imagenet", 77.692, [224, 224], "7f5810bc", 5, True, "BSD-3-Clause"]
    assert of_b0["effdet:tf_efficientdet_d0"]["default"] == "coco"
    assert not any(row["here"] for name, row in of_b0.items() if row is not first)


def test_every_data_set_says_what_it_reads() -> None:
    built_in = {name for name in DATASETS.names() if DATASETS.is_built_in(name)}
    assert set(ABOUT) == built_in


def test_lists_are_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert list(whole) == ["backbones", "heads", "weights", "configs", "datasets", "tasks"]
    assert main(["list", "configs", "joint", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == [row for row in whole["configs"] if row["task"] == "joint"]
    assert [(row["name"], row["data"]) for row in rows] == [
        ("coco", "coco"),
        ("coco_mini", "coco"),
        ("shapes", "shapes"),
    ]
    assert all(Path(row["file"]).is_file() and row["about"].endswith(".") for row in rows)
    assert main(["list", "backbones", "lite0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["lite0", "2.96", "0.36", "224x224", "16", "24", "40", "112", "320"]
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert f"{len(SOURCES)} published files" in shown
    assert main(["weights", "list", "lite4"]) == 0
    assert "timm:tf_efficientnet_lite4.in1k" in capsys.readouterr().out
    assert main(["weights", "list", "lite4", "--json"]) == 0
    assert {row["backbone"] for row in json.loads(capsys.readouterr().out)} == {"lite4"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of ours, in a run folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = build_model("det", "b0", num_classes=2, backbone_options=SMALL)
    save_model(model, folder / "best.safetensors", classes=["cat", "dog"], metrics={"AP": 0.5})
    return folder / "best.safetensors"


def test_a_model_file_of_ours_says_what_it_is(own: Path) -> None:
    facts = describe_file(own.parent)
    assert facts["what"] == "a model file of effbackbones, format 2"
    assert (facts["model"]["task"], facts["classes"], facts["metrics"]) == ("det", ("cat", "dog"), {"AP": 0.5})
    assert facts["loads"] == [{"call": f'load_model("{own}")', "ok": True, "error": None}]
    json.dumps(facts)
    shown = "\n".join(lines_of(facts))
    for words in (
        "task: det",
        "classes: 2 (cat, dog)",
        "images: 512 x 512, fitted in and padded",
        "AP: 0.5",
        "loads: load_model(",
    ):
        assert words in shown


def test_a_head_that_is_not_there_is_why_a_file_would_not_load(tmp_path: Path, lend: Any) -> None:
    from heads.classification import ClassificationHead

    lend(HEADS, {"lent": ClassificationHead})
    model = build_model("cls", "b0", head="lent", num_classes=2, backbone_options=SMALL)
    save_model(model, tmp_path / "m.safetensors")
    lend(HEADS, {}, alone=True)
    (call,) = describe_file(tmp_path / "m.safetensors")["loads"]
    assert not call["ok"]
    assert "'lent'" in call["error"]


def test_foreign_files_say_what_they_would_load_into(tmp_path: Path) -> None:
    import timm
    from torchvision.models import efficientnet_b0

    torch.save(efficientnet_b0(num_classes=7).state_dict(), tmp_path / "tv.pth")
    (one,) = describe_file(tmp_path / "tv.pth")["networks"]
    assert (one["dialect"], one["backbones"], one["numerics"]) == ("torchvision", ["b0"], "torch")
    calls = [call["call"].partition("(")[2] for call in describe_file(tmp_path / "tv.pth")["loads"] if call["ok"]]
    assert calls == [
        f'"b0", weights="{tmp_path / "tv.pth"}")',
        f'"cls", "b0", num_classes=7, weights="{tmp_path / "tv.pth"}")',
    ]
    state = timm.create_model("efficientnet_lite0", num_classes=3).state_dict()
    torch.save({"student": state, "teacher": {k: v * 2 for k, v in state.items()}, "epoch": 3}, tmp_path / "two.pth")
    facts = describe_file(tmp_path / "two.pth")
    assert [(one["name"], one["dialect"], one["backbones"]) for one in facts["networks"]] == [
        ("student", "timm", ["lite0"]),
        ("teacher", "timm", ["lite0"]),
    ]
    assert facts["beside"] == ["epoch"]
    assert [call["ok"] for call in facts["loads"]] == [True] * 4
    assert facts["loads"][2]["call"] == f'create_backbone("lite0", weights="{tmp_path / "two.pth"}#teacher")'
    assert len(describe_file(f"{tmp_path / 'two.pth'}#teacher")["networks"]) == 1
    with pytest.raises(UserError) as error:
        describe_file(f"{tmp_path / 'two.pth'}#pupil")
    one_line(error, "two.pth#pupil", "no such network", "student, teacher")
    torch.save({"conv1.weight": torch.ones(3), "bn1.bias": torch.ones(3)}, tmp_path / "r.pth")
    facts = describe_file(tmp_path / "r.pth")
    assert (facts["networks"], facts["loads"], facts["keys"][0]) == ([], [], "conv1.weight")


def test_damaged_and_other_files_are_one_line(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = own.read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(data[:-8] + b"abcdefgh")
    (tmp_path / "text.pth").write_text("hello")
    for name, words in (
        ("bad.safetensors", "its content was changed"),
        ("text.pth", "no file of tensors"),
        ("gone.pth", "no such file"),
    ):
        with pytest.raises(UserError) as error:
            describe_file(tmp_path / name)
        one_line(error, name, words)
    with pytest.raises(UserError) as error:
        describe_file(tmp_path)
    one_line(error, "folder without best.safetensors")
    assert main(["weights", str(own), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["classes"] == ["cat", "dog"]
