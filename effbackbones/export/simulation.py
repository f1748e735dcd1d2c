"""Training that sees what int8 will do: weights and maps rounded on the way forward as the exported file rounds them.

Batch norms that have statistics keep them (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section
4.2.1): the file is computed with these, not with those of a batch. How numbers are rounded: :mod:`effbackbones.export.rounding`.

The model stays the ordinary one, and its tensors are all that it has; the ranges are a line of its record, from which an export takes
them as long as the weights are those that they were found with. So each layer of the file gives what it gives here, but for numbers in
the middle between two steps. A deep network takes such a difference for one of its own: behind some layers two sets of roundings agree
in distribution, not number by number.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.errors import UserError
from effbackbones.export.following import follow
from effbackbones.export.rounding import Rounding, in_steps
from effbackbones.model import Model

SLOWEST = 0.02
"""Weight of the newest step in a range: the last 50 steps count, before that all alike."""


class Int8Simulation:
    """Int8 in the layers that an export of ``model`` computes in it (:func:`effbackbones.export.following.follow`).

    Ranges of maps are running means of each image's least and greatest value, float32 [points], two points a call of a layer: what it
    takes and what it gives. They move at :meth:`settle` alone, so that what a step does follows from what was before it.
    """

    def __init__(self, model: Model) -> None:
        self.model, called = model, follow(model)
        weights = dict(model.named_parameters())
        self.calls: dict[int, list[int | None]] = {}
        """By weight, for each of its calls, the number of the call among those in int8."""
        count, self.cut = 0, set[int]()
        for name, int8, cut in zip(*called[:3], strict=True):
            self.calls.setdefault(id(weights[name]), []).append(count if int8 else None)
            if int8 and cut:
                self.cut.add(2 * count + 1)
            count += int8
        if not count:
            what = f"{type(model.head).__name__} on {model.backbone.name} has no layer that an export computes in int8"
            raise UserError("int8", what, "leave it out")
        self.count, self.gives_float = count, called.gives_float
        self.layers = tuple(sorted({name for name, int8 in zip(called.weights, called.int8, strict=True) if int8}))
        device = next(model.parameters()).device
        self.low, self.high, self.seen = (torch.zeros(2 * count, device=device) for _ in range(3))
        self._sums = torch.zeros(3, 2 * count, device=device)
        self.norms = [
            one
            for one in model.modules()
            if isinstance(one, _BatchNorm) and one.running_mean is not None and bool(one.running_mean.any())
        ]

    @contextmanager
    def applied(self, *, observe: bool = False) -> Iterator[None]:
        """Inside, whatever calls the model gets what int8 makes of it; if it is to ``observe``, values are noted for the ranges."""
        if self.model.training:
            for norm in self.norms:
                norm.eval()
        given = None if self.gives_float else self.cut
        with Rounding(self.calls, lambda x, point: self.fake(x, point, observe), given):
            yield

    def fake(self, x: Tensor, point: int, observe: bool) -> Tensor:
        """``x`` [B, ...] rounded to 256 steps of the range of ``point``; before the first step of its own."""
        with torch.no_grad():
            low, high = self.low[point], self.high[point]
            new = self.seen[point] == 0
            if observe or not x.requires_grad:
                axes = tuple(range(1, x.ndim))
                least, most = x.detach().amin(axes).float().mean(), x.detach().amax(axes).float().mean()
                if observe:
                    self._sums[:, point] += torch.stack([least, most, torch.ones_like(least)])
                low, high = torch.where(new, least, low), torch.where(new, most, high)
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low) / 255
            scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
            zero = (-low / scale).round().clamp(0, 255)
        return in_steps(x, scale, zero)

    @torch.no_grad()
    def settle(self, skip: Tensor) -> None:
        """After a step: ranges take in what was noted, unless ``skip`` (one element) is 1 or it is not finite."""
        count = self._sums[2]
        least, most = self._sums[:2] / count.clamp(min=1)
        taken = (count > 0) & (skip.reshape(()) == 0) & least.isfinite() & most.isfinite()
        share = (1 / (self.seen + 1)).clamp(min=SLOWEST)
        self.low.copy_(torch.where(taken, self.low + share * (least - self.low), self.low))
        self.high.copy_(torch.where(taken, self.high + share * (most - self.high), self.high))
        self.seen += taken
        self.drop()

    def drop(self) -> None:
        """Forget what a step noted that was left in its midst."""
        self._sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The ranges."""
        return {"low": self.low, "high": self.high, "seen": self.seen}

    def learnt(self) -> dict[str, Any]:
        """What an export needs to compute as this does, for the provenance of the model's file."""
        pairs = torch.stack([self.low.clamp(max=0), self.high.clamp(min=0)], 1).tolist()
        return {"precision": "int8", "ranges": pairs, "weights": digest_of(self.model)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over ranges of the same model."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def learnt_ranges(model: Model) -> list[tuple[float, float]] | None:
    """The ranges that training in int8 left in the provenance of ``model``, in the order of calls; None where it was not trained so, or
    its weights are others since."""
    told = model.provenance.get("quantise")
    if not isinstance(told, Mapping) or told.get("precision") != "int8" or told.get("weights") != digest_of(model):
        return None
    return [(float(low), float(high)) for low, high in told["ranges"]]


def digest_of(model: Model) -> str:
    """sha256 of the names and values of all tensors of ``model``."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
