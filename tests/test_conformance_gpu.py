"""What models compute on a GPU is what they compute on the CPU, and nothing in a step makes the host wait."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests_support import guarded_step
from torch import Tensor

from effbackbones import BoxTargets, Model, build_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CASES: dict[str, dict[str, Any]] = {
    "cls-b0": {"task": "cls", "backbone": "b0", "num_classes": 10},
    "cls-b0-tf": {"task": "cls", "backbone": "b0", "num_classes": 10, "backbone_options": {"numerics": "tf"}},
    "cls-lite0": {"task": "cls", "backbone": "lite0", "num_classes": 10},
    "det-b0": {"task": "det", "backbone": "b0", "num_classes": 3},
    "seg-b3": {"task": "seg", "backbone": "b3", "num_classes": 4},
    "seg-fpn": {"task": "seg", "backbone": "lite0", "num_classes": 4, "head": "fpn", "head_options": {"dropout": 0.0}},
    "joint": {"task": ("det", "seg", "cls"), "backbone": "lite0", "num_classes": {"det": 3, "seg": 4, "cls": 5}},
}


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Convolutions in float32 use the 10-bit mantissa of TF32 otherwise."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def drawn(name: str, side: tuple[int, int] = (128, 160)) -> tuple[Model, Tensor, Any]:
    """A model without randomness in its training mode, two images, and their targets."""
    torch.manual_seed(0)
    options = copy.deepcopy(CASES[name])
    options["backbone_options"] = {"drop_path": 0.0, **options.get("backbone_options", {})}
    if options["task"] == "cls":
        options["head_options"] = {"dropout": 0.0}
    if name == "joint":
        options["head_options"] = {"cls": {"dropout": 0.0}}
    model = build_model(**options)
    images = torch.randint(0, 256, (2, 3, *side), dtype=torch.uint8)
    boxes = torch.tensor([[[10.0, 20, 90, 120], [5, 5, 30, 40]], [[60, 30, 150, 100], [0, 0, 0, 0]]])
    targets = {
        "cls": torch.tensor([3, 1]),
        "det": BoxTargets(boxes, torch.tensor([[0, 2], [1, -1]]), torch.zeros(2, 2, dtype=torch.bool)),
        "seg": torch.randint(0, 4, (2, *side)),
    }
    task = CASES[name]["task"]
    return model, images, targets[task] if isinstance(task, str) else {word: targets[word] for word in task}


def on_gpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: on_gpu(value) for key, value in tree.items()}
    return type(tree)(*(value.cuda() for value in tree)) if isinstance(tree, tuple) else tree.cuda()


def leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | tuple):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)


@pytest.mark.parametrize("name", CASES)
def test_raw_outputs_are_those_of_the_cpu(name: str) -> None:
    model, images, _ = drawn(name)
    model.eval()
    with torch.inference_mode():
        expected = list(leaves(model(images)))
        found = list(leaves(copy.deepcopy(model).cuda()(images.cuda())))
        folded = list(leaves(copy.deepcopy(model).cuda().for_inference(backend="eager")(images.cuda())))
    assert len(found) == len(folded) == len(expected) > 0
    for a, b, c in zip(expected, found, folded, strict=True):
        scale = float(a.abs().max()) + 1e-6
        assert float((a - b.cpu()).abs().max()) / scale < 1e-4
        assert float((a - c.cpu()).abs().max()) / scale < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_cpu(name: str) -> None:
    model, images, targets = drawn(name)
    model.double().train()  # batch norm of two images amplifies the rounding of float32
    moved = copy.deepcopy(model).cuda()
    expected = model.loss(images, targets)
    found = moved.loss(images.cuda(), on_gpu(targets))
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-4, atol=1e-6)
    torch.stack(list(expected.values())).sum().backward()  # type: ignore[no-untyped-call]
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    differ = [
        (p.grad - q.grad.cpu()).norm()
        for p, q in zip(model.parameters(), moved.parameters(), strict=True)
        if p.grad is not None
    ]
    assert float(torch.stack(differ).norm() / norm) < 1e-3


@pytest.mark.parametrize("name", ["cls-b0", "det-b0", "seg-b3", "joint"])
def test_predictions_are_those_of_the_cpu(name: str) -> None:
    model, images, _ = drawn(name)
    model.double().eval()  # no order of near-tied scores hangs on rounding
    with torch.inference_mode():
        expected = list(leaves(model.predict(images)))
        found = list(leaves(copy.deepcopy(model).cuda().predict(images.cuda())))
    assert len(found) == len(expected) > 0
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_never_waits_for_the_device(name: str, precision: str) -> None:
    model, images, targets = drawn(name)
    model, images, targets = model.cuda().train(), images.cuda(), on_gpu(targets)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        guarded_step(model, optimizer, images, targets, None)  # kernels are chosen, anchors made
        try:
            torch.cuda.set_sync_debug_mode("error")
            loss = guarded_step(model, optimizer, images, targets, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(loss))


@pytest.mark.parametrize("name", ["cls-b0", "seg-b3"])  # torchvision's suppression of boxes waits
def test_predicting_never_waits_for_the_device(name: str) -> None:
    model, images, _ = drawn(name)
    model, images = model.cuda().eval(), images.cuda()
    with torch.inference_mode():
        model.predict(images)
        try:
            torch.cuda.set_sync_debug_mode("error")
            model.predict(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
