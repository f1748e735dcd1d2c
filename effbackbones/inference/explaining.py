"""Where in an image a model sees what it says: heat maps by Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.contracts import Head, ImageSizes
from effbackbones.errors import UserError, nearest
from effbackbones.images.geometry import Size
from effbackbones.inference.exported import ExportedModel
from effbackbones.inference.fitting import Fitting
from effbackbones.inference.inputs import source_for
from effbackbones.inference.predictor import OneImage, Predictor
from effbackbones.inference.preparing import Fitted, fitted, together
from effbackbones.inference.results import Failed
from effbackbones.model import Model

STRONGEST = 10
"""Of a detector so many places speak for a class: those where its logit is highest."""
SAME = 0.5
"""IoU from which a place speaks for a box that was chosen."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """``heat`` float32 [H, W] in 0..1, in pixels of the image: how much each place speaks for the class ``label`` (``name``), 1 where
    most; all 0 where nothing speaks for it, or where the network was not shown the image. ``level``: the map that was looked at."""

    source: str
    size: Size
    task: str
    label: int
    name: str
    level: str
    heat: NDArray[np.float32]


def grad_cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """Maps [C, h, w] weighed by the means of their ``gradients`` [C, h, w] over the places, added, and what is negative set to 0:
    [h, w] (equations 1 and 2 of the paper)."""
    return torch.einsum("c,chw->hw", gradients.mean((1, 2)), maps).relu()


def explain(
    source: str | PathLike[str] | Model | Predictor,
    image: OneImage,
    *,
    label: int | str | None = None,
    box: tuple[float, float, float, float] | None = None,
    task: str | None = None,
    level: str | None = None,
    device: str = "auto",
) -> Explanation:
    """A heat map of what in ``image`` speaks for a class.

    ``label``: number or name of the class (default: the one that the model is surest of; of a segmentation the one with most pixels).
    What is differentiated: of a classification the class's logit; of a detection the sum of its logits at the :data:`STRONGEST` places, of
    those whose box overlaps ``box`` (xyxy in pixels of the image) where one is given; of a segmentation the sum over the pixels that
    are taken for it, or over all where none is. ``task``: ``cls``, ``det`` or ``seg`` of a model of several. ``level``: name of the map
    (default: the coarsest that the head reads). Images are shown whole, also where they would be predicted in tiles. In float32.

    Raises :class:`UserError` for a class, box, task or level that is not there, for exported files, which have no gradients, for heads
    of other tasks, and for an image that cannot be read.
    """
    predictor = source if isinstance(source, Predictor) else Predictor(source, device=device)
    model = predictor.model
    if isinstance(model, ExportedModel):
        raise UserError(str(model.runtime.path), "an exported graph has no gradients", "explain with its checkpoint")
    if model.image_spec.rate is not None:
        what = "a heat map lies over a picture, and this model hears recordings"
        raise UserError("explain", what, "train the head sed: its frames say when")
    word, head = _head_of(model, task)
    spec = model.backbone.feature_spec
    level = head.spec.names[-1] if level is None else level
    if level not in head.spec.names:
        raise UserError("level", f"the head reads no {level}", nearest(level, head.spec.names))
    names = predictor.classes[word] if isinstance(predictor.classes, dict) else predictor.classes
    wanted = _label_of(label, names)
    if box is not None and word != "det":
        raise UserError("box", f"goes with detection, this is {word}", "leave it out")
    one = _shown(predictor, image)
    plan, pixels = one.plan, together([one]).groups[0].images.to(predictor.device)
    with torch.enable_grad():
        images = model._pad(model.normalize(pixels)).requires_grad_()
        height, width = plan.size
        sizes = ImageSizes((height, width), torch.tensor([plan.valid], device=images.device))
        maps = model.backbone(images)
        raw = model.head([maps[row] for row in model._read], sizes)
        raw = raw[word] if isinstance(raw, dict) else raw
        if word == "det":
            window = None if box is None else plan.apply_boxes(torch.tensor(box, dtype=torch.float32))
            wanted, score = _of_boxes(head, raw, wanted, window)
        else:
            wanted, score = _of_logits(
                raw[0][..., : plan.valid[0], : plan.valid[1]] if word == "seg" else raw[0], wanted
            )
        looked = maps[spec.names.index(level)]
        (gradient,) = torch.autograd.grad(score, looked)
    small = grad_cam(looked.detach()[0].float(), gradient[0].float())
    large = torch.nn.functional.interpolate(small[None, None], tuple(images.shape[-2:]), mode="bilinear")[0]
    heat = plan.restore_map(large[:, :height, :width].cpu())[0].clamp(min=0)
    if not torch.isfinite(heat).all():
        raise UserError(one.source.name, "its explanation is not finite", "look at the weights")
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    return Explanation(one.source.name, plan.original, word, wanted, names[wanted], level, heat.numpy())


def levels_of(model: Model) -> dict[str, list[str]]:
    """The maps that can explain each task, coarsest first; none of an exported file."""
    if isinstance(model, ExportedModel):
        return {}
    heads = dict(getattr(model.head, "heads", {model.head.task: model.head}).items())
    return {word: [*reversed(head.spec.names)] for word, head in heads.items()}


def _head_of(model: Model, task: str | None) -> tuple[str, Head]:
    """The task to explain, and its head."""
    heads = dict(getattr(model.head, "heads", {model.head.task: model.head}).items())
    if task is None and len(heads) > 1:
        raise UserError("task", "the model has several", f"choose one of {', '.join(heads)}")
    word = next(iter(heads)) if task is None else task
    if word not in heads:
        raise UserError("task", f"the model has no {word}", f"it has {', '.join(heads)}")
    if word not in ("cls", "det", "seg") or (word == "det" and not hasattr(heads[word], "evidence")):
        raise UserError("task", f"a head of task {word} of this kind cannot be explained", "explain cls, det or seg")
    return word, heads[word]


def _label_of(label: int | str | None, names: tuple[str, ...]) -> int | None:
    if label is None or (isinstance(label, int) and 0 <= label < len(names)):
        return label
    if isinstance(label, int):
        raise UserError("label", f"expected 0 to {len(names) - 1}, got {label}", "correct it")
    if label in names:
        return names.index(label)
    if label.isdecimal():
        return _label_of(int(label), names)
    raise UserError("label", f"there is no class {label!r}", nearest(label, names))


def _shown(predictor: Predictor, image: OneImage) -> Fitted:
    """The image as the network is shown it, once and whole."""
    model, fit = predictor.model, predictor.fit
    if isinstance(fit, Fitting) and fit.mode == "own":
        fit = replace(fit, mode="letterbox")
    source = source_for(image, 0, model.image_spec, predictor.reading, max_pixels=predictor.max_pixels)
    found = fitted(source, fit)
    if isinstance(found, Failed):
        raise UserError(found.error)
    return found


def _of_logits(logits: Tensor, label: int | None) -> tuple[int, Tensor]:
    """Label and score of logits [K] or [K, H, W]; one channel is the second of two classes."""
    if len(logits) == 1:
        logits = torch.cat([-logits, logits])
    found = logits.detach().argmax(0)
    if label is None:
        label = int(torch.bincount(found.flatten(), minlength=len(logits)).argmax())
    own = found == label
    chosen = logits[label]
    return label, chosen[own].sum() if logits.ndim > 1 and own.any() else chosen.sum()


def _of_boxes(head: Any, raw: Any, label: int | None, box: Tensor | None) -> tuple[int, Tensor]:
    """Label and score of a detector's raw output, at the places that speak for ``box`` (xyxy in pixels of the window) where it is given."""
    evidence = head.evidence(raw)[0]
    if box is not None:
        boxes = head.coder.decode(raw.deltas.detach().float(), raw.anchors)[0]
        near = _overlaps(box.to(boxes), boxes) >= SAME
        if not near.any():
            raise UserError("box", "no place of the network predicts a box there", "give one of those it found")
        evidence = evidence[near]
    if label is None:
        label = int(evidence.detach().amax(0).argmax())
    return label, evidence[:, label].topk(min(STRONGEST, len(evidence))).values.sum()


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box [4] with each of ``boxes`` [A, 4]: [A]."""
    shared = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared).clamp(min=torch.finfo(boxes.dtype).tiny)
