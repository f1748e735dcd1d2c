"""A convolution of a doubled map, computed from the map as it was: the same numbers and gradients, and who still sees the layers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from effbackbones import build_model
from effbackbones.inference.backends.fused import FusedConv
from effbackbones.model import Model
from heads.segmentation import growing
from heads.segmentation.growing import doubled

LAST = torch.channels_last
SMALL: dict[str, Any] = {
    "num_classes": 3,
    "backbone_options": {"width": 0.25, "depth": 0.3, "drop_path": 0.0},
    "head_options": {"channels": [16, 16, 8, 8, 8]},
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(memory_format=LAST).requires_grad_()


def plain(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    grown = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(grown if skip is None else torch.cat([grown, skip], 1), weight, bias, padding=1)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(1, 5)),
    images=st.integers(1, 3),
    biased=st.booleans(),
)
def test_numbers_and_gradients_are_those_of_the_doubled_map(
    size: tuple[int, int], channels: tuple[int, int, int], images: int, biased: bool
) -> None:
    torch.manual_seed(0)
    own, beside, made = channels
    x, weight = drawn(images, own, *size), drawn(made, own + beside, 3, 3)
    skip = drawn(images, beside, 2 * size[0], 2 * size[1]) if beside else None
    bias = torch.randn(made, dtype=torch.float64).requires_grad_() if biased else None
    expected, found = plain(x, skip, weight, bias), doubled(x, skip, weight, bias)
    assert torch.allclose(expected, found, atol=1e-10)
    assert found.is_contiguous(memory_format=LAST)
    given_ = [one for one in (x, skip, weight, bias) if one is not None]
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, given_, upstream), torch.autograd.grad(expected, given_, upstream), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("beside", [0, 1])
def test_it_has_a_second_derivative(beside: int) -> None:
    torch.manual_seed(0)
    given_ = drawn(1, 2, 2, 3), drawn(1, beside, 4, 6) if beside else None, drawn(2, 2 + beside, 3, 3), None
    assert torch.autograd.gradgradcheck(doubled, given_)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Maps of any size go this way; in the list what was computed so."""
    found: list[int] = []
    monkeypatch.setattr(growing, "_LEAST", 1)
    monkeypatch.setattr(
        "heads.segmentation.lean.doubled", lambda *given_: found.append(len(given_[0])) or doubled(*given_)
    )
    return found


def unet(head: str = "unet", **options: Any) -> Model:
    torch.manual_seed(0)
    return build_model("seg", "b0", head=head, **{**SMALL, "head_options": {**SMALL["head_options"], **options}})


def answers(model: Model, images: Tensor) -> list[Tensor]:
    """Losses and gradients in training and in eval mode, and probabilities."""
    state, found = {name: value.clone() for name, value in model.state_dict().items()}, []
    targets = torch.randint(0, 3, (len(images), *images.shape[2:]), generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        model.train(training).zero_grad()
        loss = torch.stack(list(model.loss(images, targets).values())).sum()
        torch.autograd.backward(loss)
        found += [loss.detach(), *(p.grad.clone() for p in model.head.parameters() if p.grad is not None)]
        model.load_state_dict(state)
    return [*found, model.predict(images)]


def pictures() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("head", "steps"), [("unet", 5), ("unetplusplus", 11)])
def test_it_answers_and_learns_as_by_its_layers(
    head: str, steps: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = answers(unet(head), pictures())
    assert len(calls) == 3 * steps
    monkeypatch.setattr(growing, "_LEAST", 10**9)
    theirs = answers(unet(head), pictures())
    assert len(calls) == 3 * steps
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max()) <= 1e-4 * float(other.abs().max()) + 1e-6


