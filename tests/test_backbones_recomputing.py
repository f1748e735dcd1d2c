"""What is made again in the backward pass instead of being kept: the same results, gradients and statistics, in less memory."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_full_backward_hook

from effbackbones import build_model
from effbackbones.backbones import passes
from effbackbones.backbones.blocks import MBConv, SqueezeExcite
from effbackbones.backbones.convolution import NUMERICS, activation_layer, convolution
from effbackbones.model import Model

SMALL: dict[str, Any] = {"width": 0.25, "depth": 0.5}


class Chain(nn.Module):
    """Batch norm, activation, gate and convolution, as a block has them."""

    def __init__(self, act: Any, padding: Any, stride: int, *, gated: bool, training: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.act = activation_layer(act)
        self.gate = SqueezeExcite(4, 2) if gated else None
        self.conv = convolution(4, 4, 3, padding=padding, stride=stride, groups=2, bias=gated, nominal_size=6)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.double().train(training)

    def forward(self, x: Tensor) -> Tensor:
        return passes.norm_act_conv(x, self.norm, self.act, self.conv, self.gate)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize(("act", "gated"), [("silu", True), ("silu", False), ("relu6", False), ("relu", True)])
def test_gradients_of_both_orders_are_exact(act: str, gated: bool, training: bool) -> None:
    torch.manual_seed(0)
    for padding, stride in (("same", 2), ("symmetric", 1), ("same_static", 2)):
        chain = Chain(act, padding, stride, gated=gated, training=training)
        inputs = [torch.randn(2, 4, 5, 6, dtype=torch.float64), *(p.detach() for p in chain.parameters())]
        names = [name for name, _ in chain.named_parameters()]

        def call(x: Tensor, *values: Tensor, chain: nn.Module = chain, names: list[str] = names) -> Tensor:
            out: Tensor = torch.func.functional_call(chain, dict(zip(names, values, strict=True)), (x,))
            return out

        given = [tensor.clone().requires_grad_() for tensor in inputs]
        assert torch.autograd.gradcheck(call, given, fast_mode=True)
        if act == "silu":  # the others have none
            assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def step(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,
    dtype: torch.dtype | None = None,
    exact: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Loss, gradients and buffers of a step of two pieces, and predictions behind it; under autocast to ``dtype``, or all in ``exact``."""
    monkeypatch.setattr(passes, "ENABLED", enabled)
    model = copy.deepcopy(model).to(exact).train()
    for piece in range(2):
        torch.manual_seed(piece)
        images, labels = torch.rand(3, 3, 40, 49).to(exact), torch.tensor([0, 1, 2])
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model.loss(images, labels)["cross_entropy"]
        torch.autograd.backward(loss)
    found = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": b.clone() for name, b in model.named_buffers()} | {"loss": loss.detach()}
    with torch.no_grad():
        return found | {"predictions": model.eval().predict(images)}


