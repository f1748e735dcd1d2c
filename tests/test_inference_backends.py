"""A copy for inference says what its model says, whichever way it answers, and where it cannot, it says so and another way answers."""

import copy
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effbackbones import (
    Backbone,
    FeatureSpec,
    ImageSizes,
    ImageSpec,
    Model,
    UserError,
    build_model,
    list_heads,
    load_predictor,
)
from effbackbones.backbones.folding import fold_batch_norm
from effbackbones.inference.backends import fast as fast_module, plan as plan_module
from effbackbones.inference.backends.checking import difference, drawn_like
from effbackbones.inference.backends.fast import MOST_SIZES, Fast
from effbackbones.inference.backends.fused import FusedConv
from effbackbones.inference.backends.plan import Plan
from effbackbones.inference.finite import finite_watch
from effbackbones.registry import HEADS
from heads.classification import ClassificationHead

SMALL = {"width": 0.25, "depth": 0.3}
CPU = torch.device("cpu")


class Small(Backbone):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.feature_spec, self.image_spec = (
            "small",
            FeatureSpec("small", ("C5",), (8,), (4,)),
            ImageSpec((32, 32)),
        )
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
            nn.SiLU(),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images)]


def small() -> Model:
    torch.manual_seed(0)
    backbone = Small()
    model = Model(backbone, ClassificationHead(backbone.feature_spec, 5))
    return settled(model)


def settled(model: Model) -> Model:
    """In eval mode, with statistics that are not 0 and 1, and a last layer that tells images apart."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def pictures(count: int = 2, side: int = 32) -> Tensor:
    return drawn_like(torch.zeros(count, 3, side, side + 1, dtype=torch.uint8))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(fast_module, "tell", lines.append)
    return lines


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFBACKBONES_CACHE", str(tmp_path))
    return tmp_path / "graphs"


@pytest.mark.parametrize(
    ("task", "backbone", "options"),
    [
        ("cls", "b0", {"numerics": "tf"}),
        ("cls", "lite0", {}),
        ("cls", "b0", {"numerics": "same_static"}),
        ("seg", "b0", {}),
        ("det", "b0", {}),
    ],
)
def test_fused_convolutions_give_the_same_at_even_and_odd_sizes(
    task: str, backbone: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    small_head = {"det": {"channels": 8, "cells": 1, "repeats": 1}, "seg": {"channels": (16, 16, 8, 8, 4)}}.get(
        task, {}
    )
    model = settled(
        build_model(task, backbone, num_classes=3, backbone_options={**SMALL, **options}, head_options=small_head)
    )
    fast = model.for_inference(backend="eager")
    assert any(isinstance(module, FusedConv) for module in fast.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    for size in ((64, 47), (47, 65)):
        images = pictures(1, 64)[..., : size[0], : size[1]]
        with torch.no_grad():
            expected, found = (pytree.tree_leaves(one(images)) for one in (model, fast))
        assert difference(expected, found, 1, 2e-5) is None
    assert isinstance(fast.runner, Fast)
    assert fast.runner.original is None  # it is kept no longer than it is needed
    assert fast.runner.used == ("eager",)


def test_with_gradients_or_autocast_or_other_weights_the_convolutions_still_say_what_they_are() -> None:
    model, images = small(), pictures()
    fast = model.for_inference(backend="eager")
    before = fast(images)
    shown = torch.rand(1, 3, 32, 32, requires_grad=True)
    fast(shown).sum().backward()
    assert shown.grad is not None
    assert shown.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(fast(images).float(), before, atol=0.05)
    fused = next(module for module in fast.modules() if isinstance(module, FusedConv))
    assert fused.stride == (2, 2)
    with torch.no_grad():
        fused.weight.mul_(2)
        assert not torch.allclose(fast(images), before, atol=1e-4)  # they are laid out anew
    assert torch.allclose(fast.to(torch.float64)(images).float(), fast.to(torch.float32)(images), atol=1e-5)


def test_a_convolution_of_all_levels_lays_its_weights_out_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that forgot the first of five levels at the fifth laid them out in every call, and took longer than the model as it is."""
    made: list[list[int]] = []
    pack = FusedConv._pack
    monkeypatch.setattr(FusedConv, "_pack", lambda self, odd, shape: made.append(shape) or pack(self, odd, shape))
    options = {"channels": 8, "repeats": 1}
    fast = build_model("det", num_classes=2, head="retinanet", backbone_options=SMALL, head_options=options)
    fast = fast.eval().for_inference(backend="eager")
    fast(pictures(1, 64))
    first = len(made)
    fast(pictures(1, 64))
    assert len(made) == first
    for side in (32, 48, 80, 96, 128):
        fast(pictures(1, side))
    assert max(len(one._packed) for one in fast.modules() if isinstance(one, FusedConv)) == 10


