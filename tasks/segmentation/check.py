"""Does a segmentation data set fit its model? Masks and their classes before a run, and what resizing alone costs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.images.classsets import UNKNOWN, are_sets
from effbackbones.images.geometry import Mask
from effbackbones.inference.thresholds import SURE
from effbackbones.model import Model
from tasks.data.batch import ImageMeta, SkipCount
from tasks.data.dataset import Dataset
from tasks.data.masks.count import MaskStatistics
from tasks.data.masks.file import MaskReader
from tasks.data.masks.perclass import KEEP, combined
from tasks.data.pixels import told_of_range
from tasks.data.sample import IGNORE
from tasks.data.sampling import Repeated, spread
from tasks.engine import feeding
from tasks.engine.evaluation import readable
from tasks.segmentation.files import written_for
from tasks.segmentation.results import Segmented, restore
from tasks.segmentation.setfiles import folders_of
from tasks.segmentation.statistics import statistics
from tasks.settings.sections import Config
from tasks.spec import Goal, TaskSpec
from tasks.telling import Teller

READ = 16
"""Images that go through the whole path to the scores."""
POOR = 0.5
"""Mean IoU of the truth itself, resized and restored, below which something is wrong with the geometry."""
GOAL = Goal("miou", 0.75, lambda sample: sample.mask is not None and bool(_shows_class(sample.mask).any()))
"""What eight images learnt by heart must show."""


def _shows_class(mask: Mask) -> NDArray[np.bool_]:
    """Pixels of some class."""
    return mask > 0 if are_sets(mask) else mask != IGNORE


def quick_checks(
    task: TaskSpec, config: Config, model: Model, datasets: Mapping[str, Dataset], tell: Teller, *, whole: bool = False
) -> None:
    """Read masks (all if ``whole``, see :func:`tasks.segmentation.statistics.statistics`), tell what is in them, and send the truth
    through loader, resizing, restoration and scores.

    The first fault raises :class:`UserError`, which names the file.
    """
    line = told_of_range(datasets["train"], config.model.normalization == "data")
    if line:
        tell(f"train: {line}")
    for split, dataset in datasets.items():
        for note in getattr(dataset, "notes", ()):
            tell(f"{split}: {note}")
        watch = partial(tell.watch, name=f"masks of {split}")
        found = statistics(dataset, config.data.on_error, watch, whole=whole)
        tell_frequencies(found, split, tell)
    best = truth_score(task, config, model, datasets["val"])
    if best is not None and best < POOR:
        what = f"the masks of split val, sent as predictions through resizing, restoration and scores, give mIoU {best:.3f}"
        raise UserError("data", what, "raise data.image_size; or masks and images do not belong together")
    if best is not None:
        tell(
            f"val: the masks themselves, resized to the network's size and back, give mIoU {best:.4f}: no model can do better"
        )


def tell_frequencies(found: MaskStatistics, split: str, tell: Callable[[str], None]) -> None:
    """Say how often each class occurs; refuse a split without a labelled pixel."""
    labelled = found.labelled
    if not found.pixels.any():
        has = "a labelled pixel" if found.overlap is None else "a pixel of any class"
        what = f"none of {found.looked_at:,} masks has {has}"
        raise UserError(f"data.{split}", what, "check format, values and ignore")
    order = np.argsort(-found.pixels, kind="stable").tolist()
    shown = ", ".join(f"{found.classes[k]} {found.pixels[k] / labelled:.1%}" for k in order[:20] if found.pixels[k])
    never = [found.classes[k] for k in order if not found.pixels[k]]
    ignored = found.ignored / (labelled + found.ignored)
    tell(f"{split}: {found.looked_at:,} of {found.total:,} masks read, {ignored:.1%} of their pixels ignored; {shown}")
    if found.overlap is not None:
        shares = f"{found.overlap.several / labelled:.1%} of the labelled pixels have several classes"
        tell(f"{split}: {shares}, {found.overlap.bare / labelled:.1%} none")
    if found.overlap is None and len(never) == len(found.classes) - 1 > 0 and split == "train":
        what = f"all labelled pixels of {found.looked_at:,} masks are {found.classes[order[0]]}: nothing is to be told apart"
        if found.looked_at == found.total:
            raise UserError(f"data.{split}", what, "check format, values and classes")
        tell(f"{split}: warning: {what}")
    if never:
        more = f" and {len(never) - 10} more" if len(never) > 10 else ""
        tell(f"{split}: no pixel of {', '.join(never[:10])}{more}")


def truth_score(task: TaskSpec, config: Config, model: Model, dataset: Dataset) -> float | None:
    """Mean IoU that the truth itself gets as a prediction, over a few images; None without a labelled pixel."""
    classes = task.classes(config, dataset)
    metric = task.metrics(config, classes)
    view = Repeated(dataset, spread(len(dataset), READ))
    config = replace(config, data=replace(config.data, workers=0))
    for batch in feeding.evaluation_loader(config, task, view, model):
        if batch.targets is not None:
            # Images that are read in tiles come alone, without padding, at their own size.
            tiled, sets = config.data.tile is not None, batch.targets.dtype == torch.int32
            made = (
                [_predicted(mask) for mask in batch.targets]
                if tiled
                else restore(
                    batch, _one_hot(batch.targets, len(classes)), over=(SURE,) * len(classes) if sets else None
                )
            )
            metric.update(*task.scored(*readable(batch, made)))
    score: float | None = metric.compute()["miou"]
    return score


def _one_hot(masks: torch.Tensor, count: int) -> torch.Tensor:
    """Masks [B, H, W] as probabilities of 1; ignored pixels, which are not scored, as the first class, of sets as none."""
    if masks.dtype == torch.int32:
        bits = torch.arange(count, dtype=torch.int32)[:, None, None]
        return (masks.clamp(min=0)[:, None] >> bits & 1).float()
    labels = torch.where(masks == IGNORE, 0, masks)
    return torch.nn.functional.one_hot(labels.long(), count).permute(0, 3, 1, 2).float()


def _predicted(labels: torch.Tensor) -> Segmented:
    """A mask [H, W] as a prediction, certain but where it is ignored: of that there is none."""
    unknown = labels == (UNKNOWN if labels.dtype == torch.int32 else IGNORE)
    return Segmented(labels.masked_fill(unknown, 0), torch.where(unknown, torch.nan, 1.0))


def score_folder(
    task: TaskSpec, config: Config, folder: Path, dataset: Dataset, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Scores of a folder of predicted masks, ``NAME.png`` with the class in each pixel (255: none), as ``predict`` writes them into
    ``OUT/index``, or with ``data.multilabel`` ``CLASS/NAME.png``, white where the class is, as in ``OUT/masks``; OUT itself will do,
    and says which mask is of which image. A missing mask, and two images of one name where nothing tells their masks apart, raise
    :class:`UserError`."""
    known = written_for(folder)
    inner = folder / ("masks" if config.data.multilabel else "index")
    folder = inner if inner.is_dir() else folder
    if not folder.is_dir():
        raise UserError("--predictions", f"there is no folder {folder}", "name the folder that predict wrote")
    classes = task.classes(config, dataset)
    metric, read = task.metrics(config, classes), _predicted_masks(config, folder, classes)
    skips, taken = SkipCount(len(dataset)), dict[str, str]()
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except UserError as error:
            if config.data.on_error == "stop":
                raise
            skips.add([ImageMeta("", "", (1, 1), skipped=(str(error),))])
            continue
        source = sample.path or sample.id
        name = known.get(os.path.realpath(source), Path(source).stem)
        if taken.setdefault(name, source) != source:
            what = f"would be the mask of {taken[name]} and of {source}"
            raise UserError(str(folder / f"{name}.png"), what, "name the folder that predict wrote, which says more")
        metric.update([_predicted(torch.from_numpy(read(name, source)))], [sample.mask])
    scores = dict(metric.compute()) | task.anatomy(metric)
    if "ece" not in scores:
        tell(f"the masks of {len(taken):,} images in {folder} scored")
        return scores
    tell(f"{len(taken):,} masks of {folder} scored; they say no probabilities, so ece means nothing here")
    return scores | {"ece": None, "reliability": []}


def _predicted_masks(config: Config, folder: Path, classes: Sequence[str]) -> Callable[[str, str], Mask]:
    """Reads the mask that was predicted for a name, of the image ``source``; :class:`UserError` where it is not there."""
    sets, most = config.data.multilabel, config.data.max_pixels
    places = folders_of(classes) if sets else ["."]
    values = ((0, 0), (255, 1)) if sets else tuple((k, k) for k in range(len(classes)))
    read = MaskReader("binary" if sets else "index", values, ignored=() if sets else (IGNORE,), max_pixels=most)

    def mask(name: str, source: str) -> Mask:
        paths = {label: str(folder / place / f"{name}.png") for label, place in enumerate(places)}
        for path in paths.values():
            if not Path(path).is_file():
                raise UserError(path, f"there is no such file for {source}", "predict all images of the split")
        return combined(paths, read, None, empty=IGNORE, overlap=KEEP) if sets else read(paths[0])

    return mask
