"""Kernels for a GPU give what the layers give: on a CPU by Triton's interpreter, which has to be asked for before Triton is loaded."""

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from effbackbones import build_model
from effbackbones.backbones import passes
from effbackbones.backbones.blocks import MBConv
from effbackbones.backbones.convolution import NUMERICS, ConvNorm
from effbackbones.backbones.folding import fold_batch_norm
from effbackbones.inference.backends.plan import Plan

triton = pytest.importorskip("triton", reason="comes with PyTorch for a GPU")

from effbackbones.inference.backends import choosing, fast as fast_module, fusedlayers, kernels, tiles  # noqa: E402  # it has been found
from effbackbones.inference.backends.choosing import quickest  # noqa: E402
from effbackbones.inference.backends.fusedblocks import FusedBlock, fuse_blocks  # noqa: E402
from effbackbones.inference.backends.fusedlayers import DepthwiseLayer, FusedLayer, PointwiseLayer  # noqa: E402
from effbackbones.inference.backends.tiles import Tile  # noqa: E402

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="run by test_kernels_in_the_interpreter")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = (Tile(4, 4, 16, 4), Tile(2, 8, 32, 4))
NARROW = (torch.float16, torch.bfloat16)


@pytest.mark.skipif(kernels.INTERPRETED, reason="this is that run")
def test_kernels_in_the_interpreter() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        "not gpu",
        __file__,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == 0


def layer(ins: int, outs: int, size: int, dtype: torch.dtype, **options: Any) -> ConvNorm:
    """A folded layer with drawn weights."""
    torch.manual_seed(0)
    made = ConvNorm(ins, outs, size, **{"numerics": NUMERICS["torch"], **options}).eval().requires_grad_(False)
    assert isinstance(made.bn, torch.nn.BatchNorm2d)
    made.bn.bias.normal_()
    made.bn.running_var.uniform_(0.5, 2)
    return made.fold().to(dtype)


def drawn(*shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)


def same(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    torch.testing.assert_close(
        found.float(), wanted.float(), rtol=2 * torch.finfo(dtype).eps, atol=4e-3 if dtype == torch.float16 else 3e-2
    )


@interpreted
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_depthwise_is_the_layer(data: st.DataObject) -> None:
    dtype, padding = (
        data.draw(st.sampled_from(NARROW)),
        data.draw(st.sampled_from(["same", "symmetric", "same_static"])),
    )
    stride = data.draw(st.sampled_from([1, 2]))
    options = {
        "numerics": type(NUMERICS["tf"])(padding=padding),
        "stride": stride,
        "dilation": data.draw(st.sampled_from([1, 2])) if stride == 1 else 1,
        "activation": data.draw(st.sampled_from(["silu", "relu", "relu6", None])),
        "nominal_size": 8,
    }
    channels, size = data.draw(st.sampled_from([8, 24, 40])), data.draw(st.sampled_from([3, 5]))
    made = layer(channels, channels, size, dtype, groups=channels, **options)
    x = drawn(2, channels, data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9)), dtype=dtype)
    wanted = made.float()(x.float())
    made.to(dtype)
    found, means = DepthwiseLayer(made, pooled=True).kernel(data.draw(st.sampled_from(SMALL)), x)
    same(found, wanted, dtype)
    same(means, wanted.mean((2, 3)), dtype)
    assert DepthwiseLayer(made, pooled=False).kernel(SMALL[0], x)[1] is None


@interpreted
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_pointwise_is_the_layer(data: st.DataObject) -> None:
    dtype = torch.float16  # the interpreter multiplies no bfloat16
    ins, outs = data.draw(st.sampled_from([8, 24, 72])), data.draw(st.sampled_from([8, 40]))
    made = layer(ins, outs, 1, dtype, activation=data.draw(st.sampled_from(["silu", "relu6", None])))
    x = drawn(data.draw(st.integers(1, 3)), ins, data.draw(st.integers(1, 6)), 5, dtype=dtype)
    gate = torch.rand(len(x), ins).to(dtype) if data.draw(st.booleans()) else None
    added = drawn(len(x), outs, *x.shape[2:], dtype=dtype) if data.draw(st.booleans()) else None
    gated = x.float() if gate is None else x.float() * gate.float()[:, :, None, None]
    wanted = made.float()(gated) + (0 if added is None else added.float())
    made.to(dtype)
    same(PointwiseLayer(made).kernel(data.draw(st.sampled_from(SMALL)), x, gate, added), wanted, dtype)


