"""Classification: the published EfficientNet tail, so that it can take over an ImageNet classifier."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.convolution import Activation, ConvNorm, Numerics
from effbackbones.backbones.scaling import Scaling, head_channels, scaling
from effbackbones.contracts import BackboneNeeds, FeatureSpec, Head, ImageSizes
from effbackbones.errors import UserError
from effbackbones.weights.pretrained import Adopted, Pretrained
from heads.options import number


class ClassificationHead(Head):
    """1x1 convolution, global average pooling, dropout, linear (EfficientNet paper, table 1, last row).

    Raw output: logits [B, num_classes]. Options:

    * ``channels``: width of the 1x1 convolution; 0 leaves it out. Default: the published width on an EfficientNet, 0 elsewhere.
    * ``dropout``: probability before the linear layer. Default: the published one of the variant; 0.2 elsewhere.
    * ``multilabel``: sigmoid and binary cross-entropy instead of softmax and cross-entropy.
    * ``label_smoothing``: share of the target spread evenly over all classes (multi-label: pulled towards 1/2).
    """

    task: ClassVar[str] = "cls"

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        channels: int | None = None,
        dropout: float | None = None,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        published = _published(spec.backbone)
        if dropout is None:
            dropout = published.dropout if published else 0.2
        number("dropout", dropout, 0, below=1)
        number("label_smoothing", label_smoothing, 0, below=1)
        if channels is None:
            channels = _published_channels(spec, published) if published else 0
        self.multilabel = multilabel
        self.label_smoothing = label_smoothing
        self.counted = ("binary_cross_entropy" if multilabel else "cross_entropy",)
        self.conv = _tail_convolution(spec, channels, published) if channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels or spec.channels[-1], num_classes)
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
        pooled = self.conv(features[-1]).mean((2, 3))
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """Cross-entropy against int64 [B] or float [B, K] (soft labels), or, multi-label, binary cross-entropy against
        float [B, K] in 0..1, averaged over classes and images. Computed in float32."""
        logits, smoothing = raw.float(), self.label_smoothing
        if not self.multilabel:
            return {"cross_entropy": F.cross_entropy(logits, targets, label_smoothing=smoothing)}
        soft = targets.float() * (1 - smoothing) + smoothing / 2
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(logits, soft)}

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """Images; multi-label, labels."""
        return {
            name: sizes.valid.new_full((), targets.numel() if self.multilabel else len(targets))
            for name in self.counted
        }

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        """Probabilities float32 [B, K]: softmax, or, multi-label, a sigmoid per class."""
        logits = raw.float()
        return logits.sigmoid() if self.multilabel else logits.softmax(1)


def _published(backbone: str) -> Scaling | None:
    """The scaling row of an EfficientNet, or None for another family."""
    try:
        return scaling(backbone)
    except UserError:
        return None


def _published_channels(spec: FeatureSpec, published: Scaling) -> int:
    """Width of the tail: lite's is fixed, b's is four times the last stage (reference: torchvision), whatever its width."""
    return 4 * spec.channels[-1] if published.family == "b" and spec.names[-1] == "C5" else head_channels(published)


def _tail_convolution(spec: FeatureSpec, channels: int, published: Scaling | None) -> ConvNorm:
    activation: Activation = "relu6" if published and published.family == "lite" else "silu"
    numerics = Numerics("symmetric", spec.bn_eps, spec.bn_momentum)  # a 1x1 convolution has no padding to choose
    return ConvNorm(spec.channels[-1], channels, 1, activation=activation, numerics=numerics)
