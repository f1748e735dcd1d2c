"""Does a detection data set fit its model? What is looked at before a run, from annotations and image headers alone, and a
few images through the whole path to the scores.

Everything here goes through the same transform, collation and restoration as training and evaluation do.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.contracts import BoxTargets, Detections, Head, ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan, Size
from effbackbones.model import Model
from tasks.data.boxes.table import BoxTable, xyxy
from tasks.data.dataset import Dataset
from tasks.data.files.images import header_sizes
from tasks.data.sampling import Repeated
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.results import read_results
from tasks.detection.statistics import BoxStatistics
from tasks.engine import assembly
from tasks.engine.evaluation import readable
from tasks.report.boxes import sample_sheet
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.verbs.deep_check import Goal

Tell = Callable[[str], None]
LOOKED_AT = 1000
"""Images whose boxes are held against the anchors."""
READ = 32
"""Images that go through the whole path to the scores, and those read where a data set has no table."""
POOR_COVERAGE = 0.9
"""Share of boxes with an anchor of IoU 0.5 below which other anchors are proposed."""
GOAL = Goal("AP50", 0.9, lambda sample: sample.boxes is not None and len(sample.boxes) > 0)
"""What eight images learnt by heart must show."""
_GOOD_IOU = 0.5  # above it the assignment calls an anchor positive
_CHUNK = 64  # boxes, padding included, that are compared with all anchors at once: 0.3 GB at D7x


def quick_checks(task: TaskSpec, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Tell) -> None:
    """What takes seconds: image sizes from headers, boxes, anchors, and the truth scored as predictions, which must give AP 1.

    The first part that fails raises :class:`UserError`, which names it.
    """
    for split, dataset in datasets.items():
        table = getattr(dataset, "table", None)
        if isinstance(table, BoxTable):
            for line in table.repairs.lines():
                tell(f"{split}: {line}")
            check_headers(table, config.data.on_error, tell)
    _tell_coverage(statistics(task, config, model, datasets["train"]), model, tell)
    for split, dataset in datasets.items():
        check_scores(task, config, model, dataset, split)


def check_headers(table: BoxTable, on_error: str = "stop", tell: Tell = print) -> None:
    """Hold the sizes that annotations claim against the headers of the files; those that differ raise :class:`UserError`,
    which names the first.

    Files that cannot be read raise it too, or with ``on_error`` ``skip`` are told by their number.
    """
    known = np.flatnonzero((table.sizes > 0).all(1))
    found = header_sizes([table.path(index) for index in known.tolist()], "apply", on_error)
    unreadable = (found < 0).any(1)
    if unreadable.any():
        tell(
            f"{unreadable.sum()} files cannot be read and are skipped; one of them: {table.path(int(known[unreadable][0]))}"
        )
    odd = np.flatnonzero((found != table.sizes[known]).any(1) & ~unreadable)
    # Boxes may have been drawn on an image that was not yet turned; the reader finds that out too.
    unturned = header_sizes([table.path(index) for index in known[odd].tolist()], "ignore", on_error)
    wrong = odd[(unturned != table.sizes[known[odd]]).any(1)]
    if len(wrong):
        index, (height, width) = int(known[wrong[0]]), found[wrong[0]].tolist()
        more = f" (and {len(wrong) - 1} more files)" if len(wrong) > 1 else ""
        claimed = f"the annotations say {table.sizes[index, 1]} x {table.sizes[index, 0]} pixels, the file {width} x {height}{more}"
        raise UserError(
            table.path(index), f"{claimed}; boxes would lie elsewhere", "correct width and height, or the file"
        )


def statistics(task: TaskSpec, config: Config, model: Model, dataset: Dataset) -> BoxStatistics:
    """Sides of the boxes in original pixels and as the network sees them, and the IoU of each with its best anchor (empty
    where the head cannot say); over at most :data:`LOOKED_AT` images, crowds left out."""
    originals, resized, ious = [], [], []
    size, table = model.image_spec.size, getattr(dataset, "table", None)
    limit = LOOKED_AT if isinstance(table, BoxTable) else READ
    for chunk in _chunks(dataset, size, min(limit, max(READ, _budget(size))), config.data.on_error):
        boxes = np.concatenate([plan.apply_boxes(boxes) for plan, boxes in chunk])
        resized.append(boxes[:, 2:] - boxes[:, :2])
        originals.append(np.concatenate([boxes[:, 2:] - boxes[:, :2] for _, boxes in chunk]))
        ious.append(_best_ious(model.head, chunk, size))
    repairs = table.repairs.rows() if isinstance(table, BoxTable) else []
    none, sides = np.zeros(0), np.zeros((0, 2))
    return BoxStatistics(
        original=np.concatenate([sides, *originals]),
        network=np.concatenate([sides, *resized]),
        best_iou=np.concatenate([none, *ious]),
        repairs=repairs,
    )


_Chunk = list[tuple[ResizePlan, NDArray[np.float32]]]


def _budget(size: Size) -> int:
    """Images whose boxes can be compared with all anchors of a size in seconds: all of :data:`LOOKED_AT` up to 640 pixels."""
    return LOOKED_AT * 640 * 640 // (size[0] * size[1])


def _chunks(dataset: Dataset, size: Size, limit: int, on_error: str) -> Iterator[_Chunk]:
    """Boxes [m, 4] xyxy of images spread over the data set, with their letterbox, at most :data:`_CHUNK` boxes at a time, none
    empty; images without boxes, and with ``on_error`` ``skip`` unreadable ones, are left out."""
    chunk: _Chunk = []
    for index in assembly.spread(len(dataset), limit).tolist():
        try:
            boxes, original = _boxes_of(dataset, index)
        except UserError:
            if on_error == "stop":
                raise
            continue
        plan = ResizePlan.letterbox(original, size)
        for part in np.array_split(boxes, -(-len(boxes) // _CHUNK)) if len(boxes) else ():
            if chunk and (len(chunk) + 1) * max(len(part), *(len(found) for _, found in chunk)) > _CHUNK:
                yield chunk
                chunk = []
            chunk.append((plan, part))
    if chunk:
        yield chunk


def _boxes_of(dataset: Dataset, index: int) -> tuple[NDArray[np.float32], Size]:
    """Boxes float32 [m, 4] xyxy of one image, crowds left out, and its size; from the table where that knows the size."""
    table = getattr(dataset, "table", None)
    if isinstance(table, BoxTable) and (table.sizes[index] > 0).all():
        rows = table.rows(index)
        return xyxy(table.boxes[rows][~table.crowd[rows]]).astype(np.float32), (
            int(table.sizes[index, 0]),
            int(table.sizes[index, 1]),
        )
    sample = dataset[index]
    height, width = sample.image.shape[:2]
    if sample.boxes is None:
        return np.zeros((0, 4), np.float32), (height, width)
    return (sample.boxes if sample.crowd is None else sample.boxes[~sample.crowd]), (height, width)


def _best_ious(head: Head, chunk: _Chunk, size: Size) -> NDArray[np.float64]:
    """IoU of each box of a chunk with its best anchor, as the head says; empty if it says nothing."""
    most = max(len(boxes) for _, boxes in chunk)
    boxes, labels = torch.zeros(len(chunk), most, 4), torch.full((len(chunk), most), -1)
    for row, (plan, found) in enumerate(chunk):
        boxes[row, : len(found)] = torch.from_numpy(plan.apply_boxes(found))
        labels[row, : len(found)] = 0
    valid = torch.tensor([plan.valid for plan, _ in chunk])
    device = next(head.parameters()).device
    targets = BoxTargets(boxes.to(device), labels.to(device), torch.zeros_like(labels, dtype=torch.bool, device=device))
    figures = head.diagnose(targets, ImageSizes(size, valid.to(device)))
    if "best_anchor_iou" not in figures:
        return np.zeros(0)
    ious: NDArray[np.float64] = figures["best_anchor_iou"].cpu()[labels >= 0].double().numpy()
    return ious


def _tell_coverage(found: BoxStatistics, model: Model, tell: Tell) -> None:
    """Say how well the anchors fit, and which would fit better."""
    if not len(found.best_iou):
        return
    share = float((found.best_iou >= _GOOD_IOU).mean())
    average = f"the best has {found.best_iou.mean():.2f} on average"
    tell(f"anchors: {share:.1%} of {len(found.best_iou):,} boxes have one of IoU {_GOOD_IOU:g} or more; {average}")
    small = float((found.network.min(1) < 4).mean())
    if small > 0.1:
        tell(
            f"boxes: {small:.0%} have a side of less than 4 pixels at image size {model.image_spec.size}: raise data.image_size"
        )
    if share < POOR_COVERAGE:
        sides = torch.from_numpy(found.network).float()
        options = model.head.fit_to_data(sides, model.image_spec.size)
        words = " ".join(f"--model.head_options.{name} '{value}'" for name, value in options.items())
        tell(f"anchors that fit better: {words}" if options else "no other anchors fit better")


def check_scores(task: TaskSpec, config: Config, model: Model, dataset: Dataset, split: str, limit: int = READ) -> None:
    """The truth, sent as predictions through loader, resizing, restoration and scorer, must give AP 1."""
    view = Repeated(dataset, assembly.spread(len(dataset), limit))
    batches = [
        (batch, truth_as_predictions(batch.targets))
        for batch in assembly.evaluation_loader(_in_process(config), task, view, model)
        if batch.targets is not None
    ]
    if not batches:
        raise UserError(f"data.{split}", "the samples have no boxes", "give a detection data set")
    most = max(detections.boxes.shape[1] for _, detections in batches)
    metric = DetectionMetrics(dataset.classes, max_dets=max(most, 1))
    for batch, detections in batches:
        metric.update(*task.scored(*readable(batch, detections)))
    score = metric.compute()["AP"]
    if score is not None and score < 1 - 1e-9:
        what = f"the boxes of split {split}, sent as predictions through resizing, restoration and scores, give AP {score:.4f}, not 1"
        raise UserError(
            "data", what, "boxes and images do not belong together, or a transform of yours moves them apart"
        )


def truth_as_predictions(targets: BoxTargets) -> Detections:
    """Ground truth [B, M] as detections of score 1, crowds left out."""
    real = (targets.labels >= 0) & ~targets.crowd
    order = torch.argsort(~real, dim=1, stable=True)

    def taken(values: Tensor) -> Tensor:
        index = order if values.ndim == 2 else order[..., None].expand_as(values)
        return values.gather(1, index)

    return Detections(taken(targets.boxes), taken(real.float()), taken(targets.labels).clamp(min=0), real.sum(1))


def _in_process(config: Config) -> Config:
    """The config with a loader that starts no processes: a few images are not worth them."""
    return replace(config, data=replace(config.data, workers=0))


def draw_samples(task: TaskSpec, config: Config, model: Model, dataset: Dataset, out: Path, count: int = 12) -> Path:
    """Draw augmented training samples with their boxes into ``out/samples.jpg``."""
    from PIL import Image

    keyed = assembly.keyed(config, task, dataset, model, train=True)
    samples = [keyed[0, index] for index in assembly.spread(len(dataset), count).tolist()]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "samples.jpg"
    Image.fromarray(sample_sheet(samples, dataset.classes)).save(path, quality=90)
    return path


def score_results(task: TaskSpec, config: Config, path: Path, dataset: Dataset, tell: Tell) -> dict[str, Any]:
    """Scores of a COCO results file on a data set that has a table."""
    table = getattr(dataset, "table", None)
    if not isinstance(table, BoxTable):
        raise UserError(
            "--predictions", f"{type(dataset).__name__} has no table of images", "use data.name coco, voc or yolo"
        )
    for line in table.repairs.lines():
        tell(line)
    detections = read_results(path, table, tell)
    metric = task.metrics(config, dataset.classes)
    metric.update(detections, [table.truth(index) for index in range(len(table))])
    return dict(metric.compute())
