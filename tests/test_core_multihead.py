"""Several heads on one backbone: partly labelled batches, weights of the losses, classes by task."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import ONE_THREAD, one_line, two_processes
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones import (
    BackboneNeeds,
    BoxTargets,
    Detections,
    FeatureSpec,
    Head,
    ImageSizes,
    Model,
    build_model,
    load_model,
    save_model,
)
from effbackbones.conformance import check_head, enforce
from effbackbones.conformance.case import default_targets
from effbackbones.contracts import Labelled
from effbackbones.errors import UserError
from effbackbones.model import MultiHead as PublicMultiHead
from effbackbones.multihead import MultiHead, combine_needs
from effbackbones.registry import HEADS
from effbackbones.weights.record import read_metadata
from effbackbones.weights.tensorfile import pack, read_tensors, write_atomically

NARROW = {"width": 0.25, "depth": 0.3, "drop_path": 0.0}
CLASSES = {"det": 3, "seg": 4, "cls": 5}
OPTIONS: dict[str, dict[str, Any]] = {
    "det": {"channels": 16, "cells": 1, "repeats": 1},
    "seg": {"channels": [16, 16, 8, 8, 8]},
    "cls": {"dropout": 0.0},
}
BUILT_IN = {"det": "efficientdet", "seg": "unet", "cls": "classification"}


def joint(*tasks: str, **more: Any) -> Model:
    """A small model of several tasks."""
    torch.manual_seed(0)
    chosen = tasks or tuple(CLASSES)
    options = {task: OPTIONS[task] for task in chosen}
    return build_model(
        chosen,
        "lite0",
        num_classes={task: CLASSES[task] for task in chosen},
        backbone_options=NARROW,
        head_options=options,
        **more,
    )


def batch(count: int, side: int = 64) -> tuple[Tensor, ImageSizes]:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return images, ImageSizes.of(images)


def targets(task: str, sizes: ImageSizes) -> Any:
    torch.manual_seed(2)
    return default_targets(task)(sizes, CLASSES[task], False)


def backward(losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()


def gradients(module: nn.Module) -> list[Tensor]:
    """Every parameter has one."""
    found = [p.grad for p in module.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)
        for a, b in zip(ours, theirs, strict=True)
    )


# ---- one pass ------------------------------------------------------------------------------------------------------


def test_three_tasks_share_one_pass_and_equal_the_single_models() -> None:
    model = joint().eval()
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    images, _ = batch(2, 128)
    with torch.no_grad():
        raw, predictions = model(images), model.predict(images)
    assert calls == [2, 2]
    state = model.state_dict()
    for task in CLASSES:
        single = build_model(
            task, "lite0", num_classes=CLASSES[task], backbone_options=NARROW, head_options=OPTIONS[task]
        ).eval()
        single.backbone.load_state_dict({name: state[f"backbone.{name}"] for name in single.backbone.state_dict()})
        single.head.load_state_dict({name: state[f"head.heads.{task}.{name}"] for name in single.head.state_dict()})
        with torch.no_grad():
            for ours, theirs in ((raw[task], single(images)), (predictions[task], single.predict(images))):
                for a, b in zip(
                    *(tree if isinstance(tree, tuple) else (tree,) for tree in (ours, theirs)), strict=True
                ):
                    assert torch.allclose(a, b, atol=1e-5), task


class Three(MultiHead):
    """The three built-in heads as one class, so that the checks of a head can build it."""

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        heads = {}
        for task, name in BUILT_IN.items():
            head = HEADS.get(name)
            heads[task] = head(
                spec.select(head.requires(**OPTIONS[task]).levels), num_classes // 3, **OPTIONS[task], **options
            )
        super().__init__(spec, heads)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return combine_needs({name: HEADS.get(name).requires(**OPTIONS[task]) for task, name in BUILT_IN.items()})


@pytest.mark.slow
def test_the_built_in_heads_together_keep_every_promise() -> None:
    def make(sizes: ImageSizes, num_classes: int, empty: bool) -> dict[str, Any]:
        return {task: default_targets(task)(sizes, num_classes // 3, empty) for task in BUILT_IN}

    enforce(check_head(Three, num_classes=9, targets=make))


def test_contradicting_needs_name_both_heads() -> None:
    with pytest.raises(UserError) as error:
        build_model(("det", "seg"), "b0", head={"seg": "deeplabv3plus"}, num_classes={"det": 3, "seg": 3})
    one_line(error, "'efficientdet' and 'deeplabv3plus'", "output_stride 32 and 16", "backbone_options.output_stride")


def test_there_is_one_class_of_several_heads() -> None:
    assert PublicMultiHead is MultiHead


# ---- partly labelled batches ---------------------------------------------------------------------------------------

labelled_rows = st.fixed_dictionaries(
    {task: st.none() | st.lists(st.integers(0, 3), max_size=4, unique=True) for task in CLASSES}
)


@settings(max_examples=6, deadline=None)
@given(labelled_rows)
def test_gradients_are_those_of_the_labelled_images_alone(rows: dict[str, list[int] | None]) -> None:
    model = joint().eval()
    images, sizes = batch(4)
    sizes = sizes._replace(valid=torch.tensor([[64, 64], [40, 64], [64, 30], [50, 20]]))
    given: dict[str, Any] = {}
    for task, chosen in rows.items():
        index = torch.tensor(chosen or [], dtype=torch.int64)
        given[task] = None if chosen is None else Labelled(index, targets(task, sizes.select(index)))
    backward(model.head.loss(model(images, sizes), given, sizes))
    heads = {task: gradients(head) for task, head in model.head.heads.items()}
    shared = gradients(model.backbone)
    model.zero_grad(set_to_none=True)
    if not any(rows.values()):
        assert not any(bool(gradient.any()) for gradient in [*shared, *(g for found in heads.values() for g in found)])
        return
    for task, chosen in rows.items():
        if chosen:
            part = sizes.select(torch.tensor(chosen))
            backward(model.loss(images[chosen], {task: targets(task, part)}, part))
    for task, chosen in rows.items():
        assert any(bool(gradient.any()) for gradient in heads[task]) == bool(chosen), task
        assert not chosen or close(heads[task], gradients(model.head.heads[task])), task
    assert close(shared, gradients(model.backbone))


def test_an_unlabelled_task_adds_nothing_even_where_it_is_not_finite() -> None:
    model = joint("det", "seg").eval()
    images, sizes = batch(2)
    raw = model(images)
    raw["seg"] = raw["seg"] * torch.tensor(math.inf)
    losses = model.head.loss(raw, {"det": targets("det", sizes)}, sizes)
    assert losses["seg/unlabelled"] == 0
    backward({name: losses[name] for name in losses if name.startswith("det")})
    assert all(bool(p.grad.isfinite().all()) for p in model.backbone.parameters() if p.grad is not None)


class SharedOffsets(Head):
    """Its raw output holds a row per cell of every image, which the default selection takes for images."""

    task: ClassVar[str] = "cls"

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.out = nn.Conv2d(spec.channels[-1], num_classes, 1)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C5",))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> dict[str, Tensor]:
        logits = self.out(features[-1]).flatten(2)
        return {"logits": logits, "offsets": torch.arange(logits.shape[2], device=logits.device)[:, None].float()}

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        return raw["logits"].float().mean(2) * raw["offsets"].mean()

    def loss(self, raw: dict[str, Tensor], targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(self.scores(raw), targets)}

    def predict(self, raw: dict[str, Tensor], sizes: ImageSizes) -> Tensor:
        return self.scores(raw).softmax(1)


class SelectsThem(SharedOffsets):
    def select(self, raw: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        return raw | {"logits": raw["logits"].index_select(0, rows)}


class SelectsByMask(SelectsThem):
    """How many rows a mask has only the device knows."""

    def select(self, raw: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        return raw | {"logits": raw["logits"][rows[rows >= 0]]}


class WholeImage(SelectsThem):
    """Finds one object everywhere, the letterbox included."""

    task: ClassVar[str] = "det"

    def loss(self, raw: dict[str, Tensor], targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        return {
            "presence": F.binary_cross_entropy_with_logits(
                self.scores(raw).amax(1), (targets.labels >= 0).any(1).float()
            )
        }

    def predict(self, raw: dict[str, Tensor], sizes: ImageSizes) -> Any:
        scores, labels = self.scores(raw).sigmoid().max(1, keepdim=True)
        height, width = sizes.batch
        boxes = torch.tensor([0.0, 0.0, width, height], device=scores.device).expand(len(scores), 1, 4)
        return Detections(boxes, scores, labels, torch.ones_like(labels[:, 0]))


class ContentAlone(WholeImage):
    def predict(self, raw: dict[str, Tensor], sizes: ImageSizes) -> Any:
        found = super().predict(raw, sizes)
        return found._replace(boxes=F.pad(sizes.valid.flip(1), (2, 0)).float()[:, None])


def test_a_head_sees_the_sizes_of_its_labelled_images_alone() -> None:
    class Sees(SelectsThem):
        def loss(self, raw: dict[str, Tensor], targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
            assert (sizes.batch, sizes.valid.tolist()) == ((64, 64), [[30, 40], [10, 20]])
            return super().loss(raw, targets, sizes)

    spec = FeatureSpec("toy", ("C5",), (4,), (32,))
    head = MultiHead(spec, {"cls": Sees(spec, 2)})
    sizes = ImageSizes((64, 64), torch.tensor([[10, 20], [64, 64], [30, 40]]))
    raw = head([torch.randn(3, 4, 2, 2)], sizes)
    labels = Labelled(torch.tensor([2, 0]), torch.tensor([1, 0]))
    assert set(head.loss(raw, {"cls": labels}, sizes)) == {"cls/cross_entropy"}
    assert head.select(raw, labels.rows)["cls"]["logits"].shape == (2, 2, 4)


@pytest.mark.parametrize(
    ("head", "broken"),
    [
        (SharedOffsets, {"select"}),
        (SelectsThem, set()),
        (SelectsByMask, {"no_sync"}),
        (WholeImage, {"valid_extent"}),
        (ContentAlone, set()),
    ],
)
def test_broken_selections_and_extents_are_caught_by_name(head: type[Head], broken: set[str]) -> None:
    promises = ["select", "no_sync", "valid_extent", "fixed_shapes", "loss_finite", "predict_pure", "batch_independent"]
    assert {violation.promise for violation in check_head(head, promises=promises)} == broken


TWO_PROCESSES = """
import sys, torch
from torch.distributed import all_reduce, destroy_process_group, get_rank, init_process_group
from torch.nn.parallel import DistributedDataParallel
from effbackbones.contracts import Labelled
from test_core_multihead import backward, batch, close, gradients, joint, targets

