"""From names to modules: ``create_backbone`` and ``build_model``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.families import family_of
from effbackbones.backbones.layout import lay_out
from effbackbones.contracts import Backbone, BackboneNeeds, ImageSpec
from effbackbones.errors import UserError, nearest
from effbackbones.headplan import NEEDS, HeadPlan, build_heads, by_task, plan_head, task_named
from effbackbones.model import Model
from effbackbones.multihead import LossWeights, combine_needs
from effbackbones.optiontypes import checked
from effbackbones.registry import BACKBONES, TASKS
from effbackbones.weights.pretrained import Adopted, Pretrained
from effbackbones.weights.reading import read_for
from effbackbones.weights.record import plain


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
    middle: Sequence[int] | None = None,
    squeezed: Sequence[int] | None = None,
) -> Backbone:
    """Build a backbone by name: ``b0``-``b7``, ``lite0``-``lite4``, one in between such as ``b2.5``, ``timm:NAME``, or a
    registered one; ``sound:`` and any of these is one for recordings, whose own options are ``backbone_options`` of :func:`build_model`.

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
    * ``middle``, ``squeezed``: channels inside of each block, of a pruned network, whose file brings them.

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
        "middle": middle,
        "squeezed": squeezed,
    }
    built = _create(name, weights, {key: value for key, value in given.items() if value is not None}, {}, {})
    backbone = built.backbone
    if built.weights:
        backbone.provenance = built.weights.provenance(built.adopted)
    return backbone


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
    assumed and left out is in ``model.provenance`` and logged (logger ``effbackbones``): what was assumed and what starts at random as
    warnings. Explicit ``backbone_options`` win over what the head asks for. Options that
    a model file cannot hold raise :class:`UserError`.
    """
    several = not isinstance(task, str)
    if loss_weights is not None and not several:
        raise UserError(
            "loss_weights", "a model of one task has nothing to weigh", "leave it out, or give several tasks"
        )
    tasks = [TASKS.canonical(word) for word in ([task] if isinstance(task, str) else task)]
    chosen, counts, options = (
        by_task(name, value, tasks, several)
        for name, value in (("head", head), ("num_classes", num_classes), ("head_options", head_options))
    )
    explicit = dict(backbone_options or {})
    written = {key: _to_json(value) for key, value in explicit.items()}
    plans = {}
    for t in tasks:
        with task_named(t, several):
            plans[t] = plan_head(t, chosen[t], counts[t], options[t], explicit)
    for plan in plans.values():
        weights = plan.head.named_weights(weights, plan.options)
    built = _create(backbone, weights, explicit, _needs(plans), plans)
    if isinstance(loss_weights, Mapping):
        weighed = by_task("loss_weights", loss_weights, tasks, several)
        loss_weights = {t: factor for t, factor in weighed.items() if factor is not None}
    spec = built.backbone.feature_spec
    heads = build_heads(plans, spec, built.weights, several=several, loss_weights=loss_weights)

    def told(values: Mapping[str, Any]) -> Any:
        return dict(values) if several else values[tasks[0]]

    config = {
        "task": tasks if several else tasks[0],
        "backbone": BACKBONES.canonical(backbone),
        "head": told({t: plan.name for t, plan in plans.items()}),
        "num_classes": told({t: plan.num_classes for t, plan in plans.items()}),
        "backbone_options": {**written, **built.settled},
        "head_options": told(heads.options),
        **({"loss_weights": loss_weights} if several else {}),
    }
    for (
        key,
        value,
    ) in config.items():  # what it cannot be rebuilt from, a training run should not learn at its first save
        plain(value, key, finite=True)
    classes = heads.adopted.classes if heads.adopted else None
    model = Model(built.backbone, heads.head, config=config, classes=classes)
    if built.weights:
        untrained = {"untrained_head": True} if heads.untrained else {}
        model.provenance = untrained | built.weights.provenance(built.adopted, heads.remarks, heads.adopted)
    return model


class _Built(NamedTuple):
    """A backbone; the weights that were read for it, and what it took of them; options that it or its weights decided, so that a
    rebuilt one agrees."""

    backbone: Backbone
    weights: Pretrained | None
    adopted: Adopted | None
    settled: Mapping[str, Any]


def _create(
    name: str,
    weights: str | Path | None,
    given: Mapping[str, Any],
    needs: Mapping[str, Any],
    heads: Mapping[str, HeadPlan],
) -> _Built:
    """The backbone with the options ``given``. ``needs`` are those of the ``heads`` that wait for it (by task), and reach only a
    backbone that has such options."""
    name = BACKBONES.canonical(name)
    family = family_of(name)
    for key in given:
        if key not in family.known:
            remedy = f"{nearest(key, family.known)}; null takes it out of a config"
            raise UserError(f"backbone_options.{key}", f"backbone {name!r} has no such option", remedy)
    records = {key: _from_json(key, value) for key, value in given.items() if value is not None}
    options = {key: checked(f"backbone_options.{key}", value, family.types[key]) for key, value in records.items()}
    options = {key: value for key, value in needs.items() if key in family.known} | options
    read = None if weights is None else read_for(family.kind, weights, name, options)
    if read:
        # The maps of the head in the file: where a head for that task waits for them, and none was told otherwise.
        asked = {key for plan in heads.values() for key, value in plan.options.items() if value}
        foreign = read.foreign
        maps = foreign.maps if foreign and foreign.task in heads and not asked & foreign.maps.keys() else {}
        decided = {**read.options, **maps}
        options = {key: value for key, value in decided.items() if key in family.takes} | options
    backbone = family.make(**options)
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone {name!r}", f"its factory returned {type(backbone).__name__}", "return an effbackbones.Backbone"
        )
    adopted = family.kind.adopt(backbone, read) if read else None
    lay_out(backbone)
    if read and read.image_spec and "image_spec" not in options:
        backbone.image_spec = read.image_spec
    missing = [level for level in needs.get("levels", ()) if level not in backbone.feature_spec.names]
    if missing and "levels" not in options:
        text = f"does not give {', '.join(missing)}, which the head needs"
        raise UserError(f"backbone {name!r}", text, "choose another backbone or head")
    settled = {key: value for key, value in family.kind.settled(backbone).items() if key in family.known}
    return _Built(backbone, read, adopted, settled)


def known_backbone_options(name: str) -> Collection[str]:
    """Options that the backbone ``name`` can be given; an unknown name raises :class:`UserError`."""
    return family_of(BACKBONES.canonical(name)).known


def _needs(plans: Mapping[str, HeadPlan]) -> dict[str, Any]:
    """What heads ask of their backbone, as its options."""
    needs, default = combine_needs({plan.name: plan.needs for plan in plans.values()}), BackboneNeeds()
    asked = {key: getattr(needs, key) for key in NEEDS if getattr(needs, key) != getattr(default, key)}
    return {"levels": needs.levels, **asked}


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


def _to_json(value: Any) -> Any:
    """What :func:`_from_json` reads."""
    record = value.record() if isinstance(value, ImageSpec) else asdict(value) if isinstance(value, Numerics) else value
    return list(record) if isinstance(record, tuple) else record
