"""How the cost of data grows: opening annotation files of 100 to 20,000 images, and scoring as many."""

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coco_scores import make
from benchmarks.peaks import in_process, most
from benchmarks.row import Found, Setting
from benchmarks.scaling import curve
from benchmarks.turns import Spread, once
from tasks.data.boxes.annotations import Wanted
from tasks.data.sets.coco import open_coco
from tasks.detection.metrics import DetectionMetrics
from tasks.scoring.intervals import intervals

COUNTS = (100, 500, 2_000, 8_000, 20_000)
OBJECTS, CLASSES, DETECTIONS = 7, 80, 20
AXIS = "images"
ROUNDS = 3


def coco_file(folder: Path, images: int) -> None:
    """An annotation file ``annotations/instances_val2017.json`` with seven boxes and outlines in each image, and empty files for the
    images, whose sizes it tells."""
    random = np.random.default_rng(0)
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    corners = random.integers(0, 300, (images, OBJECTS, 2)).tolist()
    sides = random.integers(20, 150, (images, OBJECTS, 2)).tolist()
    kinds = random.integers(1, CLASSES + 1, (images, OBJECTS)).tolist()
    files: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image in range(images):
        name = f"{image:012d}.jpg"
        (folder / "val2017" / name).touch()
        files.append({"id": image + 1, "file_name": name, "width": 640, "height": 480})
        for (x, y), (w, h), kind in zip(corners[image], sides[image], kinds[image], strict=True):
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            row = {"id": len(rows) + 1, "image_id": image + 1, "category_id": kind, "bbox": [x, y, w, h], "area": w * h}
            rows.append({**row, "iscrowd": 0, "segmentation": outline})
    categories = [{"id": kind, "name": f"class {kind}"} for kind in range(1, CLASSES + 1)]
    told = {"images": files, "annotations": rows, "categories": categories}
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(told), encoding="utf-8")


def opening(setting: Setting) -> Found:
    """Milliseconds of opening a COCO file, boxes and masks; megabytes of the first."""
    found, counts = Found("ms"), _counts(setting)
    times: dict[str, list[float]] = {"open boxes": [], "open masks": []}
    for images in counts:
        with tempfile.TemporaryDirectory() as place:
            coco_file(Path(place), images)
            for name, labels in (("open boxes", ("boxes",)), ("open masks", ("mask",))):
                wanted = Wanted("val", labels=labels)
                times[name].append(_milliseconds(partial(open_coco, Path(place), wanted)))
    found.curves = [curve(name, AXIS, "ms", counts, values) for name, values in times.items()]
    memory = [in_process("benchmarks.datasets:opened", setting, {"images": images}) for images in counts[1:]]
    found.curves.append(curve("open boxes, memory", AXIS, "MB", counts[1:], memory))
    return found


def opened(device: str, images: int) -> float:
    """Megabytes of opening a file, and of holding what is in it."""
    with tempfile.TemporaryDirectory() as place:
        coco_file(Path(place), images)
        return most(lambda: open_coco(Path(place), Wanted("val")), device, 1)


def scoring(setting: Setting) -> Found:
    """Milliseconds of what an evaluation does after the network: scores, kinds of errors, intervals."""
    counts = _counts(setting)[: None if setting.dry else 4]
    times: dict[str, list[float]] = {}

    def took(name: str, run: Any) -> None:
        times.setdefault(name, []).append(_milliseconds(run, 1))

    for images in counts:
        made = make(images, CLASSES, DETECTIONS)
        metric = DetectionMetrics([f"class {label}" for label in range(CLASSES)], 100)
        took("boxes: update", partial(metric.update, [one for one, _ in made], [truth for _, truth in made]))
        took("boxes: scores", metric.compute)
        took("boxes: kinds of errors", metric.anatomy)
        took("boxes: intervals", partial(intervals, metric.outcomes()))
    return Found("ms", curves=[curve(name, AXIS, "ms", counts, values) for name, values in times.items()])


def _counts(setting: Setting) -> Sequence[int]:
    return COUNTS[:2] if setting.dry else COUNTS


def _milliseconds(run: Any, rounds: int = ROUNDS) -> float:
    return 1e3 * Spread.of([once(run) for _ in range(rounds)]).median
