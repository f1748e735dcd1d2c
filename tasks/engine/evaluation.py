"""Scores of a model over a data set, for the training run and for the verb ``evaluate``."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.inference.finite import NOT_FINITE, REMEDY, FiniteWatch, finite_watch
from effbackbones.inference.views import Slices, Views
from effbackbones.model import Model
from tasks.data.batch import Batch, SkipCount
from tasks.data.dataset import Dataset
from tasks.engine import feeding
from tasks.engine.hardware import Hardware
from tasks.engine.looking import Looking
from tasks.engine.order import Share
from tasks.scoring.added import Monitor, monitor_of, with_added
from tasks.scoring.outcomes import Outcomes
from tasks.settings.sections import Config
from tasks.spec import Observer, TaskSpec
from tasks.telling import Teller


class Judged(NamedTuple):
    """What an evaluation found: ``scores``; what the task's ``observer`` collected for the report, if one looked on; and then the
    ``outcomes`` of each image, by task where there are several."""

    scores: dict[str, Any]
    observer: Any
    outcomes: Outcomes | Mapping[str, Outcomes] | None


class EvaluationLeftError(Exception):
    """An evaluation was left before its end, because the run is to stop."""


@torch.no_grad()
def evaluate(
    task: TaskSpec,
    config: Config,
    model: Model,
    batches: Iterable[Batch],
    metric: Metric,
    observers: Iterable[Observer] = (),
    *,
    samples: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    watch: FiniteWatch | None = None,
    ask: Callable[[Batch], Any] | None = None,
) -> dict[str, Any]:
    """Scores of ``model`` over ``batches``, in eval mode; its mode is restored. All processes must call it. ``watch``, which looks
    at the answers, gets to know which images they are of. ``ask``: predicts a batch otherwise than :meth:`TaskSpec.predict`."""
    ask = ask or partial(task.predict, config, model)
    training, skips = model.training, SkipCount(samples)
    model.eval()
    try:
        for batch in batches:
            batch = batch.to(device, non_blocking=True)
            with autocast():
                predictions = ask(batch)
            if watch:
                watch.note([meta.path or meta.id for meta in batch.meta])
            skips.add(batch.meta)
            batch, predictions = readable(batch, predictions)
            if not len(batch):
                continue
            metric.update(*task.scored(batch, predictions))
            for observer in observers:
                observer.update(batch, predictions)
        return dict(metric.compute())
    finally:
        model.train(training)


def readable(batch: Batch, predictions: Any) -> tuple[Batch, Any]:
    """Both without the rows that stand in for a sample that could not be read (``data.on_error: skip``); ``predictions`` as
    :meth:`TaskSpec.restored` gives them. Targets are left out then, for what predictions are scored against is in the batch's
    ``meta``."""
    rows = [row for row, meta in enumerate(batch.meta) if not meta.skipped]
    if len(rows) == len(batch.meta):
        return batch, predictions

    def chosen(found: Any) -> Any:
        if isinstance(found, dict):  # by task
            return {key: chosen(branch) for key, branch in found.items()}
        return [found[row] for row in rows]

    sizes = ImageSizes(batch.sizes.batch, batch.sizes.valid[rows])
    return Batch(batch.images[rows], sizes, None, [batch.meta[row] for row in rows]), chosen(predictions)


def score_model(
    task: TaskSpec,
    config: Config,
    model: Model,
    *,
    dataset: Dataset,
    classes: tuple[str, ...],
    hardware: Hardware,
    tell: Teller,
    share: Share | None = None,
    observe: bool = True,
    observers: Iterable[Observer] = (),
    leave: Callable[[], bool] = lambda: False,
    strict: bool = False,
    views: Views | None = None,
    slices: Slices | None = None,
    outcomes: bool | None = None,
) -> Judged:
    """Scores of a model over a data set, and what the task's observer collected for the report, if it is to ``observe``, with the
    ``outcomes`` of each image (or these alone); further ``observers`` look on.

    Where several processes score together each gives its ``share``. ``leave`` is asked before each batch; :class:`EvaluationLeftError` is
    raised when it says so. Answers of the network that are not finite are told, or, if it is ``strict``, raise :class:`UserError`.
    ``views`` and ``slices``: other looks at each image.
    """
    share, observer = share or Share(), task.observer_of(config, classes, model) if observe else None
    looking = Looking.at(task, config, model, hardware, views, slices)
    loader = feeding.evaluation_loader(
        config, task, dataset, model, share.rank, share.world, as_it_is=looking is not None
    )
    own = task.metrics(config, classes)
    metric = with_added(own, config.run.metrics, classes).to(hardware.device)
    recorder = task.outcomes(own) if (observe if outcomes is None else outcomes) else None
    observers = [*observers, *(one for one in (observer, recorder) if one)]
    batches = _unless(leave, tell.watch(loader, "evaluate"))
    # A compiled network would be compiled anew for what looks on; several looks at an image are looked at where they are merged.
    with nullcontext() if config.run.compile or looking else finite_watch(model) as watch:
        scores = evaluate(
            task,
            config,
            model,
            batches,
            metric,
            observers,
            samples=len(dataset),
            device=hardware.device,
            autocast=hardware.autocast,
            watch=watch,
            ask=looking,
        )
    if observe:
        scores |= task.anatomy(own)
    if watch and watch.images:
        what, remedy = (
            f"{NOT_FINITE}, for {len(watch.images)} {model.image_spec.noun}s, such as {watch.images[0]}",
            REMEDY,
        )
        if strict:
            raise UserError("model", what, remedy)
        tell(f"warning: {what}")
    return Judged(scores, observer, recorder.outcomes() if recorder else None)


def metric_of(task: TaskSpec, config: Config, classes: Any) -> Metric:
    """The task's scores, and those that ``run.metrics`` adds."""
    return with_added(task.metrics(config, classes), config.run.metrics, classes)


def monitor(task: TaskSpec, config: Config, classes: Any) -> Monitor:
    """The score that chooses the best weights. A name in ``run.monitor`` that no score has raises :class:`UserError`."""
    metric = metric_of(task, config, classes)
    return monitor_of(metric, task.monitor(config), config.run.monitor, task.lower_is_better)


def _unless(leave: Callable[[], bool], batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if leave():
            raise EvaluationLeftError
        yield batch
