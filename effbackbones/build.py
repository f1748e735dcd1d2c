"""From names to modules: ``create_backbone`` and ``build_model``."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.backbones.scaling import in_between
from effbackbones.backbones.timm_backbone import TimmBackbone
from effbackbones.contracts import Backbone, BackboneNeeds, FeatureSpec, Head, ImageSpec
from effbackbones.errors import UserError, nearest
from effbackbones.model import Model
from effbackbones.multihead import LossWeights, MultiHead, combine_needs
from effbackbones.registry import BACKBONES, DEFAULT_CLASSES, DEFAULT_HEADS, HEADS, TASKS
from effbackbones.weights.loading import adapt_stem, load_state
from effbackbones.weights.pretrained import Pretrained
from effbackbones.weights.reading import read_weights
from effbackbones.weights.record import plain
from effbackbones.weights.timm_own import own_weights
from effbackbones.weights.transfer import MAP_OPTIONS, build_head, named_for, provenance, say_backbone, take_over

_LOG = logging.getLogger("effbackbones")


class _Built(NamedTuple):
    """A backbone; what else its weight file held; options that it or its weights decided, so that a rebuilt one agrees."""

    backbone: Backbone
    pretrained: Pretrained | None = None
    settled: Mapping[str, Any] = MappingProxyType({})


def create_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    levels: Sequence[str] | None = None,
    in_channels: int | None = None,
    numerics: Numerics | str | None = None,
    image_spec: ImageSpec | None = None,
    tap: str | None = None,
    output_stride: int | None = None,
    stem_stride: int | None = None,
    drop_path: float | None = None,
    checkpointing: bool | None = None,
    width: float | None = None,
    depth: float | None = None,
) -> Backbone:
    """Build a backbone by name: ``b0``-``b7``, ``lite0``-``lite4``, one in between such as ``b2.5``, ``timm:NAME``, or a
    registered one.

    * ``weights``: None (random; never touches the network), ``"imagenet"``, ``"coco"``, a named source, or a file. They bring their
      numerics and image spec, unless given here. ``backbone.provenance`` says where they came from, what was loaded and
      what had to be assumed.

    For the others None means the backbone's own default, in brackets that of the EfficientNets:

    * ``levels`` (C1..C5): the maps to return; deeper stages are not built.
    * ``in_channels`` (3): pretrained stems are adapted (1: the sum of the filters; more than 3: repeated and rescaled).
    * ``numerics`` (``torch`` for b, ``tf`` for lite): padding and batch norm, a :class:`Numerics` or its name: ``torch``,
      ``torch_tf``, ``tf``, ``tf_original``, ``same_static``.
    * ``tap`` (``stage``): ``stem`` makes the stem's output C1 (segmentation-models-pytorch's layout), ``smp_b0`` takes C4 too
      where its own B0 does.
    * ``output_stride`` (32), 16 or 8: later strides become dilations. ``stem_stride`` (2): 1 suits 32-pixel images.
    * ``drop_path`` (0.2): stochastic depth of the last block. ``checkpointing`` (False): recompute activations.
    * ``width``, ``depth``: multipliers instead of those of ``name``.

    An option that the backbone does not have raises :class:`UserError`.
    """
    given = {
        "levels": levels,
        "in_channels": in_channels,
        "numerics": numerics,
        "image_spec": image_spec,
        "tap": tap,
        "output_stride": output_stride,
        "stem_stride": stem_stride,
        "drop_path": drop_path,
        "checkpointing": checkpointing,
        "width": width,
        "depth": depth,
    }
    backbone, pretrained, _ = _create(name, weights, given, {})
    if pretrained:
        backbone.provenance = provenance(pretrained)
        _LOG.info("%s", backbone.provenance["loaded"])
        for sentence in pretrained.assumed:
            _LOG.warning("%s", sentence)
    return backbone


def _create(
    name: str, weights: str | Path | None, given: Mapping[str, Any], needs: Mapping[str, Any], own_tap: bool = True
) -> _Built:
    """The backbone with the options ``given``; ``needs`` are a head's, and reach only a backbone that has such options.

    Without ``own_tap`` the weights of a whole segmentation model decide ``tap``, unless it is among the options.
    """
    name = BACKBONES.canonical(name)
    factory = _factory(name)
    known = _options_of(factory)
    options = {key: _from_json(key, value) for key, value in given.items() if value is not None}
    for key in options:
        if key not in known:
            remedy = f"{nearest(key, known)}; null takes it out of a config"
            raise UserError(f"backbone_options.{key}", f"backbone {name!r} has no such option", remedy)
    options = {key: value for key, value in needs.items() if key in known} | options
    built = (
        _efficientnet(name, weights, options, own_tap)
        if factory is EfficientNet
        else _foreign(name, factory, weights, options)
    )
    missing = [level for level in needs.get("levels", ()) if level not in built.backbone.feature_spec.names]
    if missing and "levels" not in options:
        text = f"does not give {', '.join(missing)}, which the head needs"
        raise UserError(f"backbone {name!r}", text, "choose another backbone or head")
    return built


def _factory(name: str) -> Any:
    if in_between(name):
        return EfficientNet
    if name.startswith("timm:"):
        return TimmBackbone
    try:
        return BACKBONES.get(name)
    except UserError:
        import timm

        if timm.is_model(name):
            raise UserError(f"backbone {name!r}", "no such name here, but timm has it", f"write timm:{name}") from None
        raise


def known_backbone_options(name: str) -> list[str]:
    """Options that the backbone ``name`` can be given; an unknown name raises :class:`UserError`."""
    return _options_of(_factory(BACKBONES.canonical(name)))


def _options_of(factory: Any) -> list[str]:
    """Options that a factory names; one that takes any (``**options``) has those of :func:`create_backbone`."""
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters = inspect.signature(create_backbone).parameters
    return [key for key in parameters if key not in ("self", "name", "pretrained", "weights")]


def _efficientnet(name: str, weights: str | Path | None, options: dict[str, Any], own_tap: bool) -> _Built:
    pretrained = None
    if weights is not None:
        pretrained = read_weights(weights, name, numerics=options.get("numerics"), image_spec=options.get("image_spec"))
        options["numerics"] = options.get("numerics") or pretrained.numerics
        if pretrained.segmenter and not own_tap:
            options.setdefault("tap", pretrained.segmenter.tap)
        if "image_spec" not in options and pretrained.image_spec:
            options["image_spec"] = _with_channels(pretrained.image_spec, options.get("in_channels", 3))
    backbone = EfficientNet(name, **options)
    if pretrained:
        state, stem = dict(pretrained.backbone), "stem.conv.weight"
        state[stem] = adapt_stem(state[stem], options.get("in_channels", 3))
        pretrained.reports.append(load_state(backbone, state, what=f"backbone {name} from {pretrained.origin}"))
        say_backbone(pretrained, options)
    # What a head asked for goes into the record too: whoever loads these weights elsewhere can then be told.
    asked = {key: options[key] for key, default in MAP_OPTIONS.items() if options.get(key, default) != default}
    return _Built(
        backbone,
        pretrained,
        {"numerics": asdict(backbone.numerics), "image_spec": asdict(backbone.image_spec), **asked},
    )


def _foreign(name: str, factory: Any, weights: str | Path | None, options: dict[str, Any]) -> _Built:
    """A timm or registered backbone. Its weights are timm's own, or a file of this project, which alone can describe it."""
    if name.startswith("timm:") and weights == "imagenet":
        backbone = factory(name.removeprefix("timm:"), pretrained=True, **options)
        return _Built(backbone, own_weights(backbone))
    pretrained = None if weights is None else read_weights(weights, name)
    backbone = factory(name.removeprefix("timm:"), **options) if name.startswith("timm:") else factory(**options)
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone {name!r}", f"its factory returned {type(backbone).__name__}", "return an effbackbones.Backbone"
        )
    if pretrained:
        pretrained.reports.append(
            load_state(backbone, pretrained.backbone, what=f"backbone {name} from {pretrained.origin}")
        )
        if "image_spec" not in options and pretrained.image_spec:
            backbone.image_spec = pretrained.image_spec
    return _Built(backbone, pretrained)


