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

from effbackbones.contracts import BoxTargets, Detections, Head
from effbackbones.errors import UserError
from effbackbones.model import Model
from tasks.data.boxes.table import BoxTable
from tasks.data.check import LOOKED_AT
from tasks.data.dataset import Dataset
from tasks.data.files.images import header_sizes
from tasks.data.knowledge import Knowledge
from tasks.data.pixels import told_of_range
from tasks.data.sampling import Repeated, spread
from tasks.detection.metrics import DetectionMetrics
from tasks.detection.numbering import numbering_of
from tasks.detection.readings import told_of_readings
from tasks.detection.results import ImageDetections
from tasks.detection.resultsfile import read_results
from tasks.detection.statistics import BoxStatistics, statistics
from tasks.engine import feeding
from tasks.engine.evaluation import readable
from tasks.settings.options import DataOptions
from tasks.settings.sections import Config
from tasks.spec import Goal, TaskSpec

Tell = Callable[[str], None]
READ = 32
"""Images that go through the whole path to the scores."""
POOR_COVERAGE = 0.9
"""Share of boxes with an anchor of IoU 0.5 below which other anchors are proposed."""
GOAL = Goal("AP50", 0.9, lambda sample: sample.boxes is not None and len(sample.boxes) > 0)
"""What eight images learnt by heart must show."""
_GOOD_IOU = 0.5  # above it the assignment calls an anchor positive


def quick_checks(
    task: TaskSpec,
    config: Config,
    model: Model,
    datasets: Mapping[str, Dataset],
    tell: Tell,
    *,
    samples_told: bool = False,
) -> None:
    """What takes seconds: the range of pixels, image sizes from headers, boxes, anchors, and the truth scored as predictions, which must
    give AP 1.
    ``samples_told``: what of :data:`tasks.data.check.LOOKED_AT` samples cannot be read was told before.

    The first part that fails raises :class:`UserError`, which names it.
    """
    if line := told_of_range(datasets["train"], config.model.normalization == "data"):
        tell(f"train: {line}")
    for split, dataset in datasets.items():
        for note in getattr(dataset, "notes", ()):
            tell(f"{split}: {note}")
        table = getattr(dataset, "table", None)
        if isinstance(table, BoxTable):
            for line in table.repairs.lines():
                tell(f"{split}: {line}")
            unreadable = check_headers(table, config.data.on_error)
            if unreadable and not (samples_told and len(dataset) <= LOOKED_AT):
                tell(f"{split}: {unreadable}")
    for line in told_of_classes(datasets):
        tell(line)
    found = statistics(config, model, datasets["train"])
    check_sides(found.network, config.data.min_box, model, tell)
    _tell_coverage(found, model, tell)
    for split, dataset in datasets.items():
        check_scores(task, config, model, dataset, split, tell=tell)


def told_of_classes(datasets: Mapping[str, Dataset]) -> Iterator[str]:
    """What to say of classes that no training object has, and of files that number the classes in other ways."""
    tables = {
        split: table for split, data in datasets.items() if isinstance(table := getattr(data, "table", None), BoxTable)
    }
    train = tables.get("train")
    if train is None:
        return
    none = [name for name, count in zip(train.classes, train.counts().tolist(), strict=True) if not count]
    if none:
        shown = ", ".join(none[:10]) + (", ..." if len(none) > 10 else "")
        yield f"train: {len(none)} of {len(train.classes)} classes have no object: {shown}"
    for split, table in tables.items():
        if table.category_ids != train.category_ids:
            ids, others = (", ".join(map(str, found.category_ids[:8])) for found in (table, train))
            yield f"{split}: its category ids are {ids}, those of training {others}: classes are matched by their names"


def check_headers(table: BoxTable, on_error: str = "stop") -> str:
    """Hold the sizes that annotations claim against the headers of the files; those that differ raise :class:`UserError`,
    which names the first.

    Files that cannot be read raise it too; with ``on_error`` ``skip`` what is to be told of them is returned, else nothing.
    """
    known = np.flatnonzero((table.sizes > 0).all(1))
    found = header_sizes([table.path(index) for index in known.tolist()], "apply", on_error)
    unreadable = (found < 0).any(1)
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
    if not unreadable.any():
        return ""
    such = table.path(int(known[unreadable][0]))
    return f"{unreadable.sum():,} of {len(known):,} files cannot be read and are skipped, such as {such}"


def check_sides(sides: NDArray[np.float64], least: float, model: Model, tell: Tell) -> None:
    """Count the boxes, of ``sides`` [N, 2] in pixels as the network sees them, that training leaves out because a side is below
    ``least``. If those are all, :class:`UserError` is raised: nothing would be learnt."""
    gone = ~((sides >= least) & (sides > 0)).all(1)
    if not gone.any():
        return
    size = " x ".join(map(str, model.image_spec.size))
    many = f"{gone.sum():,} of {len(sides):,} boxes have a side of less than {least:g} pixels at image size {size}"
    if gone.all():
        what = f"the objects are too small at image_size: {many}, the largest side is {sides.max():.2g} pixels"
        raise UserError("data.image_size", what, "raise it, cut the images into smaller ones, or correct the boxes")
    tell(f"boxes: {many}, and are not trained on: raise data.image_size, or lower data.min_box")


