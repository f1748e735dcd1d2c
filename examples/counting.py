"""A task of your own, complete: how many dots are in an image, by regression.

    python -m tasks.run count --config examples/counting.yaml
    python -m tasks.run count evaluate --checkpoint runs/count/counting --plugins examples/counting.py

A task needs data, a head whose ``task`` is its name, and a ``TaskSpec``; below they stand in this order.
"""

import csv
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError

from effbackbones import BackboneNeeds, Head, register_head
from tasks.data.batch import Sample
from tasks.data.door.transforms import view_transform
from tasks.report.skeleton import add_training, begun, finished
from tasks.spec import TaskSpec, register_dataset, register_task


class Dots:
    """Black images with 0 to 9 white dots; their number is the ``target``, the field of a sample that is free for tasks."""

    classes = ("dots",)

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        image, dots = np.zeros((64, 64, 3), np.uint8), int(rng.integers(10))
        for cell in rng.choice(
            64, dots, replace=False
        ).tolist():  # each in a cell of its own, so that none hides another
            row, column = divmod(cell, 8)
            image[8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6] = 255
        return Sample(image, id=str(index), target=float(dots))


@register_dataset("dots")
def dots(data, split, classes):
    return Dots({"train": 512, "val": 64, "test": 64}[split], seed={"train": 0, "val": 1, "test": 2}[split])


@register_head("counting")
class CountingHead(Head):
    """A number for each image: a density on a fine map, added up."""

    task = "count"

    def __init__(self, spec, num_classes, **options):
        super().__init__(spec, num_classes, **options)
        self.density = nn.Conv2d(spec.channels[0], 1, 1)
        nn.init.constant_(self.density.bias, -3.0)  # some dots at first, not one at every place

    @classmethod
    def requires(cls, **options):
        return BackboneNeeds(levels=("C3",))

    def forward(self, features, sizes):
        return F.softplus(self.density(features[0])).sum((1, 2, 3))  # [B]

    def loss(self, raw, targets, sizes):
        return {"distance": F.smooth_l1_loss(raw.float(), targets)}

    def predict(self, raw, sizes):
        return raw.float()


class CountError(MeanAbsoluteError):
    """The mean distance from the truth, by name. torchmetrics says of it that lower is better."""

    def compute(self):
        return {"mae": float(super().compute())}


@register_task("count")
class Counting(TaskSpec):
    name = "count"
    command = "count"

    def monitor(self, config):
        return "mae"

    def transform(self, config, model, *, train, epochs=math.inf):
        divisor = model.head.size_divisor
        return view_transform(config.data, model.image_spec, train=train, epochs=epochs, size_divisor=divisor)

    @staticmethod
    def targets(samples):
        found = [sample.target for sample in samples]
        return None if None in found else torch.tensor(found)  # images to predict have none

    def restored(self, batch, predictions):
        return list(predictions)  # one for each image; a count needs no way back to its pixels

    def scored(self, batch, predictions):
        truths = torch.tensor([meta.target for meta in batch.meta])
        return torch.stack(predictions), truths.to(predictions[0].device)

    def metrics(self, config, classes):
        return CountError()

    def observer(self, config, classes):
        return CountReport()

    def writer(self, config, out, model, classes, tell):
        return CountFile(out, tell)


class CountReport:
    """Keeps the first images with their counts, and writes the report."""

    def __init__(self):
        self.shown = []

    def update(self, batch, predictions):
        for image, meta, found in zip(batch.images, batch.meta, predictions, strict=True):
            if len(self.shown) < 12:
                self.shown.append((image.permute(1, 2, 0).cpu().numpy(), f"{found:.1f}, truly {meta.target:.0f}"))

    def write(self, folder, summary, model, dataset):
        report = begun(summary, ("mae",), {"mae": "mean distance from the true count; lower is better"}, rates=("mae",))
        add_training(report, summary)
        report.gallery("Counts", self.shown)
        return finished(report, summary, folder)


class CountFile:
    """``predictions.csv``: a row for each image."""

    draws = False

    def __init__(self, out, tell):
        self.out, self.tell, self.rows = out, tell, []

    def update(self, results):
        for result in results:
            self.rows.append([result.source, f"{result.values:.2f}"])
            self.tell(f"{result.source}: {result.values:.1f}")

    def close(self):
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file", "count"], *self.rows])