def _from_json(key: str, value: Any) -> Any:
    """Records may come as the plain dicts and lists that a checkpoint or a config holds."""
    if isinstance(value, Mapping) and key in ("numerics", "image_spec"):
        kind = Numerics if key == "numerics" else ImageSpec
        known = [field.name for field in fields(kind)]
        for word in value:
            if word not in known:
                raise UserError(f"backbone_options.{key}.{word}", "no such key", nearest(str(word), known))
        record: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return kind(**record)
    return tuple(value) if isinstance(value, list) else value


def _with_channels(spec: ImageSpec, channels: int) -> ImageSpec:
    """An RGB source's spec for another number of channels, each with the average of its mean and std."""
    if len(spec.mean) == channels:
        return spec
    mean, std = ((sum(values) / len(values),) * channels for values in (spec.mean, spec.std))
    return replace(spec, mean=mean, std=std)


def build_model(
    task: str | Sequence[str] = "cls",
    backbone: str = "b0",
    *,
    head: str | Mapping[str, str] | None = None,
    num_classes: int | Mapping[str, int] | None = None,
    weights: str | Path | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    loss_weights: LossWeights = None,
) -> Model:
    """Build a model: a head for ``task`` (``cls``, ``det``, ``seg``, or a registered word) on a backbone.

    With several tasks the heads share the backbone, ``head``, ``num_classes`` and ``head_options`` are dicts by task, and
    ``loss_weights`` says how their losses are weighed (a dict or ``"uncertainty"``, see :class:`MultiHead`).
    ``head`` and ``num_classes`` default to the task's (1000, 80, 21). ``weights`` as in :func:`create_backbone`; parts of the
    file that fit the head by name and shape, such as a published classifier, are taken over; a published detector decides the
    head's options that are not given, and a whole model of segmentation-models-pytorch the backbone's ``tap``. What was loaded,
    assumed and left out is in ``model.provenance``. Explicit ``backbone_options`` win over what the head asks for. Options that
    a model file cannot hold raise :class:`UserError`.
    """
    several = not isinstance(task, str)
    if loss_weights is not None and not several:
        raise UserError(
            "loss_weights", "a model of one task has nothing to weigh", "leave it out, or give several tasks"
        )
    tasks = [TASKS.canonical(word) for word in ([task] if isinstance(task, str) else task)]
    chosen, counts, options = (
        _by_task(name, value, tasks, several)
        for name, value in (("head", head), ("num_classes", num_classes), ("head_options", head_options))
    )
    explicit = dict(backbone_options or {})
    plans = {t: _HeadPlan(t, chosen[t], counts[t], options[t], explicit) for t in tasks}
    needs = combine_needs({plan.name: plan.needs for plan in plans.values()})
    default = BackboneNeeds()
    wanted = {"levels": needs.levels} | {
        key: getattr(needs, key) for key in _NEEDS if getattr(needs, key) != getattr(default, key)
    }
    for plan in plans.values():
        weights = named_for(weights, plan.name, plan.options)
    own_tap = "seg" not in plans or any(plan.options.get("tap") for plan in plans.values())
    network, pretrained, settled = _create(backbone, weights, explicit, wanted, own_tap)
    heads = {t: plan.build(network.feature_spec, pretrained) for t, plan in plans.items()}
    if isinstance(loss_weights, Mapping):
        by_task = _by_task("loss_weights", loss_weights, tasks, several)
        loss_weights = {t: factor for t, factor in by_task.items() if factor is not None}
    top = MultiHead(network.feature_spec, heads, loss_weights) if several else heads[tasks[0]]
    config = {
        "task": tasks if several else tasks[0],
        "backbone": BACKBONES.canonical(backbone),
        "head": _gather(plans, "name", several),
        "num_classes": _gather(plans, "num_classes", several),
        "backbone_options": _to_json({**explicit, **settled}),
        "head_options": _gather(plans, "options", several),
        **({"loss_weights": loss_weights} if several else {}),
    }
    for key, value in config.items():
        plain(
            value, key, finite=True
        )  # what it cannot be rebuilt from, a training run should not learn at its first save
    model = Model(network, top, config=config)
    if pretrained:
        take_over(model, pretrained)
        model.provenance = provenance(pretrained)
    return model


