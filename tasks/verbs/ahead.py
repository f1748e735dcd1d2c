"""What ``predict`` reads while the network works: batches of image files, and of the frames of videos."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.images.video import Frame, Video
from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.preparing import Fitted, Prepared
from effbackbones.inference.results import Failed
from effbackbones.inference.views import Preparation
from tasks.data.batch import READING
from tasks.data.dataset import Dataset
from tasks.engine.loading import LEAVE_WITHIN, LOOK_EVERY, begun
from tasks.report.outputs import KEPT_BYTES

_LIVE = 1.0
"""Seconds after which a batch of a stream is predicted, though it be not full."""


ImageRead = Callable[[str], Pixels]
"""Gives the image [H, W, C] of a name."""


class SampleImages:
    """Reads the images of a data set that has no files, by ``names`` of its samples."""

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self.dataset, self.rows = dataset, {name: row for row, name in enumerate(names)}

    def __call__(self, name: str) -> Pixels:
        return self.dataset[self.rows[name]].image


class Ahead:
    """Batches, as many as there are (for the progress bar), each read while the one before it is worked on. One that is not there
    after ``timeout`` seconds (0: never) raises :class:`UserError` that names what ``reading`` says; once ``stopped`` says so, none
    is waited for any more."""

    def __init__(
        self, batches: Any, timeout: float, reading: Callable[[], str], stopped: Callable[[], object] = lambda: None
    ) -> None:
        self.batches, self.timeout, self.reading, self.stopped = batches, timeout, reading, stopped
        self.coming: Future[Prepared | None] = begun(lambda: None)

    def close(self) -> None:
        """Wait for the read that is under way: at the end of the batches it is their processes' own end."""
        wait([self.coming], 2 * LEAVE_WITHIN)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Prepared]:
        following = partial(next, iter(self.batches), None)
        self.coming = begun(following)
        while self._arrived():
            batch = self.coming.result()
            if batch is None:
                return
            self.coming = begun(following)
            yield batch

    def _arrived(self) -> bool:
        """Wait for the next batch; False where it is wanted no more."""
        start = time.monotonic()
        while not self.stopped():
            left = self.timeout - (time.monotonic() - start) if self.timeout else LOOK_EVERY
            if not wait([self.coming], max(0.0, min(left, LOOK_EVERY))).not_done:
                return True
            if self.timeout and left <= 0:
                what = f"no batch came within {self.timeout:g} seconds"
                raise UserError(self.reading(), what, "raise data.timeout, or leave the file out")
        return False


class ImageFiles:
    """Images to predict, read by ``read`` and made ready by ``prepare``."""

    def __init__(self, files: Sequence[str], read: Callable[[str], Pixels], prepare: Preparation) -> None:
        self.files, self.read, self.prepare = files, read, prepare
        self.reading = ""
        """The file that is being read, in this process."""

    def __getitem__(self, index: int) -> Fitted | list[Fitted] | Failed:
        path = self.reading = self.files[index]
        try:
            return self.prepare(ImageSource(path, None, self.read))
        except UserError:
            raise
        except Exception as error:  # with its own text, for a loader process sends an exception as its traceback
            error.add_note(f"{READING} {path}: {type(error).__name__} {' '.join(str(error).split())[:300]}")
            raise


class VideoFrames:
    """Batches of the frames of ``videos``, of at most ``size``, and of fewer where they are large and kept to be drawn on, or come from
    a stream that is slow. What a video lacks is a :class:`Failed` after its frames; what came of it is told to ``tell``."""

    def __init__(
        self,
        videos: Sequence[str],
        prepare: Preparation,
        size: int,
        tell: Callable[[str], None],
        *,
        keep: bool,
        channels: int,
        upright: bool,
        every: int,
        max_pixels: int,
    ) -> None:
        self.videos, self.prepare, self.size, self.tell, self.keep = videos, prepare, size, tell, keep
        self.options: dict[str, Any] = {
            "channels": channels,
            "upright": upright,
            "every": every,
            "max_pixels": max_pixels,
        }
        self.reading = ""

    def __iter__(self) -> Iterator[Prepared]:
        for name in self.videos:
            self.reading = name
            try:
                with Video(name, **self.options) as video:
                    yield from self._batches(video)
                    self.tell(f"{name}: {video.summary()}")
                    if video.fault:
                        fault = UserError(name, video.fault, "what came of it is kept; repair or replace it")
                        yield self.prepare.together([Failed(name, str(fault))])
            except UserError as error:
                yield self.prepare.together([Failed(name, str(error))])

    def _batches(self, video: Video) -> Iterator[Prepared]:
        waiting: list[Any] = []
        start = time.monotonic()
        for frame in video:
            waiting.append(self._made(frame))
            size = max(1, min(self.size, KEPT_BYTES // frame.pixels.nbytes)) if self.keep else self.size
            if len(waiting) >= size or (video.live and time.monotonic() - start > _LIVE):
                yield self.prepare.together(waiting)
                waiting, start = [], time.monotonic()
        if waiting:
            yield self.prepare.together(waiting)

    def _made(self, frame: Frame) -> Fitted | list[Fitted] | Failed:
        """A frame at the size of the network; its own pixels stay with it only where they are to be drawn on."""
        found = self.prepare(ImageSource(frame.moment.name, frame.pixels, moment=frame.moment))
        if self.keep or isinstance(found, Failed):
            return found
        source = ImageSource(frame.moment.name, None, moment=frame.moment)
        if isinstance(found, list):
            return [one._replace(source=source) for one in found]
        return found._replace(source=source)
