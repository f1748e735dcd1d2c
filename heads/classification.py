"""Classification: the published EfficientNet tail, so that it can take over an ImageNet classifier."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones import passes
from effbackbones.backbones.convolution import Activation, ConvNorm, Numerics
from effbackbones.backbones.scaling import Scaling, head_channels, row_of
from effbackbones.contracts import BackboneNeeds, FeatureSpec, Head, ImageSizes
from effbackbones.errors import UserError
from effbackbones.weights.pretrained import Adopted, Pretrained
from heads.options import number, require
from heads.targets import require_all, require_tensor, values
from heads.teaching import sigmoid_divergence, softmax_divergence

_ROUNDING = 1e-2  # of a sum of shares in 16 bits


class ClassificationHead(Head):
    """1x1 convolution, global average pooling, dropout, linear (EfficientNet paper, table 1, last row).

    Raw output: logits [B, num_classes]. Options:

    * ``channels``: width of the 1x1 convolution; 0 leaves it out. Default: the published width on an EfficientNet, 0 elsewhere.
    * ``dropout``: probability before the linear layer. Default: the published one of the variant; 0.2 elsewhere.
    * ``multilabel``: sigmoid and binary cross-entropy instead of softmax and cross-entropy. A single class that is not multi-label
      is a yes or no: one sigmoid too, of targets 0 and 1.
    * ``ignore_unknown``: labels of several that are -1 or NaN are left out of the loss; otherwise they are refused.
    * ``label_smoothing``: share of the target spread evenly over all classes (multi-label: pulled towards 1/2).
    * ``class_weights``: a factor on the loss of each class, as torch's ``weight``, but the average is over images.
    * ``pos_weight``, multi-label: a factor on the positive part of each class's loss, one number or one per class.
    """

    task: ClassVar[str] = "cls"
    distill_temperature = 4.0
    """2.5 to 4 served a small student best in section 3 of the paper that :mod:`heads.teaching` names."""
    distilled = ("distill",)

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        channels: int | None = None,
        dropout: float | None = None,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
        ignore_unknown: bool = False,
        class_weights: Sequence[float] | None = None,
        pos_weight: Sequence[float] | float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        self.min_size = min(self.min_size, spec.strides[-1])  # a cell of the map that is pooled
        published = row_of(spec.backbone)
        if dropout is None:
            dropout = published.dropout if published else 0.2
        number("dropout", dropout, 0, below=1)
        number("label_smoothing", label_smoothing, 0, below=1)
        if channels is None:
            channels = _published_channels(spec, published) if published else 0
        self.multilabel = multilabel
        self.label_smoothing = label_smoothing
        require("ignore_unknown", ignore_unknown, multilabel or not ignore_unknown, "false without multilabel")
        self.ignore_unknown = ignore_unknown
        self.sigmoid = multilabel or num_classes == 1
        self.counted = ("binary_cross_entropy" if self.sigmoid else "cross_entropy",)
        self.conv = _tail_convolution(spec, channels, published) if channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels or spec.channels[-1], num_classes)
        if pos_weight is not None and not self.sigmoid:
            raise UserError(
                "head_options.pos_weight", "goes with sigmoids alone (multilabel, or one class)", "use class_weights"
            )
        # Not part of the state dict: they belong to the training data.
        weights = _per_class("class_weights", class_weights, num_classes)
        self.register_buffer("_class_weights", weights, persistent=False)
        self.register_buffer("_pos_weight", _per_class("pos_weight", pos_weight, num_classes), persistent=False)
        # By the inputs. The original draws from +-1 / sqrt(num_classes): equal at 1000 classes, a first loss of 6 at ten.
        nn.init.uniform_(self.fc.weight, -(self.fc.in_features**-0.5), self.fc.in_features**-0.5)
        nn.init.zeros_(self.fc.bias)

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """The coarsest map alone."""
        return BackboneNeeds(levels=("C5",))

    def adopt(self, weights: Pretrained) -> Adopted:
        """As :meth:`Head.adopt`. TensorFlow's ImageNet classifiers may have 1001 classes, the first of them background: a head of 1000
        takes the others, and says so."""
        bias = weights.tail.get("fc.bias")
        if bias is None or len(bias) != 1001 or self.num_classes != 1000:
            return super().adopt(weights)
        tail = {name: tensor[1:] if name.startswith("fc.") else tensor for name, tensor in weights.tail.items()}
        remark = "the classifier has 1001 classes: class 0 taken for TensorFlow's background and dropped"
        return replace(super().adopt(replace(weights, tail=tail)), remarks=(remark,))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        """The last of ``features`` [B, C, h, w] to logits [B, num_classes]."""
        pooled = passes.mean(self.conv(features[-1]))
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """Cross-entropy against integers [B] or float [B, K] (soft labels), or, multi-label, binary cross-entropy against
        float [B, K] in 0..1, averaged over classes and images; of a single class against int64 or float [B] or [B, 1] in 0..1.
        Computed in float32."""
        logits, smoothing = raw.float(), self.label_smoothing
        targets = targets if targets.is_floating_point() else targets.long()
        weights = cast(Tensor | None, self._class_weights)
        if self.sigmoid:
            return {"binary_cross_entropy": self.sigmoid_loss(logits, targets)}
        if weights is None:
            return {"cross_entropy": F.cross_entropy(logits, targets, label_smoothing=smoothing)}
        # torch would divide by the weights of the labels met, which differ from piece to piece of a batch.
        losses = F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=smoothing)
        return {"cross_entropy": losses.mean()}

    def sigmoid_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy of float32 ``logits`` [B, K], averaged over classes and images, or over what is known."""
        weights, positive = cast(Tensor | None, self._class_weights), cast(Tensor | None, self._pos_weight)
        wanted = targets.float().view_as(logits)
        known = wanted >= 0 if self.ignore_unknown else None  # NaN is not
        soft = wanted * (1 - self.label_smoothing) + self.label_smoothing / 2
        if known is None:
            return F.binary_cross_entropy_with_logits(logits, soft, weights, pos_weight=positive)
        logits, soft = logits.masked_fill(~known, 0.0), soft.masked_fill(~known, 0.0)
        each = F.binary_cross_entropy_with_logits(logits, soft, weights, pos_weight=positive, reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """Images; multi-label, known labels, but for what is learned from a teacher."""
        images = sizes.valid.new_full((), len(targets))
        known = (targets >= 0).sum() if self.ignore_unknown else images
        return dict.fromkeys(self.counted, known) | dict.fromkeys(self.distilled, images)

    def check_teacher(self, teacher: Head) -> None:
        """As :meth:`Head.check_teacher`: a softmax learns from a softmax, sigmoids from sigmoids."""
        super().check_teacher(teacher)
        if getattr(teacher, "sigmoid", None) is not self.sigmoid:
            what = (
                "says of one class that it is there, the student of several, or the other way round (data.multilabel)"
            )
            raise UserError("optim.distill.teacher", what, "give a teacher that was trained as the student is")

    def distill(
        self, raw: Tensor, teacher: Any, targets: Tensor, sizes: ImageSizes, temperature: float | None = None
    ) -> dict[str, Tensor]:
        """Divergence of the softmax, averaged over images; of sigmoids averaged over classes and images, also those whose label is
        unknown: the teacher knows. Of a teacher that says more than ``logits`` these."""
        warmth = temperature or self.distill_temperature
        divergence = sigmoid_divergence if self.sigmoid else softmax_divergence
        return {"distill": divergence(raw, getattr(teacher, "logits", teacher), warmth).mean()}

    def check_targets(self, targets: Tensor, sizes: ImageSizes) -> None:
        """Labels 0..K-1 (of a single class 0 and 1), or shares in 0..1 of each class, of one label for all classes 1 in all."""
        batch, classes = len(sizes.valid), self.num_classes
        whole = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 1
        shapes = (
            [(batch, classes)]
            if self.multilabel
            else [(batch,)]
            if whole
            else [(batch, classes), *[(batch,)] * self.sigmoid]
        )
        labels = f"{[batch]} of labels 0..{max(classes - 1, 1)}, or " if not self.multilabel else ""
        require_tensor("targets", targets, shapes, f"{labels}{[batch, classes]} in 0..1")
        if not (whole or self.sigmoid or targets.is_floating_point()):
            what = f"expected shares of each class as floating point, got {targets.dtype}"
            raise UserError("targets", what, "convert them, or give labels: targets.argmax(1)")
        if (found := values(targets)) is None:
            return
        if whole:
            most, remedy = max(classes - 1, 1), "number the classes from 0, or raise num_classes"
            require_all("targets", found, (found >= 0) & (found <= most), f"a label of 0..{most}", remedy)
            return
        known = (found >= 0) & (found <= 1)
        unknown = (found == -1) | (found != found)
        remedy = (
            "set head_options.ignore_unknown to leave out unknown labels (-1, NaN)"
            if self.multilabel
            else "correct them"
        )
        require_all("targets", found, known | unknown if self.ignore_unknown else known, "a value in 0..1", remedy)
        if not self.sigmoid:
            total = found.sum(1)
            remedy = "divide them by their sum; where several labels may be there at once: multilabel=True"
            require_all("targets", total, abs(total - 1) < _ROUNDING, "shares of the classes that sum to 1", remedy)

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        """Probabilities float32 [B, K]: softmax, or, multi-label and of a single class ([B, 1]), a sigmoid per class."""
        logits = raw.float()
        return logits.sigmoid() if self.sigmoid else logits.softmax(1)


def _per_class(name: str, value: Sequence[float] | float | None, count: int) -> Tensor | None:
    """One positive number for each class, of a list of them or of one for all."""
    if value is None:
        return None
    values = [value] * count if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(values, str | bool) or len(values) != count:
        raise UserError(
            f"head_options.{name}", f"expected {count} numbers, one per class, got {value!r}"[:200], "correct it"
        )
    return torch.tensor([number(name, one, 0) for one in values], dtype=torch.float32)


def _published_channels(spec: FeatureSpec, published: Scaling) -> int:
    """Width of the tail: lite's is fixed, b's is four times the last stage (reference: torchvision), whatever its width."""
    return 4 * spec.channels[-1] if published.family == "b" and spec.names[-1] == "C5" else head_channels(published)


def _tail_convolution(spec: FeatureSpec, channels: int, published: Scaling | None) -> ConvNorm:
    activation: Activation = "relu6" if published and published.family == "lite" else "silu"
    numerics = Numerics("symmetric", spec.bn_eps, spec.bn_momentum)  # a 1x1 convolution has no padding to choose
    return ConvNorm(spec.channels[-1], channels, 1, activation=activation, numerics=numerics)