init_process_group("gloo")
rank = get_rank()
lacking = [{"seg": [2, 0], "cls": [1]}, {"det": [3], "cls": [0, 1, 2, 3]}]

def partly(rank, sizes):
    rows = {task: torch.tensor(chosen) for task, chosen in lacking[rank].items()}
    return {task: Labelled(index, targets(task, sizes.select(index))) for task, index in rows.items()}

model = joint(loss_weights="uncertainty").eval()
images, sizes = batch(4)
images = [images, images.flip(0)]
expected = []
for other in range(2):
    backward(model.head.loss(model(images[other], sizes), partly(other, sizes), sizes))
    expected.append(gradients(model))
    model.zero_grad(set_to_none=True)
mean = [(a + b) / 2 for a, b in zip(*expected)]

shared = DistributedDataParallel(model)
for _ in range(2):
    raw = shared(images[rank], sizes)
    backward(model.head.loss(raw, partly(rank, sizes), sizes))
    assert close(gradients(model), mean), rank
    total = torch.stack([gradient.double().sum() for gradient in gradients(model)])
    both = total.clone()
    all_reduce(both)
    assert torch.equal(both, 2 * total), rank
    model.zero_grad(set_to_none=True)
destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_that_lack_different_labels_agree(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    root = Path(__file__).parent
    path = os.pathsep.join([str(root), str(root.parent), os.environ.get("PYTHONPATH", "")])
    command = [*two_processes(), "script.py"]
    environment = ONE_THREAD | {"PYTHONPATH": path}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_figures_and_fitted_options_are_by_task() -> None:
    model = joint("det", "seg").eval()
    _, sizes = batch(3)
    rows = torch.tensor([2])
    own = targets("det", sizes.select(rows))
    figures = model.head.diagnose({"det": Labelled(rows, own), "seg": targets("seg", sizes)}, sizes)
    assert set(figures) == {"det/best_anchor_iou", "det/anchors"}
    assert figures["det/best_anchor_iou"].shape == (1, 5)
    assert model.head.diagnose({"seg": targets("seg", sizes)}, sizes) == {}
    sides = torch.tensor([[50.0, 5.0], [60.0, 6.0], [40.0, 4.0]])
    assert model.head.fit_to_data(sides, (64, 64)) == {"det": model.head.heads["det"].fit_to_data(sides, (64, 64))}
    assert model.head.fit_to_data(torch.zeros(0, 2), (64, 64)) == {}


# ---- weights of the losses -----------------------------------------------------------------------------------------


def test_factors_scale_the_losses_of_their_task_alone(tmp_path: Path) -> None:
    plain, weighed = joint("det", "seg").eval(), joint("det", "seg", loss_weights={"detect": 0.0, "seg": 0.5}).eval()
    images, sizes = batch(2)
    labels = {task: targets(task, sizes) for task in ("det", "seg")}
    before, after = plain.loss(images, labels), weighed.loss(images, labels)
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert torch.isclose(value, before[name] * (0.5 if name.startswith("seg") else 0.0), rtol=1e-5), name
    assert weighed.config["loss_weights"] == {"det": 0.0, "seg": 0.5}
    save_model(weighed, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert (again.config, again.head.weights) == (weighed.config, {"det": 0.0, "seg": 0.5})


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"segg": 1.0}, ["loss_weights['segg']", "did you mean seg"]),
        ({"det": -0.5}, ["loss_weights['det']", "from 0 up", "-0.5"]),
        ({"det": math.nan}, ["loss_weights['det']", "nan"]),
        ({"seg": "1"}, ["loss_weights['seg']", "'1'"]),
        ({"seg": True}, ["loss_weights['seg']", "True"]),
        ("uncertain", ["loss_weights", "'uncertain'", "uncertainty"]),
        ([1.0, 2.0], ["loss_weights", "[1.0, 2.0]"]),
    ],
)
def test_weights_that_make_no_sense_are_named(weights: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        joint("det", "seg", loss_weights=weights)
    one_line(error, *words)


def test_one_task_has_nothing_to_weigh() -> None:
    for weights in ({"det": 1.0}, "uncertainty"):
        with pytest.raises(UserError) as error:
            build_model("det", "lite0", loss_weights=weights)
        one_line(error, "loss_weights", "one task")
    assert "loss_weights" not in build_model("cls", "lite0", num_classes=2, backbone_options=NARROW).config


def test_learned_weights_follow_their_formula(tmp_path: Path) -> None:
    plain, model = joint("det", "seg").eval(), joint("det", "seg", loss_weights="uncertainty").eval()
    images, sizes = batch(2)
    labels = {"det": targets("det", sizes)}
    values = plain.loss(images, labels)
    total = (values["det/class"] + values["det/box"]).item()
    variance = model.head.log_variances["det"]
    for s in (0.0, 0.7, math.log(total)):
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            variance.fill_(s)
            model.head.log_variances["seg"].fill_(0.3)
        losses = model.loss(images, labels)
        assert (losses["det/class"] + losses["det/box"]).item() == pytest.approx(math.exp(-s) * total, rel=1e-5)
        assert [losses[f"{task}/uncertainty"].item() for task in ("det", "seg")] == pytest.approx([s, 0.3])
        backward(losses)
        assert float(variance.grad) == pytest.approx(1 - math.exp(-s) * total, abs=1e-4)  # 0 at s = log L
        assert float(model.head.log_variances["seg"].grad) == 0.0
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.config["loss_weights"] == "uncertainty"
    assert torch.equal(again.head.log_variances["det"], variance)


def test_learned_weights_start_at_no_weights_and_are_not_decayed() -> None:
    model = joint("det", "seg", loss_weights="uncertainty").eval()
    images, sizes = batch(2)
    labels = {task: targets(task, sizes) for task in ("det", "seg")}
    expected = joint("det", "seg").eval().loss(images, labels)
    losses = model.loss(images, labels)
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    groups = model.param_groups(0.1, weight_decay=0.5)
    for variance in model.head.log_variances.values():
        (decay,) = [group["weight_decay"] for group in groups if any(p is variance for p in group["params"])]
        assert decay == 0.0


# ---- classes by task, and what a file may say ----------------------------------------------------------------------


def test_classes_by_task_round_trip(tmp_path: Path) -> None:
    path, names = tmp_path / "m.safetensors", {"det": ("a", "b", "ü"), "seg": ("sky", "road", "car", "a")}
    model = joint("det", "seg").eval()
    model.classes = names
    save_model(model, path)
    assert read_metadata(path)["classes"] == {"det": ["a", "b", "ü"], "seg": ["sky", "road", "car", "a"]}
    found = load_model(path)
    assert found.classes == names
    save_model(found, tmp_path / "again.safetensors", classes={"seg": ["w", "x", "y", "z"]})
    assert load_model(tmp_path / "again.safetensors").classes == {"seg": ("w", "x", "y", "z")}
    assert Model(model.backbone, model.head, classes={"det": ["x"]}).classes == {"det": ("x",)}
    with pytest.raises(UserError) as error:  # or the file could not be read back
        save_model(model, tmp_path / "wrong.safetensors", classes={"detect": ["a", "b", "c"]})
    one_line(error, "'detect'", "'det', 'seg'")
    assert not (tmp_path / "wrong.safetensors").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", {"det": 7}),
        ("classes", {"det": "abc"}),
        ("classes", {"det": {"a": 1}}),
        ("classes", {"cls": ["a"]}),
        ("classes", "abc"),
        ("loss_weights", {"det": -1}),
        ("loss_weights", {"cls": 1}),
        ("loss_weights", 7),
        ("loss_weights", ["det"]),
        ("loss_weights", {"det": math.inf}),
        ("loss_weights", "x" * 1000),
        ("loss_weights", "uncertainty"),
        ("task", ["det", 7]),
    ],
)
def test_hostile_records_are_one_line(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(joint("det", "seg"), path)
    tensors, metadata = read_tensors(path)
    record = json.loads(metadata["record"])
    (record if key == "classes" else record["config"])[key] = value
    write_atomically(path, pack(tensors, {"format": "effbackbones", "record": json.dumps(record)}))
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300 + len(str(path))


def test_classes_by_task_need_several_tasks(tmp_path: Path) -> None:
    model = build_model("cls", "lite0", num_classes=2, backbone_options=NARROW)
    with pytest.raises(UserError) as error:
        save_model(model, tmp_path / "m.safetensors", classes={"cls": ["a", "b"]})
    one_line(error, "'cls'")


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, math.inf, [0.0, {"deep": math.nan}]], ids=str)
def test_options_that_no_file_holds_are_refused_before_training(value: Any, lend: Any) -> None:
    class AnyGain(SelectsThem):
        def __init__(self, spec: FeatureSpec, num_classes: int, *, gain: Any = None, **options: Any) -> None:
            super().__init__(spec, num_classes, **options)

    lend(HEADS, {"any": AnyGain})
    with pytest.raises(UserError) as error:
        build_model("cls", "lite0", head="any", num_classes=2, backbone_options=NARROW, head_options={"gain": value})
    one_line(error, "head_options.gain", "a model file")