@interpreted
@pytest.mark.parametrize("backbone", ["b0", "lite0"])
def test_a_network_of_fused_blocks_answers_as_before(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    options = {"width": 0.25, "depth": 0.3, "numerics": "tf"}
    model = build_model("cls", backbone, num_classes=3, backbone_options=options).eval().requires_grad_(False)
    fold_batch_norm(model)
    wanted = model.backbone(images := torch.randn(1, 3, 45, 38))
    model.half()
    fuse_blocks(model)
    blocks = [module for module in model.modules() if isinstance(module, FusedBlock)]
    assert blocks
    assert not any(isinstance(module, MBConv) for module in model.modules())
    called: list[str] = []
    for name in ("depthwise", "pointwise"):
        plain = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *a, plain=plain, name=name, **k: (called.append(name), plain(*a, **k))[1]
        )
    monkeypatch.setattr(passes, "EVERYWHERE", True)
    found = model.backbone(images.half())
    assert called.count("depthwise") == len(blocks)
    assert called.count("pointwise") >= len(blocks)
    for one, other in zip(found, wanted, strict=True):
        assert float((one.float() - other).abs().max() / other.abs().max()) < 2e-2


@interpreted
@pytest.mark.parametrize("act", ["silu", "relu", "relu6", None])
def test_each_activation_and_what_is_no_number(act: str | None) -> None:
    x = drawn(1, 8, 4, 4, dtype=torch.float16)
    x[0, 3, 1, 2] = float("nan")
    for made in (
        DepthwiseLayer(layer(8, 8, 3, torch.float16, groups=8, activation=act), pooled=False),
        PointwiseLayer(layer(8, 8, 1, torch.float16, activation=act)),
    ):
        found, wanted = (choosing.tensors(way)[0] for way in (made.kernel(SMALL[0], x), made.library(x)))
        assert wanted.isnan().any()
        torch.testing.assert_close(found.float(), wanted.float(), rtol=2e-3, atol=4e-3, equal_nan=True)


TILES = tuple(Tile(rows, 1, 16, 4) for rows in (128, 64, 32, 16))


def kernel_of(tile: Tile, x: Tensor) -> Tensor:
    if tile.rows == 16:
        raise RuntimeError("out of resource: shared memory")
    return x * 2 if tile.rows == 32 else x


def test_what_is_slower_or_wrong_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choosing, "_FAILED", set())
    x = drawn(2, 8, 3, 3, dtype=torch.float16)

    def choice(library: float, *taken: float) -> Tile | None:
        times = iter((*taken, library))
        monkeypatch.setattr(choosing, "_seconds", lambda call, device: next(times))
        return quickest("layer", lambda x: x, kernel_of, TILES, (x,))

    assert choice(3.0, 2.0, 1.0) == TILES[1]
    assert "differs from the model's" in caplog.text
    assert "out of resource" in caplog.text
    caplog.clear()
    assert choice(3.0, 2.0, 4.0) == TILES[0]
    assert choice(1.0, 2.0, 4.0) is None
    assert not caplog.text  # what failed is not tried again
    x[0, 0, 0, 0] = float("inf")
    assert choice(3.0) is None  # nothing to compare, nothing timed


