"""The checks find what they are for: each broken promise is named, and nothing else is."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.conformance import ContractError, Violation, check_backbone, check_head, enforce
from effbackbones.conformance.backbone import BACKBONE_PROMISES
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import Backbone, BackboneNeeds, BoxTargets, FeatureSpec, Head, ImageSizes, ImageSpec
from effbackbones.errors import UserError


class Good(Head):
    """A small segmentation head that keeps every promise: 1x1 convolutions, summed on the finest grid, resized to the image."""

    task: ClassVar[str] = "seg"

    def __init__(self, spec: FeatureSpec, num_classes: int, *, width: int = 8, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.sides = nn.ModuleList(nn.Conv2d(c, width, 1) for c in spec.channels)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Conv2d(width, num_classes, 1)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C3", "C4"))

    def merge(self, features: list[Tensor]) -> Tensor:
        merged = self.sides[0](features[0])
        for side, feature in zip(list(self.sides)[1:], features[1:], strict=True):
            merged = merged + F.interpolate(side(feature), size=merged.shape[-2:])
        return self.norm(merged)

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        out: Tensor = self.out(self.drop(self.merge(features)))
        return out

    def resized(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        return F.interpolate(raw.float(), size=sizes.batch, mode="bilinear")

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        labelled = (targets != 255).float()
        each = F.cross_entropy(self.resized(raw, sizes), targets.where(targets != 255, 0), reduction="none")
        return {"cross_entropy": (each * labelled).sum() / labelled.sum().clamp(min=1)}

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        return self.resized(raw, sizes).softmax(1)


class DeadParameter(Good):
    """Asks for two levels, reads one: the other's convolution never learns."""

    def merge(self, features: list[Tensor]) -> Tensor:
        out: Tensor = self.norm(self.sides[0](features[0]))
        return out


class LossPerPixel(Good):
    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {
            "cross_entropy": F.cross_entropy(
                self.resized(raw, sizes), targets.clamp(max=self.num_classes - 1), reduction="none"
            )
        }


class NotANumberWithoutLabels(Good):
    """The mean over labelled pixels alone: 0 / 0 where there are none."""

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(self.resized(raw, sizes), targets, ignore_index=255)}


class AsManyAsItSees(Good):
    """Returns only the pixels that it is sure of."""

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        sure = raw.softmax(1).amax(1) > 0.9
        return raw.movedim(1, -1)[sure]


class BreaksExport(Good):
    """Python looks at a value of the graph."""

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        out = super().forward(features, sizes)
        return out * 2 if float(out.detach().mean()) > 1e9 else out


class HiddenState(Good):
    """A random projection that the state dict does not know."""

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.projection = torch.randn(num_classes, num_classes)

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        return self.resized(torch.einsum("bkhw,kc->bchw", raw.float(), self.projection), sizes).softmax(1)


class TwoFaced(Good):
    """Gives probabilities in eval mode, logits in training."""

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        out = super().forward(features, sizes)
        return out if self.training else out.softmax(1)


class Thaws(Good):
    """Switches its own gradients on in the middle of a step."""

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        self.requires_grad_(True)
        return super().forward(features, sizes)


class Counts(Good):
    """Scales its loss by how often it was called."""

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.register_buffer("calls", torch.zeros(()))

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        self.calls += 1
        return {"cross_entropy": super().loss(raw, targets, sizes)["cross_entropy"] / self.calls}


class CountsImages(Good):
    """Says that it divides by the images, and divides by the labelled pixels."""

    counted = ("cross_entropy",)

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {"cross_entropy": sizes.valid.new_full((), len(targets))}


class CountsTwice(Good):
    """A mean is no count."""

    counted = ("cross_entropy",)

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {"cross_entropy": (targets != 255).float().mean()}


class CountsAnother(CountsImages):
    counted = ("dice",)


class WaitsToCount(Good):
    """Looks whether there is anything to count."""

    counted = ("cross_entropy",)

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        labelled = (targets != 255).sum()
        return {"cross_entropy": labelled if labelled.item() else labelled + 1}


class Waits(Good):
    """Leaves the device to look at its own loss."""

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        losses = super().loss(raw, targets, sizes)
        return losses if losses["cross_entropy"].item() < 1e9 else {"cross_entropy": raw.sum() * 0}


class SwallowsOptions(Good):
    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes)


class BatchMean(Good):
    """Subtracts the mean over the batch, in eval mode too."""

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        out = super().forward(features, sizes)
        return out - out.mean(0, keepdim=True)


class OverwritesRaw(Good):
    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        return self.resized(raw.sub_(raw.amax(1, keepdim=True)), sizes).softmax(1)


def promises(violations: list[Violation]) -> set[str]:
    return {violation.promise for violation in violations}


def test_a_good_head_breaks_nothing() -> None:
    violations = check_head(Good)
    assert violations == []
    enforce(violations)


@pytest.mark.parametrize(
    ("head", "broken"),
    [
        (DeadParameter, {"gradient_reach"}),
        (LossPerPixel, {"loss_scalar"}),
        (NotANumberWithoutLabels, {"loss_finite"}),
        (AsManyAsItSees, {"fixed_shapes"}),
        (BreaksExport, {"export", "compile"}),
        (HiddenState, {"state_dict"}),
        (TwoFaced, {"mode_independent"}),
        (Thaws, {"freeze"}),
        (Counts, {"loss_pure", "mode_independent", "freeze", "select"}),
        (Waits, {"no_sync"}),
        (CountsImages, {"count"}),
        (CountsTwice, {"count"}),
        (CountsAnother, {"count"}),
        (WaitsToCount, {"no_sync"}),
        (SwallowsOptions, {"options_refused"}),
        (BatchMean, {"batch_independent", "select"}),
        (OverwritesRaw, {"predict_pure", "mode_independent"}),
    ],
)
def test_each_broken_head_is_caught_by_name(head: type[Head], broken: set[str]) -> None:
    violations = check_head(head)
    assert promises(violations) == broken
    with pytest.raises(ContractError, match=min(broken)):
        enforce(violations)