CASES: list[dict[str, Any]] = [
    {},
    {"numerics": "tf"},
    {"numerics": "same_static", "tap": "stem"},
    {"backbone": "lite0"},
    {"checkpointing": True},
    {"frozen": "C2"},
    {"dtype": torch.bfloat16},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_is_that_of_the_plain_layers(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    options = {key: value for key, value in case.items() if key in ("numerics", "checkpointing", "tap")}
    model = build_model("cls", case.get("backbone", "b0"), num_classes=3, backbone_options={**SMALL, **options})
    if "frozen" in case:
        model.backbone.freeze(case["frozen"])
    mine, plain = (step(model, monkeypatch, enabled, case.get("dtype")) for enabled in (True, False))
    true = step(model, monkeypatch, False, exact=torch.float64)
    assert mine.keys() == plain.keys() == true.keys()
    assert _distance(mine, plain) <= (0.05 if "dtype" in case else 2e-3)
    far, near = (_distance(found, true) for found in (mine, plain))
    assert far <= 4 * near + 1e-6  # rounding, which these few images of few pixels magnify by a thousand


def _distance(found: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    """The largest difference, of gradients in shares of the largest of all."""
    largest = max(float(value.abs().max()) for name, value in true.items() if name.startswith("gradient"))
    worst = 0.0
    for name, value in true.items():
        scale = largest if name.startswith("gradient") else float(value.abs().max()) + 0.01
        worst = max(worst, float((found[name] - value).abs().max()) / scale)
    return worst


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_keep_their_precision_where_means_are_large(dtype: torch.dtype) -> None:
    """Beside a mean of 50 deviations, a shift rounded to 8 bits would be off by a fifth of one."""
    torch.manual_seed(0)
    x = (torch.randn(4, 6, 9, 9) + 50).to(dtype)
    norm, act = nn.BatchNorm2d(6), nn.SiLU()
    found = []
    for network in (lambda given: passes.norm_act(given, norm, act), lambda given: act(norm(given))):
        given = x.clone().requires_grad_()
        norm.zero_grad()
        torch.autograd.backward((network(given).float() * torch.linspace(0, 1, 9)).sum())
        assert given.grad is not None
        found.append((given.grad.float(), norm.weight.grad.clone()))  # type: ignore[union-attr]
    for mine, plain in zip(*found, strict=True):
        bound = 0.01 if dtype == torch.bfloat16 else 1e-5
        assert float((mine - plain).abs().max()) <= bound * float(plain.abs().max())


def kept(model: Model, images: Tensor) -> int:
    """Bytes of maps that a forward pass keeps for the way back."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim == 4 and not isinstance(tensor, nn.Parameter):
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(images)
    assert out.requires_grad
    return sum(sizes.values())


def test_half_of_the_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("cls", "b0", num_classes=3).train()
    images = torch.rand(2, 3, 64, 64)
    ours = kept(model, images)
    monkeypatch.setattr(passes, "ENABLED", False)
    assert ours < 0.45 * kept(model, images)


@pytest.mark.parametrize("training", [True, False])
def test_a_hook_sees_what_its_layer_gives(training: bool) -> None:
    torch.manual_seed(0)
    model = build_model("cls", "b0", num_classes=3, backbone_options=SMALL).train(training)
    block: Any = model.backbone.get_submodule("stages.1.0")
    seen: dict[str, Tensor] = {}
    for name in ("expand.bn", "expand.act", "depthwise", "squeeze_excite", "project"):
        block.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.clone()}))
    images = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        model(images)
        assert torch.allclose(F.silu(seen["expand.bn"]), seen["expand.act"])
    seen.clear()
    assert model(images).requires_grad
    assert len(seen) == 5


def watching() -> tuple[Model, Any, Tensor, Tensor]:
    """A model whose blocks keep their paths, its second block, images, and the gradient of these."""
    torch.manual_seed(0)
    options = {**SMALL, "drop_path": 0.0}
    model = build_model("cls", "b0", num_classes=3, backbone_options=options, head_options={"dropout": 0.0}).train()
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    (slope,) = torch.autograd.grad(model(images).square().sum(), images)
    block: Any = next(one for one in model.backbone.modules() if isinstance(one, MBConv) and one.skip)
    return model, block, images, slope


def names_of(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_modules() if name]


def test_a_full_backward_hook_on_any_layer_is_called_and_changes_nothing() -> None:
    model, block, images, slope = watching()
    for name in names_of(block):
        seen: list[Any] = []
        handle = block.get_submodule(name).register_full_backward_hook(lambda m, i, o, seen=seen: seen.append(o))
        (found,) = torch.autograd.grad(model(images).square().sum(), images)
        assert len(seen) == 1, name
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-7, msg=name)
        handle.remove()
    everywhere: list[Any] = []
    handle = register_module_full_backward_hook(lambda m, i, o: everywhere.append(m))
    try:
        (found,) = torch.autograd.grad(model(images).square().sum(), images)
    finally:
        handle.remove()
    assert set(names_of(block)) <= {name for name, module in block.named_modules() if module in everywhere}
    torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_what_a_hook_was_shown_stays_as_it_was(training: bool) -> None:
    model, block, images, _ = watching()
    model.train(training)
    for name in names_of(block):
        seen: list[tuple[Tensor, Tensor]] = []
        handle = block.get_submodule(name).register_forward_hook(lambda m, i, o, s=seen: s.append((o, o.clone())))
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                model(images)
        handle.remove()
        assert len(seen) == 2, name
        for shown, then in seen:
            assert torch.equal(shown, then), name


def test_a_forward_put_on_a_layer_is_called() -> None:
    model, block, images, slope = watching()
    for name in names_of(block):
        layer, seen = block.get_submodule(name), list[str]()

        def wrapper(*given: Any, own: Any = layer.forward, seen: list[str] = seen) -> Tensor:
            seen.append("called")
            out: Tensor = own(*given)
            return out

        layer.forward = wrapper
        (found,) = torch.autograd.grad(model(images).square().sum(), images)
        model.eval()(images)
        del layer.forward
        model.train()
        assert seen == ["called"] * 2, name
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-7, msg=name)


def test_a_gradient_of_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model("cls", "b0", num_classes=3, backbone_options={**SMALL, "drop_path": 0.0}).double().eval()
    found = []
    for enabled in (True, False):
        monkeypatch.setattr(passes, "ENABLED", enabled)
        images = torch.rand(
            1, 3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        (slope,) = torch.autograd.grad(model(images)[0, 0], images, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), images)[0])
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_layers_of_others_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_model("cls", "b0", num_classes=3, backbone_options=SMALL)
    block: Any = model.backbone.get_submodule("stages.1.0")
    block.expand.bn, block.expand.act = nn.GroupNorm(1, block.expand.conv.out_channels), nn.GELU()
    mine, plain = (step(model, monkeypatch, enabled) for enabled in (True, False))
    assert torch.allclose(mine["loss"], plain["loss"])
    assert torch.allclose(mine["predictions"], plain["predictions"], atol=1e-5)


def test_folding_for_a_call_pays_by_size() -> None:
    torch.manual_seed(0)
    for width, side in itertools.product((4, 40), (2, 30)):
        conv, norm, act = nn.Conv2d(width, width, 1, bias=True), nn.BatchNorm2d(width).eval(), nn.SiLU(inplace=True)
        nn.init.uniform_(norm.weight, 0.5, 2)
        assert norm.running_var is not None
        norm.running_var.uniform_(0.5, 2)
        x = torch.randn(2, width, side, side)
        kernel = conv.weight.clone()
        with torch.no_grad():
            assert torch.allclose(passes.conv_norm_act(x, conv, norm, act), act(norm(conv(x))), atol=1e-5)
        assert torch.equal(kernel, conv.weight)


def test_numerics_know_all_paddings() -> None:
    assert {numerics.padding for numerics in NUMERICS.values()} == {"symmetric", "same", "same_static"}
