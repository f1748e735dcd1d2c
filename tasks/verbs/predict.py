"""The verb ``predict``: classes, boxes or masks of images that have no labels, and of the frames of videos."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.images.video import import_av
from effbackbones.inference.predictor import Predictor
from effbackbones.inference.preparing import Placed, Prepared
from effbackbones.inference.results import Failed
from effbackbones.inference.thresholds import IDLE_THRESHOLD
from effbackbones.inference.views import Slices, Views
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.data.door.reading import file_reader, reading_spec
from tasks.data.files.reading import ImageReader, PackedNames
from tasks.data.knowledge import Knowledge
from tasks.data.pixels import told_of_files
from tasks.data.transforms.alone import fit_of
from tasks.engine import feeding
from tasks.engine.hardware import Hardware
from tasks.engine.loading import Loader
from tasks.engine.signals import Signals, StoppedError, stopped_by
from tasks.report.outputs import Originals
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec, Writer
from tasks.telling import Teller
from tasks.verbs.ahead import Ahead, ImageFiles, ImageRead, SampleImages, VideoFrames
from tasks.verbs.inputs import Inputs, named_inputs
from tasks.verbs.limits import count_of, share_of
from tasks.verbs.models import asked_model, open_split
from tasks.verbs.outputs import writers_for

_DEEP, _LOOKED_AT, _READ = (".tif", ".tiff", ".npy", ".pgm"), 64, 4
"""Endings of files that may have 16 bits, how many files are looked at for such, and how many of these are read for the range they use."""
_NAMED = 20  # files that cannot be predicted, of which each has a line


def predict(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Predict files, folders, globs, lists, videos and streams; writes the results into ``--out`` and tells the essential ones.

    Whatever ends it, results of what was predicted until then are written. A signal ends it after the batch that is worked on.
    """
    # The words of a line are followed wherever they lead, unless it says otherwise itself.
    links = config.data.links if "data.links" in extras.overrides else "anywhere"
    tell, every = Teller(config.run.progress), count_of("--every", extras.every) or 1
    asked = extras.inputs or not extras.split_named
    hardware = Hardware.of(config)
    model, classes, config = asked_model(task, config, extras, tell, require_classes=False)
    sounds = model.image_spec.rate is not None
    named = named_inputs(extras.inputs, links, tell, sounds=sounds) if asked else Inputs([], [])
    if named.videos:
        import_av(named.videos[0])  # before the work, not after it
    elif extras.every is not None:
        raise UserError("--every", "is for videos and streams, and none is named", "leave it out")
    model.classes, model.reading = classes, reading_spec(config.data)
    read = file_reader(config.data, model.image_spec)
    source = open_split(task, config, extras, model, classes) if extras.split_named else None
    files, made = (PackedNames(map(str, named.images)), None) if asked else _images_of(source)
    named.images.clear()  # a hundred thousand paths are some memory
    out = Path(extras.out or "predictions")
    tiled = model.reading.tile is not None
    predictor = Predictor(
        model,
        device=hardware.device,
        threshold=_threshold(extras.threshold, model),
        top_k=count_of("--top-k", extras.top_k),
        batch_size=(config.data.eval_batch_size or 1) if tiled else _batch_size(config),
        probabilities=config.run.probabilities and task.name == "seg",
        # One bad file in ten thousand spoils no others, nor a damaged video what is whole of it.
        on_error="return" if len(files) > 1 or named.videos else "raise",
        precision=hardware.precision,
        fit=fit_of(feeding.shown(task.transform(config, model, train=False), model)),
        tta=Views.of(extras.tta, "--tta"),
        slices=Slices.of(extras.slices, "--slices"),
        backend=extras.backend,
        dtype=extras.dtype,
    )
    for sentence in predictor.told_thresholds():
        tell(sentence)
    deep = list(filter(_may_be_deep, islice(files, _LOOKED_AT)))[:_READ] if asked and not sounds else []
    if deep and (line := told_of_files(deep, read, config.model.normalization == "data", trained=True)):
        tell(line)
    writer = writers_for(task, config, extras.write, out, model, classes, print)
    writer.below(files)
    if source is not None:
        writer.number_as(source)
    with Signals() as signals:
        signals.heed()
        work = _Work(predictor, writer, lambda: stopped_by(signals.level), tell)
        try:
            if files:
                work.images(files, made or read, config, tell)
            if named.videos:
                work.videos(named.videos, read, every, tell)
        except BaseException:
            if work.done:  # it is not lost with what ends it
                writer.close()
            raise
        signals.answer()
        writer.close()
        tell(f"predictions of {work.said('recording' if sounds else 'image')} in {out}")
        if (number := stopped_by(signals.level)) is not None:
            raise StoppedError(number)
    if work.failed:
        more = f" (and {work.failed - 1:,} more files)" if work.failed > 1 else ""
        raise UserError(f"{work.first_failure}{more}")
    return 0


