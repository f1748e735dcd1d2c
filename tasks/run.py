"""The verbs beside ``train``: evaluate, predict, check, bench."""

import glob
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.images import SUFFIXES
from effbackbones.model import Model
from tasks.data.batch import Sample
from tasks.data.check import check_dataset
from tasks.data.files import ImageReader
from tasks.data.sampling import Repeated
from tasks.engine import assembly
from tasks.engine.evaluation import readable, score_model
from tasks.report import environment, write_metrics
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.settings.tree import to_mapping
from tasks.spec import TaskSpec
from tasks.telling import Teller


def evaluate(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Score a model on a split; writes ``metrics.json`` and ``report.html`` into ``--out``, or beside the run."""
    tell, device = Teller(config.run.progress), assembly.run_device(config)
    if extras.predictions:
        return _evaluate_file(task, config, extras, tell)
    model, classes = _model_and_classes(task, config, extras, require_classes=True)
    dataset = assembly.open_dataset(config, task, extras.split, _data_classes(task, config, extras, model, classes))
    assembly.same_labels(task, config, dataset, model.provenance, f"data.{extras.split}", "the model")
    scores, observer = score_model(task, config, model.to(device), dataset=dataset, classes=classes, device=device, tell=tell)
    folder = Path(extras.out) if extras.out else _beside(extras.checkpoint) / f"evaluate-{extras.split}"
    folder.mkdir(parents=True, exist_ok=True)
    results = {"split": extras.split, "checkpoint": extras.checkpoint, "model": scores}
    write_metrics(folder, results, [])
    facts = {
        "title": f"{task.command}: {model.config['backbone']} + {model.config['head']} on {extras.split}",
        "checkpoint": extras.checkpoint or config.model.weights or "none: random weights",
        "assumed": "; ".join(model.provenance.get("assumed", [])) or "nothing",
        "data": f"{config.data.name} {config.data.root or ''}: {len(dataset):,} samples",
        **environment(),
    }
    summary = {"config": to_mapping(config), "history": [], "results": results, "facts": facts}
    task.report(folder, summary | {"statistics": task.statistics(config, model, dataset)}, observer)
    _print_scores(scores)
    tell(f"report {folder / 'report.html'}")
    _refuse_undefined(task, config, scores, extras.split)
    return 0


def _print_scores(scores: Mapping[str, Any]) -> None:
    for name, value in scores.items():
        if value is None:
            print(f"{name} undefined")
        elif isinstance(value, (int, float)):
            print(f"{name} {value:.6g}")


def _evaluate_file(task: TaskSpec, config: Config, extras: Extras, tell: Teller) -> int:
    """Score a file of predictions on a split; ``metrics.json`` goes into ``--out``, or beside the file."""
    path = Path(str(extras.predictions))
    train = assembly.open_dataset(config, task, "train")  # whose label map the predictions follow
    dataset = train if extras.split == "train" else assembly.open_dataset(config, task, extras.split, train.classes)
    assembly.same_labels(task, config, dataset, task.label_record(config, train), f"data.{extras.split}", "the training data")
    scores = task.score_file(path, config, dataset, tell)
    folder = Path(extras.out) if extras.out else path.parent / f"evaluate-{extras.split}"
    write_metrics(folder, {"split": extras.split, "predictions": str(path), "model": scores}, [])
    _print_scores(scores)
    tell(f"scores {folder / 'metrics.json'}")
    _refuse_undefined(task, config, scores, extras.split)
    return 0


def _refuse_undefined(task: TaskSpec, config: Config, scores: Mapping[str, Any], split: str) -> None:
    """An evaluation whose score does not exist is none: what waits for its exit code must not take it for a success."""
    name = task.monitor(config)
    if scores[name] is None:
        raise UserError(f"data.{split}", f"{name} is undefined: there is nothing in it that could be found", "score labelled data")


def predict(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Predict files, folders and globs; writes the results into ``--out`` and tells the essential ones."""
    files = image_files(extras.inputs)
    tell, device = Teller(config.run.progress), assembly.run_device(config)
    model, classes = _model_and_classes(task, config, extras, require_classes=False)
    model.to(device)
    out = Path(extras.out or "predictions")
    writer = task.writer(config, out, model, classes, print)
    dataset = _Files(files, config, len(model.image_spec.mean), classes)
    if len(files) > 1:  # one bad file in ten thousand spoils no others
        config = replace(config, data=replace(config.data, on_error="skip"))
    failed: dict[str, None] = {}
    loader = assembly.evaluation_loader(config, task, dataset, model)
    with torch.no_grad():
        for batch in tell.watch(loader, "predict"):
            moved = batch.to(device, non_blocking=True)
            with assembly.autocast(config, device):
                predictions = task.predict(config, model, moved)
            failed |= dict.fromkeys(message for meta in batch.meta for message in meta.skipped[:1])
            writer.update(*readable(moved, predictions))
    writer.close()
    tell(f"predictions of {len(files) - len(failed)} images in {out}")
    if failed:
        more = f" (and {len(failed) - 1} more files)" if len(failed) > 1 else ""
        raise UserError(f"{next(iter(failed))}{more}")
    return 0


def check(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Check data and model before a long run: every split, the label map, one training step without an update, and what the
    task adds; ``--deep`` looks at all that takes minutes."""
    if extras.deep and not task.looks_deep:
        raise UserError("--deep", "looks at one task at a time", "use the command of each task")
    tell, device = Teller(config.run.progress), assembly.run_device(config)
    datasets = assembly.open_splits(config, task)
    for split, dataset in datasets.items():
        check_dataset(dataset, on_error=config.data.on_error, labels=task.labels(config))
        print(f"{split}: {len(dataset):,} samples, {_class_counts(dataset)}")
    model = assembly.make_model(config, task, datasets["train"]).to(device)
    train_set = task.view(config, datasets["train"])
    keyed = assembly.keyed(config, task, train_set, model, train=True)
    count = min(len(train_set), 4)
    batch = task.collate(config, model)([keyed[0, index] for index in range(count)]).to(device)
    images, targets = task.augment(config, batch, model.head.num_classes, 0)
    losses = model.train().loss(images, targets, batch.sizes)
    total = torch.stack(list(losses.values())).sum()
    if not bool(torch.isfinite(total)):
        raise UserError("model", f"the first loss is not finite: {losses}", "check the data and the head")
    refuse_dead_parameters(model, total)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters, each reached by the loss; first loss {total.item():.4g}")
    out = Path(extras.out or f"runs/{task.command}/check-{extras.config_name}")
    task.inspect(config, model, datasets, out, tell, deep=extras.deep)
    tell("no fault found")
    return 0


def bench(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Parameters, multiply-adds, latency and peak memory of the configured model, here; JSON on standard output."""
    device = assembly.run_device(config)
    model = assembly.load_or_make(config, task, extras.checkpoint).to(device)
    height, width = assembly.image_spec(config, model.image_spec).size
    record: dict[str, Any] = {
        "backbone": model.config["backbone"], "head": model.config["head"], "image_size": [height, width],
        "parameters": sum(p.numel() for p in model.parameters()), "multiply_adds": multiply_adds(model, height, width),
        "precision": assembly.precision(config, device), "threads": torch.get_num_threads(), **environment(), "latency": [],
    }  # fmt: skip
    variants: dict[str, Model] = {"plain": model, "for_inference": model.for_inference()}
    if config.run.compile:
        variants["for_inference, compiled"] = model.for_inference(compile=True)
    for batch_size in (1, 16):
        images = torch.randint(0, 256, (batch_size, len(model.image_spec.mean), height, width), dtype=torch.uint8, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for name, variant in variants.items():

            def call(variant: Model = variant, images: torch.Tensor = images) -> None:
                with assembly.autocast(config, device):
                    variant.predict(images)

            milliseconds = latency(call, device)
            rate = 1e3 * batch_size / milliseconds
            record["latency"].append({"model": name, "batch": batch_size, "ms": milliseconds, "images_per_second": rate})
    record["peak_memory_mb"] = peak_memory(device)
    print(json.dumps(record, indent=1))
    return 0


def image_files(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders (all below them) and globs name, sorted within each; a name without any raises
    :class:`UserError`."""
    if not inputs:
        raise UserError("predict", "no input", "name files, folders or globs")
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not found:
            raise UserError(name, "no image found", f"images end in {', '.join(sorted(SUFFIXES))}")
        files += found
    return list(dict.fromkeys(files))


class _Files:
    """Images to predict, as a data set without labels."""

    def __init__(self, files: Sequence[Path], config: Config, channels: int, classes: tuple[str, ...]) -> None:
        self.files, self.classes = files, classes
        self.read = replace(ImageReader.of(config.data, "val"), channels=channels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        return Sample(image=self.read(str(path)), id=str(path), path=str(path))


def _model_and_classes(task: TaskSpec, config: Config, extras: Extras, *, require_classes: bool) -> tuple[Model, Any]:
    """A model in eval mode, and the names of its classes: its own, those of published weights, or numbers."""
    if extras.checkpoint is None and config.model.weights is None:
        raise UserError("--checkpoint", "no trained model is named", "give --checkpoint FILE|RUN, or --model.weights imagenet")
    model = assembly.load_or_make(config, task, extras.checkpoint)
    if extras.checkpoint is None and model.provenance.get("dialect") == "effbackbones":
        what = f"{config.model.weights} is a whole model, which knows its classes"
        raise UserError("model.weights", what, f"give --checkpoint {config.model.weights} instead")
    if extras.checkpoint is None and model.provenance.get("untrained_head"):
        what = f"{config.model.weights} holds no whole {task.command} head: what it says would be random"
        raise UserError("model.weights", what, "train one, and give --checkpoint FILE|RUN")
    if extras.checkpoint:
        model.use_image_spec(assembly.image_spec(config, model.image_spec))
    counts = model.config["num_classes"]
    several = isinstance(counts, Mapping)
    classes = model.classes or (None if several else task.default_classes(int(counts)))
    if classes is None and require_classes:
        where = extras.checkpoint or "model.weights"
        raise UserError(where, "the names of its classes are not known", "evaluate a model that was saved with them")
    return model, classes or ({word: _numbers(count) for word, count in counts.items()} if several else _numbers(int(counts)))


def _numbers(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(str(label) for label in range(count))


def _data_classes(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> tuple[str, ...]:
    """The names that the data set has for the classes of a model: one that was trained here knows them."""
    if model.classes is None:
        return tuple(task.data_names(classes, lambda: assembly.open_dataset(config, task, extras.split).classes))
    return tuple(model.provenance.get("data_classes", classes))


def refuse_dead_parameters(model: nn.Module, loss: Tensor) -> None:
    """Raise :class:`UserError` naming trainable parameters that ``loss`` does not reach: DDP would stop on them later."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    dead = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    if dead:
        text = f"the loss does not reach {len(dead)} parameters, such as {dead[0]}"
        raise UserError("model", text, "remove them, or use them in the loss")


def _beside(checkpoint: str | None) -> Path:
    path = Path(checkpoint or ".")
    return path if path.is_dir() else path.parent


def _class_counts(dataset: Any, limit: int = 2000) -> str:
    """How often each class occurs, over at most ``limit`` samples spread over the set; all of them, where it has a table."""
    if hasattr(dataset, "table"):
        return str(dataset.table.summary())
    view = dataset if len(dataset) <= limit else Repeated(dataset, assembly.spread(len(dataset), limit))
    counts: Counter[str] = Counter()
    for index in range(len(view)):
        try:
            sample = view[index]
        except UserError:  # `check_dataset` has decided whether that is allowed
            continue
        if sample.label is not None:
            counts[dataset.classes[sample.label]] += 1
        elif sample.labels is not None:
            counts.update(dataset.classes[k] for k in sample.labels.nonzero()[0])
        elif sample.box_labels is not None:
            counts.update(dataset.classes[k] for k in sample.box_labels)
        elif sample.mask is not None:
            return "which are counted below"
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(20))
    missing = [name for name in dataset.classes if name not in counts]
    looked = "" if view is dataset else f" of {len(view):,} looked at"
    return f"{len(counts)} classes{looked}: {shown}" + (f"; none of {', '.join(missing[:10])}" if missing else "")


def multiply_adds(model: Model, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    images = torch.zeros(1, len(model.image_spec.mean), height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, ImageSizes.of(images))
    return int(counter.get_total_flops()) // 2


def latency(call: Callable[[], None], device: torch.device, rounds: int = 10) -> float:
    """Median milliseconds of a call, after a warm-up."""
    times = []
    for index in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_memory(device: torch.device) -> float:
    """Megabytes at most in use: on the GPU since the start, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


