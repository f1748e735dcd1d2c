"""A head: classifies by the means of a fine and a coarse map."""

import torch
from torch import nn
from torch.nn import functional as F

from effbackbones import BackboneNeeds, Head


class TwoScales(Head):
    """Classifies by the means of a fine and a coarse map. ``width``: of the hidden layer."""

    task = "cls"
    counted = ("cross_entropy",)  # divided by the count of the whole batch, in however many pieces it is computed

    def __init__(self, spec, num_classes, *, width=128, **options):
        super().__init__(spec, num_classes, **options)  # which refuses options that nobody knows
        self.hidden = nn.Linear(sum(spec.channels), width)
        self.out = nn.Linear(width, num_classes)

    @classmethod
    def requires(cls, **options):
        return BackboneNeeds(levels=("C3", "C5"))  # what nobody reads is never built

    def forward(self, features, sizes):
        means = torch.cat([level.mean((2, 3)) for level in features], 1)
        return self.out(F.silu(self.hidden(means)))

    def loss(self, raw, targets, sizes):
        return {"cross_entropy": F.cross_entropy(raw.float(), targets)}

    def count(self, targets, sizes):
        return {"cross_entropy": sizes.valid.new_full((), len(targets))}

    def predict(self, raw, sizes):
        return raw.float().softmax(1)