def _may_be_deep(name: str) -> bool:
    """Whether a file may have more than 8 bits, by its name, or of PNG by the depth in its header."""
    if not name.lower().endswith(".png"):
        return name.lower().endswith(_DEEP)
    try:
        with open(name, "rb") as file:
            return file.read(25)[24:] == b"\x10"
    except OSError:  # told where it is predicted
        return False


class _Work:
    """Images and frames, predicted and given to ``writer``, until there are no more or ``stopped`` says so."""

    def __init__(self, predictor: Predictor, writer: Writer, stopped: Callable[[], object], tell: Teller) -> None:
        self.predictor, self.writer, self.stopped, self.tell = predictor, writer, stopped, tell
        self.done = self.frames = self.failed = 0
        self.first_failure = ""

    def images(self, files: Sequence[str], read: ImageRead, config: Config, tell: Teller) -> None:
        """Predict files. Those that are drawn on are read in this process: in original size they are too much to be sent."""
        originals = Originals(read)
        dataset = ImageFiles(files, originals if self.writer.draws else read, self.predictor.prepare)
        size = self.predictor.at_once
        batches = [range(first, min(first + size, len(files))) for first in range(0, len(files), size)]
        workers = 0 if self.writer.draws else feeding.workers(config)
        loader = Loader(
            dataset,
            batches,
            self.predictor.prepare.together,
            workers=workers,
            timeout=config.data.timeout,
            pin=self.predictor.device.type == "cuda",
            seed=0,
        )
        timeout = 0.0 if workers else config.data.timeout  # loader processes are watched by the loader
        with closing(Ahead(loader, timeout, lambda: dataset.reading, self.stopped)) as ahead:
            self._through(tell.watch(ahead, "predict"), originals)

    def videos(self, names: list[str], read: ImageReader, every: int, tell: Teller) -> None:
        """Predict the frames of videos and streams, one after the other."""
        frames = VideoFrames(
            names,
            self.predictor.prepare,
            self.predictor.at_once,
            tell,
            keep=self.writer.draws,
            channels=read.channels,
            upright=read.exif != "ignore",
            every=every,
            max_pixels=read.max_pixels,
        )
        with closing(Ahead(frames, 0.0, lambda: frames.reading, self.stopped)) as ahead:
            self._through(tell.watch(iter(ahead), "predict"))  # of how many nobody knows

    def _through(self, batches: Iterable[Prepared], originals: Originals | None = None) -> None:
        for batch in batches:
            results: list[Any] = self.predictor.answer(batch)
            failures = [one.error for one in results if isinstance(one, Failed)]
            self.first_failure = self.first_failure or next(iter(failures), "")
            for number, failure in enumerate(failures, self.failed):
                if 0 < number < _NAMED:  # the first is the last line's
                    self.tell(f"not predicted: {failure}")
            self.failed += len(failures)
            if found := [one for one in results if not isinstance(one, Failed)]:
                self.writer.update(found)
            self.done += len(found)
            places = [one for one in batch.places if isinstance(one, Placed)]
            self.frames += len({id(one.source) for one in places if one.source.moment})
            if originals is not None:
                originals.forget(one.source.name for one in places)

    def said(self, noun: str) -> str:
        """How many were predicted."""
        images = self.done - self.frames
        words = [f"{images} {noun}{'s' * (images != 1)}"] if images or not self.frames else []
        return " and ".join([*words, f"{self.frames} frame{'s' * (self.frames != 1)}"] if self.frames else words)


def _images_of(source: Dataset | None) -> tuple[Sequence[str], ImageRead | None]:
    """The files of a split, and None: they are read as all files are. Of images that are no files, but drawn or made otherwise, names
    by their ids, and what gives the pixels of a name."""
    if source is None:
        return [], None
    known = Knowledge.of(source)
    if all(known.paths) and len(set(known.paths)) == len(known.paths):  # and no parts of one file
        return known.paths, None
    names = known.ids
    if len(set(names)) < len(names):
        names = [str(row) for row in range(len(names))]
    return names, SampleImages(source, names)


def _batch_size(config: Config) -> int:
    return config.data.eval_batch_size or config.data.batch_size


def _threshold(text: str | None, model: Model) -> float | None:
    head = model.head
    idle = head.task == "cls" and not (getattr(head, "multilabel", False) or head.frame_step)  # events have one
    if text is not None and idle:
        raise UserError("--threshold", IDLE_THRESHOLD, "leave it out")
    return share_of("--threshold", text)