_NEEDS = ("output_stride", "tap")


def _by_task(name: str, value: Any, tasks: Sequence[str], several: bool) -> dict[str, Any]:
    """An argument of ``build_model`` by task: with several, a dict whose keys are theirs."""
    if not several:
        return {tasks[0]: value}
    if value is not None and not isinstance(value, Mapping):
        raise UserError(name, f"expected a dict by task, got {value!r}", f"write {{{tasks[0]!r}: ...}}")
    found = {TASKS.canonical(key): item for key, item in (value or {}).items()}
    for key in found:
        if key not in tasks:
            raise UserError(f"{name}[{key!r}]", "is not among the tasks", nearest(key, tasks))
    return {task: found.get(task) for task in tasks}


class _HeadPlan:
    """One head before its backbone exists: class, options, classes."""

    def __init__(
        self,
        task: str,
        head: str | None,
        num_classes: int | None,
        options: Mapping[str, Any] | None,
        explicit: Mapping[str, Any],
    ) -> None:
        if head is None and task not in DEFAULT_HEADS:
            raise UserError(
                f"task {task!r}",
                "no head is built in for it",
                f"{nearest(task, DEFAULT_HEADS)}; or name a registered head",
            )
        self.name = HEADS.canonical(head or DEFAULT_HEADS[task])
        self.head: type[Head] = HEADS.get(self.name)
        if TASKS.canonical(self.head.task) != task:
            raise UserError(
                f"head {self.name!r}", f"is for task {self.head.task!r}, not {task!r}", "choose another head or task"
            )
        if num_classes is None and task not in DEFAULT_CLASSES:
            raise UserError("num_classes", f"task {task!r} has no default", "give it")
        self.num_classes = DEFAULT_CLASSES[task] if num_classes is None else num_classes
        self.options = dict(options or {})
        needs = self.head.requires(**self.options)
        # What the user said of the backbone wins, also where two heads disagree.
        self.needs = replace(needs, **{key: explicit[key] for key in _NEEDS if explicit.get(key) is not None})
        self.own_levels = explicit.get("levels") is not None

    def build(self, spec: FeatureSpec, pretrained: Pretrained | None) -> Head:
        names = tuple(name for name in spec.names if name in self.needs.levels)
        if self.own_levels and len(names) < len(self.needs.levels):
            names = spec.names  # the user's choice; the head checks its spec
        spec = spec.select(names)
        head, self.options = build_head(
            pretrained, self.name, self.options, lambda options: self.head(spec, self.num_classes, **options)
        )
        return head


def _gather(plans: Mapping[str, _HeadPlan], field: str, several: bool) -> Any:
    values = {task: getattr(plan, field) for task, plan in plans.items()}
    return values if several else next(iter(values.values()))


def _to_json(options: Mapping[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in options.items():
        record = asdict(value) if isinstance(value, (Numerics, ImageSpec)) else value
        plain[key] = list(record) if isinstance(record, tuple) else record
    return plain
