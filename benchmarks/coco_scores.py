"""Time of our detection scores against pycocotools' on a made-up result: 5,000 images, 80 classes, 100 detections per image.

Both score the same boxes in one process, in turns, and must agree to 1e-9 in all twelve lines. Compared are what it
takes from tables to curves (``compute`` against ``evaluate`` and ``accumulate``), and all of it with what comes before
(``update`` against the index of annotations). Reading and writing JSON is in neither. Seconds are those of the processor, so that
other programs count little; both sides run in one thread. pycocotools' side takes half a minute: it is run once.
"""

import contextlib
import io
import time
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.row import Found, Ratio, Setting, Side
from benchmarks.turns import Spread
from effbackbones.errors import UserError
from tasks.data.sample import Truth
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.results import ImageDetections

Images = list[tuple[ImageDetections, Truth]]
LINES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


def make(images: int, classes: int, detections: int, seed: int = 0) -> Images:
    """Images with about seven objects, as COCO has, 2 % crowds; a detection near each object, the others anywhere, of its classes or
    of any."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(1, images + 1):
        m = int(rng.poisson(7))
        boxes, labels = place(rng, m), rng.integers(0, classes, m)
        near = min(m, detections)
        kinds = rng.integers(0, classes, detections)
        kinds[:near] = labels[:near]
        if m:
            again = np.arange(detections) < near + (detections - near) // 2
            kinds[near:] = np.where(again[near:], labels[rng.integers(0, m, detections - near)], kinds[near:])
        found = place(rng, detections)
        found[:near] = boxes[:near] * rng.uniform(0.9, 1.1, (near, 4))
        scores = np.where(np.arange(detections) < near, rng.beta(4, 2, detections), rng.beta(1, 4, detections))
        truth = Truth(boxes, labels, rng.random(m) < 0.02, boxes[:, 2] * boxes[:, 3] * 0.6)
        made.append((ImageDetections(str(number), (480, 640), found, scores, kinds), truth))
    return made


def place(rng: np.random.Generator, n: int) -> np.ndarray:
    """Boxes [n, 4] as x, y, width, height in an image of 640 x 480, sides 8 to 240 pixels."""
    sides = np.exp(rng.uniform(np.log(8), np.log(240), (n, 2)))
    return np.concatenate([rng.uniform(0, 1, (n, 2)) * (np.array([640, 480]) - sides), sides], 1)


def ours(images: Images, classes: int, max_dets: int) -> tuple[list[float], dict[str, Any]]:
    """Seconds of ``update`` and ``compute``, and the scores."""
    start = time.process_time()
    metric = DetectionMetrics([f"class {label}" for label in range(classes)], max_dets)
    for first in range(0, len(images), 16):
        part = images[first : first + 16]
        metric.update([found for found, _ in part], [truth for _, truth in part])
    middle = time.process_time()
    scores = metric.compute()
    return [middle - start, time.process_time() - middle], scores


def theirs(images: Images, classes: int) -> tuple[list[float], list[float]]:
    """Seconds of indexing and of ``evaluate`` with ``accumulate``, and the twelve lines."""
    truths: list[dict[str, Any]] = []
    founds: list[dict[str, Any]] = []
    for found, truth in images:
        id_ = int(found.id)
        rows = (column.tolist() for column in (truth.boxes, truth.labels, truth.crowd.astype(int), truth.area))
        for box, label, crowd, area in zip(*rows, strict=True):
            rest = {"id": len(truths) + 1, "iscrowd": crowd, "area": area}
            truths.append({"image_id": id_, "category_id": label, "bbox": box, **rest})
        rows = (column.tolist() for column in (found.boxes, found.labels, found.scores))
        founds += [
            {"image_id": id_, "category_id": label, "bbox": box, "score": score}
            for box, label, score in zip(*rows, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        coco = COCO()
        coco.dataset = {
            "images": [{"id": int(found.id)} for found, _ in images],
            "annotations": truths,
            "categories": [{"id": label} for label in range(classes)],
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(founds), "bbox")
        middle = time.process_time()
        run.evaluate()
        run.accumulate()
        end = time.process_time()
        run.summarize()
    return [middle - start, end - middle], run.stats.tolist()


def seconds(setting: Setting, images: int, classes: int, detections: int, times: int = 3) -> Found:
    """Of both; ours is run several times, pycocotools', which takes the longest of all rows, once."""
    if setting.dry:
        images = 50
    made = make(images, classes, detections)
    (index, evaluate), expected = theirs(made, classes)
    runs = [ours(made, classes, 100) for _ in range(times)]
    for line, value in zip(LINES, expected, strict=True):
        mine = runs[0][1][line]
        if abs((-1.0 if mine is None else mine) - value) > 1e-9:
            raise UserError(line, f"ours {mine}, pycocotools {value}", "the sides do not do the same work")
    found = Found("s", proof="twelve scores equal to 1e-9")
    parts = {
        "tables to scores": ([compute for (_, compute), _ in runs], evaluate),
        "with the index": ([update + compute for (update, compute), _ in runs], index + evaluate),
    }
    for part, (mine, other) in parts.items():
        spread, name, peer = Spread.of(mine), f"ours, {part}", f"pycocotools, {part}"
        found.sides.append(Side(name, True, spread.median, spread.low, spread.high, spread.count))
        found.sides.append(Side(peer, False, other, other, other, 1))
        low, middle, high = (value / other for value in (spread.low, spread.median, spread.high))
        found.ratios.append(Ratio(name, peer, middle, low, high))
    return found
