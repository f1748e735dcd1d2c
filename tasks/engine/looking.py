"""Batches of an evaluation looked at more than once: mirrored, at other sizes, in slices."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from effbackbones.errors import UserError
from effbackbones.inference.inputs import ImageSource
from effbackbones.inference.predictor import READERS, Predictor
from effbackbones.inference.results import Failed
from effbackbones.inference.views import Slices, Views
from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.data.door.reading import reading_spec
from tasks.data.transforms.alone import fit_of
from tasks.engine import feeding
from tasks.engine.hardware import Hardware
from tasks.settings.sections import Config
from tasks.spec import TaskSpec


@dataclass(frozen=True)
class Looking:
    """What a ``predictor`` makes of batches of images at their own size, as the scores of a ``task`` take it."""

    task: TaskSpec
    predictor: Predictor

    @classmethod
    def at(
        cls,
        task: TaskSpec,
        config: Config,
        model: Model,
        hardware: Hardware,
        views: Views | None,
        slices: Slices | None,
    ) -> Self | None:
        """None where images are looked at once."""
        if (views is None or views.count == 1) and slices is None and model.image_spec.rate is None:
            return None
        tiled, model.reading = config.data.tile is not None, reading_spec(config.data)
        data = config.data
        predictor = Predictor(
            model,
            device=hardware.device,
            batch_size=data.eval_batch_size or (1 if tiled else data.batch_size),
            probabilities=config.run.probabilities and task.name == "seg",
            precision=hardware.precision,
            fit=fit_of(feeding.shown(task.transform(config, model, train=False), model)),
            tta=views,
            slices=slices,
        )
        return cls(task, predictor)

    def __call__(self, batch: Batch) -> Any:
        """Predictions for a batch, as :meth:`TaskSpec.restored` gives them."""
        ask, sources = self.predictor, []
        for image, meta in zip(batch.images.cpu(), batch.meta, strict=True):
            height, width = meta.original
            pixels = image[:, :height, :width].permute(1, 2, 0).numpy()
            sources.append(ImageSource(meta.path or meta.id, np.ascontiguousarray(pixels)))
        found = []
        with ThreadPoolExecutor(READERS) as readers:
            looks = list(readers.map(ask.prepare, sources))
        for one in ask.merged(ask.prepare.together(looks)):
            wrong = one.error if isinstance(one, Failed) else one.found
            if isinstance(wrong, str | UserError):
                raise UserError(str(wrong))
            found.append(wrong)
        return self.task.merged(batch, found)
