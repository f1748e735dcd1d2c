"""What a prediction of classes leaves: ``predictions.json`` and ``predictions.csv``."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.classification.results import stacked
from tasks.data.batch import Batch

SHOWN = 5
"""Classes told for each predicted image."""
ALL = 100
"""Up to so many classes all of them are written; of more the first :data:`SHOWN`, unless all are asked for."""


class PredictionFiles:
    """``predictions.json`` and ``predictions.csv`` (file, rank, class, probability): all classes of each file, the most probable
    first, or of more than :data:`ALL` the first :data:`SHOWN`, unless ``every`` or several may be right; the file says how many
    (``written``, of how many classes)."""

    draws = False

    def __init__(
        self, out: Path, classes: Sequence[str], multilabel: bool, tell: Callable[[str], None], *, every: bool = False
    ) -> None:
        self.out, self.classes, self.multilabel, self.tell = out, classes, multilabel, tell
        self.written = len(classes) if every or multilabel or len(classes) <= ALL else SHOWN
        self.rows: list[dict[str, Any]] = []

    def update(self, batch: Batch, predictions: Sequence[Tensor]) -> None:
        """Note the images of a batch with their probabilities, float [K] each."""
        top = stacked(predictions).float().topk(self.written, dim=1)
        for meta, scores, labels in zip(batch.meta, top.values.tolist(), top.indices.tolist(), strict=True):
            pairs = zip(scores, labels, strict=True)
            found = [{"class": self.classes[label], "label": label, "probability": score} for score, label in pairs]
            self.rows.append({"file": meta.path, "predictions": found})
            self.tell(f"{meta.path}: " + ", ".join(f"{p['class']} {p['probability']:.3f}" for p in found[:SHOWN]))

    def close(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        record = {
            "classes": list(self.classes),
            "multilabel": self.multilabel,
            "written": f"{self.written} of {len(self.classes)} classes of each image, the most probable first",
            "images": self.rows,
        }
        (self.out / "predictions.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        with (self.out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "rank", "class", "probability"])
            for row in self.rows:
                table.writerows(
                    [row["file"], rank, p["class"], f"{p['probability']:.6f}"]
                    for rank, p in enumerate(row["predictions"], 1)
                )
