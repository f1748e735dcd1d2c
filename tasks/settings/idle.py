"""Keys that are set and change nothing, because another key rests them: told before a run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tasks.settings.checks import Section
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config, ModelConfig, OptimConfig


class _Idle(NamedTuple):
    """``keys`` that rest where ``when`` holds of a config; ``why`` in words."""

    keys: tuple[str, ...]
    when: Callable[[ModelConfig, DataConfig, OptimConfig], bool]
    why: str


_WITHOUT_BOXES = ("folder", "table", "lines", "sound", "masks")
_IDLE = (
    _Idle(("optim.momentum",), lambda _, __, o: o.name == "adamw", "optim.name is adamw"),
    _Idle(("optim.betas",), lambda _, __, o: o.name not in ("adamw", "muon"), "optim.name is neither adamw nor muon"),
    _Idle(("optim.alpha",), lambda _, __, o: o.name != "rmsprop_tf", "optim.name is not rmsprop_tf"),
    _Idle(("optim.eps",), lambda _, __, o: o.name == "sgd", "optim.name is sgd"),
    _Idle(
        ("optim.step_epochs", "optim.step_gamma"), lambda _, __, o: o.schedule != "step", "optim.schedule is not step"
    ),
    _Idle(("optim.min_lr_fraction",), lambda _, __, o: o.schedule == "constant", "optim.schedule is constant"),
    _Idle(("optim.warmup_start",), lambda _, __, o: not (o.warmup_epochs or o.warmup_steps), "there is no warm-up"),
    _Idle(("optim.base_batch",), lambda _, __, o: o.lr_scaling == "none", "optim.lr_scaling is none"),
    _Idle(
        ("model.unfreeze_epoch",),
        lambda m, _, o: o.max_steps is None and (m.unfreeze_epoch or 0) >= o.epochs,
        "the run ends before",
    ),
    _Idle(
        tuple(f"optim.distill.{name}" for name in ("weight", "temperature", "features", "features_weight")),
        lambda _, __, o: o.distill.teacher is None,
        "there is no optim.distill.teacher",
    ),
    _Idle(("optim.distill.temperature",), lambda _, __, o: _features_alone(o), "optim.distill.weight is 0"),
    _Idle(
        ("optim.distill.features_weight",),
        lambda _, __, o: o.distill.teacher is not None and not o.distill.features,
        "optim.distill.features is empty",
    ),
    _Idle(("optim.ema_start",), lambda _, __, o: o.ema is None, "optim.ema is not set"),
    _Idle(("optim.ema_start",), lambda _, __, o: not (o.warmup_epochs or o.warmup_steps), "there is no warm-up"),
    _Idle(
        ("data.flip",), lambda _, d, __: bool(d.flip) and d.flip_mode == "alternating", "data.flip_mode is alternating"
    ),
    _Idle(("data.flip_mode",), lambda _, d, __: not d.flip, "data.flip is 0"),
    _Idle(("data.flip_mode",), lambda _, d, __: bool(d.augment), "data.augment takes the place of our own flips"),
    _Idle(
        ("data.keep_empty", "data.allow_bad_boxes", "data.crowd"),
        lambda _, d, __: d.name in _WITHOUT_BOXES,
        "data.name is none with boxes",
    ),
    _Idle(("data.close_mosaic",), lambda _, d, __: not d.mosaic, "data.mosaic is 0"),
    _Idle(("data.tile_overlap",), lambda _, d, __: d.tile is None, "data.tile is not set"),
    _Idle(("data.scale", "data.ratio"), lambda _, d, __: d.crop != "resized", "data.crop is not resized"),
    _Idle(
        ("data.split_by", "data.split_group", "data.division"),
        lambda _, d, __: not d.shares,
        "neither data.val nor data.test is a share",
    ),
)


def _features_alone(optim: OptimConfig) -> bool:
    return optim.distill.teacher is not None and optim.distill.weight == 0


def told_of_idle(config: Config) -> Iterator[str]:
    """A line for each key that differs from its default and changes nothing."""
    every = (config.model, config.data, config.optim, config.optim.distill)
    sections: dict[str, Section] = {section.SECTION: section for section in every}
    for keys, when, why in _IDLE:
        if not when(config.model, config.data, config.optim):
            continue
        for key in keys:
            section, _, name = key.rpartition(".")
            if getattr(sections[section], name) != getattr(type(sections[section])(), name):
                yield f"{key} is set and changes nothing: {why}"
