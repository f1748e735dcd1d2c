"""Boxes of several looks at an image made one set: mirrored, and at other sizes."""

from collections.abc import Sequence

import numpy as np

from effbackbones.inference.boxes import FoundBoxes, joined, overlaps


def fuse_boxes(found: Sequence[FoundBoxes], iou: float) -> FoundBoxes:
    """What is found in the looks ``found`` at one image, in its pixels: boxes of a class that overlap by more than ``iou`` are one, at
    most one from each look; its corners are their mean, weighted by scores, its score their mean over all looks, those that do not
    see it counting 0. By falling score.

    Solovyev et al., "Weighted boxes fusion", 2021, with one model: their score (mean over the boxes, times boxes / looks) is the same.
    Suppression, which would keep the surest box, leaves every look's false alarms at their full score: of a lite0 on BCCD (AP 0.377 with
    one look) it makes 0.378 mirrored and 0.383 at three sizes too, this 0.400 and 0.420 (``benchmarks/looks.py``).
    """
    boxes = joined(found)
    look = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    order = np.argsort(-boxes.scores, kind="stable")
    fused = np.zeros((len(order), 4))
    weight, labels = np.zeros(len(order)), np.zeros(len(order), np.int64)
    seen = np.zeros((len(order), len(found)), bool)
    sums, count = np.zeros((len(order), 4)), 0
    for row in order.tolist():
        corner, score, label = boxes.corners[row], boxes.scores[row], boxes.labels[row]
        fits = overlaps(corner[None], fused[:count])[0]
        fits[(labels[:count] != label) | seen[:count, look[row]]] = 0
        best = int(fits.argmax()) if count else 0
        if not count or fits[best] <= iou:
            best, count = count, count + 1
        sums[best] += score * corner
        weight[best] += score
        fused[best], labels[best], seen[best, look[row]] = sums[best] / max(weight[best], 1e-12), label, True
    scores = weight[:count] / max(1, len(found))
    result = FoundBoxes(fused[:count], scores, labels[:count])
    return result.take(np.argsort(-scores, kind="stable"))
