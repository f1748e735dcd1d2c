"""From names to modules: ``create_backbone`` and ``build_model``."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from effbackbones.contracts import Backbone, BackboneNeeds, FeatureSpec, Head, ImageSpec
from effbackbones.efficientnet import EfficientNet, Numerics
from effbackbones.errors import UserError, nearest
from effbackbones.model import Model, MultiHead, combine_needs
from effbackbones.registry import BACKBONES, DEFAULT_CLASSES, DEFAULT_HEADS, HEADS, TASKS
from effbackbones.scaling import in_between
from effbackbones.weights import Pretrained, adapt_stem, load_state, load_table, read_weights


def create_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    levels: Sequence[str] | None = None,
    in_channels: int = 3,
    numerics: Numerics | str | None = None,
    image_spec: ImageSpec | None = None,
    tap: str = "stage",
    output_stride: int = 32,
    stem_stride: int = 2,
    drop_path: float = 0.2,
    checkpointing: bool = False,
    width: float | None = None,
    depth: float | None = None,
) -> Backbone:
    """Build a backbone by name: ``b0``-``b7``, ``lite0``-``lite4``, one in between such as ``b2.5``, ``timm:NAME``, or a
    registered one.

    * ``weights``: None (random; never touches the network), ``"imagenet"``, a named source, or a file. They bring their
      numerics and image spec, unless given here.
    * ``levels``: the maps to return, such as ``("C3", "C4", "C5")``; deeper stages are not built.
    * ``in_channels``: pretrained stems are adapted (1: the sum of the filters; more than 3: repeated and rescaled).
    * ``numerics``: padding and batch norm, a :class:`Numerics` or its name: ``torch``, ``torch_tf``, ``tf``, ``same_static``.
    * ``tap``: ``"stage"``, or ``"stem"`` for the stem's output as C1 (segmentation-models-pytorch's layout).
    * ``output_stride`` 8, 16 or 32: later strides become dilations. ``stem_stride`` 1 suits 32-pixel images.
    * ``drop_path``: stochastic depth of the last block. ``checkpointing``: recompute activations to save memory.
    * ``width``, ``depth``: multipliers instead of those of ``name``.

    A registered backbone gets only the options that differ from these defaults, and must name them.
    """
    given = {
        "levels": None if levels is None else tuple(levels),
        "in_channels": in_channels, "numerics": numerics, "image_spec": image_spec, "tap": tap, "output_stride": output_stride,
        "stem_stride": stem_stride, "drop_path": drop_path, "checkpointing": checkpointing, "width": width, "depth": depth,
    }  # fmt: skip
    return _create(name, weights, given)[0]


_DEFAULTS = {p.name: p.default for p in inspect.signature(create_backbone).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _create(name: str, weights: str | Path | None, given: Mapping[str, Any]) -> tuple[Backbone, Pretrained | None]:
    """The backbone, with its weights, and what else the weight file held."""
    name = BACKBONES.canonical(name)
    # Needs fill in every field; only what differs from the default was asked for, and only that is passed on.
    options = {key: _from_json(key, value) for key, value in given.items() if key not in _DEFAULTS or value != _DEFAULTS[key]}
    if name.startswith("timm:"):
        return _create_timm(name, weights, options)
    factory = EfficientNet if in_between(name) else BACKBONES.get(name)
    if factory is not EfficientNet:
        return _create_registered(name, factory, weights, options)
    pretrained = None
    if weights is not None:
        pretrained = read_weights(weights, name, numerics=options.get("numerics"), image_spec=options.get("image_spec"))
        options |= {key: value for key, value in (("numerics", pretrained.numerics), ("image_spec", pretrained.image_spec)) if value}
    _check_options(name, EfficientNet, options)
    backbone = EfficientNet(name, **_fit_channels(options))
    if pretrained:
        state = dict(pretrained.backbone)
        stem = "stem.conv.weight"
        state[stem] = adapt_stem(state[stem], options.get("in_channels", 3))
        pretrained.reports.append(load_state(backbone, state, what=f"backbone {name} from {pretrained.origin}"))
    return backbone, pretrained


def _create_timm(name: str, weights: str | Path | None, options: dict[str, Any]) -> tuple[Backbone, Pretrained | None]:
    from effbackbones.timm_backbone import TimmBackbone  # timm is slow to import

    _check_options(name, TimmBackbone, options)
    backbone = TimmBackbone(name.removeprefix("timm:"), pretrained=weights == "imagenet", **options)
    if weights is None or weights == "imagenet":
        return backbone, None
    return backbone, _load_own(backbone, weights)


def _create_registered(name: str, factory: Any, weights: str | Path | None, options: dict[str, Any]) -> tuple[Backbone, Pretrained | None]:
    _check_options(name, factory, options)
    backbone = factory(**options)
    if not isinstance(backbone, Backbone):
        raise UserError(f"backbone {name!r}", f"its factory returned {type(backbone).__name__}", "return an effbackbones.Backbone")
    return backbone, None if weights is None else _load_own(backbone, weights)


def _load_own(backbone: Backbone, weights: str | Path) -> Pretrained:
    """Weights of a file that this project wrote: the only one that can describe a foreign backbone."""
    pretrained = read_weights(weights, backbone.name)
    pretrained.reports.append(load_state(backbone, pretrained.backbone, what=f"backbone {backbone.name} from {pretrained.origin}"))
    return pretrained


def _check_options(name: str, factory: Any, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    known = [key for key in parameters if key not in ("self", "name", "pretrained")]
    for key in options:
        if key not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise UserError(f"backbone_options.{key}", f"backbone {name!r} has no such option", nearest(key, known))


def _from_json(key: str, value: Any) -> Any:
    """Records may come as the plain dicts and lists that a checkpoint or a config holds."""
    if isinstance(value, Mapping) and key in ("numerics", "image_spec"):
        record: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return Numerics(**record) if key == "numerics" else ImageSpec(**record)
    return tuple(value) if isinstance(value, list) else value


def _fit_channels(options: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and std of an RGB source repeated for another number of channels, each channel with their average."""
    spec, channels = options.get("image_spec"), options.get("in_channels", 3)
    if not isinstance(spec, ImageSpec) or len(spec.mean) == channels:
        return dict(options)
    mean, std = ((sum(values) / len(values),) * channels for values in (spec.mean, spec.std))
    values = {field.name: getattr(spec, field.name) for field in fields(ImageSpec)}
    return {**options, "image_spec": ImageSpec(**{**values, "mean": mean, "std": std})}


