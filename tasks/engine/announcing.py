"""What a training run says of itself: how it starts, what an evaluation found, why it ends early."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from tasks.engine.batchnorm import FEW_STEPS
from tasks.engine.preparation import Prepared
from tasks.engine.state import Progress
from tasks.report import words
from tasks.settings.sections import Config

MOST_SCORES = 4
"""Scores in an epoch's line beside the one that decides."""


def told_of_start(config: Config, prepared: Prepared) -> Iterator[str]:
    """Data, model, batch and learning rate, length, and where the weights come from that it starts with."""
    state, plan, model = prepared.state, prepared.plan, prepared.state.model
    count = sum(p.numel() for p in model.parameters())
    samples = f"{len(prepared.training):,} training and {len(prepared.datasets['val']):,} validation samples"
    network = f"{words.network(model.config)}, {count:,} parameters, on {prepared.fabric.device}"
    yield f"{samples}, {_counted(prepared.classes)}; {network}"
    batch = (
        f"batch {config.data.batch_size}, lr {state.set_lr(1.0):.3g} ({config.optim.lr:g} at {config.optim.base_batch}"
    )
    yield f"{batch}, {config.optim.lr_scaling} scaling), {plan.total} steps, {plan.per_epoch} an epoch"
    if state.statistics:
        text = f"fewer than {FEW_STEPS} steps: batch norms are judged by statistics taken anew from training {model.image_spec.noun}s"
        yield f"{text}; more steps, by a smaller data.batch_size or more optim.epochs, would learn more"
    if (simulation := state.simulation) is not None:
        kept, total = len(simulation.norms), sum(isinstance(one, _BatchNorm) for one in model.modules())
        text = f"int8 is simulated in {simulation.count} calls of {len(simulation.layers)} layers, as export --precision int8 has it"
        yield f"{text}; {kept} of {total} batch norms have statistics and keep them, the others learn theirs"
        if prepared.hardware.precision != "fp32":
            yield f"run.precision {prepared.hardware.precision} rounds beside int8, which the exported file does not"
    if remark := prepared.hardware.remark:
        yield remark
    if state.step == 0:  # a run that continues has its own weights
        yield from filter(None, [model.provenance.get("loaded", ""), *model.provenance.get("assumed", [])])


def told_of_epoch(row: Mapping[str, Any], monitor: str) -> str:
    """Of an evaluation: loss, the score that decides, a few more, and the pace. The files have all of it."""
    scores = [
        n for n, value in row.items() if n.startswith("val_") and n != f"val_{monitor}" and isinstance(value, float)
    ]
    names = ["train_loss", f"val_{monitor}", *scores[:MOST_SCORES], "images_per_second", "data_wait"]
    known = [f"{name} {row[name]:.4g}" for name in names if isinstance(row.get(name), (int, float))]
    left = len(scores) - MOST_SCORES
    more = f"; {left} more score{'s' * (left > 1)} in metrics.csv" if left > 0 else ""
    return f"epoch {round(row['epoch'], 2):g}: {', '.join(known)}{more}"


def told_of_early_end(progress: Progress, monitor: str, step: int, planned: int) -> str:
    """Why a run of ``planned`` steps ends after ``step``."""
    name = f"val_{monitor}"
    best = next((row for row in progress.history if row.get(name) == progress.best), {})
    place = f" at epoch {best['epoch']:g}" if best else ""
    seen = f"{progress.since_best} evaluation{'s' * (progress.since_best != 1)}"
    text = f"stops early after step {step} of {planned}: {seen} without a better"
    return f"{text} {name} than {progress.best or 0.0:.4f}{place} (run.patience)"


def _counted(classes: Any) -> str:
    """How many classes there are, by task where there are several."""
    if isinstance(classes, Mapping):
        return ", ".join(f"{len(names)} classes of {task}" for task, names in classes.items())
    return f"{len(classes)} classes"
