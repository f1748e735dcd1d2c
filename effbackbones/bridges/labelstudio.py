"""Results as pre-annotations for Label Studio: tasks to import, and the labelling config that goes with them. Needs no package."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from effbackbones import UserError

_KINDS = {"cls": ("Choices", "Choice"), "det": ("RectangleLabels", "Label"), "seg": ("BrushLabels", "Label")}
_FROM, _TO = "label", "image"


def label_studio_config(task: str, classes: Sequence[str], *, several: bool = False) -> str:
    """The labelling config of a project for ``task`` (``cls``, ``det``, ``seg``). ``several``: images have any number of classes."""
    if task not in _KINDS:
        raise UserError(f"label_studio_config {task!r}", "has no labels in Label Studio", f"one of {', '.join(_KINDS)}")
    kind, one = _KINDS[task]
    names = "".join(f"<{one} value={quoteattr(name)}/>" for name in classes)
    choice = ' choice="multiple"' if several else ""
    body = f'<Image name="{_TO}" value="$image"/><{kind} name="{_FROM}" toName="{_TO}"{choice}>{names}</{kind}>'
    return f"<View>{body}</View>"


def to_label_studio(
    results: Iterable[Any], *, url: Callable[[str], str] | str = "/data/local-files/?d=", version: str = "effbackbones"
) -> list[dict[str, Any]]:
    """Results of :func:`effbackbones.load_predictor` as tasks with predictions: write them as JSON, and import that file.

    ``url``: from the source of a result to where Label Studio finds the image; as text, what stands in front of the source.
    ``version`` is shown as the name of the model. Boxes are in percent of the image, masks in the run lengths of its brush, one region a
    class, and a task has as score the mean of those of its regions.
    Raises :class:`UserError` for several tasks in one result: Label Studio's project has one config.
    """
    where = url if callable(url) else lambda source: f"{url}{Path(source).as_posix()}"
    return [
        {"data": {"image": where(result.source)}, "predictions": [_prediction(result, version)]}
        for result in map(_checked, results)
    ]


def _checked(result: Any) -> Any:
    if isinstance(result, dict) or not hasattr(result, "classes"):
        raise UserError(
            "to_label_studio", f"cannot be told of a {type(result).__name__}", "give Classes, Boxes or a Mask, one task"
        )
    return result


def _prediction(result: Any, version: str) -> dict[str, Any]:
    if hasattr(result, "order"):
        regions = [_choices(result)]
    elif hasattr(result, "boxes"):
        regions = _rectangles(result)
    else:
        regions = _brushes(result)
    scores = [region["score"] for region in regions]
    return {"model_version": version, "score": float(np.mean(scores)) if scores else 0.0, "result": regions}


def _region(result: Any, kind: str, value: dict[str, Any], score: float, number: int) -> dict[str, Any]:
    height, width = result.size
    return {
        "id": f"r{number}",
        "from_name": _FROM,
        "to_name": _TO,
        "type": kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
        "score": float(score),
    }


def _choices(result: Any) -> dict[str, Any]:
    names = list(result.names) if result.multilabel else [result.name]
    value = {"choices": names}
    score = result.score
    return _region(result, "choices", value, score, 0)


def _rectangles(result: Any) -> list[dict[str, Any]]:
    height, width = result.size
    regions = []
    rows = zip(result.boxes.tolist(), result.scores.tolist(), result.names, strict=True)
    for number, ((left, top, right, bottom), score, name) in enumerate(rows):
        value = {
            "x": 100 * left / width,
            "y": 100 * top / height,
            "width": 100 * (right - left) / width,
            "height": 100 * (bottom - top) / height,
            "rotation": 0,
            "rectanglelabels": [name],
        }
        regions.append(_region(result, "rectanglelabels", value, score, number))
    return regions


def _brushes(result: Any) -> list[dict[str, Any]]:
    labels = [int(label) for label in np.unique(result.labels) if label < len(result.classes)]
    regions = []
    for number, label in enumerate(labels):
        mask = result.labels == label
        value = {"format": "rle", "rle": brush_runs(mask), "brushlabels": [result.classes[label]]}
        regions.append(_region(result, "brushlabels", value, float(result.confidence[mask].mean()), number))
    return regions


def brush_runs(mask: np.ndarray[Any, Any]) -> list[int]:
    """A mask [H, W] in the run lengths of Label Studio's brush: bytes, of a stream of bits that has the RGBA values of every pixel.

    After a head (32 bits: count of values; 5: word size - 1; 4 x 4: size - 1 of each of four length fields) come runs: 1 bit (1: the
    value is repeated), 2 bits (which field the length is in), length - 1, and one value, or so many (format: thi.ng/rle-pack).
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    fields = (3, 4, 8, 16)
    bits = [f"{flat.size * 4:032b}", f"{7:05b}", *(f"{field - 1:04b}" for field in fields)]
    for start, length in zip(starts.tolist(), (lengths * 4).tolist(), strict=True):
        value = f"{255 if flat[start] else 0:08b}"
        while length:
            run = min(length, 1 << fields[-1])
            choice = next(i for i, field in enumerate(fields) if run <= 1 << field)
            bits.append(f"1{choice:02b}{run - 1:0{fields[choice]}b}{value}")
            length -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
