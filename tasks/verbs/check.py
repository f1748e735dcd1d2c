"""The verb ``check``: data and model are looked at before a long run."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effbackbones.errors import UserError
from tasks.data.boxes.table import BoxTable
from tasks.data.check import check_dataset
from tasks.data.door.transforms import told_of_listed, told_of_resizing
from tasks.data.sampling import Repeated, spread
from tasks.data.suspicions import told_of_data
from tasks.engine import assembly, distilling, feeding, hardware, splits
from tasks.settings.commandline import Extras
from tasks.settings.idle import told_of_idle
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.deep_check import deep_checks


def check(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Check data and model before a long run: every split, the label map, one training step without an update, and what the
    task adds; ``--deep`` looks at all that takes minutes."""
    if extras.deep and not task.looks_deep:
        raise UserError("--deep", "looks at one task at a time", "use the command of each task")
    if extras.checkpoint and extras.config_source:
        raise UserError("--checkpoint", "names a run whose config is checked, and --config another", "give one of them")
    tell, device = _Counting(config.run.progress), hardware.run_device(config)
    said = *told_of_resizing(config.data), *told_of_listed(config.data, task.labels(config))
    for line in (*told_of_idle(config), *said):
        print(line)
    datasets = splits.open_splits(config, task)
    for split, dataset in datasets.items():
        unreadable = check_dataset(dataset, on_error=config.data.on_error, labels=task.labels(config))
        if unreadable:
            tell(f"warning: {split}: {unreadable}")
        print(f"{split}: {len(dataset):,} samples, {_class_counts(dataset)}")
    model = assembly.make_model(config, task, datasets["train"], tell).to(device)
    training, told = feeding.training_feed(config, task, task.view(config, datasets["train"]), model)
    for line in (*assembly.told_of_resting(config, model), *told):
        print(line)
    feed = training.feed
    batch = feed.collate([feed.samples[0, index] for index in range(min(len(training), 4))]).to(device)
    images, targets = task.augment(config, batch, model.head.num_classes, 0)
    distilling.objective_of(task, config, model, tell)  # refuses a teacher that cannot be one
    losses = model.train().loss(images, targets, batch.sizes)
    total = torch.stack(list(losses.values())).sum()
    if not bool(torch.isfinite(total)):
        raise UserError("model", f"the first loss is not finite: {losses}", "check the data and the head")
    refuse_dead_parameters(model, total)
    print(
        f"model: {sum(p.numel() for p in model.parameters()):,} parameters, each reached by the loss; first loss {total.item():.4g}"
    )
    out = Path(extras.out or f"runs/{task.command}/check-{extras.config_name}")
    for line in told_of_data(datasets):
        tell(line)
    task.preflight(config, model, datasets, tell, out)
    if extras.deep and task.goal:
        deep_checks(task, config, datasets, tell, task.goal)
    tables = [table for data in datasets.values() if isinstance(table := getattr(data, "table", None), BoxTable)]
    tell(verdict(tell.warnings, sum(table.repairs.dropped for table in tables)))
    return 0


class _Counting(Teller):
    """Counts the warnings among its lines."""

    warnings = 0

    def __call__(self, line: str) -> None:
        self.warnings += "warning:" in line
        super().__call__(line)


def verdict(warnings: int, dropped: int) -> str:
    """The last line of a check that found nothing to stop for: how many warnings there were, and boxes that are dropped."""
    found = [f"{warnings} warning{'s' * (warnings > 1)}"] if warnings else []
    found += [f"{dropped:,} dropped boxes"] if dropped else []
    return f"no fault found but {' and '.join(found)} (see above)" if found else "no fault found"


def refuse_dead_parameters(model: nn.Module, loss: Tensor) -> None:
    """Raise :class:`UserError` naming trainable parameters that ``loss`` does not reach: DDP would stop on them later."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    dead = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    if dead:
        text = f"the loss does not reach {len(dead)} parameters, such as {dead[0]}"
        raise UserError("model", text, "remove them, or use them in the loss")


def _class_counts(dataset: Any, limit: int = 2000) -> str:
    """How often each class occurs, over at most ``limit`` samples spread over the set; all of them, where it has a table."""
    if isinstance(getattr(dataset, "table", None), BoxTable):
        return str(dataset.table.summary())
    view = dataset if len(dataset) <= limit else Repeated(dataset, spread(len(dataset), limit))
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
