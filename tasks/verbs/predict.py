"""The verb ``predict``: classes, boxes or masks of images that have no labels."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.predictor import Predictor
from effbackbones.inference.preparing import Fitted, Placed, Prepared
from effbackbones.inference.results import Failed
from effbackbones.inference.views import Preparation, Slices, Views
from effbackbones.model import Model
from tasks.data.batch import READING
from tasks.data.dataset import Dataset
from tasks.data.door import image_reader, reading_spec
from tasks.data.knowledge import paths_of
from tasks.data.transforms.alone import fit_of
from tasks.engine import feeding, hardware, splits
from tasks.engine.loading import LEAVE_WITHIN, Loader, begun
from tasks.report.outputs import Originals
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.inputs import image_files
from tasks.verbs.models import as_model, beside, data_classes, model_and_classes, read_as_trained


def predict(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Predict files, folders, globs and lists; writes the results into ``--out`` and tells the essential ones."""
    # The words of a line are followed wherever they lead, unless it says otherwise itself.
    links = config.data.links if "data.links" in extras.overrides else "anywhere"
    tell = Teller(config.run.progress)
    files = image_files(extras.inputs, links, tell) if extras.inputs or not extras.split_named else []
    device = hardware.run_device(config)
    model, classes = model_and_classes(task, config, extras, require_classes=False)
    config = read_as_trained(config, extras, model, tell)
    model.classes, model.reading = classes, reading_spec(config.data)
    source = _source(task, config, extras, model, classes) if extras.split_named else None
    files = files or list(map(Path, _files_of(source, extras.split)))
    out = Path(extras.out or "predictions")
    tiled = model.reading.tile is not None
    predictor = Predictor(
        model,
        device=device,
        threshold=_threshold(extras.threshold, task),
        top_k=count_of("--top-k", extras.top_k),
        batch_size=(config.data.eval_batch_size or 1) if tiled else _batch_size(config),
        probabilities=config.run.probabilities and task.name == "seg",
        on_error="return" if len(files) > 1 else "raise",  # one bad file in ten thousand spoils no others
        precision=hardware.precision(config, device),
        fit=fit_of(feeding.shown(task.transform(config, model, train=False), model)),
        tta=Views.of(extras.tta, "--tta"),
        slices=Slices.of(extras.slices, "--slices"),
    )
    writer = task.writer(config, out, model, classes, print)
    if source is not None and hasattr(writer, "number_as"):
        writer.number_as(source)
    read = replace(image_reader(config.data, "val"), channels=len(model.image_spec.mean))
    originals = Originals(read)
    dataset = _Files(files, originals if writer.draws else read, predictor.prepare)
    size = predictor.at_once
    batches = [range(first, min(first + size, len(files))) for first in range(0, len(files), size)]
    # Images in original size are too much to be sent between processes.
    workers = 0 if writer.draws else feeding.workers(config)
    loader = Loader(
        dataset,
        batches,
        predictor.prepare.together,
        workers=workers,
        timeout=config.data.timeout,
        pin=device.type == "cuda",
        seed=0,
    )
    timeout = 0.0 if workers else config.data.timeout  # loader processes are watched by the loader
    failed: list[str] = []
    with closing(_Ahead(loader, timeout, lambda: dataset.reading)) as ahead:
        for batch in tell.watch(ahead, "predict"):
            results = predictor.answer(batch)
            failed += [one.error for one in results if isinstance(one, Failed)]
            if found := [one for one in results if not isinstance(one, Failed)]:
                writer.update(found)
            originals.forget(one.source.name for one in batch.places if isinstance(one, Placed))
    writer.close()
    tell(f"predictions of {len(files) - len(failed)} images in {out}")
    if failed:
        more = f" (and {len(failed) - 1} more files)" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}")
    return 0


def _source(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> Dataset:
    """The split that the line names."""
    config = splits.with_division(as_model(config, model), beside(extras.checkpoint))
    return splits.open_dataset(config, task, extras.split, data_classes(task, config, extras, model, classes))


def _files_of(source: Dataset | None, split: str) -> list[str]:
    files = [] if source is None else paths_of(source)
    if not all(files):
        raise UserError(f"data.{split}", "its images are no files", "name files, folders or globs")
    return files


def _batch_size(config: Config) -> int:
    return config.data.eval_batch_size or config.data.batch_size


def _threshold(text: str | None, task: TaskSpec) -> float | None:
    if text is not None and task.name == "cls":
        raise UserError(
            "--threshold", "is for boxes and masks; classes are written with their probabilities", "leave it out"
        )
    return share_of("--threshold", text)


def share_of(option: str, text: str | None) -> float | None:
    """The number in 0..1 that an ``option`` says, None where it says nothing."""
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(option, f"expected 0 to 1, got {text!r}", "correct it")
    return share


def count_of(option: str, text: str | None) -> int | None:
    """The count that an ``option`` says, None where it says nothing."""
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UserError(option, f"expected a count of at least 1, got {text!r}", "correct it")
    return int(text)


class _Ahead:
    """Batches, as many as there are (for the progress bar), each read while the one before it is worked on. One that is not there
    after ``timeout`` seconds (0: never) raises :class:`UserError` that names what ``reading`` says."""

    def __init__(self, batches: Any, timeout: float, reading: Callable[[], str]) -> None:
        self.batches, self.timeout, self.reading = batches, timeout, reading
        self.coming: Future[Prepared | None] = begun(lambda: None)

    def close(self) -> None:
        """Wait for the read that is under way: at the end of the batches it is their processes' own end."""
        wait([self.coming], 2 * LEAVE_WITHIN)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Prepared]:
        following = partial(next, iter(self.batches), None)
        self.coming = begun(following)
        while True:
            if wait([self.coming], self.timeout or None).not_done:
                what = f"no batch came within {self.timeout:g} seconds"
                raise UserError(self.reading(), what, "raise data.timeout, or leave the file out")
            batch = self.coming.result()
            if batch is None:
                return
            self.coming = begun(following)
            yield batch


class _Files:
    """Images to predict, read by ``read`` and made ready by ``prepare``."""

    def __init__(self, files: Sequence[Path], read: Callable[[str], Pixels], prepare: Preparation) -> None:
        self.files, self.read, self.prepare = files, read, prepare
        self.reading = ""
        """The file that is being read, in this process."""

    def __getitem__(self, index: int) -> Fitted | list[Fitted] | Failed:
        path = self.reading = str(self.files[index])
        try:
            return self.prepare(ImageSource(path, None, self.read))
        except UserError:
            raise
        except Exception as error:  # with its own text, for a loader process sends an exception as its traceback
            error.add_note(f"{READING} {path}: {type(error).__name__} {' '.join(str(error).split())[:300]}")
            raise
