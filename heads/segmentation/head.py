"""What all segmentation heads share: sizes, losses, predictions, and the checking of options. Their decoders are elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from effbackbones.contracts import BackboneNeeds, FeatureSpec, Head, ImageSizes, ImageSpec, larger
from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN
from effbackbones.images.pixels import top_left
from effbackbones.weights.loading import load_state
from effbackbones.weights.pretrained import Adopted, Pretrained
from heads.options import choice, number, require_pictures, whole
from heads.segmentation import losses
from heads.segmentation.lean import make_lean
from heads.segmentation.smp_names import Segmenter
from heads.targets import require_all, require_tensor, values
from heads.teaching import sigmoid_divergence, softmax_divergence


class SegmentationHead(Head):
    """Feature maps to one logit per class and pixel of the images given: raw output float [B, K, H, W].

    A subclass builds ``decoder`` and ``segmentation_head``, named as in segmentation-models-pytorch (smp), so that its state
    dicts fit. Options of all:

    * ``mode``: ``multiclass``, ``binary`` (one channel, 0 background and 1 foreground) or ``multilabel`` (a sigmoid per class).
      Default: binary with one class, else multiclass. Targets as in :func:`heads.segmentation.losses.pixels_of`.
    * ``loss``: names with or without a factor, ``["cross_entropy", "dice*0.5"]``, or a dict; ``cross_entropy`` (default), ``dice``,
      ``jaccard``, ``focal``, ``tversky``, ``lovasz``. All leave out the pixels that are ``ignore_index`` (255).
    * ``class_weights``: one number per class; in binary mode two, background and foreground.
    * ``threshold``, multi-label: the probability over which a class is said to be in a pixel, one number or one per class (0.5).
    * ``label_smoothing`` of the cross-entropy; ``focal_gamma``, ``focal_alpha``; ``tversky_alpha`` and ``tversky_beta``, which
      weigh false positives and false negatives.
    """

    task: ClassVar[str] = "seg"
    prediction_options: ClassVar[tuple[str, ...]] = ("threshold",)
    pools_to_one: ClassVar[bool] = False
    """A batch norm of the decoder sees a map pooled to one cell, which in training needs two images."""
    distilled = ("distill",)

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        mode: str | None = None,
        loss: str | Sequence[str] | Mapping[str, float] = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        ignore_index: int = losses.IGNORE_INDEX,
        threshold: float | Sequence[float] = 0.5,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        focal_alpha: float | None = None,
        tversky_alpha: float = 0.5,
        tversky_beta: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        require_pictures(spec, "segmentation")
        self.mode = _mode(mode, num_classes)
        self.multilabel = self.mode == "multilabel"
        self.threshold, self.thresholds = threshold, _thresholds(threshold, num_classes)
        if not self.multilabel and set(self.thresholds) != {0.5}:
            raise UserError("head_options.threshold", f"goes with mode multilabel, got {self.mode}", "remove it")
        self.loss_weights = losses.parse_losses(loss)
        self.counted = tuple(name for name in self.loss_weights if name in ("cross_entropy", "focal"))
        self.ignore_index = whole("ignore_index", ignore_index, -(2**31))
        self._loss_options: Mapping[str, dict[str, float | None]] = {
            "cross_entropy": {"label_smoothing": number("label_smoothing", label_smoothing, 0, below=1)},
            "focal": {
                "gamma": number("focal_gamma", focal_gamma, 0),
                "alpha": None if focal_alpha is None else number("focal_alpha", focal_alpha, 0, below=1),
            },
            "tversky": {
                "alpha": number("tversky_alpha", tversky_alpha, 0),
                "beta": number("tversky_beta", tversky_beta, 0),
            },
        }
        # Not part of the state dict, whose names are smp's.
        self.register_buffer("_class_weights", _class_weights(class_weights, self.mode, num_classes), persistent=False)

    def resting(self) -> dict[str, str]:
        """As :meth:`Head.resting`: the options of losses that are not computed, and weights that no loss reads."""
        own = {
            "cross_entropy": ("label_smoothing",),
            "focal": ("focal_gamma", "focal_alpha"),
            "tversky": ("tversky_alpha", "tversky_beta"),
        }
        found = {
            name: f"{loss} is not in loss"
            for loss, names in own.items()
            if loss not in self.loss_weights
            for name in names
        }
        if self.mode == "binary" and not self.counted:
            found["class_weights"] = f"{', '.join(self.loss_weights)} of one class has nothing to weigh"
        return found

    def assemble(self, decoder: nn.Module, last: nn.Module, *, size_divisor: int) -> None:
        """Take smp's two parts, with smp's start: He-uniform convolutions, Xavier-uniform linear layers and last convolution.

        ``size_divisor``: what the decoder's fixed factors of 2 need; 1 if it goes by the sizes of its maps.
        """
        make_lean(decoder)
        self.decoder, self.segmentation_head, self.size_divisor = decoder, last, size_divisor
        for part in (*decoder.modules(), *last.modules()):
            if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        for part in decoder.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
        for part in last.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.xavier_uniform_(part.weight)

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        """Whole images, letterboxed: what a centre crop leaves out would have no class."""
        return replace(spec, crop_fraction=1.0, crop_mode="letterbox")

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        """Maps as in ``spec`` to logits [B, K, H, W], H and W those of ``sizes.batch``.

        Raises :class:`UserError` in training where the decoder needs more than the one image given.
        """
        if self.training and self.pools_to_one and features[0].shape[0] == 1:
            name = type(self).__name__
            raise UserError(
                "batch of 1 image", f"{name} has a batch norm that needs at least 2 in training", "raise the batch size"
            )
        return top_left(self.segmentation_head(self._decode(features, sizes)), sizes.batch)

    def _decode(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        """The decoder's map of the padded image."""
        decoded: Tensor = self.decoder(self._smp_maps(features, sizes.batch))
        return decoded

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """The weighted losses by name, computed in float32; 0 with zero gradients if every pixel is ignored."""
        pixels = losses.pixels_of(raw, targets, self.mode, self.ignore_index)
        class_weights = cast(Tensor | None, self._class_weights)
        return {
            name: factor * losses.LOSSES[name](pixels, class_weights, **self._loss_options.get(name, {}))
            for name, factor in self.loss_weights.items()
        }

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """Labelled pixels, by the weights of their classes, of the losses that are means over pixels; without weights for what is learned
        from a teacher. The others (``dice``, ...) are ratios of sums: of each piece by itself."""
        weights = cast(Tensor | None, self._class_weights)
        found = losses.counts(targets, self.mode, self.num_classes, weights, self.ignore_index)
        return {name: found[name] for name in (*self.counted, *self.distilled)}

    def check_teacher(self, teacher: Head) -> None:
        """As :meth:`Head.check_teacher`, of the same mode."""
        super().check_teacher(teacher)
        if getattr(teacher, "mode", None) != self.mode:
            what = f"its masks are {getattr(teacher, 'mode', 'of another kind')}, the student's {self.mode}"
            raise UserError("optim.distill.teacher", what, "give a teacher that was trained as the student is")

    def distill(
        self, raw: Tensor, teacher: Tensor, targets: Tensor, sizes: ImageSizes, temperature: float | None = None
    ) -> dict[str, Tensor]:
        """Divergence of each pixel's softmax (or of each sigmoid), averaged over the pixels that are not ignored: pixel-wise
        distillation of Liu et al., "Structured knowledge distillation for semantic segmentation", 2019."""
        warmth = temperature or self.distill_temperature
        pixels = losses.pixels_of(raw, targets, self.mode, self.ignore_index)
        theirs = teacher.flatten(-2).float().masked_fill(~pixels.valid, 0.0)
        if self.mode == "multiclass":
            each = softmax_divergence(pixels.logits, theirs, warmth)
        else:
            each = sigmoid_divergence(pixels.logits, theirs, warmth)
        return {"distill": each.sum() / pixels.valid.sum().clamp(min=1)}

    def check_targets(self, targets: Tensor, sizes: ImageSizes) -> None:
        """Classes 0..K-1, binary 0 and 1, multi-label shares in 0..1; or ``ignore_index``. Multi-label sets: of K classes, or below 0."""
        batch, several, ignore = len(sizes.valid), self.multilabel, self.ignore_index
        if losses.are_sets(targets, self.mode):
            self._check_sets(targets, sizes)
            return
        shape = (batch, self.num_classes, *sizes.batch) if several else (batch, *sizes.batch)
        require_tensor("targets", targets, [shape], f"masks {list(shape)}")
        if (found := values(targets)) is None:
            return
        most = 1 if self.mode != "multiclass" else self.num_classes - 1
        kind = "a share in 0..1" if several else f"a class of 0..{most}"
        remedy = f"write what is to be ignored as {ignore}, or set head_options.ignore_index"
        holds = ((found >= 0) & (found <= most)) | (found == ignore)
        require_all("targets", found, holds, f"{kind}, or {ignore}", remedy)
        if self.mode == "binary" and ignore == losses.IGNORE_INDEX and not (found == 1).any():
            height, width = sizes.valid.unbind(1)
            inside = self._inside(found.shape, height.tolist(), width.tolist())
            odd = (found == ignore) & inside & (found == 0).any()
            remedy = "write foreground as 1; what is unknown as another number, and set head_options.ignore_index to it"
            require_all("targets", found, ~odd, f"0 and 1 (no pixel is 1, and {ignore} is ignored)", remedy)

    def _check_sets(self, targets: Tensor, sizes: ImageSizes) -> None:
        shape = (len(sizes.valid), *sizes.batch)
        require_tensor("targets", targets, [shape], f"masks {list(shape)}")
        if (found := values(targets)) is not None:
            remedy = f"write what is to be ignored as {UNKNOWN}"
            require_all(
                "targets", found, found >> self.num_classes <= 0, f"a set of {self.num_classes} classes", remedy
            )

    @staticmethod
    def _inside(shape: tuple[int, ...], heights: Sequence[int], widths: Sequence[int]) -> NDArray[np.bool_]:
        """Pixels [B, H, W] that are no padding."""
        rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2])
        return np.stack([(rows < height) & (columns < width) for height, width in zip(heights, widths, strict=True)])

    def adopt(self, weights: Pretrained) -> Adopted:
        """As :meth:`Head.adopt`; of a whole model of smp only what belongs to this decoder, and what differs is said."""
        if not isinstance(weights.foreign, Segmenter):
            return super().adopt(weights)
        taken, remark = weights.foreign.entries_for(self.state_dict())
        what, entries = f"head from {weights.origin}", {**weights.tail, **taken}
        left = tuple(name for name in weights.foreign.head if name not in taken)
        report = load_state(self, entries, what=what, allow_missing=True, unused=left, known=weights.tail)
        return Adopted(report, (f"{weights.origin}: {remark}",) if remark else ())

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        """Probabilities float32 [B, K, H, W]: softmax over the classes, or a sigmoid each."""
        return losses.probabilities(raw, self.mode)

    def _smp_maps(self, features: Sequence[Tensor], image: tuple[int, int]) -> list[Tensor]:
        """The maps as smp lists them: place i at stride 2 ** i, the image first.

        Decoders ask the image, and a C1 that the backbone does not have, only for its size: those get a map of no channels, as
        in smp's own encoders. Places that the decoder does not look at hold the image's.
        """
        height, width = (
            self._image_side(cells, side) for cells, side in zip(features[0].shape[-2:], image, strict=True)
        )
        first = features[0]
        maps = [first.new_empty(first.shape[0], 0, height, width)] * (1 + _place(self.spec.names[-1]))
        maps[1] = first.new_empty(first.shape[0], 0, (height + 1) // 2, (width + 1) // 2)
        for name, feature in zip(self.spec.names, features, strict=True):
            maps[_place(name)] = feature
        return maps

    def _image_side(self, cells: int, side: int) -> int:
        """The side of an image after padding: what this head asks for, or more, where another head on the backbone asks for it.

        ``cells`` on the finest map tell the latter. They are no more than a lower bound: static SAME padding loses a cell on
        odd sizes.
        """
        padded, stride = self.padded(side), self.spec.strides[0]
        return larger(padded, cells * stride - -padded % stride)


def _place(level: str) -> int:
    return int(level.removeprefix("C"))


def smp_channels(spec: FeatureSpec) -> list[int]:
    """Channels as smp lists them: place i at stride 2 ** i, the image first; 0 for what the decoder does not read."""
    channels = [0] * (1 + _place(spec.names[-1]))
    for name, count in zip(spec.names, spec.channels, strict=True):
        channels[_place(name)] = count
    return channels


def check_spec(head: type[Head], spec: FeatureSpec, needs: BackboneNeeds, *, any_stride: bool = False) -> None:
    """Raise :class:`UserError` unless a backbone gives the maps that a head needs, at the strides that its decoder counts on."""
    names = needs.levels
    strides = tuple(min(2 ** _place(name), needs.output_stride) for name in names)
    if spec.names == names and (any_stride or spec.strides == strides):
        return
    ours = f"needs {_listed(names, () if any_stride else strides)}, got {_listed(spec.names, spec.strides)}"
    remedy = (
        "check backbone_options levels, output_stride and stem_stride, or choose another head (unet takes any stride)"
    )
    raise UserError(f"backbone {spec.backbone!r}", f"{head.__name__} {ours}", remedy)


def _listed(names: Sequence[str], strides: Sequence[int]) -> str:
    at = f" at stride {', '.join(map(str, strides))}" if strides else ""
    return ", ".join(names) + at


def _mode(mode: str | None, num_classes: int) -> str:
    if mode is None:
        return "binary" if num_classes == 1 else "multiclass"
    choice("mode", mode, losses.MODES)
    if (mode == "binary" and num_classes != 1) or (mode == "multiclass" and num_classes == 1):
        expected = "exactly 1 class, the foreground" if mode == "binary" else "at least 2 classes"
        raise UserError("head_options.mode", f"{mode} has {expected}, got {num_classes}", "correct mode or num_classes")
    return mode


def _thresholds(threshold: float | Sequence[float], num_classes: int) -> tuple[float, ...]:
    """One for each class."""
    each = [threshold] * num_classes if isinstance(threshold, int | float) else threshold
    if isinstance(each, str) or len(each) != num_classes:
        what = f"expected a number, or {num_classes}, one per class; got {threshold!r}"
        raise UserError("head_options.threshold", what[:200], "correct it")
    return tuple(number("threshold", one, 0, most=1) for one in each)


def _class_weights(weights: Sequence[float] | None, mode: str, num_classes: int) -> Tensor | None:
    if weights is None:
        return None
    count = 2 if mode == "binary" else num_classes
    if isinstance(weights, str) or len(weights) != count:
        what = f"expected {count} numbers{' (background, foreground)' if mode == 'binary' else ''}, got {weights!r}"
        raise UserError("head_options.class_weights", what, "give one per class")
    values = [number("class_weights", weight, 0) for weight in weights]
    if not sum(values):
        raise UserError("head_options.class_weights", "all are 0", "give at least one class a weight")
    return torch.tensor(values)
