"""What a service does with images, whatever brings them: read in a few threads, predicted in batches by one, written as JSON."""

import asyncio
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images.opening import Encoded
from effbackbones.inference.explaining import levels_of
from effbackbones.inference.predictor import READERS, Predictor
from effbackbones.inference.results import Failed
from effbackbones.inference.thresholds import IDLE_THRESHOLD
from effbackbones.serving.batching import Batcher
from effbackbones.serving.figures import Figures
from effbackbones.serving.limits import Limits, Room

_TOLD = ("weights", "licence", "effbackbones", "torch", "step", "exported")
"""What is told of where a model comes from."""


class Job(NamedTuple):
    """An image that was read and brought to size, and what is asked of it."""

    image: Any
    predictor: Predictor


class Answer(NamedTuple):
    """What became of an image: the ``text`` of its JSON, and where it has no prediction why, in a line (``error``), and whether it could
    not be read (``refused``). Seconds: ``decode`` to read it, ``network`` to predict it, with the wait for its batch."""

    text: str
    error: str = ""
    refused: bool = False
    decode: float = 0.0
    network: float = 0.0


class Service:
    """A predictor for many who ask at once. ``predictor`` returns errors (``on_error="return"``); a batch is as large as it takes at
    once. ``wait``: seconds that the first image of a batch waits for others. Made and asked within one event loop; the model is asked by
    one thread alone."""

    def __init__(self, predictor: Predictor, *, limits: Limits | None = None, wait: float = 0.005) -> None:
        if predictor.on_error != "return":
            raise ValueError("on_error must be return: one image must not spoil a batch")
        self.predictor, self.limits = _heeded(predictor), limits or Limits()
        self.room, self.figures = Room(self.limits), Figures()
        self.warmed = self.draining = False
        self._pool = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="reader")
        self._batcher: Batcher[Job, Any] = Batcher(
            self._answer, batch_size=predictor.at_once, wait=wait, watch=lambda size: self.figures.batch(size)
        )

    @property
    def alive(self) -> bool:
        """Whether images can be answered."""
        return self._batcher.alive

    @property
    def ready(self) -> bool:
        """Whether requests are wanted."""
        return self.warmed and self.alive and not self.draining

    def warm(self) -> None:
        """Have a grey image predicted, alone and in a full batch: what is made at the first time is made now. A model that cannot do
        it raises :class:`UserError`."""
        height, width = self.predictor.model.image_spec.size
        channels = len(self.predictor.model.image_spec.mean)
        grey = np.full((height, width, channels), 127, np.uint8)
        for count in {1, self.predictor.at_once}:
            jobs = [Job(self.predictor.read(grey), self.predictor) for _ in range(count)]
            for future in [self._batcher.submit(job) for job in jobs]:
                if isinstance(found := future.result(), Failed):
                    raise UserError(found.error)
        self.figures = Figures()  # of requests alone
        self.warmed = True

    def asking(self, threshold: float | None, top_k: int | None) -> Predictor:
        """The predictor with the limits of a request, where it has any. Raises :class:`UserError`."""
        if threshold is None and top_k is None:
            return self.predictor
        wishes = self.predictor.wishes
        return _heeded(
            self.predictor.limited(
                wishes.threshold if threshold is None else threshold, wishes.top_k if top_k is None else top_k
            )
        )

    async def predict(self, files: Sequence[Encoded], predictor: Predictor) -> list[Answer]:
        """An answer for each file, in their order. What is raised is nobody's fault but ours."""
        found = await asyncio.gather(*(self._predict(file, predictor) for file in files), return_exceptions=True)
        answers = []
        for one in found:  # all have ended: what a request holds of the room it needs no more
            if isinstance(one, BaseException):
                raise one
            answers.append(one)
        return answers

    async def _predict(self, file: Encoded, predictor: Predictor) -> Answer:
        loop, outcome, start = asyncio.get_running_loop(), "failed", time.monotonic()
        try:
            image = await loop.run_in_executor(self._pool, predictor.read, file)
            if isinstance(image, Failed):
                outcome = "refused"
                return Answer(image.to_json(), image.error, refused=True)
            read = time.monotonic()
            result = await asyncio.wrap_future(self._batcher.submit(Job(image, predictor)))
            done = time.monotonic()
            if isinstance(result, Failed):
                return Answer(result.to_json(), result.error)
            text = await loop.run_in_executor(self._pool, json_of, result)
            outcome = "answered"
            return Answer(text, decode=read - start, network=done - read)
        finally:
            self.figures.image(outcome)

    def _answer(self, jobs: list[Job]) -> list[Any]:
        """Results of a batch: those who ask the same are asked together."""
        found: dict[int, Any] = {}
        groups: dict[Any, list[int]] = {}
        for row, job in enumerate(jobs):
            groups.setdefault(job.predictor.wishes, []).append(row)
        for rows in groups.values():
            predictor = jobs[rows[0]].predictor
            batch = predictor.prepare.together([jobs[row].image for row in rows])
            found.update(zip(rows, predictor.answer(batch), strict=True))
        return [found[row] for row in range(len(jobs))]

    def facts(self) -> dict[str, Any]:
        """What a stranger may know of the model."""
        model = self.predictor.model
        known = {key: model.provenance.get(key) for key in _TOLD}
        told = {key: _nameless(value) for key, value in known.items() if isinstance(value, str | int | float)}
        return {
            "task": self.predictor.task,
            "backbone": model.config.get("backbone"),
            "head": model.config.get("head"),
            "classes": self.predictor.classes,
            "image_size": list(model.image_spec.size),
            "thresholds": {word: list(one.values) for word, one in self.predictor.thresholds.items()},
            "levels": levels_of(model),
            "provenance": told,
            "limits": {
                "max_bytes": self.limits.max_bytes,
                "max_pixels": self.predictor.max_pixels,
                "max_files": min(self.limits.max_files, self.limits.queue),
            },
        }

    def metrics(self) -> str:
        """Its figures, as Prometheus reads them."""
        return self.figures.text(
            {
                "queue_images": ("Images taken and not yet answered.", self.room.images),
                "queue_bytes": ("Bytes of bodies in memory.", self.room.bytes),
                "ready": ("1 where requests are wanted.", int(self.ready)),
            }
        )

    def close(self) -> None:
        """Answer what was taken, and end the threads."""
        self._batcher.close()
        self._pool.shutdown()


def _heeded(predictor: Predictor) -> Predictor:
    """The predictor, if all that it was told shows in what is answered."""
    idle = predictor.task == "cls" and not (predictor.thresholds or predictor.model.head.frame_step)
    if predictor.wishes.threshold is not None and idle:
        raise UserError("threshold", IDLE_THRESHOLD, "leave it out")
    return predictor


def json_of(result: Any) -> str:
    """A result of a predictor as JSON; of several heads by task."""
    plain = {word: one.to_dict() for word, one in result.items()} if isinstance(result, dict) else result.to_dict()
    return json.dumps(plain, allow_nan=False)


def _nameless(value: str | int | float) -> str | int | float:
    """A value without the folders of who trained the model."""
    is_path = isinstance(value, str) and (
        value.startswith(("/", ".", "~")) or "\\" in value or Path(value).suffix != ""
    )
    return re.split(r"[\\/]", value)[-1] if is_path and isinstance(value, str) else value
