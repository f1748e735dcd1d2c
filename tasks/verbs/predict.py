"""The verb ``predict``: classes, boxes or masks of images that have no labels."""

import glob
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effbackbones.checkpoint import with_head_options
from effbackbones.errors import UserError
from effbackbones.images.reading import SUFFIXES
from effbackbones.inference.finite import NOT_FINITE, REMEDY, finite_watch
from tasks.data.batch import Batch
from tasks.data.door import image_reader
from tasks.data.files.listing import files_below
from tasks.data.sample import Sample
from tasks.engine import assembly
from tasks.engine.evaluation import readable
from tasks.engine.loading import Loader, begun
from tasks.report.outputs import Originals
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.models import model_and_classes, read_as_trained


def predict(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Predict files, folders and globs; writes the results into ``--out`` and tells the essential ones."""
    files = image_files(extras.inputs)
    tell, device = Teller(config.run.progress), assembly.run_device(config)
    model, classes = model_and_classes(task, config, extras, require_classes=False)
    config = read_as_trained(config, extras, model, tell)
    threshold = None if extras.threshold is None else _share(extras.threshold)
    if (
        threshold is not None
        and getattr(model.head, "multilabel", False)
        and "threshold" in type(model.head).prediction_options
    ):
        model = with_head_options(model, {**(model.config.get("head_options") or {}), "threshold": threshold})
        threshold = None
    model.to(device)
    out, originals = Path(extras.out or "predictions"), Originals(config.data.exif)
    writer = task.writer(config, out, model, classes, print, originals)
    if threshold is not None:
        _limit(writer, threshold)
    if writer.draws:  # images in original size are too much to be sent between processes
        config = replace(config, data=replace(config.data, workers=0))
    if len(files) > 1:  # one bad file in ten thousand spoils no others
        config = replace(config, data=replace(config.data, on_error="skip"))
    dataset = _Files(files, config, len(model.image_spec.mean), classes, originals if writer.draws else None)
    failed: dict[str, None] = {}
    loader = assembly.evaluation_loader(config, task, dataset, model)
    timeout = 0.0 if assembly.workers(config) else config.data.timeout  # loader processes are watched by the loader
    with torch.no_grad(), finite_watch(model) as watch:
        for batch in tell.watch(_Ahead(loader, timeout, lambda: dataset.reading), "predict"):
            moved = batch.to(device, non_blocking=True)
            with assembly.autocast(config, device):
                predictions = task.predict(config, model, moved)
            for row in watch.note([meta.path for meta in moved.meta]):
                moved.meta[row].skipped = (f"{moved.meta[row].path}: {NOT_FINITE}; {REMEDY}",)
            failed |= dict.fromkeys(message for meta in batch.meta for message in meta.skipped[:1])
            known, found = readable(moved, predictions)
            if len(known):
                writer.update(known, found)
            originals.forget(batch)
    writer.close()
    tell(f"predictions of {len(files) - len(failed)} images in {out}")
    if failed:
        more = f" (and {len(failed) - 1} more files)" if len(failed) > 1 else ""
        raise UserError(f"{next(iter(failed))}{more}")
    return 0


def _share(text: str) -> float:
    """The number that a threshold is."""
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise UserError("--threshold", f"expected 0 to 1, got {text!r}", "correct it")
    return threshold


def _limit(writer: Any, threshold: float) -> None:
    """Let boxes below the threshold be neither drawn nor written."""
    limited = [part for part in (writer, *getattr(writer, "parts", {}).values()) if hasattr(part, "keep_above")]
    if not limited:
        raise UserError(
            "--threshold", "is for the scores of boxes, and for masks whose classes overlap", "leave it out"
        )
    for part in limited:
        part.keep_above(threshold)


class _Ahead:
    """Batches, as many as there are (for the progress bar), each read while the one before it is worked on. One that is not there
    after ``timeout`` seconds (0: never) raises :class:`UserError` that names what ``reading`` says."""

    def __init__(self, batches: Loader, timeout: float, reading: Callable[[], str]) -> None:
        self.batches, self.timeout, self.reading = batches, timeout, reading

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        following = partial(next, iter(self.batches), None)
        coming = begun(following)
        while True:
            if wait([coming], self.timeout or None).not_done:
                what = f"no batch came within {self.timeout:g} seconds"
                raise UserError(self.reading(), what, "raise data.timeout, or leave the file out")
            batch = coming.result()
            if batch is None:
                return
            coming = begun(following)
            yield batch


def image_files(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders (all below them) and globs name, sorted within each; a name without any raises
    :class:`UserError`."""
    if not inputs:
        raise UserError("predict", "no input", "name files, folders or globs")
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = [path / name for name in files_below(path, links="anywhere")]
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not found and not path.is_dir() and not glob.has_magic(name):
            raise UserError(name, "no such file or folder", "correct the path, relative to the working folder")
        if not found:
            raise UserError(name, "no image found", f"images end in {', '.join(sorted(SUFFIXES))}")
        files += found
    return list(dict.fromkeys(files))


class _Files:
    """Images to predict, as a data set without labels. They are decoded once: ``originals``, if there are any, keep them."""

    def __init__(
        self,
        files: Sequence[Path],
        config: Config,
        channels: int,
        classes: tuple[str, ...],
        originals: Originals | None,
    ) -> None:
        self.files, self.classes, self.originals = files, classes, originals
        self.reading = ""
        """The file that is being read, in this process."""
        self.read = replace(image_reader(config.data, "val"), channels=channels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.reading = str(self.files[index])
        image = self.read(path)
        if self.originals:
            self.originals.keep(path, image)
        return Sample(image=image, id=path, path=path)
