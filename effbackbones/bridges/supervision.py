"""Results in the words of supervision: boxes and masks as ``Detections``, classes as ``Classifications``."""

from typing import Any

import numpy as np
import supervision as sv

from effbackbones import UserError


def to_supervision(result: Any) -> Any:
    """``Boxes`` and ``Mask`` of :func:`effbackbones.load_predictor` as ``supervision.Detections`` (of a mask one row per class that is
    there: its pixels, the box around them, and their mean confidence), ``Classes`` as ``supervision.Classifications``; of several
    tasks a dict. Names of classes are in ``data["class_name"]``. A result of another kind raises :class:`UserError`."""
    if isinstance(result, dict):
        return {task: to_supervision(one) for task, one in result.items()}
    if hasattr(result, "probabilities") and hasattr(result, "order"):
        order = result.order
        return sv.Classifications(class_id=order, confidence=result.probabilities[order].astype(np.float64))
    if hasattr(result, "boxes"):
        return sv.Detections(
            xyxy=result.boxes.reshape(-1, 4),
            confidence=result.scores,
            class_id=result.labels,
            data={"class_name": np.array(result.names, dtype=str)},
        )
    if hasattr(result, "confidence"):
        return _of_mask(result)
    raise UserError("to_supervision", f"cannot be told of a {type(result).__name__}", "give Classes, Boxes or a Mask")


def _of_mask(result: Any) -> Any:
    labels = [int(label) for label in np.unique(result.labels) if label < len(result.classes)]
    masks = np.stack([result.labels == label for label in labels]) if labels else np.zeros((0, *result.size), bool)
    return sv.Detections(
        xyxy=np.array([_around(mask) for mask in masks], np.float64).reshape(-1, 4),
        mask=masks,
        confidence=np.array([float(result.confidence[mask].mean()) for mask in masks], np.float64),
        class_id=np.array(labels, np.int64),
        data={"class_name": np.array([result.classes[label] for label in labels], dtype=str)},
    )


def _around(mask: Any) -> tuple[int, int, int, int]:
    """The box around the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