class Boxes(Head):
    """One box per cell: a toy that reads box targets."""

    task: ClassVar[str] = "det"
    size_divisor = 64

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        self.out = nn.Conv2d(spec.channels[-1], num_classes, 1)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        return BackboneNeeds(levels=("C5",))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> dict[str, Tensor]:
        return {"logits": self.out(features[-1]).flatten(2)}

    def loss(self, raw: dict[str, Tensor], targets: BoxTargets, sizes: ImageSizes) -> dict[str, Tensor]:
        present = F.one_hot(targets.labels.clamp(min=0), self.num_classes) * (targets.labels >= 0)[..., None]
        return {"presence": F.binary_cross_entropy_with_logits(raw["logits"].float().amax(2), present.amax(1).float())}

    def predict(self, raw: dict[str, Tensor], sizes: ImageSizes) -> Tensor:
        return raw["logits"].sigmoid().amax(2)


def test_detection_targets_and_padding() -> None:
    assert check_head(Boxes, num_classes=4) == []


def test_a_task_of_ones_own_brings_its_targets() -> None:
    class Depth(Good):
        task: ClassVar[str] = "depth"

        def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
            return {"l2": (self.resized(raw, sizes) - targets).square().mean()}

    with pytest.raises(UserError, match=r"task 'depth'.*pass targets="):
        check_head(Depth)
    assert (
        check_head(Depth, num_classes=1, targets=lambda sizes, _, __: torch.rand(len(sizes.valid), 1, *sizes.batch))
        == []
    )


def test_promises_can_be_chosen() -> None:
    assert check_head(DeadParameter, promises=["loss_finite"]) == []
    with pytest.raises(UserError, match="did you mean gradient_reach"):
        check_head(Good, promises=["gradient"])


class Toy(Backbone):
    """Two strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.image_spec = "toy", ImageSpec()
        self.feature_spec = FeatureSpec("toy", ("C1", "C2"), (4, 6), (2, 4))
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6))

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.first(images)
        return [first, self.second(first)]

    def level_modules(self) -> dict[str, tuple[nn.Module, ...]]:
        return {"C1": (self.first,), "C2": (self.second,)}


def broken(change: Callable[[Toy], None]) -> Callable[[], Backbone]:
    def build() -> Backbone:
        toy = Toy()
        change(toy)
        return toy

    return build


def wrong_channels(toy: Toy) -> None:
    toy.feature_spec = FeatureSpec("toy", ("C1", "C2"), (4, 7), (2, 4))


def other_name(toy: Toy) -> None:
    toy.name = "toys"


def dead(toy: Toy) -> None:
    toy.second.register_parameter("unused", nn.Parameter(torch.zeros(3)))


def unowned(toy: Toy) -> None:
    toy.level_modules = lambda: {"C1": (toy.first,)}  # type: ignore[method-assign]


def live_statistics(toy: Toy) -> None:
    toy.second[1] = nn.BatchNorm2d(6, track_running_stats=False)


def floors(toy: Toy) -> None:
    toy.second[0] = nn.Conv2d(4, 6, 2, 2)


class Stubborn(nn.BatchNorm2d):
    """Stays in training mode whatever it is told."""

    def train(self, mode: bool = True) -> "Stubborn":
        super().train(True)
        return self


def stubborn(toy: Toy) -> None:
    toy.first[1] = Stubborn(4)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (wrong_channels, "shapes"),
        (other_name, "spec"),
        (dead, "gradient_reach"),
        (unowned, "level_modules"),
        (live_statistics, "repeatable"),
        (floors, "shapes"),
        (stubborn, "freeze"),
    ],
)
def test_each_broken_backbone_is_caught_by_name(change: Callable[[Toy], None], name: str) -> None:
    assert name in promises(
        check_backbone(broken(change), promises=[p for p in BACKBONE_PROMISES if p not in ("export", "compile")])
    )


def test_a_good_backbone_breaks_nothing() -> None:
    assert check_backbone(Toy) == []
    assert check_backbone(Toy()) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b0", {"levels": ("C2", "C5")}),
        ("b0", {"numerics": "tf", "in_channels": 1}),
        ("lite0", {"tap": "stem", "output_stride": 8, "checkpointing": True}),
        ("b0", {"stem_stride": 1, "drop_path": 0.0, "levels": ("C2",)}),
    ],
)
def test_efficientnets_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    graphs = {"export", "compile"} if name == "b0" and "levels" in options else set()  # slow; the other two have them
    promises = [promise for promise in BACKBONE_PROMISES if promise not in graphs]
    assert check_backbone(lambda: EfficientNet(name, width=0.25, depth=0.3, **options), promises=promises) == []


def names() -> Iterator[str]:
    yield from (f"b{i}" for i in range(8))
    yield from (f"lite{i}" for i in range(5))


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["torch", "tf"])
@pytest.mark.parametrize("name", names())
def test_every_efficientnet_exports_and_compiles(name: str, numerics: str) -> None:
    assert check_backbone(lambda: EfficientNet(name, numerics=numerics), promises=["export", "compile"]) == []


def test_every_promise_has_a_sentence() -> None:
    for table in (HEAD_PROMISES, BACKBONE_PROMISES):
        assert all((check.__doc__ or "").endswith(".") for check in table.values())