def test_batch_norms_are_folded_where_they_follow_a_convolution_and_nowhere_else() -> None:
    conv = nn.Conv2d(3, 3, 1)
    twice = nn.ModuleList([nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.ReLU())])
    apart = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))

    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x

    own = Own(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    for module in (twice, apart, own):
        fold_batch_norm(module)
        assert any(isinstance(one, nn.BatchNorm2d) for one in module.modules())
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Identity(), nn.BatchNorm2d(3)).eval()
    nn.init.uniform_(nested[2].running_mean)
    x = torch.rand(1, 3, 4, 4)
    before = nested(x)
    fold_batch_norm(nested)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in nested.modules())
    assert torch.allclose(nested(x), before, atol=1e-6)


def test_bfloat16_is_used_when_asked_for_and_answers_are_float32(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(plan_module, "computes_bfloat16", lambda: True)
    torch.manual_seed(0)
    head = {"channels": 8, "cells": 1, "repeats": 1}
    model = settled(build_model("det", "b0", num_classes=2, backbone_options=SMALL, head_options=head))
    fast = model.for_inference(torch.bfloat16, backend="eager")
    raw: Any = fast(pictures(1, 64))
    assert raw.logits.dtype == raw.anchors.dtype == torch.float32
    kinds = {name: parameter.dtype for name, parameter in fast.named_parameters()}
    assert kinds["backbone.stem.conv.conv.weight"] == torch.bfloat16
    # With 8 bits most scores of an image would tie.
    assert {kind for name, kind in kinds.items() if ".predict." in name} == {torch.float32}
    assert raw.logits.bfloat16().ne(raw.logits).any()
    assert not told
    monkeypatch.setattr(plan_module, "computes_bfloat16", lambda: False)
    assert next(small().for_inference("bfloat16", backend="eager").parameters()).dtype == torch.float32
    assert told == ["bfloat16 is not used: this processor computes it no faster; float32 is"]


def plan(
    *, backend: str = "auto", dtype: Any = None, threads: Any = None, mode: str = "latency", device: str = "cpu"
) -> Plan:
    return Plan.of(backend, dtype, threads, mode, torch.device(device), torch.float32)[0]


@pytest.mark.parametrize(
    ("installed", "dtype", "expected"),
    [
        ({"openvino", "onnxruntime", "onnx", "onnxscript"}, None, ("openvino", "onnxruntime", "eager")),
        ({"onnxruntime", "onnx", "onnxscript"}, None, ("onnxruntime", "eager")),
        ({"openvino", "onnxruntime"}, None, ("eager",)),
        (set(), None, ("eager",)),
        ({"openvino", "onnxruntime", "onnx", "onnxscript"}, "bfloat16", ("openvino", "eager")),
    ],
)
def test_auto_is_the_first_that_is_installed(
    installed: set[str], dtype: Any, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(plan_module, "computes_bfloat16", lambda: True)
    assert plan(dtype=dtype).backends == expected
    assert plan(dtype=dtype, device="cuda").backends == ("eager",)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"backend": "onnx"}, r"^backend: unknown value 'onnx'; did you mean onnxruntime"),
        ({"mode": "fast"}, r"^mode: unknown value 'fast'; known: latency, throughput"),
        ({"threads": 0}, r"^threads: expected a whole number from 1 up, got 0"),
        ({"backend": "eager", "threads": 2}, r"^threads: is not for eager mode; torch.set_num_threads is"),
        ({"backend": "eager", "mode": "throughput"}, r"^mode: is not for eager mode"),
        ({"backend": "compile", "threads": 1}, r"^threads: is not for compiled code"),
        (
            {"backend": "openvino", "device": "cuda"},
            r"^backend: openvino is for the CPU here, and the model is on cuda",
        ),
        ({"backend": "openvino"}, r"^backend: openvino needs openvino, onnx, onnxscript, not installed; pip install"),
        ({"dtype": "int8"}, r"^dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"dtype": torch.float16}, r"^dtype: float16 needs a GPU"),
    ],
)
def test_what_cannot_be_is_told(wishes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        plan(**wishes)


class Made:
    """Stands for what makes graphs: those named in ``wrong`` give ``wrong``'s values."""

    def __init__(self, **wrong: Any) -> None:
        self.wrong, self.calls = wrong, list[tuple[str, int, bool]]()

    def __call__(self, name: str, model: Model, images: Tensor, batch: int, *, normalized: bool, anew: bool) -> Any:
        self.calls.append((name, batch, anew))
        trouble = self.wrong.get(name)
        if isinstance(trouble, Exception):
            raise trouble

        def run(model: Model, images: Tensor, sizes: ImageSizes, normalized: bool) -> list[Tensor]:
            leaves = pytree.tree_leaves(model.plainly(images, sizes, normalized))
            found = trouble is not None and not (trouble == "stale" and anew)
            return [leaf * 1.01 for leaf in leaves] if found else leaves

        return run, trouble != "stale" or anew


def made(monkeypatch: pytest.MonkeyPatch, **wrong: Any) -> Made:
    monkeypatch.setattr(plan_module, "find_spec", lambda name: name)
    maker = Made(**wrong)
    monkeypatch.setattr(Fast, "_make", lambda self, *arguments, **options: maker(*arguments, **options))
    return maker


def test_a_way_that_differs_or_fails_is_told_and_the_next_answers(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    model, images = small(), pictures()
    made(monkeypatch, openvino="wrong", onnxruntime=RuntimeError("no such\noperator"))
    fast = model.for_inference()
    assert torch.allclose(fast(images), model(images), atol=1e-5)
    assert fast.runner.used == ("eager",)
    assert len(told) == 2
    assert told[0].startswith(
        "openvino is not used for images of 32 x 33: output 0 differs from the model's by 1.0e-02 of its largest"
    )
    assert told[0].endswith("allowed are 1e-04; onnxruntime is tried")
    assert (
        told[1] == "onnxruntime is not used for images of 32 x 33: RuntimeError: no such operator; eager mode answers"
    )
    fast(images)
    assert len(told) == 2  # once
    asked = model.for_inference(backend="openvino")
    asked(images)
    assert told[2].endswith("; eager mode answers")


def test_a_graph_that_was_kept_and_is_no_longer_right_is_made_again(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    maker = made(monkeypatch, openvino="stale")
    fast = small().for_inference(backend="openvino")
    fast(pictures())
    assert maker.calls == [("openvino", 2, False), ("openvino", 2, True)]
    assert fast.runner.used == ("openvino",)
    assert not told


def test_so_many_sizes_have_graphs_and_eager_mode_answers_for_others(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    model = small()
    maker = made(monkeypatch)
    fast = model.for_inference(backend="openvino")
    for side in range(32, 32 + MOST_SIZES + 2):
        assert torch.allclose(fast(pictures(1, side)), model(pictures(1, side)), atol=1e-5)
    assert len(maker.calls) == MOST_SIZES
    assert told == [f"graphs are made for {MOST_SIZES} image sizes, no more: eager mode answers for others"]
    for batch in (3, 1, 2):  # of a size that is known: one graph for the first batch, one for all others
        fast(pictures(batch, 32))
    assert maker.calls[MOST_SIZES:] == [("openvino", 0, False)]


def test_images_of_all_kinds_are_answered_and_refused_as_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    made(monkeypatch)
    fast = model.for_inference(backend="onnxruntime")
    floats = torch.rand(2, 3, 32, 32)
    for images, normalized in ((pictures(), False), (floats, False), (floats, True), (floats.double(), False)):
        assert torch.allclose(fast(images, normalized=normalized), model(images, normalized=normalized), atol=1e-5)
    for bad in (torch.zeros(3, 32, 32), floats * 255, torch.zeros(1, 3, 32, 32, dtype=torch.int64)):
        with pytest.raises(UserError) as theirs:
            model(bad)
        with pytest.raises(UserError) as ours:
            fast(bad)
        assert str(ours.value) == str(theirs.value)
    changed = replace(model.image_spec, mean=(0.1, 0.2, 0.3))
    model.use_image_spec(changed)
    fast.use_image_spec(changed)
    assert torch.allclose(fast(floats), model(floats), atol=1e-5)


def test_weights_that_say_nothing_finite_are_left_to_the_model(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    model = small()
    made(monkeypatch)
    nn.init.constant_(model.head.fc.weight, torch.nan)  # type: ignore[union-attr, arg-type]
    fast = model.for_inference(backend="onnxruntime")
    with finite_watch(fast) as watch:
        assert fast.predict(pictures()).isnan().all()
        assert watch.note(["a", "b"]) == [0, 1]
    assert "not finite" in told[0]


def test_it_is_made_once_by_many_threads_and_survives_copies_and_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small(), pictures()
    maker = made(monkeypatch)
    fast = model.for_inference(backend="openvino")
    together = threading.Barrier(4)

    def ask(_: int) -> Tensor:
        together.wait()
        return fast.predict(images)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert len(maker.calls) == 1
    expected = model.predict(images)
    sent = pickle.loads(pickle.dumps(fast))  # noqa: S301  # our own
    for other in (*answers, copy.deepcopy(fast).predict(images), sent.predict(images)):
        assert torch.allclose(other, expected, atol=1e-5)
    with pytest.raises(UserError, match="is a copy for inference already"):
        fast.for_inference()


def test_predictors_take_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = made(monkeypatch)
    image = pictures(1)[0]
    plain, fast = load_predictor(small()), load_predictor(small(), backend="onnxruntime")
    assert plain.model.runner is None
    assert torch.allclose(*(torch.as_tensor(ask(image).probabilities) for ask in (fast, plain)), atol=1e-5)
    assert [name for name, *_ in maker.calls] == ["onnxruntime"]
    with pytest.raises(
        UserError, match=r"^precision: bf16 is autocast, .*; leave it at fp32, and ask for dtype bfloat16"
    ):
        load_predictor(small(), backend="eager", precision="bf16")


@pytest.fixture(scope="module")
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that tests with graphs share: making one takes seconds."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFBACKBONES_CACHE", str(folder))
        yield folder / "graphs"


def test_what_is_not_finite_differs() -> None:
    expected = [torch.ones(2, 3)]
    for value in (float("nan"), float("inf")):
        found = difference(expected, [torch.full((2, 3), value)], 2, 1e-4)
        assert found is not None
        assert "differs" in found


def test_a_copy_may_be_made_and_asked_under_inference_mode() -> None:
    with torch.inference_mode():
        born_there = small()
        answers = [model.for_inference(backend="eager").predict(pictures()) for model in (small(), born_there)]
    expected = small().predict(pictures())
    for answer in (*answers, born_there.for_inference(backend="eager").predict(pictures())):
        assert torch.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_answers_as_the_model_does_and_is_found_again(backend: str, kept_graphs: Path, told: list[str]) -> None:
    for package in (backend, "onnx", "onnxscript"):
        pytest.importorskip(package)
    model = small()
    for mode, threads in (("latency", None), ("throughput", 1)):
        fast = model.for_inference(backend=backend, mode=mode, threads=threads)
        for images in (pictures(), pictures(1), pictures(3)):
            # As an evaluation asks, while it is made too.
            with ThreadPoolExecutor(2) as pool, finite_watch(fast) as watch:
                for answer in pool.map(fast.predict, [images, images]):
                    assert torch.allclose(answer, model.predict(images), atol=1e-5)
                assert watch.note(["a", "b"] * len(images)) == []
        assert fast.runner.used == (backend,)
    assert len(list(kept_graphs.iterdir())) == 1
    assert len(told) <= 1  # made by whichever came first


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("head", [*list_heads(), "joint"])
def test_every_head_answers_by_a_graph(head: str, backend: str, kept_graphs: Path, told: list[str]) -> None:
    for package in (backend, "onnx", "onnxscript"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    if head == "joint":
        joint = {"det": {"channels": 8, "cells": 1, "repeats": 1}, "seg": {}}
        model = build_model(
            ("det", "seg"), "b0", num_classes={"det": 3, "seg": 4}, backbone_options=SMALL, head_options=joint
        )
    else:
        task = HEADS.get(head).task
        options = {
            "efficientdet": {"channels": 8, "cells": 1, "repeats": 1},
            "retinanet": {"channels": 8, "repeats": 1},
            "fcos": {"channels": 64},
            "yolo": {"channels": 8},
        }.get(head, {})
        model = build_model(task, "b0", head=head, num_classes=3, backbone_options=SMALL, head_options=options)
    fast = settled(model).for_inference(backend=backend)
    with torch.no_grad():
        for images in (pictures(2, 64)[..., :64], pictures(1, 64)[..., :64]):
            expected, found = (pytree.tree_leaves(one(images)) for one in (model, fast))
            assert difference(expected, found, len(images), 1e-4) is None
    assert fast.runner.used == (backend,), told  # no head falls back
