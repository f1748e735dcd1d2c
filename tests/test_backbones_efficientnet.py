"""Feature maps equal those of the libraries that the weights came from: random weights and batch-norm statistics transplanted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.efficientnet import EfficientNet

pytestmark = pytest.mark.peer
SIZES = ((64, 64), (65, 98))  # even and square; odd and even, not square
B = [f"b{i}" for i in range(8)]
LITE = [f"lite{i}" for i in range(5)]
TWO = [pytest.param(name, marks=[] if name in ("b0", "b3") else [pytest.mark.slow]) for name in B]
"""Numerics are the same at every scale, and the rows of the scaling table are compared elsewhere here: the others are slow."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The references draw their weights when they are built."""
    torch.manual_seed(0)


def scramble(module: nn.Module) -> nn.Module:
    """Random batch-norm statistics and affine maps, so that a wrong setting cannot hide; eval mode.

    The norm that ends a residual branch scales it by about a half. At a whole, values grow from block to block until gates
    saturate and rounding explodes: at 600 pixels timm's tf B7 then differs from its own float64 by a percent (ours too). At a
    half, ours and timm's differ by 5e-7, as timm's two memory layouts do (five seeds tried).
    """
    generator = torch.Generator().manual_seed(0)
    convolution: nn.Conv2d | None = None
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            convolution = part
        if isinstance(part, nn.BatchNorm2d):
            assert convolution is not None
            assert part.running_mean is not None
            assert part.running_var is not None
            ends_branch = convolution.kernel_size == (1, 1) and convolution.out_channels < convolution.in_channels
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.normal_(part.weight, 0.5 if ends_branch else 1.0, 0.1 if ends_branch else 0.2, generator=generator)
            nn.init.normal_(part.bias, 0.0, 0.2, generator=generator)
    return module.eval().requires_grad_(False)


def transplant(reference: nn.Module, name: str, numerics: str | Numerics, **options: Any) -> EfficientNet:
    """Our network with the reference's tensors: the layouts have one order, ours just ends before the classifier's part."""
    with torch.device("meta"):
        ours = EfficientNet(name, numerics=numerics, **options)
    tail = ("classifier", "features.8", "_fc", "conv_head", "bn2.", "_conv_head", "_bn1")
    tensors = [value for key, value in reference.state_dict().items() if not key.startswith(tail)]
    state = ours.state_dict()
    assert len(state) == len(tensors)
    ours.load_state_dict(
        {key: value.reshape(state[key].shape) for key, value in zip(state, tensors, strict=True)}, assign=True
    )
    return ours.eval().requires_grad_(False)


def assert_same(
    ours: EfficientNet, reference: Callable[[Tensor], list[Tensor]], sizes: tuple[tuple[int, int], ...] = SIZES
) -> None:
    generator = torch.Generator().manual_seed(1)
    for size in sizes[-1:] if "b5" <= ours.name < "c" else sizes:  # the large ones are slow
        images = torch.randn(2, 3, *size, generator=generator)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = images.contiguous(memory_format=layout)
            expected, maps = reference(given), ours(given)
            for level, got, want in zip(ours.feature_spec.names, maps, expected, strict=True):
                assert got.shape == want.shape
                error = float((got - want).abs().max() / want.abs().max())
                assert error < 1e-5, f"{ours.name} {level} at {size}, {layout}: {error:.1e}"


def torchvision_network(name: str) -> tuple[nn.Module, Callable[[Tensor], list[Tensor]]]:
    from torchvision.models import get_model

    network = scramble(get_model(f"efficientnet_{name}", weights=None))

    def maps(images: Tensor) -> list[Tensor]:
        found = []
        for i, stage in enumerate(network.features[:8]):
            images = stage(images)
            found += [images] if i in (1, 2, 3, 5, 7) else []
        return found

    return network, maps


def timm_network(name: str, **options: Any) -> tuple[nn.Module, Callable[[Tensor], list[Tensor]]]:
    import timm

    network = scramble(timm.create_model(name, features_only=True, **options))
    return network, network


@pytest.mark.parametrize("name", B)
def test_equals_torchvision(name: str) -> None:
    network, maps = torchvision_network(name)
    assert_same(transplant(network, name, "torch" if name < "b5" else "torch_tf"), maps)


@pytest.mark.parametrize("name", TWO)
def test_equals_timm(name: str) -> None:
    network, maps = timm_network(f"efficientnet_{name}")
    assert_same(transplant(network, name, "torch"), maps)


@pytest.mark.parametrize("name", [*B, *LITE])
def test_equals_timm_tf(name: str) -> None:
    network, maps = timm_network(f"tf_efficientnet_{name}")
    assert_same(transplant(network, name, "tf"), maps)


def lukemelas_network(name: str) -> tuple[nn.Module, Callable[[Tensor], list[Tensor]]]:
    from efficientnet_pytorch import EfficientNet as Lukemelas

    network = scramble(Lukemelas.from_name(f"efficientnet-{name}"))
    return network, lambda images: list(network.extract_endpoints(images).values())[:5]


