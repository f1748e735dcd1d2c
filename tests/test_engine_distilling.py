"""Runs with a teacher: whose gradients, what a file holds, exact resumption, pieces and processes, and teachers that cannot be one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from test_engine_normalising import agree, apart, case, cut, data, detector, joint, of, part
from test_engine_training import After, PowerFailsError, digest
from tests_support import TINY, error_of, on_two_processes, shapes_line, small_line
from torch import Tensor

from effbackbones import build_model, load_model, save_model
from effbackbones.contracts import ImageSizes
from effbackbones.model import Model
from effbackbones.registry import TASKS
from effbackbones.weights.tensorfile import read_tensors
from tasks.classify import main
from tasks.engine.distilling import FEATURES, Distilled, distance, objective_of
from tasks.engine.optimizers import SGD
from tasks.engine.order import Share
from tasks.engine.state import RunState
from tasks.engine.stepping import LateReader, Stepper
from tasks.engine.student import Adapters, Student
from tasks.engine.watching import watching
from tasks.run import main as run_any
from tasks.settings.distill import DistillConfig
from tasks.settings.idle import told_of_idle
from tasks.settings.sections import Config, OptimConfig

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")


def backward(
    model: Model, teacher: Model, pieces: Sequence[Any], share: Share | None = None, features: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step with that teacher, those of the adapters among them."""
    model.zero_grad()
    torch.manual_seed(7)
    adapters = Adapters(features, model.backbone, teacher.backbone) if features else None
    said = DistillConfig(teacher="x", weight=0.5, features=features, features_weight=2.0)
    objective = Distilled(TASKS.get(model.head.task), Config(), said, teacher, adapters, "")
    share = share or Share(accumulate=len(pieces))
    parameters = [*model.parameters(), *(adapters.parameters() if adapters else ())]
    state = RunState(model, SGD(parameters, lr=0.1), None, None, share, adapters=adapters)
    told: list[str] = []
    fabric = Fabric(accelerator="cpu", devices=1)
    stepper = Stepper(fabric, state, objective, LateReader(), lambda: 0, lambda step: 1.0, None, 0, tell=told.append)
    losses, _ = stepper._backward(pieces)
    assert not told  # every loss has its count
    named = [*model.named_parameters(), *(adapters.named_parameters() if adapters else ())]
    return losses, {name: p.grad.clone() for name, p in named if p.grad is not None}


def teacher_of(model: Model) -> Model:
    """The same network with other weights, which learn nothing."""
    other: Model = model.folded_copy()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.folded = False
    return other


# Losses and gradients ---------------------------------------------------------------------------------------------------


def test_the_objective_adds_the_teachers_losses_to_the_heads_own() -> None:
    built = case("classification", {}, 3)
    torch.manual_seed(0)
    model, batch = built.model().eval(), data(built)
    teacher = teacher_of(model)
    losses, gradients = backward(model, teacher, [batch], features=("C5",))
    with torch.no_grad():
        shown, theirs = teacher.with_features(batch.images, batch.sizes)
        features, raw = model.with_features(batch.images, batch.sizes)
    own = model.head.loss(raw, batch.targets, batch.sizes)["cross_entropy"]
    kl = model.head.distill(raw, theirs, batch.targets, batch.sizes)["distill"]
    torch.manual_seed(7)
    apart = distance(Adapters(("C5",), model.backbone, teacher.backbone)(features)["C5"], shown[0])
    wanted = {"cross_entropy": own, "distill": 0.5 * kl, FEATURES: 2 * apart}
    agree(losses, wanted)
    assert "C5.weight" in gradients  # the adapter's
    assert all(p.grad is None for p in teacher.parameters())


