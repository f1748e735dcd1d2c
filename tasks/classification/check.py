"""What is looked at before a classifier trains: notes of the reader, the range of the pixels, what evaluation never sees."""

from collections.abc import Mapping

import numpy as np

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.images.geometry import ResizePlan
from effbackbones.images.reading import image_size
from tasks.data.dataset import Dataset
from tasks.data.knowledge import Knowledge
from tasks.data.pixels import told_of_range
from tasks.data.recordings import told_of_sound
from tasks.settings.data import DataConfig
from tasks.telling import Teller

LOOKED_AT = 64
"""Images whose sizes are looked at."""
_NAMED = 5
UNSEEN = 0.45
"""Share of an image that a centre crop leaves out from which it is told: more than of a photograph of 4 by 3."""


def quick_checks(
    spec: ImageSpec, datasets: Mapping[str, Dataset], tell: Teller, data: DataConfig, *, measured: bool
) -> None:
    """Tell what readers noticed, and what of the images is lost on the way into a network that wants them as ``spec`` says.
    ``measured``: whether images are normalised by their own mean and deviation."""
    told: set[str] = set()
    for split, dataset in datasets.items():
        for note in getattr(dataset, "notes", ()):
            if note not in told:  # of divided data each part has those of the whole
                tell(f"{split}: {note}")
                told.add(note)
    for split, dataset in datasets.items():
        if lacking := without_samples(dataset):
            tell(
                f"train: warning: {lacking}, and are not learnt"
                if split == "train"
                else f"{split}: {lacking}: no score tells of them"
            )
    if everywhere := in_all_samples(datasets["train"]):
        tell(f"train: warning: {everywhere}, and cannot be learnt")
    if spec.rate is not None:
        for split, dataset in datasets.items():
            for said in told_of_sound(dataset, spec, data.on_error):
                tell(f"{split}: {said}")
        return
    line = told_of_range(datasets["train"], measured)
    if line:
        tell(f"train: {line}")
    share = unseen(datasets["val"], spec)
    if share is not None and share >= UNSEEN:
        text = f"val: warning: evaluation takes the centre of each image and never sees {share:.0%} of it"
        sees = ", training does" if data.crop in ("resized", "none", "pad") else ""
        tell(f"{text}{sees}; data.crop: whole shows all of it in both")


def without_samples(dataset: Dataset) -> str:
    """What to tell of classes that no sample has, where that is known without reading them; else nothing."""
    pairs = Knowledge.of(dataset).occurrences
    missing = [] if pairs is None else np.setdiff1d(np.arange(len(dataset.classes)), pairs[1]).tolist()
    if not missing:
        return ""
    names = ", ".join(dataset.classes[label] for label in missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return f"{len(missing)} of {len(dataset.classes)} classes have no sample ({names})"


def in_all_samples(dataset: Dataset) -> str:
    """What to tell of classes that every sample has, where that is known without reading them; else nothing."""
    pairs = Knowledge.of(dataset).occurrences
    if pairs is None:
        return ""
    classes = len(dataset.classes)
    counts = np.bincount(np.unique(pairs[0] * classes + pairs[1]) % classes, minlength=classes)
    every = [dataset.classes[label] for label in np.flatnonzero(counts == len(dataset)).tolist()]
    names = ", ".join(every[:_NAMED]) + (", ..." if len(every) > _NAMED else "")
    return f"{len(every)} of {classes} classes are in every sample ({names})" if every else ""


def unseen(dataset: Dataset, spec: ImageSpec) -> float | None:
    """Mean share of an image that an evaluation by ``spec`` never sees, over :data:`LOOKED_AT` of a data set; None where sizes are
    not known from headers."""
    known = Knowledge.of(dataset)
    paths, read = known.paths, known.reader
    if spec.crop_mode == "letterbox" or read is None:
        return None
    count, shares = min(LOOKED_AT, len(paths)), []
    for index in (np.arange(count) * len(paths) // max(1, count)).tolist():
        try:
            size = image_size(paths[index], exif=read.exif)
        except UserError:  # told elsewhere
            continue
        plan = ResizePlan.center_crop(size, spec.size, spec.crop_fraction, squash=spec.crop_mode == "squash")
        left, top, right, bottom = plan.content
        shares.append(1 - (right - left) * (bottom - top) / (plan.scaled[0] * plan.scaled[1]))
    return float(np.mean(shares)) if shares else None
