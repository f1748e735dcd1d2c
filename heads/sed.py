"""Sound event detection: what is heard in a recording, and when. Attention over time, learnt from labels of whole recordings.

Sources: the attention block and the two losses of Kong et al., "PANNs: Large-scale pretrained audio neural networks for audio pattern
recognition", 2020 (decision-level attention, section III.C of their code ``pytorch/models.py``: softmax of tanh over time, sigmoid of
each frame), as networks that won competitions of bird songs use them on EfficientNets, with half of the loss of the largest frame added.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from effbackbones.contracts import LEVELS, BackboneNeeds, FeatureSpec, ImageSizes
from effbackbones.errors import UserError, nearest
from heads.classification import ClassificationHead
from heads.options import number, require


class SedRaw(NamedTuple):
    """``logits`` [B, K] of whole recordings, ``frames`` [B, K, F] of each frame, of which those count that begin within it."""

    logits: Tensor
    frames: Tensor


pytree._register_namedtuple(SedRaw, serialized_type_name="heads.SedRaw")


class SedHead(ClassificationHead):
    """Maps averaged over frequency; on each frame a linear classifier and a linear attention; over time the mean of what the frames say,
    weighted by the softmax of tanh of the attention, class by class. Frames behind the content (``sizes``) do not count.

    Multi-label: the frames' sigmoids are averaged, p = sum of weight * sigmoid. Of one label: their logits, of which the softmax is taken;
    frames are sigmoids there too, so that silence is no class. Options, beside those of :class:`ClassificationHead`:

    * ``levels``: the maps that frames are read from, one or several. Frames are those of the finest; coarser ones are repeated.
      C5 (the default) as published: a frame is 32 steps of the spectrogram. Finer ones say more exactly when.
    * ``frame_loss``: weight of the binary cross-entropy of each class's largest frame (0.5).
    """

    reads_valid = True

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        levels: Sequence[str] = ("C5",),
        channels: int | None = None,
        frame_loss: float = 0.5,
        **options: Any,
    ) -> None:
        require("levels", list(levels), set(levels) == set(spec.names), f"the maps given, {', '.join(spec.names)}")
        if channels is None and spec.names[-1] != "C5":
            channels = 0
        super().__init__(spec, num_classes, channels=channels, **options)
        self.frame_step = spec.strides[0]
        self.frame_loss = number("frame_loss", frame_loss, 0)
        self.counted = (*self.counted, "frames")
        width = self.fc.in_features + sum(spec.channels[:-1])
        self.fc, self.attention = nn.Linear(width, num_classes), nn.Linear(width, num_classes)
        for layer in (self.fc, self.attention):
            nn.init.uniform_(layer.weight, -(width**-0.5), width**-0.5)
            nn.init.zeros_(layer.bias)

    @classmethod
    def requires(cls, *, levels: Sequence[str] = ("C5",), **options: Any) -> BackboneNeeds:
        """The levels asked for."""
        for level in levels:
            if level not in LEVELS:
                raise UserError("head_options.levels", f"no level {str(level)[:60]!r}", nearest(str(level), LEVELS))
        require("levels", list(levels), bool(levels), "one level at least", f"choose from {', '.join(LEVELS)}")
        return BackboneNeeds(levels=tuple(level for level in LEVELS if level in levels))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> SedRaw:  # type: ignore[override]
        """Maps [B, C, h, w], finest first, to logits [B, K] and [B, K, F], F the columns of the finest."""
        pooled = [one.mean(2) for one in (*features[:-1], self.conv(features[-1]))]
        count = pooled[0].shape[2]
        column = torch.arange(count, device=pooled[0].device)
        rows = [pooled[0]]
        for one, stride in zip(pooled[1:], self.spec.strides[1:], strict=True):
            rows.append(one.index_select(2, column // (stride // self.frame_step)))
        frames = self.dropout(torch.cat(rows, 1).transpose(1, 2))
        said, attention = self.fc(frames).float(), self.attention(frames).float().tanh()
        weights = attention.masked_fill(~self._inside(count, sizes)[:, :, None], -torch.inf).log_softmax(1)
        if self.sigmoid:
            there = (weights + F.logsigmoid(said)).logsumexp(1)
            logits = there - (weights + F.logsigmoid(-said)).logsumexp(1)
        else:
            logits = (weights.exp() * said).sum(1)
        return SedRaw(logits, said.transpose(1, 2))

    def _inside(self, count: int, sizes: ImageSizes) -> Tensor:
        """Which of ``count`` frames begin within the content of their recording: bool [B, F], the first always."""
        begin = torch.arange(count, device=sizes.valid.device) * self.frame_step
        return begin < sizes.valid[:, 1:].clamp(min=1)

    def loss(self, raw: SedRaw, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:  # type: ignore[override]
        """That of :class:`ClassificationHead` on the logits of recordings, and ``frames``, that of sigmoids on the largest of each class."""
        inside = self._inside(raw.frames.shape[2], sizes)[:, None]
        largest = raw.frames.float().masked_fill(~inside, -torch.inf).amax(2)
        wanted = targets
        if not self.sigmoid and not targets.is_floating_point():
            wanted = F.one_hot(targets, self.num_classes)
        return {
            **super().loss(raw.logits, targets, sizes),
            "frames": self.frame_loss * self.sigmoid_loss(largest, wanted),
        }

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """As :class:`ClassificationHead`, of both losses."""
        number = next(iter(super().count(targets, sizes).values()))
        return dict.fromkeys(self.counted, number)

    def distill(  # type: ignore[override]
        self, raw: SedRaw, teacher: Any, targets: Tensor, sizes: ImageSizes, temperature: float | None = None
    ) -> Mapping[str, Tensor]:
        """As :class:`ClassificationHead`, of whole recordings."""
        return super().distill(raw.logits, teacher, targets, sizes, temperature)

    def predict(self, raw: SedRaw, sizes: ImageSizes) -> Tensor:  # type: ignore[override]
        """Probabilities float32 [B, K] of whole recordings."""
        return super().predict(raw.logits, sizes)

    def timeline(self, raw: SedRaw, sizes: ImageSizes) -> Tensor:
        """Sigmoids of frames float32 [B, K, F]; 0 behind the content."""
        inside = self._inside(raw.frames.shape[2], sizes)[:, None]
        return raw.frames.float().sigmoid().masked_fill(~inside, 0.0)
