"""What a prediction of classes leaves: ``predictions.json`` and ``predictions.csv``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from effbackbones.inference.results import Classes
from effbackbones.weights.tensorfile import write_parts
from tasks.report.outputs import make_folder
from tasks.report.spool import Spool, csv_lines, long_json

SHOWN = 5
"""Classes told for each predicted image."""
ALL = 100
"""Up to so many classes all of them are written; of more the first :data:`SHOWN`, unless all are asked for."""


class PredictionFiles:
    """``predictions.json`` and ``predictions.csv`` (file, rank, class, probability): all classes of each file, the most probable
    first, or of more than :data:`ALL` the first :data:`SHOWN`, unless ``every`` or several may be right, or so many as
    the results are limited to; the file says how many
    (``written``, of how many classes). Where several may be right, both say which are there (``there``), and the first what from
    (``thresholds``). Of recordings whose head says when, the first has ``events`` too (with ``every`` the scores of all ``frames``), and
    they are told in ``events.csv`` (file, class, begin and end in seconds, score)."""

    draws = False

    def __init__(
        self, out: Path, classes: Sequence[str], multilabel: bool, tell: Callable[[str], None], *, every: bool = False
    ) -> None:
        self.out, self.classes, self.multilabel, self.tell = out, classes, multilabel, tell
        self.written = len(classes) if every or multilabel or len(classes) <= ALL else SHOWN
        self.told, self.thresholds, self.every, self.timed = SHOWN, dict[str, float](), every, False
        self._rows = Spool(out / ".predictions.jsonl.part")

    def update(self, results: Sequence[Classes]) -> None:
        """Note images with their probabilities."""
        for result in results:
            if result.top_k is not None:
                self.written = self.told = min(result.top_k, len(self.classes))
            order = result.order[: self.written]
            pairs = zip(result.probabilities[order].tolist(), order.tolist(), strict=True)
            found = [{"class": self.classes[label], "label": label, "probability": score} for score, label in pairs]
            shown = result.moment.to_dict() if result.moment else {}
            if self.multilabel:
                shown["there"] = list(result.names)
                self.thresholds = dict(zip(result.classes, result.thresholds, strict=False))
            self._rows.add({"file": result.source, **shown, "predictions": found, **self._when(result)})
            self.tell(f"{result.source}: {_told(found[: self.told], result.names if self.multilabel else None)}")

    def _when(self, result: Classes) -> dict[str, Any]:
        """What is heard when, where the head says so."""
        if result.timeline is None:
            return {}
        self.timed = True
        events = {"events": [event.to_dict() for event in result.events]}
        return {**events, "frames": result.timeline.to_dict(self.classes)} if self.every else events

    def close(self) -> None:
        make_folder(self.out)
        record = {
            "classes": list(self.classes),
            "multilabel": self.multilabel,
            **({"thresholds": self.thresholds} if self.multilabel else {}),
            "written": f"{self.written} of {len(self.classes)} classes of each image, the most probable first",
        }
        write_parts(self.out / "predictions.json", long_json(record, {"images": self._rows}, 1))
        write_parts(self.out / "predictions.csv", csv_lines(self._lines()))
        if self.timed:
            write_parts(self.out / "events.csv", csv_lines(self._event_lines()))
        self._rows.close()

    def _event_lines(self) -> Iterator[Sequence[Any]]:
        yield ["file", "class", "begin", "end", "score"]
        for row in self._rows:
            for event in row.get("events", ()):
                times = (f"{event[name]:.3f}" for name in ("begin", "end"))
                yield [row["file"], event["class"], *times, f"{event['score']:.6f}"]

    def _lines(self) -> Iterator[Sequence[Any]]:
        yield ["file", "rank", "class", "probability", *(["there"] if self.multilabel else [])]
        for row in self._rows:
            for rank, p in enumerate(row["predictions"], 1):
                there = [int(p["class"] in row["there"])] if self.multilabel else []
                yield [row["file"], rank, p["class"], f"{p['probability']:.6f}", *there]


def _told(found: Sequence[Mapping[str, Any]], there: Sequence[str] | None) -> str:
    """Classes with their probabilities; of several labels those that are there, apart from the others."""
    texts = {p["class"]: f"{p['class']} {p['probability']:.3f}" for p in found}
    if there is None:
        return ", ".join(texts.values())
    in_it = ", ".join(text for name, text in texts.items() if name in there)
    others = ", ".join(text for name, text in texts.items() if name not in there)
    return f"{in_it or 'none'}" + (f" (not there: {others})" if others else "")
