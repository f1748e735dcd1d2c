"""What becomes of a published or foreign EfficientDet in a head of ours: options that it decides, and classes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from effbackbones.errors import UserError
from effbackbones.weights.coco_names import COCO_NAMES, RAW_NAMES
from effbackbones.weights.pretrained import Decided, Pretrained
from heads.detection.efficientdet_names import CLASS_PREDICTOR, Detector

_ANCHORS = ("anchor_scale", "num_scales", "aspect_ratios")


class Classes(NamedTuple):
    """What becomes of a file's classes: entries of the class predictor, their names where known, and a sentence, or ""."""

    predictor: dict[str, Tensor]
    names: tuple[str, ...] | None
    remark: str


def fit_classes(detector: Detector, num_classes: int, anchors: int) -> Classes:
    """The class predictor for ``num_classes`` at ``anchors`` of a cell.

    90 classes are taken for COCO's category ids, and its 80 categories are picked from them. Other numbers that differ leave
    nothing to load.
    """
    found = {name: detector.head[name] for name in CLASS_PREDICTOR}
    raw, of_file = detector.num_classes == len(RAW_NAMES), detector.num_classes
    if anchors != detector.anchors:
        return Classes(
            {},
            None,
            f"the file has {detector.anchors} anchors in a cell, this head {anchors}: its predictors start anew",
        )
    if num_classes == of_file:
        return (
            Classes(found, RAW_NAMES, "its 90 classes are taken for COCO's category ids 1 to 90")
            if raw
            else Classes(found, None, "")
        )
    if raw and num_classes == len(COCO_NAMES):
        channels = torch.tensor(list(COCO_NAMES)) - 1
        rows = (torch.arange(anchors)[:, None] * of_file + channels).flatten()
        picked = {name: tensor[rows] for name, tensor in found.items()}
        return Classes(
            picked, tuple(COCO_NAMES.values()), "of its 90 classes the 80 of COCO are taken, in the order of their ids"
        )
    return Classes(
        {},
        None,
        f"the file has {of_file} classes, this head {num_classes}: the last layer of the class net starts anew",
    )


def options_of(
    detector: Detector,
    weights: Pretrained,
    options: Mapping[str, Any],
    shapes: Callable[[Mapping[str, Any]], Mapping[str, Tensor]],
) -> Decided:
    """The options of a head that takes over ``detector``: those given (None: not given), and those that the weights decide where
    they are not. ``shapes`` gives the state dict of a head with the options that it is told.

    Raises :class:`UserError` where ``options`` name another variant than that of a published detector.
    """
    given = {key: value for key, value in options.items() if value is not None}
    decided, remarks = _published(weights, given) if weights.published else ({}, _ambiguous(detector, weights, given))
    if detector.fits(shapes(decided | given)):
        return Decided(decided | given, remarks)
    listed = ", ".join(f"{key} {value}" for key, value in detector.options.items())
    if "variant" in given or given.keys() & detector.options.keys():
        remark = f"{weights.origin} has {listed}; head_options ask for another head: only what fits is loaded"
        return Decided(decided | given, (*remarks, remark))
    remarks += (f"head_options as {weights.origin} wants them: {listed}",)
    decided |= detector.options
    if not detector.fits(shapes(decided | given)):
        remarks += (f"the pyramid of {weights.origin} reads maps of other channels: only what fits is loaded",)
    return Decided(decided | given, remarks)


def _published(weights: Pretrained, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options that a published detector decides, and where those given mean other anchors."""
    decided = dict(weights.head_options)
    variant = given.get("variant", decided.get("variant"))
    if variant != decided.get("variant"):
        what = f"are of {decided.get('variant')}, and head_options.variant is {variant!r}"
        raise UserError(f"weights {weights.published}", what, "leave it out, or give other weights")
    told = (
        f"{weights.published} was trained with {name} {decided.get(name, 'as published')}, here it is {given[name]}: other anchors"
        for name in _ANCHORS
        if name in given and given[name] != decided.get(name)
    )
    return decided, tuple(told)


def _ambiguous(detector: Detector, weights: Pretrained, given: Mapping[str, Any]) -> tuple[str, ...]:
    """A file that cannot say which variant it is decides nothing, and of D6, which may be D7, is told."""
    if not detector.ambiguous or {"variant", "anchor_scale"} & given.keys():
        return ()
    text = f"{weights.origin} may be of D6 or of D7, which differ in the anchor scale alone: taken for D6 (scale 4)"
    return (f'{text}; head_options={{"variant": "d7"}} says otherwise',)
