"""What several looks at an image gain and cost: AP and seconds of a trained detector with test-time augmentation, and with slices.

    python benchmarks/looks.py runs/detect/bccd bccd/annotations/val.json bccd/images
    python benchmarks/looks.py runs/detect/bccd bccd/annotations/val.json bccd/images --mosaic 6000 4000

Without ``--mosaic`` the images of the file by themselves; with it one image of that width and height made of all of them, shrunk to the
size at which the network sees them and repeated, mirrored in turn, until it is full: many small objects, which a look at the whole
image shrinks away. Seconds are those of the processor, of one run, reading of files aside; on a busy machine they are still comparable.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from effbackbones import Model, load_predictor
from effbackbones.checkpoint import load_model
from effbackbones.images.geometry import Pixels, ResizePlan
from tasks.data.sample import Truth
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.results import detections_of

LOOKS = ((None, None), ("flip", None), ("0.8,1.25", None), ("flip,0.8,1.25", None))


def labelled(annotations: Path, folder: Path, classes: Sequence[str]) -> list[tuple[Pixels, Truth]]:
    """Images and boxes of a COCO file, by the names of the classes."""
    told: Any = json.loads(annotations.read_text())
    labels = {row["id"]: classes.index(row["name"]) for row in told["categories"] if row["name"] in classes}
    rows: dict[int, list[Any]] = {row["id"]: [] for row in told["images"]}
    for row in told["annotations"]:
        if row["category_id"] in labels:
            rows[row["image_id"]].append(row)
    found = []
    for image in told["images"]:
        mine = rows[image["id"]]
        with Image.open(folder / image["file_name"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        boxes = np.array([row["bbox"] for row in mine], np.float64).reshape(-1, 4)
        kinds = np.array([labels[row["category_id"]] for row in mine], np.int64)
        crowd = np.array([bool(row.get("iscrowd")) for row in mine], np.bool_)
        found.append((pixels, Truth(boxes, kinds, crowd, boxes[:, 2:].prod(1))))
    return found


def mosaic(images: Sequence[tuple[Pixels, Truth]], model: Model, width: int, height: int) -> tuple[Pixels, Truth]:
    """One image, filled row by row with images at the size of the network, every second round mirrored."""
    canvas = np.full((height, width, 3), 114, np.uint8)
    boxes: list[Any] = []
    parts: list[Truth] = []
    number = top = 0
    while top < height:
        left = lowest = 0
        while left < width:
            pixels, truth = images[number % len(images)]
            turned, number = number // len(images) % 2 == 1, number + 1
            original = (pixels.shape[0], pixels.shape[1])
            fit = ResizePlan.letterbox(original, model.image_spec.size)
            plan = ResizePlan(original, fit.scaled, (0, 0), fit.scaled, (False, turned))
            small = plan.apply_image(pixels)[: height - top, : width - left]
            canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
            corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], 1)
            moved = plan.apply_boxes(corners) + np.array([left, top, left, top])
            inside = (moved[:, 2] <= width) & (moved[:, 3] <= height)
            boxes.append(moved[inside])
            parts.append(Truth(truth.boxes, truth.labels[inside], truth.crowd[inside], truth.area))
            left, lowest = left + fit.scaled[1], max(lowest, fit.scaled[0])
        top += lowest
    corners = np.concatenate(boxes)
    sides = corners[:, 2:] - corners[:, :2]
    labels, crowd = np.concatenate([part.labels for part in parts]), np.concatenate([part.crowd for part in parts])
    return canvas, Truth(np.concatenate([corners[:, :2], sides], 1), labels, crowd, sides.prod(1))


def score(model: Model, images: Sequence[tuple[Pixels, Truth]], tta: str | None, slices: str | None) -> None:
    """Print AP and seconds of one way to look."""
    ask = load_predictor(model, tta=tta, slices=slices, batch_size=8)
    start, clock = time.process_time(), time.perf_counter()
    found = [detections_of(one) for one in ask([pixels for pixels, _ in images])]
    spent, passed = time.process_time() - start, time.perf_counter() - clock
    most = max(100, *(len(truth.labels) * 2 for _, truth in images))
    metric = DetectionMetrics(model.classes or (), most)  # type: ignore[arg-type]  # a detector's are no dict
    metric.update(found, [truth for _, truth in images])
    scores = metric.compute()
    boxes = sum(len(one.scores) for one in found)
    print(
        f"tta {tta or '-':15} slices {slices or '-':14} AP {scores['AP']:.4f} AP50 {scores['AP50']:.4f} AP75 {scores['AP75']:.4f}"
        f" boxes {boxes:6} processor {spent:7.1f} s wall {passed:7.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mosaic", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    model = load_model(options.model / "best.safetensors" if options.model.is_dir() else options.model)
    images = labelled(options.annotations, options.folder, [str(name) for name in model.classes or ()])
    if not options.mosaic:
        for tta, slices in LOOKS:
            score(model, images, tta, slices)
        return
    image, truth = mosaic(images, model, *options.mosaic)
    side = min(model.image_spec.size)
    print(f"{image.shape[1]} x {image.shape[0]} pixels, {len(truth.labels)} objects")
    for words in (None, str(side), f"{side},{side // 4},whole", f"{2 * side}"):
        score(model, [(image, truth)], None, words)


if __name__ == "__main__":
    main()