def test_the_distance_of_maps_is_a_share_of_the_teachers_square() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 4, 4)
    assert distance(torch.zeros(2, 3, 4, 4), teacher).item() == pytest.approx(1.0)
    assert distance(teacher, 5 * teacher).item() == pytest.approx(0.64)
    assert distance(torch.nn.functional.pad(teacher, (0, 2, 0, 1), value=9.0), teacher).item() == 0  # padded further
    assert torch.isfinite(distance(teacher, torch.zeros_like(teacher)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classification", {}),
        ("efficientdet", {}),
        ("fpn", {}),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in ("retinanet", "fcos", "ssd", "yolo")),
        ("yolo", {"nms_free": True}),
    ],
)
def test_pieces_equal_the_whole_batch_with_a_teacher(name: str, options: dict[str, Any]) -> None:
    built = case(name, options, 3)
    torch.manual_seed(0)
    model, batch = built.model().eval(), data(built)
    teacher = teacher_of(model)
    losses, gradients = backward(model, teacher, [batch], features=("C5",))
    found, own = backward(model, teacher, cut(batch, 2), features=("C5",))
    agree(found, losses, 1e-5)
    agree(own, gradients, 1e-4)


@pytest.mark.parametrize("joint_with", [False, True])
def test_boxes_are_matched_once_a_step(joint_with: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the head's own losses and the teacher's; of a joint model too, whose images have boxes in part."""
    model, batch = joint() if joint_with else detector()
    teacher, asked = teacher_of(model), []
    head: Any = model.head.heads["det"] if joint_with else model.head  # type: ignore[union-attr,index]
    matching = head.matched
    monkeypatch.setattr(head, "matched", lambda *given: asked.append(1) or matching(*given))
    backward(model, teacher, [batch])
    assert len(asked) == 1


@pytest.mark.slow
def test_two_processes_equal_one_with_a_teacher(tmp_path: Path) -> None:
    """Of a detector and a joint model: the gradients of the adapters too."""
    for worst in on_two_processes(shared, tmp_path):
        assert worst == pytest.approx([0.0] * 4, abs=1e-4)


def shared(rank: int) -> list[float]:
    worst = []
    for (model, batch), features in ((detector(), ("C5",)), (joint(), ("C4",))):
        teacher = teacher_of(model)
        losses, gradients = backward(model, teacher, [batch], features=features)
        quarters = [0, 3] if rank == 0 else [2, 1]
        pieces = [
            part(batch, torch.tensor([row])) if model.head.task == "det" else of(batch, [row]) for row in quarters
        ]
        found, own = backward(model, teacher, pieces, Share(rank, 2, 2), features)
        for ours, theirs in ((found, losses), (own, gradients)):
            worst.append(apart(averaged(ours, theirs), theirs))
    return worst


def averaged(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean = {name: ours.get(name, torch.zeros_like(value)).detach().clone() for name, value in theirs.items()}
    for value in mean.values():
        torch.distributed.all_reduce(value)
        value /= 2
    return mean


# Runs -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider network than the one that learns, with other mean and deviation, as if it were trained on the shapes."""
    torch.manual_seed(1)
    wide = {"width": 0.5, "depth": 0.3, "levels": ["C4", "C5"]}
    model = build_model("cls", "b0", num_classes=6, backbone_options=wide)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(model, file, classes=SHAPES)
    return file


def learn(folder: Path, teacher: Path, *more: str) -> int:
    line = [*TINY, "--optim.distill.teacher", str(teacher), "--optim.distill.features", "[C5]", "--run.tensorboard"]
    mixing = ["false", "--data.mixup", "0.2", "--data.cutmix", "0.5", "--run.loggers", "[csv]", "--run.log_every", "1"]
    return main([*line, *mixing, "--run.out", str(folder), *more])


@pytest.fixture(scope="module")
def learned(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "learned"
    assert learn(folder, teacher) == 0
    return folder


def test_a_run_keeps_the_student_alone_and_logs_what_it_lost(learned: Path) -> None:
    tensors, _ = read_tensors(learned / "best.safetensors")
    assert tensors.keys() == load_model(learned / "best.safetensors").state_dict().keys()
    assert not any("adapters" in name or "teacher" in name for name in tensors)
    state, _ = read_tensors(sorted((learned / "checkpoints").glob("step-*"))[-1])
    assert [name for name in state if name.startswith("adapters.")] == ["adapters.C5.weight"]
    logged = "".join(path.read_text() for path in learned.rglob("*.csv"))
    assert "train/distill" in logged
    assert f"train/{FEATURES}" in logged


def test_stopped_and_continued_with_a_teacher_equals_never_stopped(
    learned: Path, teacher: Path, tmp_path: Path
) -> None:
    def fail(state: RunState) -> None:
        if state.step == 6:
            raise PowerFailsError

    with watching(After(fail)):
        assert learn(tmp_path / "run", teacher, "--run.save_minutes", "1e-9") == 1
    assert learn(tmp_path / "run", teacher) == 0
    assert digest(tmp_path / "run") == digest(learned)


def test_another_teacher_does_not_continue_a_run(learned: Path, teacher: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "teacher.safetensors"
    model = load_model(teacher)
    save_model(model, other, classes=SHAPES)
    kept = teacher.read_bytes()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    try:
        save_model(model, teacher, classes=SHAPES)
        assert learn(learned, teacher, "--run.resume", str(learned), "--optim.epochs", "3") == 2
        assert "its teacher" in error_of(capsys)
    finally:
        teacher.write_bytes(kept)


LINES = {
    "detect": small_line("--model.head_options", "{variant: d0, channels: 16, cells: 1, repeats: 1}"),
    "segment": small_line("--model.head", "fpn"),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_each_task_learns_from_a_run(task: str, tmp_path: Path, capsys: Any) -> None:
    """The teacher as the folder of a run of the same command; accumulated, with bf16."""
    line = [task, *shapes_line(LINES[task]), "--run.tensorboard", "false"]
    assert run_any([*line, "--run.out", str(tmp_path / "teacher")]) == 0
    capsys.readouterr()
    taught = ["--optim.distill.teacher", str(tmp_path / "teacher"), "--optim.distill.features", "[C4, C5]"]
    more = ["--optim.accumulate", "2", "--run.precision", "bf16", "--run.out", str(tmp_path / "student")]
    assert run_any([*line, *taught, *more]) == 0
    told = capsys.readouterr().err
    assert "a step takes" in told
    assert "adapters of" in told
    assert (tmp_path / "student" / "best.safetensors").is_file()


# Teachers that cannot be one --------------------------------------------------------------------------------------------


def refused(teacher: object, capsys: Any, tmp_path: Path, *more: str) -> str:
    given = ["--optim.distill.teacher", str(teacher), "--run.out", str(tmp_path / "run")]
    assert main([*TINY, *given, *more]) == 2
    return error_of(capsys)


def test_wrong_teachers_are_refused_in_one_line(teacher: Path, tmp_path: Path, capsys: Any) -> None:
    assert "optim.distill.teacher" in (line := refused(tmp_path / "none.safetensors", capsys, tmp_path))
    assert "none.safetensors" in line
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "text.safetensors" in refused(tmp_path / "text.safetensors", capsys, tmp_path)
    seg = build_model("seg", "b0", num_classes=6, head="fpn", backbone_options={"width": 0.25, "depth": 0.3})
    save_model(seg, tmp_path / "seg.safetensors", classes=SHAPES)
    assert "segment" in refused(tmp_path / "seg.safetensors", capsys, tmp_path)
    model = load_model(teacher)
    save_model(model, tmp_path / "order.safetensors", classes=SHAPES[::-1])
    assert "another order" in refused(tmp_path / "order.safetensors", capsys, tmp_path)
    assert "does not give C3" in refused(teacher, capsys, tmp_path, "--optim.distill.features", "[C3]")
    line = refused(teacher, capsys, tmp_path, "--optim.distill.weight", "0")
    assert "optim.distill.weight" in line
    grey = build_model("cls", "b0", num_classes=6, backbone_options={"width": 0.25, "depth": 0.3, "in_channels": 1})
    save_model(grey, tmp_path / "grey.safetensors", classes=SHAPES)
    assert "1 channels" in refused(tmp_path / "grey.safetensors", capsys, tmp_path)


def small(task: Any, **more: Any) -> Model:
    torch.manual_seed(0)
    heads = {"det": {"channels": 16, "cells": 1, "repeats": 1}}
    options = {t: heads.get(t, {}) for t in task} if isinstance(task, tuple) else heads.get(task, {})
    classes = dict.fromkeys(task, 6) if isinstance(task, tuple) else 6
    narrow = {"width": 0.25, "depth": 0.3}
    return build_model(task, "b0", num_classes=classes, head_options=options, backbone_options=narrow, **more)


def test_a_teacher_of_features_alone_is_not_asked_for_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = DistillConfig(teacher=str(tmp_path / "teacher.safetensors"), weight=0.0, features=("C5",))
    save_model(small("seg", head="fpn"), tmp_path / "teacher.safetensors", classes=SHAPES)
    model = small("cls").train()
    config = Config(optim=OptimConfig(distill=said))
    objective = objective_of(TASKS.get("cls"), config, model, lambda line: None)
    assert isinstance(objective, Distilled)
    assert objective.adapters

    def never(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(objective.teacher.head, "forward", never)
    losses = objective(Student(model, objective.adapters), data(case("classification", {}, 6)), 0)
    assert losses.keys() == {"cross_entropy", FEATURES}


def test_a_teacher_is_as_large_as_it_was_made_not_as_it_is_folded(tmp_path: Path) -> None:
    model, told = build_model("cls", "lite0", num_classes=len(SHAPES)), list[str]()
    save_model(model, tmp_path / "m.safetensors", classes=SHAPES)
    model.classes = SHAPES
    config = Config(optim=OptimConfig(distill=DistillConfig(teacher=str(tmp_path / "m.safetensors"))))
    objective_of(TASKS.get("cls"), config, model, told.append)
    assert any("lite0, 3.38 M parameters, student lite0, 3.38 M" in line for line in told)


def test_joint_models_and_single_ones_teach_each_other_what_both_know(tmp_path: Path) -> None:
    """The tasks that the teacher lacks are told; features alone may come from a model of any task."""
    models = {"cls": small("cls"), "both": small(("det", "cls")), "seg": small("seg", head="fpn")}
    for name, model in models.items():
        model.classes = {"det": SHAPES, "cls": SHAPES} if name == "both" else SHAPES
        save_model(model, tmp_path / f"{name}.safetensors")
    images = torch.rand(2, 3, 64, 64)
    sizes = ImageSizes.of(images)
    for student, teacher, command, expected in (
        ("both", "cls", "joint", "cls/distill"),
        ("cls", "both", "classify", "distill"),
    ):
        told: list[str] = []
        said = DistillConfig(teacher=str(tmp_path / f"{teacher}.safetensors"))
        model = models[student].eval()
        objective = objective_of(
            TASKS.get(model.head.task), Config(optim=OptimConfig(distill=said)), model, told.append
        )
        assert isinstance(objective, Distilled), command
        _, theirs = objective.teacher.with_features(images, sizes)
        targets: Any = torch.tensor([0, 1])
        losses = model.head.distill(model(images), theirs, {"cls": targets} if student == "both" else targets, sizes)
        assert set(losses) == {expected}
        assert any("detect" in line and "alone" in line for line in told) == (student == "both")
    said = DistillConfig(teacher=str(tmp_path / "seg.safetensors"), weight=0.0, features=("C5",))
    found = objective_of(TASKS.get("cls"), Config(optim=OptimConfig(distill=said)), models["cls"], lambda line: None)
    assert isinstance(found, Distilled)


def test_keys_without_a_teacher_are_told() -> None:
    told = list(told_of_idle(Config(optim=OptimConfig(distill=DistillConfig(temperature=2.0)))))
    assert told == ["optim.distill.temperature is set and changes nothing: there is no optim.distill.teacher"]