@pytest.mark.parametrize("name", TWO)
def test_equals_lukemelas(name: str) -> None:
    network, maps = lukemelas_network(name)
    assert_same(transplant(network, name, "same_static"), maps, ((64, 64), (96, 130)))


def smp_network(encoder: str) -> tuple[nn.Module, Callable[[Tensor], list[Tensor]]]:
    from segmentation_models_pytorch.encoders import get_encoder

    network = scramble(get_encoder(encoder, weights=None))
    return network, lambda images: network(images)[1:]


@pytest.mark.parametrize(
    ("encoder", "name", "numerics", "tap"),
    [
        ("efficientnet-b1", "b1", "same_static", "stem"),
        ("efficientnet-b3", "b3", "same_static", "stem"),
        ("timm-efficientnet-b2", "b2", "torch", "stem"),
        ("tu-tf_efficientnet_b0", "b0", "tf", "stage"),
        ("tu-tf_efficientnet_lite0", "lite0", "tf", "stage"),
    ],
)
def test_equals_smp(encoder: str, name: str, numerics: str, tap: str) -> None:
    network, maps = smp_network(encoder)
    assert_same(transplant(network, name, numerics, tap=tap), maps, ((64, 64), (96, 160)))


def test_equals_smp_b0_but_for_its_c4() -> None:
    """smp reads C4 of its own B0 after block 8, the first of stage 5, not after block 10, the last (as it does for B1-B7)."""
    network, maps = smp_network("efficientnet-b0")
    ours = transplant(network, "b0", "same_static", tap="stem", levels=("C1", "C2", "C3", "C5"))
    assert_same(ours, lambda images: [m for i, m in enumerate(maps(images)) if i != 3])
    images = torch.randn(1, 3, 64, 64)
    x = ours.stem(images)
    for stage in (*list(ours.stages)[:4], ours.stages[4][0]):  # type: ignore[index]
        x = stage(x)
    assert torch.allclose(x, maps(images)[3], atol=1e-5)


@pytest.mark.parametrize("name", ["b5", "b6", "b7"])
@pytest.mark.slow
def test_equals_torchvision_and_timm_at_native_size(name: str) -> None:
    side = EfficientNet(name, levels=("C1",)).image_spec.size[0]
    for (network, maps), numerics in (
        (torchvision_network(name), "torch_tf"),
        (timm_network(f"tf_efficientnet_{name}"), "tf"),
    ):
        assert_same(transplant(network, name, numerics), maps, ((side, side),))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    ("name", "numerics", "reference"), [("b1", "tf", "tf_efficientnet_b1"), ("b0", "torch", "efficientnet_b0")]
)
def test_output_stride_equals_timm(name: str, numerics: str, reference: str, output_stride: int) -> None:
    network, maps = timm_network(reference, output_stride=output_stride)
    ours = transplant(network, name, numerics, output_stride=output_stride)
    assert_same(ours, maps)
    assert max(ours.feature_spec.strides) == output_stride


@pytest.mark.parametrize("right", ["torch", "torch_tf", "tf", "same_static"])
def test_every_wrong_numeric_setting_changes_the_maps(right: str) -> None:
    """Padding and epsilon are in no state dict: a wrong one loads without a word, and must show in the numbers."""
    network, _ = timm_network("efficientnet_b1")
    images = torch.randn(1, 3, 240, 250)
    expected = transplant(network, "b1", right)(images)[-1]
    numerics = Numerics.named(right)
    for wrong in (
        *(
            Numerics(padding, numerics.bn_eps)
            for padding in ("same", "symmetric", "same_static")
            if padding != numerics.padding
        ),
        Numerics(numerics.padding, 1e-3 if numerics.bn_eps == 1e-5 else 1e-5),
    ):
        error = (transplant(network, "b1", wrong)(images)[-1] - expected).abs().max() / expected.abs().max()
        assert error > 2e-4, (
            wrong
        )  # twenty times what the comparisons above allow; epsilon 1e-3 moves a variance of 1 by a thousandth


@pytest.mark.parametrize(("name", "reference"), [("b0", "efficientnet_b0"), ("lite1", "tf_efficientnet_lite1")])
def test_initialisation_spreads_as_timm(name: str, reference: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = [p for p in timm.create_model(reference, features_only=True).parameters()]
    for (key, ours), their in zip(EfficientNet(name).named_parameters(), theirs, strict=True):
        if ours.ndim < 2:
            assert torch.equal(ours, their), key
        else:
            std = (2 / (their.shape[0] * their[0, 0].numel() / (their.shape[0] if their.shape[1] == 1 else 1))) ** 0.5
            noise = 5 / (2 * ours.numel()) ** 0.5  # five standard errors of a standard deviation
            assert float(ours.detach().std()) / std == pytest.approx(1, abs=noise), key
            assert float(their.detach().std()) / std == pytest.approx(1, abs=noise), key
            assert abs(float(ours.detach().mean())) / std < 5 / ours.numel() ** 0.5, key
