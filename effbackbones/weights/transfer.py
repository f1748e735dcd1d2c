"""From a weight file into a model that may differ from the one it was saved from: what is loaded, and what has to be said.

A detector's file decides the options of its head that nobody gave, and the file of a whole segmentation model where its maps are
taken; what was given wins, and differences are told.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from effbackbones.contracts import Head
from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.multihead import MultiHead
from effbackbones.weights.classifiers import coco_name
from effbackbones.weights.efficientdet_names import BOX_PREDICTOR, CLASS_PREDICTOR, HEAD, fit_classes
from effbackbones.weights.loading import LoadReport, load_state, load_table
from effbackbones.weights.pretrained import Pretrained

MAP_OPTIONS: Mapping[str, Any] = {"stem_stride": 2, "tap": "stage", "output_stride": 32}
"""Options of an EfficientNet that change its maps and not its weights, with their defaults."""
_ANCHORS = ("anchor_scale", "num_scales", "aspect_ratios")


def named_for(weights: Any, head: str, options: Mapping[str, Any]) -> Any:
    """``weights``, where ``"coco"`` means the detector that the head's ``variant`` names, if it names one."""
    variant = options.get("variant")
    return coco_name(str(variant)) if weights == "coco" and head == HEAD and variant else weights


def say_backbone(pretrained: Pretrained, options: Mapping[str, Any]) -> None:
    """Note where a backbone built with ``options`` gives other maps than the one that the weights of its head were trained on."""
    of_file: Mapping[str, Any] = {}
    if pretrained.segmenter:
        of_file = {"tap": pretrained.segmenter.tap}
    elif pretrained.config:
        saved = pretrained.config.get("backbone_options") or {}
        of_file = {name: saved.get(name) or default for name, default in MAP_OPTIONS.items()}
    for name, default in MAP_OPTIONS.items():
        before, now = of_file.get(name), options.get(name) or default
        if before and before != now:
            pretrained.assumed += (
                f"{pretrained.origin} was trained with {name} {before}, here it is {now}: the same weights, other maps",
            )


def build_head(
    pretrained: Pretrained | None, name: str, options: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Head]
) -> tuple[Head, dict[str, Any]]:
    """The head ``name`` by ``make(options)``, and its options: those given, and those that a detector's weights decide.

    Raises :class:`UserError` where ``options`` name another variant than that of a published detector.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if pretrained is None or pretrained.detector is None or name != HEAD:
        return make(options), dict(options)
    detector = pretrained.detector
    decided = _published(pretrained, given) if pretrained.source else _bare(pretrained, given)
    head = make(decided | given)
    if detector.fits(head.state_dict()):
        return head, decided | given
    shapes = ", ".join(f"{key} {value}" for key, value in detector.options.items())
    if "variant" in given or given.keys() & detector.options.keys():
        pretrained.assumed += (
            f"{pretrained.origin} has {shapes}; head_options ask for another head: only what fits is loaded",
        )
        return head, decided | given
    pretrained.assumed += (f"head_options as {pretrained.origin} wants them: {shapes}",)
    decided |= detector.options
    head = make(decided | given)
    if not detector.fits(head.state_dict()):
        pretrained.assumed += (
            f"the pyramid of {pretrained.origin} reads maps of other channels: only what fits is loaded",
        )
    return head, decided | given


def _published(pretrained: Pretrained, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a published detector decides."""
    source = pretrained.source
    assert source is not None
    decided = dict(source.head_options)
    variant = given.get("variant", decided.get("variant"))
    if variant != decided.get("variant"):
        remedy = "leave it out, or give other weights"
        raise UserError(
            f"weights {source.name}",
            f"are of {decided.get('variant')}, and head_options.variant is {variant!r}",
            remedy,
        )
    for name in _ANCHORS:
        if name in given and given[name] != decided.get(name):
            before = decided.get(name, "as published")
            pretrained.assumed += (
                f"{source.name} was trained with {name} {before}, here it is {given[name]}: other anchors",
            )
    return decided


def _bare(pretrained: Pretrained, given: Mapping[str, Any]) -> dict[str, Any]:
    """A file that cannot say which variant it is: nothing is decided, and D6, which may be D7, is told."""
    assert pretrained.detector is not None
    if pretrained.detector.ambiguous and not {"variant", "anchor_scale"} & given.keys():
        text = (
            f"{pretrained.origin} may be of D6 or of D7, which differ in the anchor scale alone: taken for D6 (scale 4)"
        )
        pretrained.assumed += (f'{text}; head_options={{"variant": "d7"}} says otherwise',)
    return {}


def take_over(model: Model, pretrained: Pretrained) -> None:
    """Load the parts of a weight file into the head that knows most of them, by name and shape; the rest is reported as unused."""
    detector, segmenter, what = pretrained.detector, pretrained.segmenter, f"head from {pretrained.origin}"
    foreign = detector or segmenter
    extra = {**pretrained.tail, **pretrained.head, **(foreign.head if foreign else {})}
    heads = [model.head, *model.head.heads.values()] if isinstance(model.head, MultiHead) else [model.head]
    head = max(heads, key=lambda head: len(extra.keys() & head.state_dict().keys()))
    known = extra.keys() & head.state_dict().keys()
    pretrained.untrained = not known or head is not model.head
    if not known:
        if extra:
            pretrained.reports.append(LoadReport(what, unused=tuple(extra)))
        return
    left: tuple[str, ...] = ()
    boxes = head.state_dict().get(BOX_PREDICTOR)
    if segmenter and cast(Head, head).task == "seg":
        taken, remark = segmenter.entries_for(head.state_dict())
        left = tuple(name for name in segmenter.head if name not in taken)
        extra = pretrained.tail | taken
        pretrained.assumed += (f"{pretrained.origin}: {remark}",) if remark else ()
    if detector and boxes is not None:
        classes = fit_classes(detector, cast(Head, head).num_classes, len(boxes) // 4)
        left = () if classes.predictor else CLASS_PREDICTOR
        extra = {name: tensor for name, tensor in extra.items() if name not in CLASS_PREDICTOR} | classes.predictor
        pretrained.assumed += (classes.remark,) if classes.remark else ()
        model.classes = classes.names if head is model.head else None
    report = load_state(head, extra, what=what, allow_missing=True, unused=left)
    pretrained.untrained |= bool(report.reinitialised)
    pretrained.reports.append(report)


def provenance(pretrained: Pretrained) -> dict[str, Any]:
    """Where weights came from, for people and for checkpoints."""
    return ({"untrained_head": True} if pretrained.untrained else {}) | {
        "weights": pretrained.origin,
        "dialect": pretrained.dialect,
        "licence": pretrained.licence,
        "assumed": list(pretrained.assumed),
        "loaded": load_table(pretrained.reports),
    }