def test_with_a_hook_on_what_follows_too(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the ways that keep less are not taken, and the doubled map still is."""
    model = unet()
    steps: Any = model.head.decoder.blocks
    for step in steps:
        step.conv2.register_forward_hook(lambda *given_: None)
    ours = answers(model, pictures())
    assert len(calls) == 15
    monkeypatch.setattr(growing, "_LEAST", 10**9)
    for mine, other in zip(ours, answers(model, pictures()), strict=True):
        assert float((mine - other).abs().max()) <= 1e-4 * float(other.abs().max()) + 1e-6


def test_in_bfloat16_it_is_as_near_to_float32_as_the_layers_are(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        ours = answers(unet(), pictures())
        assert len(calls) == 15
        monkeypatch.setattr(growing, "_LEAST", 10**9)
        theirs = answers(unet(), pictures())
    exact = answers(unet(), pictures())
    off = [[float((a.float() - b).norm()) for a, b in zip(one, exact, strict=True)] for one in (ours, theirs)]
    assert sum(off[0]) <= 1.5 * sum(off[1])


def test_others_see_the_layers(calls: list[int]) -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for options in ({"interpolation": "bilinear"}, {"attention": "scse", "channels": [16, 16, 16, 16, 16]}):
        unet(**options).eval().predict(images)
    assert calls == [1]  # the last step has no skip, and so no attention before it
    calls.clear()
    model = unet().eval()
    with FlopCounterMode(display=False) as counter:
        model.predict(images)
    assert calls == []
    assert counter.get_total_flops() > 0
    seen: list[torch.Size] = []
    steps: Any = model.head.decoder.blocks
    steps[1].conv1[0].register_forward_hook(lambda layer, given_, out: seen.append(given_[0].shape[1:]))
    model.predict(images)
    assert len(calls) == 4
    assert seen[0][1:] == (8, 8)
    calls.clear()
    model.predict(torch.zeros(1, 3, 50, 50, dtype=torch.uint8))  # grown to the size of the skip, which is no double
    assert len(calls) == 2  # 4 of 2 pixels and 50 of 25, but not 7 of 4, 13 of 7, 25 of 13


@pytest.mark.parametrize(
    ("head", "options", "ready", "used"),
    [
        ("unet", {}, 5, {64: 5, 50: 2}),  # 2 to 4 and 25 to 50, but not 4 to 7, 7 to 13, 13 to 25
        ("unetplusplus", {}, 11, {64: 11}),
        ("unet", {"interpolation": "bilinear"}, 0, {64: 0}),
        ("unet", {"attention": "scse", "channels": [16] * 5}, 1, {64: 1, 50: 1}),  # the last has no skip to attend to
        ("unet", {"levels": [2, 3, 4, 5]}, 5, {64: 5}),
        (
            "unet",
            {"levels": [2, 3, 4, 5], "attention": "scse", "channels": [16] * 5},
            2,
            {64: 1},
        ),  # a skip of no channel
    ],
)
def test_copies_for_inference_have_sums_of_taps_ready(
    head: str,
    options: dict[str, Any],
    ready: int,
    used: dict[int, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(growing, "_LEAST", 1)
    model = unet(head, **options).train()
    model(pictures())  # statistics that are no longer 0 and 1
    fast = model.eval().for_inference(backend="eager")
    grown = [part for part in fast.modules() if isinstance(part, growing.GrownConv)]
    assert len(grown) == ready
    seen: list[torch.Size] = []
    for part in grown:
        part.up.register_forward_hook(lambda layer, given_, out: seen.append(out.shape))
    for side, count in used.items():
        images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
        fast.predict(images)
        seen.clear()
        assert torch.allclose(fast.predict(images), model.predict(images), atol=1e-5)
        assert len(seen) == count
        monkeypatch.setattr(growing, "_LEAST", 10**9)
        fast.predict(images)
        assert len(seen) == count
        monkeypatch.setattr(growing, "_LEAST", 1)
    assert "not used" not in caplog.text
    assert not any(isinstance(part, growing.GrownConv) for part in model.modules())


def test_layers_of_copies_are_fused_as_before() -> None:
    """Those that serve maps of other sizes."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("without oneDNN nothing is fused")
    steps: Any = unet().eval().for_inference(backend="eager").head.decoder.blocks
    assert all(type(step.conv1[0]) is FusedConv and type(step.conv1[0].act) is nn.ReLU for step in steps)


def test_graphs_for_inference_do_not_double_maps() -> None:
    fast = unet().eval().for_inference(backend="eager", dtype=torch.float32)
    fast.runner = None
    program = torch.export.export(fast, (pictures(),), strict=False)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("conv_transpose2d" in name for name in called) == 5
    assert not any("upsample" in name or "interpolate" in name for name in called)


@pytest.mark.parametrize("inner", [False, True])
def test_layers_that_somebody_watches_are_called_in_copies_too(inner: bool) -> None:
    """The convolution by itself, whose batch norm is then not folded, or it with what follows."""
    model = unet().eval()
    steps: Any = model.head.decoder.blocks
    seen: list[int] = []
    watched = steps[1].conv1[0] if inner else steps[1].conv1
    watched.register_forward_hook(lambda *given_: seen.append(1))
    fast = model.for_inference(backend="eager")
    copies: Any = fast.head.decoder.blocks
    assert copies[1].grown is None
    seen.clear()
    fast.predict(pictures())
    assert seen
