"""Kernels for a GPU give what the layers give: on a CPU by Triton's interpreter, which has to be asked for before Triton is loaded."""

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from effbackbones import build_model
from effbackbones.backbones import passes
from effbackbones.backbones.blocks import MBConv
from effbackbones.backbones.convolution import NUMERICS, ConvNorm
from effbackbones.backbones.folding import fold_batch_norm

triton = pytest.importorskip("triton", reason="comes with PyTorch for a GPU")

from effbackbones.inference.backends import fusedblocks, kernels  # noqa: E402  # it has been found
from effbackbones.inference.backends.fusedblocks import DepthwiseLayer, FusedBlock, PointwiseLayer, fuse_blocks  # noqa: E402

interpreted = pytest.mark.skipif(not kernels.INTERPRETED, reason="run by test_kernels_in_the_interpreter")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SMALL = (kernels.Tile(4, 4, 16, 4), kernels.Tile(2, 8, 32, 4))
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
    assert "5 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
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
def test_what_is_slower_or_wrong_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = PointwiseLayer(layer(8, 8, 1, torch.float16))
    x = drawn(1, 8, 3, 3, dtype=torch.float16)
    wanted, times = made.library(x), iter([3.0, 2.0, 4.0, 1.0])
    monkeypatch.setattr(fusedblocks, "_seconds", lambda call, device: next(times))
    answers = {128: wanted, 64: wanted, 32: wanted * 2, 16: wanted}

    def kernel(tile: kernels.Tile, x: Tensor, *more: Any) -> Tensor:
        if tile.rows == 16:
            raise RuntimeError("out of resource: shared memory")
        return answers[tile.rows]

    tiles = tuple(kernels.Tile(rows, 1, 16, 4) for rows in (128, 64, 32, 16))
    monkeypatch.setattr(fusedblocks, "_FAILED", set())
    monkeypatch.setattr(made, "kernel", kernel)
    monkeypatch.setattr(made, "tiles", tiles)
    made(x)
    assert list(made.chosen.values()) == [tiles[0]]
    assert "differs from the model's" in caplog.text
    assert "out of resource" in caplog.text
    caplog.clear()
    times = iter([1.0, 2.0, 4.0])
    made.chosen.clear()
    assert made(x * float("inf")).isnan().any()
    assert made.chosen.popitem()[1] is None  # for want of numbers to compare nothing was timed
    assert made(x).equal(wanted)
    assert list(made.chosen.values()) == [None]
    assert not caplog.text  # what failed is not tried again


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
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    text = made.asm["ptx"]
    wide = "ld.global.v4" if name == "_depthwise" else "cp.async.cg.shared.global"
    assert text.count(wide) > 5
    assert "ld.global.b16" not in text
    assert "ld.global.u16" not in text


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("tile", kernels.DEPTHWISE_TILES)
@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 28), (5, 1, 7), (3, 2, 33), (5, 2, 14)])
def test_depthwise_on_a_gpu(size: int, stride: int, side: int, tile: kernels.Tile, dtype: torch.dtype) -> None:
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
@pytest.mark.parametrize("tile", kernels.POINTWISE_TILES)
@pytest.mark.parametrize(("ins", "outs"), [(16, 96), (144, 24), (672, 112), (1152, 320)])
def test_pointwise_on_a_gpu(ins: int, outs: int, tile: kernels.Tile, dtype: torch.dtype) -> None:
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
    layers = [one for one in fast.modules() if isinstance(one, fusedblocks.FusedLayer)]
    fast.predict(torch.randint(0, 256, (2, 3, 128, 160), dtype=torch.uint8, device="cuda"))
    assert layers
    assert all(len(one.chosen) == 1 for one in layers)
    assert not caplog.text