def _tell_coverage(found: BoxStatistics, model: Model, tell: Tell) -> None:
    """Say which boxes are hard to learn or not learnt at all, how well the anchors fit, and which would fit better."""
    small = float((found.network.min(1) < 4).mean()) if len(found.network) else 0.0
    size = " x ".join(map(str, model.image_spec.size))
    if small > 0.1:
        tell(f"boxes: {small:.0%} have a side of less than 4 pixels at image size {size}: raise data.image_size")
    if lost := int((found.anchors == 0).sum()):
        what = (
            f"boxes: {lost:,} of {len(found.anchors):,} get no anchor or point at image size {size}, and are not learnt"
        )
        tell(f"{what}: raise data.image_size, or take --model.head yolo, which has one for each")
    if shared := int(found.contested.sum()):
        what = f"boxes: {shared:,} of {len(found.contested):,} have no point at image size {size} but the only one of another box"
        tell(f"{what}, and of such boxes one is learnt: raise data.image_size")
    if large := int(found.too_large.sum()):
        what = f"boxes: {large:,} of {len(found.too_large):,} are larger than the head can say at image size {size}"
        tell(f"{what}: {_proposed(found, model)}")
    if not len(found.best_iou):
        return
    share = float((found.best_iou >= _GOOD_IOU).mean())
    average = f"the best has {found.best_iou.mean():.2f} on average"
    tell(f"anchors: {share:.1%} of {len(found.best_iou):,} boxes have one of IoU {_GOOD_IOU:g} or more; {average}")
    if share < POOR_COVERAGE:
        if words := _proposed(found, model):
            tell(f"anchors that fit better: {words}")
        elif type(model.head).fit_to_data is not Head.fit_to_data:
            tell("no other anchors fit better")


def _proposed(found: BoxStatistics, model: Model) -> str:
    """Options of the head that suit the boxes better, as they are given on a line."""
    options = model.head.fit_to_data(torch.from_numpy(found.network).float(), model.image_spec.size)
    return " ".join(f"--model.head_options.{name} '{value}'" for name, value in options.items())


def check_scores(
    task: TaskSpec, config: Config, model: Model, dataset: Dataset, split: str, limit: int = READ, tell: Tell = print
) -> None:
    """The truth, sent as predictions through loader, resizing, restoration and scorer, must give AP 1."""
    view = Repeated(dataset, spread(len(dataset), limit))
    batches = [
        (batch, truth_as_predictions(batch.targets))
        for batch in feeding.evaluation_loader(_in_process(config), task, view, model)
        if batch.targets is not None
    ]
    if not batches:
        raise UserError(f"data.{split}", "the samples have no boxes", "give a detection data set")
    most = max(detections.boxes.shape[1] for _, detections in batches)
    metric = DetectionMetrics(dataset.classes, max_dets=max(most, 1))
    limit_of_run = _most_detections(config)
    limited = DetectionMetrics(dataset.classes, max_dets=limit_of_run) if most > limit_of_run else None
    for batch, detections in batches:
        found, truth = task.scored(*readable(batch, task.restored(batch, detections)))
        metric.update(found, truth)
        if limited:
            limited.update([_first(one, limit_of_run) for one in found], truth)
    score = metric.compute()["AP"]
    best = limited.compute()["AP"] if limited else score
    if score is not None and best is not None and best < score - 1e-9:
        what = f"images have more objects than model.head_options.max_detections {limit_of_run}: the best AP that there can be"
        tell(f"{split}: {what} is {best:.3f}; raise that, to {most} at least")
    if score is not None and score < 1 - 1e-9:
        what = f"the boxes of split {split}, sent as predictions through resizing, restoration and scores, give AP {score:.4f}, not 1"
        raise UserError(
            "data", what, "boxes and images do not belong together, or a transform of yours moves them apart"
        )


def _first(found: ImageDetections, count: int) -> ImageDetections:
    return replace(found, boxes=found.boxes[:count], scores=found.scores[:count], labels=found.labels[:count])


def _most_detections(config: Config) -> int:
    """How many detections of an image a run keeps and scores."""
    most = config.model.head_options.get("max_detections", 100)
    return most if isinstance(most, int) else 100


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


def score_results(
    task: TaskSpec, config: Config, path: Path, dataset: Dataset, tell: Tell, training: Dataset | None = None
) -> dict[str, Any]:
    """Scores of a COCO results file, or of the ``predictions.json`` in a folder, on a data set that has a table. ``training``: the data
    whose numbers a file may have instead."""
    path = path / "predictions.json" if path.is_dir() else path
    table = getattr(dataset, "table", None)
    if not isinstance(table, BoxTable):
        raise UserError(
            "--predictions", f"{type(dataset).__name__} has no table of images", "use data.name coco, voc or yolo"
        )
    for line in table.repairs.lines():
        tell(line)
    trained = None if training is None else Knowledge.of(training).table
    renamed = DataOptions(config.data.name, config.data.options, tuple(config.data.options)).renames()
    numbering = numbering_of(path, table.classes, dict(table.numbers), dict(getattr(trained, "numbers", ())), renamed)
    if numbering.told:
        tell(numbering.told)
    detections = read_results(path, table, tell, numbering, allow_bad_boxes=config.data.allow_bad_boxes)
    truths = [table.truth(index) for index in range(len(table))]
    if said := told_of_readings(detections, truths):
        tell(f"{path}: {said}")
    metric = task.metrics(config, dataset.classes)
    metric.update(detections, truths)
    return dict(metric.compute()) | task.anatomy(metric)