def build_model(
    task: str | Sequence[str] = "cls",
    backbone: str = "b0",
    *,
    head: str | Mapping[str, str] | None = None,
    num_classes: int | Mapping[str, int] | None = None,
    weights: str | Path | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> Model:
    """Build a model: a head for ``task`` (``cls``, ``det``, ``seg``, or a registered word) on a backbone.

    With several tasks the heads share the backbone, and ``head``, ``num_classes`` and ``head_options`` are dicts by task.
    ``head`` and ``num_classes`` default to the task's (1000, 80, 21). ``weights`` as in :func:`create_backbone`; parts of the
    file that fit the head by name and shape, such as a published classifier, are taken over. What was loaded, assumed
    and left out is in ``model.provenance``. Explicit ``backbone_options`` win over what the head asks for.
    """
    several = not isinstance(task, str)
    tasks = [TASKS.canonical(word) for word in ([task] if isinstance(task, str) else task)]
    by_task = {t: _HeadPlan(t, *(_pick(v, t, several) for v in (head, num_classes, head_options))) for t in tasks}
    needs = combine_needs({plan.name: plan.needs for plan in by_task.values()})
    asked = {field.name: getattr(needs, field.name) for field in fields(BackboneNeeds)}
    network, pretrained = _create(backbone, weights, {**asked, **(backbone_options or {})})
    heads = {t: plan.build(network.feature_spec, several) for t, plan in by_task.items()}
    top = MultiHead(network.feature_spec, heads) if several else heads[tasks[0]]
    config = {
        "task": tasks if several else tasks[0],
        "backbone": network.name,
        "head": _gather(by_task, "name", several),
        "num_classes": _gather(by_task, "num_classes", several),
        "backbone_options": _to_json({**asked, **(backbone_options or {}), **_settled(network)}),
        "head_options": _gather(by_task, "options", several),
    }
    model = Model(network, top, config=config)
    if pretrained:
        _take_over(model, pretrained)
    return model


class _HeadPlan:
    """One head before its backbone exists: class, options, classes."""

    def __init__(self, task: str, head: str | None, num_classes: int | None, options: Mapping[str, Any] | None) -> None:
        if head is None and task not in DEFAULT_HEADS:
            raise UserError(f"task {task!r}", "no head is built in for it", f"{nearest(task, DEFAULT_HEADS)}; or name a registered head")
        self.name = HEADS.canonical(head or DEFAULT_HEADS[task])
        self.head: type[Head] = HEADS.get(self.name)
        if self.head.task != task:
            raise UserError(f"head {self.name!r}", f"is for task {self.head.task!r}, not {task!r}", "choose another head or task")
        if num_classes is None and task not in DEFAULT_CLASSES:
            raise UserError("num_classes", f"task {task!r} has no default", "give it")
        self.num_classes = DEFAULT_CLASSES[task] if num_classes is None else num_classes
        self.options = dict(options or {})
        self.needs = self.head.requires(**self.options)

    def build(self, spec: FeatureSpec, several: bool) -> Head:
        names = tuple(name for name in spec.names if name in self.needs.levels) if several else spec.names
        return self.head(spec.select(names), self.num_classes, **self.options)


def _pick(value: Any, task: str, several: bool) -> Any:
    return value.get(task) if several and isinstance(value, Mapping) else value


def _gather(plans: Mapping[str, _HeadPlan], field: str, several: bool) -> Any:
    values = {task: getattr(plan, field) for task, plan in plans.items()}
    return values if several else next(iter(values.values()))


def _settled(backbone: Backbone) -> dict[str, Any]:
    """What a backbone decided by itself or by its weights, so that a rebuilt one decides the same without them."""
    numerics = getattr(backbone, "numerics", None)
    settled: dict[str, Any] = {"image_spec": asdict(backbone.image_spec)} if isinstance(backbone, EfficientNet) else {}
    return settled | ({"numerics": asdict(numerics)} if isinstance(numerics, Numerics) else {})


def _to_json(options: Mapping[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in options.items():
        record = asdict(value) if isinstance(value, (Numerics, ImageSpec)) else value
        plain[key] = list(record) if isinstance(record, tuple) else record
    return plain


def _take_over(model: Model, pretrained: Pretrained) -> None:
    """Load the parts of a weight file that fit the head by name and shape."""
    extra = {**pretrained.tail, **pretrained.head}
    own = model.head.state_dict()
    if any(key in own for key in extra):
        pretrained.reports.append(load_state(model.head, extra, what=f"head from {pretrained.origin}", allow_missing=True))
    model.provenance = {
        "weights": pretrained.origin,
        "dialect": pretrained.dialect,
        "licence": pretrained.licence,
        "assumed": list(pretrained.assumed),
        "loaded": load_table(pretrained.reports),
    }


