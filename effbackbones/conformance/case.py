"""What a head is checked with: a minimal backbone, feature maps, targets in the form that its task uses."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.contracts import Backbone, BoxTargets, FeatureSpec, Head, ImageSizes, ImageSpec
from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN
from effbackbones.model import Model

IGNORED = 255


class HeadCase(NamedTuple):
    """A head class, what it is built with, and how its targets are made."""

    head_class: type[Head]
    spec: FeatureSpec
    num_classes: int
    options: Mapping[str, Any]
    make_targets: Callable[[ImageSizes, int, bool], Any]

    def build(self) -> Head:
        """A fresh head."""
        return self.head_class(self.spec, self.num_classes, **self.options)

    def model(self) -> Model:
        """A fresh head on a minimal backbone of the same spec."""
        return Model(_Strided(self.spec), self.build())

    def size(self, head: Head, larger: int = 0) -> tuple[int, int]:
        """A size (H, W) that the head need not pad, with at least two cells on the coarsest map, a pyramid's included: to
        ``torch.export`` a size of 1 is another program."""
        step = max(head.size_divisor, 32)
        # Strides of what is dense: a pyramid may go on beyond what images are padded for.
        coarsest = max(head.size_divisor, *self.spec.strides, *getattr(head, "strides", ()))
        side = -(-max(2 * coarsest, head.min_size) // step) * step
        return side + larger * step, side + (larger + 1) * step

    def inputs(self, head: Head, batch: int = 2, scale: float = 1.0) -> tuple[list[Tensor], ImageSizes]:
        """Feature maps that want gradients, and the sizes that go with them."""
        height, width = self.size(head)
        maps = [
            scale * torch.randn(batch, c, -(-height // s), -(-width // s))
            for c, s in zip(self.spec.channels, self.spec.strides, strict=True)
        ]
        return [m.requires_grad_() for m in maps], ImageSizes((height, width), torch.tensor([[height, width]] * batch))

    def losses(self, head: Head, empty: bool = False) -> dict[str, Tensor]:
        """Losses on random features."""
        features, sizes = self.inputs(head)
        return head.loss(head(features, sizes), self.make_targets(sizes, self.num_classes, empty), sizes)


class _Strided(Backbone):
    """The smallest backbone that fits a spec: one strided convolution per map."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.name, self.feature_spec, self.image_spec = spec.backbone, spec, ImageSpec()
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 3, s, 1) for c, s in zip(spec.channels, spec.strides, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [conv(images) for conv in self.convs]


def default_spec(head_class: type[Head], options: Mapping[str, Any]) -> FeatureSpec:
    """B0's maps, as the head asks for them."""
    needs = head_class.requires(**options)
    with torch.device("meta"):
        return EfficientNet("b0", levels=needs.levels, output_stride=needs.output_stride, tap=needs.tap).feature_spec


def default_targets(task: str, options: Mapping[str, Any] | None = None) -> Callable[[ImageSizes, int, bool], Any]:
    """Random targets in the form that the built-in tasks use, of a segmentation head whose ``options`` say mode multilabel sets of
    classes; another task raises :class:`UserError`."""
    makers: dict[str, Callable[[ImageSizes, int, bool], Any]] = {
        "cls": _class_targets,
        "det": _box_targets,
        "seg": _set_targets if (options or {}).get("mode") == "multilabel" else _mask_targets,
    }
    if task not in makers:
        raise UserError(f"task {task!r}", "this project does not know its targets", "pass targets= to check_head")
    return makers[task]


def _class_targets(sizes: ImageSizes, num_classes: int, empty: bool) -> Tensor:
    return torch.randint(num_classes, (len(sizes.valid),))


def _box_targets(sizes: ImageSizes, num_classes: int, empty: bool) -> BoxTargets:
    """Three boxes, a crowd and padding in each image but the last, which has no object."""
    batch, (height, width) = len(sizes.valid), sizes.batch
    corner = torch.rand(batch, 5, 2) * 0.5
    boxes = torch.cat([corner, corner + 0.1 + torch.rand(batch, 5, 2) * 0.4], 2) * torch.tensor(
        [width, height, width, height]
    )
    labels = torch.randint(num_classes, (batch, 5))
    labels[:, 4] = -1
    labels[slice(None) if empty else slice(-1, None)] = -1
    crowd = torch.zeros(batch, 5, dtype=torch.bool)
    crowd[:, 3] = True
    return BoxTargets(boxes * (labels >= 0)[..., None], labels, crowd & (labels >= 0))


def _mask_targets(sizes: ImageSizes, num_classes: int, empty: bool) -> Tensor:
    masks = torch.randint(num_classes, (len(sizes.valid), *sizes.batch))
    masks[..., : sizes.batch[1] if empty else 3] = IGNORED
    masks[-1:, : sizes.batch[0] // 2] = IGNORED  # images that count for more and for less
    return masks


def _set_targets(sizes: ImageSizes, num_classes: int, empty: bool) -> Tensor:
    sets = torch.randint(2**num_classes, (len(sizes.valid), *sizes.batch), dtype=torch.int32)
    return torch.where(_mask_targets(sizes, 1, empty) == IGNORED, UNKNOWN, sets)
