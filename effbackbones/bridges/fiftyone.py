"""Results in the words of FiftyOne: labels to put on its samples."""

from typing import Any

import fiftyone as fo

from effbackbones import UserError


def to_fiftyone(result: Any) -> Any:
    """``Classes`` of :func:`effbackbones.load_predictor` as ``fiftyone.Classification`` (of several labels ``Classifications``), ``Boxes``
    as ``Detections`` with boxes relative to the image, ``Mask`` as ``Segmentation``; of several tasks a dict::

        sample["prediction"] = to_fiftyone(ask(sample.filepath))

    The values of a segmentation are our labels: ``dataset.default_mask_targets = dict(enumerate(result.classes))``, and 255 has no
    class. A result of another kind raises :class:`UserError`.
    """
    if isinstance(result, dict):
        return {task: to_fiftyone(one) for task, one in result.items()}
    if hasattr(result, "probabilities") and hasattr(result, "order"):
        rows = [(result.classes[label], float(result.probabilities[label])) for label in result.order]
        if not result.multilabel:
            return fo.Classification(label=rows[0][0], confidence=rows[0][1])
        found = [fo.Classification(label=name, confidence=value) for name, value in rows if name in result.names]
        return fo.Classifications(classifications=found)
    if hasattr(result, "boxes"):
        height, width = result.size
        boxes = zip(result.boxes.tolist(), result.scores.tolist(), result.names, strict=True)
        return fo.Detections(
            detections=[
                fo.Detection(
                    label=name,
                    bounding_box=[left / width, top / height, (right - left) / width, (bottom - top) / height],
                    confidence=score,
                )
                for (left, top, right, bottom), score, name in boxes
            ]
        )
    if hasattr(result, "confidence"):
        return fo.Segmentation(mask=result.labels)
    raise UserError("to_fiftyone", f"cannot be told of a {type(result).__name__}", "give Classes, Boxes or a Mask")
