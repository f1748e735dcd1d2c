"""The verb ``evaluate``: a model, or a file of predictions, scored on a split."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.inference.views import Slices, Views
from tasks.data.dataset import Dataset
from tasks.data.suspicions import told_of_scored
from tasks.engine import splits
from tasks.engine.evaluation import monitor, score_model
from tasks.engine.hardware import Hardware
from tasks.engine.identity import told_of_other_data
from tasks.engine.owning import probe
from tasks.engine.perimage import keep_outcomes
from tasks.report.metricsfile import environment, write_metrics
from tasks.report.records import EvaluationResults, Scores, Summary
from tasks.report.words import network
from tasks.scoring.operating import operating_points
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.settings.tree import to_mapping
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.models import answering, as_model, asked_model, beside, open_split


def evaluate(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Score a model on a split; writes ``metrics.json`` and ``report.html`` into ``--out``, or beside the run."""
    tell, hardware = Teller(config.run.progress), Hardware.of(config)
    config = splits.with_division(config, beside(extras.checkpoint))
    if extras.predictions:
        return _evaluate_file(task, config, extras, tell)
    model, classes, config = asked_model(task, config, extras, tell, require_classes=True)
    config = as_model(config, model) if extras.checkpoint else config
    dataset = open_split(task, config, extras, model, classes)
    splits.same_labels(task, config, dataset, model.provenance, f"data.{extras.split}", "the model")
    _tell_of_numbering(task, config, dataset, model.provenance, f"data.{extras.split}", "the model", tell)
    told_of_other_data(model.provenance.get("data", {}), extras.split, dataset, tell)
    for line in told_of_scored(dataset, config.model.normalization == "data"):
        tell(f"{extras.split}: {line}")
    folder = Path(extras.out) if extras.out else beside(extras.checkpoint) / f"evaluate-{extras.split}"
    try:
        probe(next(place for place in (folder, *folder.parents) if place.exists()))
    except OSError as error:
        raise UserError(
            str(folder), f"cannot be written ({error.strerror})", "name another folder with --out"
        ) from None
    recorder = task.recorder(dataset, classes)
    arithmetic, asked = answering(hardware, extras, model)
    scores, reporter, outcomes = score_model(
        task,
        config,
        asked,
        dataset=dataset,
        classes=classes,
        hardware=arithmetic,
        tell=tell,
        observers=[recorder] if recorder else [],
        strict=True,
        views=Views.of(extras.tta, "--tta"),
        slices=Slices.of(extras.slices, "--slices"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(parameter.numel() for parameter in model.parameters())
    noun = model.image_spec.noun
    spans = keep_outcomes(folder, outcomes, task, extras.split, tell, noun)
    results = EvaluationResults(
        {"model": scores},
        intervals=spans,
        operating=operating_points(outcomes),
        parameters=size,
        split=extras.split,
        checkpoint=extras.checkpoint,
    )
    write_metrics(folder, results, [])
    if recorder:
        tell(f"predictions {recorder.write(folder, tell)}")
    facts = {
        "checkpoint": extras.checkpoint or config.model.weights or "none: random weights",
        "assumed": "; ".join(model.provenance.get("assumed", [])) or "nothing",
        "data": f"{config.data.name} {config.data.root or ''}: {len(dataset):,} samples",
        f"{noun}s": model.image_spec.told(),
        **environment(),
    }
    title = f"{task.command}: {network(model.config)} on {extras.split}"
    summary = Summary(title, to_mapping(config), [], results, facts, noun=noun)
    reporter.write(folder, summary, model, dataset)
    _print_scores(scores)
    tell(f"report {folder / 'report.html'}")
    _refuse_undefined(monitor(task, config, classes).name, scores, extras.split)
    return 0


def _print_scores(scores: Scores) -> None:
    for name, value in scores.items():
        if value is None:
            print(f"{name} undefined")
        elif isinstance(value, (int, float)):
            print(f"{name} {value}" if isinstance(value, int) else f"{name} {value:.6g}")  # counts are exact


def _evaluate_file(task: TaskSpec, config: Config, extras: Extras, tell: Teller) -> int:
    """Score a file of predictions on a split; ``metrics.json`` goes into ``--out``, or beside the file."""
    path = Path(str(extras.predictions))
    named = {"--tta": extras.tta, "--slices": extras.slices, "--backend": extras.backend, "--dtype": extras.dtype}
    for name, value in named.items():
        if value is not None:
            raise UserError(name, "is for models, and a file holds what one has said", "leave it out")
    if config.run.metrics or config.run.monitor:
        tell("run.metrics and run.monitor are for models: a file of predictions has the scores of its task")
    if config.data.name == "coco":  # which says all that is scored in its annotations
        config = replace(config, data=replace(config.data, options={**config.data.options, "without_images": True}))
    dataset, training = _scored_data(task, config, extras, tell)
    for note in getattr(dataset, "notes", ()):
        tell(f"{extras.split}: {note}")
    scores = task.score_file(path, config, dataset, tell, training)
    folder = Path(extras.out) if extras.out else path.parent / f"evaluate-{extras.split}"
    write_metrics(folder, EvaluationResults({"model": scores}, split=extras.split, predictions=str(path)), [])
    _print_scores(scores)
    tell(f"scores {folder / 'metrics.json'}")
    _refuse_undefined(task.monitor(config), scores, extras.split)
    return 0


def _scored_data(task: TaskSpec, config: Config, extras: Extras, tell: Teller) -> tuple[Dataset, Dataset | None]:
    """The split that predictions are scored on, with the label map of the training data, and these; with its own where they are not
    there."""
    try:
        train = splits.open_dataset(config, task, "train")
    except UserError as error:
        if extras.split == "train" or config.data.shares:
            raise
        dataset = splits.open_dataset(config, task, extras.split)
        tell(f"the classes are those of split {extras.split}, for there are no training data ({str(error)[:160]})")
        return dataset, None
    dataset = train if extras.split == "train" else splits.open_dataset(config, task, extras.split, train.classes)
    splits.same_labels(
        task, config, dataset, task.label_record(config, train), f"data.{extras.split}", "the training data"
    )
    _tell_of_numbering(
        task, config, dataset, task.label_record(config, train), f"data.{extras.split}", "training", tell
    )
    return dataset, train


def _tell_of_numbering(
    task: TaskSpec,
    config: Config,
    dataset: Dataset,
    expected: Mapping[str, Any],
    where: str,
    other: str,
    tell: Callable[[str], None],
) -> None:
    """Say that classes are matched by their names, where the files number them otherwise than ``other`` does."""
    for name, value in task.label_record(config, dataset).items():
        if name in task.numbered_by_file and expected.get(name, value) != value:
            here, there = (", ".join(map(str, numbers[:8])) for numbers in (value, expected[name]))
            said = f"its {name.replace('_', ' ')} are {here}, those of {other} {there}"
            tell(f"{where}: {said}: classes are matched by their names")


def _refuse_undefined(name: str, scores: Scores, split: str) -> None:
    """An evaluation whose score does not exist is none: what waits for its exit code must not take it for a success."""
    if scores[name] is None:
        raise UserError(
            f"data.{split}", f"{name} is undefined: there is nothing in it that could be found", "score labelled data"
        )
