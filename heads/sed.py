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

DEFAULT = ("C5",)
NEVER = -1e4
"""A logit whose sigmoid, and whose share of a softmax, is 0. Sums over minus infinity become infinite in onnxruntime."""


class SedRaw(NamedTuple):
    """``logits`` [B, K] of whole recordings, ``levels`` [B, L, K] those by each of L maps, finest first, the last being these; ``frames``
    [B, L, K, F] of each frame of the finest map, of which those count that begin within their recording."""

    logits: Tensor
    levels: Tensor
    frames: Tensor


pytree._register_namedtuple(SedRaw, serialized_type_name="heads.SedRaw")


class SedHead(ClassificationHead):
    """A map averaged over frequency; on each frame a linear classifier and a linear attention; over time the mean of what the frames say,
    weighted by the softmax of tanh of the attention, class by class. Frames behind the content (``sizes``) do not count.

    Multi-label: the frames' sigmoids are averaged, p = sum of weight * sigmoid. Of one label: their logits, of which the softmax is taken;
    frames are sigmoids there too, so that silence is no class.

    Labels of whole recordings do not say when, so a frame learns to say yes wherever it sees the sound at all, and those of C5 see
    seconds. With several ``levels`` each map has all of this, and its losses; the coarsest says what (the probability of a recording),
    the finest when (:meth:`timeline`). Options, beside those of :class:`ClassificationHead`:

    * ``levels``: the maps, C5 alone by default, as published. A frame is as long as a step of the finest.
    * ``frame_loss``: weight of the binary cross-entropy of each class's largest frame (0.5), averaged over the maps.
    * ``finer_loss``: weight of the loss of recordings by the finer maps (1), averaged over them.
    """

    reads_valid = True

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        levels: Sequence[str] = DEFAULT,
        channels: int | None = None,
        frame_loss: float = 0.5,
        finer_loss: float = 1.0,
        **options: Any,
    ) -> None:
        require("levels", list(levels), set(levels) == set(spec.names), f"the maps given, {', '.join(spec.names)}")
        if channels is None and spec.names[-1] != "C5":
            channels = 0
        super().__init__(spec, num_classes, channels=channels, **options)
        self.frame_step = spec.strides[0]
        self.frame_centre = (self.frame_step - 1) / 2 if spec.centres is None else spec.centres[0]
        self.frame_loss = number("frame_loss", frame_loss, 0)
        self.finer_loss = number("finer_loss", finer_loss, 0)
        self.counted = (*self.counted, "frames", *(["finer"] if len(spec.names) > 1 else []))
        self.attention = nn.Linear(self.fc.in_features, num_classes)
        finer = spec.channels[:-1]
        self.finer = nn.ModuleList(nn.Linear(width, num_classes) for width in finer)
        self.finer_attention = nn.ModuleList(nn.Linear(width, num_classes) for width in finer)
        for layer in (self.attention, *self.finer, *self.finer_attention):
            nn.init.uniform_(layer.weight, -(layer.in_features**-0.5), layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def resting(self) -> dict[str, str]:
        """As :meth:`Head.resting`."""
        return super().resting() | ({} if len(self.finer) else {"finer_loss": "levels has one map alone"})

    @classmethod
    def requires(cls, *, levels: Sequence[str] = DEFAULT, **options: Any) -> BackboneNeeds:
        """The levels asked for."""
        for level in levels:
            if level not in LEVELS:
                raise UserError("head_options.levels", f"no level {str(level)[:60]!r}", nearest(str(level), LEVELS))
        require("levels", list(levels), bool(levels), "one level at least", f"choose from {', '.join(LEVELS)}")
        return BackboneNeeds(levels=tuple(level for level in LEVELS if level in levels))

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> SedRaw:  # type: ignore[override]
        """Maps [B, C, h, w], finest first, to what each of them says, frames at the steps of the finest."""
        maps = (*features[:-1], self.conv(features[-1]))
        rows = [self.dropout(one.mean(2).transpose(1, 2)) for one in maps]  # [B, w, C] each
        said = [layer(row).float() for layer, row in zip((*self.finer, self.fc), rows, strict=True)]
        attentions = [
            layer(row).float() for layer, row in zip((*self.finer_attention, self.attention), rows, strict=True)
        ]
        logits = [
            self._attended(one, attention, self._inside(one.shape[1], stride, sizes))
            for one, attention, stride in zip(said, attentions, self.spec.strides, strict=True)
        ]
        column = torch.arange(said[0].shape[1], device=said[0].device)
        repeated = [one.index_select(1, self._cell(column, level)) for level, one in enumerate(said[1:], 1)]
        frames = torch.stack([said[0], *repeated], 1).transpose(2, 3)
        return SedRaw(logits[-1], torch.stack(logits, 1), frames)

    def _attended(self, said: Tensor, attention: Tensor, inside: Tensor) -> Tensor:
        """Logits [B, K] of recordings by what their frames say [B, F, K]."""
        weights = attention.tanh().masked_fill(~inside[:, :, None], NEVER).log_softmax(1)
        if not self.sigmoid:
            return (weights.exp() * said).sum(1)
        # The logarithms of sigmoids of what is said and of its opposite; torch's own is infinite in onnxruntime for small ones.
        return _log_sum(weights - F.softplus(-said)) - _log_sum(weights - F.softplus(said))

    def _cell(self, column: Tensor, level: int) -> Tensor:
        """The cells of a coarser map that columns of the finest lie in."""
        return column // (self.spec.strides[level] // self.frame_step)

    def _inside(self, count: int, step: int, sizes: ImageSizes) -> Tensor:
        """Which of ``count`` frames begin within the content of their recording: bool [B, F], the first always."""
        begin = torch.arange(count, device=sizes.valid.device) * step
        return begin < sizes.valid[:, 1:].clamp(min=1)

    def _counting(self, raw: SedRaw, sizes: ImageSizes) -> Tensor:
        """``frames`` float32, those that do not count at :data:`NEVER`."""
        inside = self._inside(raw.frames.shape[3], self.frame_step, sizes)
        return raw.frames.float().masked_fill(~inside[:, None, None], NEVER)

    def loss(  # type: ignore[override]
        self, raw: SedRaw, targets: Tensor, sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """That of :class:`ClassificationHead` on the logits of recordings; ``finer``, the same by the finer maps; and ``frames``, that of
        sigmoids on the largest frame of each class in each map."""
        wanted = targets
        if not self.sigmoid and not targets.is_floating_point():
            wanted = F.one_hot(targets, self.num_classes)
        largest = self._counting(raw, sizes).amax(3).unbind(1)
        frames = torch.stack([self.sigmoid_loss(one, wanted) for one in largest]).mean()
        (name, loss), finer = next(iter(super().loss(raw.logits, targets, sizes).items())), raw.levels[:, :-1].unbind(1)
        losses = {name: loss, "frames": self.frame_loss * frames}
        if finer:
            each = torch.stack([super(SedHead, self).loss(one, targets, sizes)[name] for one in finer])
            losses["finer"] = self.finer_loss * each.mean()
        return losses

    def count(self, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        """As :class:`ClassificationHead`, of all losses."""
        counts = super().count(targets, sizes)
        return dict.fromkeys(self.counted, counts[self.counted[0]]) | {name: counts[name] for name in self.distilled}

    def distill(  # type: ignore[override]
        self, raw: SedRaw, teacher: Any, targets: Tensor, sizes: ImageSizes, temperature: float | None = None
    ) -> Mapping[str, Tensor]:
        """As :class:`ClassificationHead`, of whole recordings."""
        return super().distill(raw.logits, teacher, targets, sizes, temperature)

    def predict(self, raw: SedRaw, sizes: ImageSizes) -> Tensor:  # type: ignore[override]
        """Probabilities float32 [B, K] of whole recordings."""
        return super().predict(raw.logits, sizes)

    def timeline(self, raw: SedRaw, sizes: ImageSizes) -> Tensor:
        """Scores of frames float32 [B, K, F] in 0..1: the sigmoids by the finest map, at most the probability of the recording where
        a coarser one gives it; 0 behind the content."""
        scores = self._counting(raw, sizes)[:, 0].sigmoid()
        return scores if not len(self.finer) else torch.minimum(scores, self.predict(raw, sizes)[:, :, None])


def _log_sum(logs: Tensor) -> Tensor:
    """The logarithm of the sum over dimension 1 of what ``logs`` are the logarithms of. As torch's, which in onnxruntime is infinite where
    all of them are small."""
    most = logs.detach().amax(1, keepdim=True)
    return (logs - most).exp().sum(1).log() + most[:, 0]