def test_without_memory_for_a_choice_the_library_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choosing, "_FAILED", set())
    assert quickest("layer", lambda x: x, full, TILES, (drawn(1, 8, 3, 3, dtype=torch.float16),)) is None
    assert not choosing._FAILED
    assert not caplog.text


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Layers that take their first tile for tensors on a CPU, without computing anything; the maps for which one was chosen."""
    seen: list[Tensor] = []

    def first(kind: str, library: Any, kernel: Any, found: tuple[Tile, ...], inputs: tuple[Tensor, ...]) -> Tile:
        seen.append(inputs[0])
        return found[0]

    monkeypatch.setattr(kernels, "INTERPRETED", True)
    monkeypatch.setattr(fusedlayers, "quickest", first)
    monkeypatch.setattr(kernels, "pointwise", lambda x, *more, **options: x + 1)
    return seen


def test_what_kernels_are_not_for_goes_to_the_library(on_a_cpu: list[Tensor]) -> None:
    made = PointwiseLayer(layer(8, 8, 1, torch.bfloat16, activation=None))
    x = drawn(2, 8, 3, 3, dtype=torch.bfloat16)

    def fused(x: Tensor, *more: Tensor | None) -> bool:
        return bool((made(x, *more) == x + 1).all())

    assert fused(x)
    assert not fused(x[:0].new_zeros(0, 8, 3, 3)) or not len(made(x[:0]))
    assert not fused(x.clone().requires_grad_())
    assert not fused(x, None, x.clone().requires_grad_())
    with torch.no_grad():
        assert fused(x.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused(x)
    with FlopCounterMode(display=False) as counted:
        assert not fused(x)
    assert counted.get_total_flops() > 0
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert not fused(x)
    finally:
        torch.use_deterministic_algorithms(before)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(made(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        assert tangent is not None
    assert torch.vmap(made)(x[None]).shape == (1, *x.shape)
    wide = made.float()
    assert not bool((wide(x.float()) == x.float() + 1).all())


def test_a_choice_is_made_once_for_so_many_pixels_and_by_each_copy(on_a_cpu: list[Tensor]) -> None:
    made = PointwiseLayer(layer(8, 8, 1, torch.bfloat16))
    for height in range(1, 65):
        made(drawn(1, 8, height, 4, dtype=torch.bfloat16))
    assert len(on_a_cpu) == len(made.chosen) == 7  # of 4 to 256 pixels
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301  # our own
        assert copied.chosen == {}
        assert copied.kernels is kernels


def test_a_copy_goes_where_there_is_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PointwiseLayer(layer(8, 8, 1, torch.bfloat16))
    x = drawn(1, 8, 3, 3, dtype=torch.bfloat16)
    wanted, kept = made.library(x), pickle.dumps(made)
    monkeypatch.setattr(fusedlayers, "kernels", lambda: None)
    assert pickle.loads(kept)(x).equal(wanted)  # noqa: S301  # our own


@pytest.mark.skipif(kernels.INTERPRETED, reason="takes kernels then")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_copy_made_on_a_gpu_has_fused_blocks(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*arguments: Any) -> tuple[Plan, list[str]]:
        return Plan("eager", ("eager",), None, None, "latency", "cuda"), []

    monkeypatch.setattr(fast_module.Plan, "of", of)
    options = {"width": 0.25, "depth": 0.3, "checkpointing": checkpointing}
    model = build_model("cls", "b0", num_classes=3, backbone_options=options).eval().bfloat16()
    fast = model.for_inference(backend="eager")
    assert any(isinstance(module, FusedBlock) for module in fast.modules())
    assert not any(isinstance(module, MBConv) for module in fast.modules())
    assert not any(module.training for module in fast.modules())
    fast.backbone(torch.rand(1, 3, 64, 64).bfloat16())  # with gradients switched on, as a user calls it
    monkeypatch.setattr(passes, "ENABLED", False)
    assert not any(isinstance(module, FusedBlock) for module in model.for_inference(backend="eager").modules())


def test_what_somebody_watches_or_made_anew_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(MBConv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shape = {"stride": 1, "dilation": 1, "expand": 6, "squeeze_excite": True, "activation": "silu"}
            rest = {"numerics": NUMERICS["tf"], "drop_path": 0.0, "nominal_size": 0}
            self.plain, self.own, self.watched = (kind(16, 16, 3, **shape, **rest) for kind in (MBConv, Own, MBConv))
            self.watched.squeeze_excite.register_forward_hook(lambda *arguments: None)

    chain = Chain().eval().requires_grad_(False)
    fold_batch_norm(chain)
    fuse_blocks(chain.half())
    assert [type(one) for one in (chain.plain, chain.own, chain.watched)] == [FusedBlock, Own, MBConv]


@pytest.mark.skipif(kernels.INTERPRETED, reason="the compiler sees no kernel then")
def test_kernels_go_into_compiled_code_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "INTERPRETED", True)  # takes tensors on a CPU, which nothing here computes with
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return lambda *arguments: (drawn(1, 16, 8, 8, dtype=torch.half),)

    block = MBConv(
        16,
        16,
        3,
        stride=1,
        dilation=1,
        expand=6,
        squeeze_excite=True,
        activation="silu",
        numerics=NUMERICS["tf"],
        drop_path=0.0,
        nominal_size=0,
    )
    fold_batch_norm(block.eval().requires_grad_(False))
    fused = FusedBlock(block.half())
    for everywhere, count in ((True, 3), (False, 0)):
        monkeypatch.setattr(passes, "EVERYWHERE", everywhere)
        torch.compile(fused, backend=kept, fullgraph=True, dynamic=False)(drawn(1, 16, 8, 8, dtype=torch.half))
        assert sum("triton_kernel_wrapper" in node.name for node in graphs[-1].graph.nodes) == count
        torch.compiler.reset()
    exported = torch.export.export(
        fused, (drawn(2, 16, 8, 8, dtype=torch.half),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert exported.module()(drawn(3, 16, 8, 8, dtype=torch.half)).shape[0] == 3


HEADS = [
    ("cls", None),
    *(("det", name) for name in ("efficientdet", "retinanet", "fcos", "ssd", "yolo")),
    ("seg", "unet"),
    ("seg", "deeplabv3plus"),
]


@pytest.mark.skipif(kernels.INTERPRETED, reason="takes kernels then")
@pytest.mark.parametrize(("task", "head"), HEADS)
def test_by_the_library_a_fused_network_answers_as_before(task: str, head: str | None) -> None:
    torch.manual_seed(0)
    model = build_model(task, "lite0", num_classes=3, head=head, backbone_options={"width": 0.25, "depth": 0.3})
    fold_batch_norm(model.eval().requires_grad_(False).bfloat16())
    fused = copy.deepcopy(model)
    fuse_blocks(fused)
    assert any(isinstance(module, FusedBlock) for module in fused.modules())
    images = torch.rand(1, 3, 64, 96).bfloat16()
    for one, other in zip(tree_leaves(fused(images)), tree_leaves(model(images)), strict=True):
        torch.testing.assert_close(one, other)


POINTERS = {"x", "taps", "bias", "y", "weight", "gate", "added"}


@pytest.mark.skipif(kernels.INTERPRETED, reason="compiled nowhere")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["_depthwise", "_pointwise"])
def test_kernels_compile_without_a_gpu_and_read_16_bytes_at_once(name: str, capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    sizes = {"size": 5, "stride": 2, "gap": 1, "pooled": True, "tile_rows": 4, "tile_columns": 8, "tile_channels": 64}
    if name == "_pointwise":
        sizes = {"gated": True, "adds": True, "tile_rows": 64, "tile_outs": 64, "tile_ins": 64}
    constants = {**sizes, "act": 1}
    types = {
        one: "constexpr" if one in constants else "*fp32" if one == "sums" else "*bf16" if one in POINTERS else "i32"
        for one in kernel.arg_names
    }
    aligned = {(place,): [["tt.divisibility", 16]] for place, one in enumerate(types) if types[one].startswith("*")}
    source = ASTSource(kernel, types, constants, aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "num_stages": kernels._STAGES}
    )
    text = made.asm["ptx"]
    wide = "ld.global.v4" if name == "_depthwise" else "cp.async.cg.shared.global"
    assert text.count(wide) > 5
    assert "ld.global.b16" not in text
    assert "ld.global.u16" not in text


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tile", tiles.DEPTHWISE_TILES)
@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 28), (5, 1, 7), (3, 2, 33), (5, 2, 14)])
def test_depthwise_on_a_gpu(size: int, stride: int, side: int, tile: Tile, dtype: torch.dtype) -> None:
    made = layer(144, 144, size, dtype, stride=stride, groups=144, numerics=NUMERICS["tf"]).cuda()
    x = drawn(3, 144, side, side, dtype=dtype, device="cuda")
    wanted = made.float()(x.float())
    made.to(dtype)
    found, means = DepthwiseLayer(made, pooled=True).kernel(tile, x)
    same(found, wanted, dtype)
    same(means, wanted.mean((2, 3)), dtype)
    assert DepthwiseLayer(made, pooled=True).kernel(tile, x)[1].equal(means)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tile", tiles.POINTWISE_TILES)
@pytest.mark.parametrize(("ins", "outs"), [(16, 96), (144, 24), (672, 112), (1152, 320)])
def test_pointwise_on_a_gpu(ins: int, outs: int, tile: Tile, dtype: torch.dtype) -> None:
    made = layer(ins, outs, 1, dtype, activation="silu").cuda()
    x, added = (drawn(3, channels, 13, 7, dtype=dtype, device="cuda") for channels in (ins, outs))
    gate = torch.rand(3, ins, device="cuda").to(dtype)
    wanted = made.double()((x * gate[:, :, None, None]).double()) + added.double()
    made.to(dtype)
    same(PointwiseLayer(made).kernel(tile, x, gate, added), wanted, dtype)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(("task", "backbone"), [("cls", "b0"), ("det", "b0"), ("seg", "b3"), ("cls", "lite0")])
def test_copies_for_inference_on_a_gpu(task: str, backbone: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = build_model(task, backbone, num_classes=3).eval().cuda()
    fast = model.for_inference(torch.bfloat16, backend="eager")
    layers = [one for one in fast.modules() if isinstance(one, FusedLayer)]
    fast.predict(torch.randint(0, 256, (2, 3, 128, 160), dtype=torch.uint8, device="cuda"))
    assert layers
    assert all(len(one.chosen) == 1 for one in layers)
    assert not caplog.text
