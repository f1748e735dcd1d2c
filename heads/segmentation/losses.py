"""Losses of semantic segmentation: pure functions of one record of pixels, which alone knows what is ignored.

:func:`pixels_of` reads logits and targets once. It puts 0 in the place of every ignored logit, so that whatever stood there,
NaN included, reaches neither a loss nor a gradient; each loss then leaves those pixels out of its sums and its count. Where
nothing is left to learn from, a loss is 0 with zero gradients. All arithmetic is float32, nothing depends on the data's values
for its shape, and nothing waits for the device.

Three modes: ``multiclass``, one class per pixel (softmax); ``binary``, one channel, 0 background and 1 foreground (sigmoid);
``multilabel``, any number of classes per pixel (a sigmoid each).

``cross_entropy`` and ``focal`` are sums over pixels, divided by a count (:func:`counts`): of a batch in pieces they are made exact.
``dice``, ``jaccard``, ``tversky`` and ``lovasz`` are no such sums. The gradient of 1 - 2 TP / (P + G) at a pixel needs TP, P and G of
the whole batch, which are known after the forward pass of its last piece, when the activations of the first are gone: it would take
a second forward pass of every piece. Nor does any weight of the pieces' own ratios give that of their sums. So they are of each piece
by itself, and averaged, which the run says; one piece, or as large ones as fit, come closest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from effbackbones.errors import UserError, nearest
from effbackbones.images.classsets import MOST

MODES = ("multiclass", "binary", "multilabel")
IGNORE_INDEX = 255
_EPS = 1e-7  # smallest denominator of a score; smp's value


class Pixels(NamedTuple):
    """A batch of labelled pixels, N = H * W per image.

    ``logits`` float32 [B, K, N], 0 where ignored. ``labels``: int64 [B, N], 0 where ignored; multi-label float32 [B, K, N] in
    0..1, 0 where ignored. ``valid`` bool [B, 1, N], multi-label [B, K, N]: pixels to learn from.
    """

    logits: Tensor
    labels: Tensor
    valid: Tensor
    mode: str


def pixels_of(logits: Tensor, targets: Tensor, mode: str = "multiclass", ignore_index: int = IGNORE_INDEX) -> Pixels:
    """Read logits [B, K, H, W] and targets, of which those equal to ``ignore_index`` are ignored.

    ``targets``: integers [B, H, W] in 0..K-1 (binary: 0 or 1); multi-label float or integers [B, K, H, W] in 0..1, so that a
    pixel may be ignored for one class alone, or int32 [B, H, W], a set of classes in each pixel as
    :mod:`effbackbones.images.classsets` has it, in which what is below 0 is ignored. Other shapes and types raise
    :class:`UserError`. Values are not looked at, which would wait for the device: the reader of the data vouches for them.
    """
    _check_targets(logits, targets, mode)
    labels, valid = _labels_of(targets, mode, ignore_index, logits.shape[1])
    return Pixels(logits.flatten(-2).float().masked_fill(~valid, 0.0), labels, valid, mode)


def _labels_of(targets: Tensor, mode: str, ignore_index: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """``labels`` and ``valid`` of :class:`Pixels`."""
    if are_sets(targets, mode):
        sets, bits = targets.flatten(-2)[:, None], torch.arange(num_classes, dtype=torch.int32, device=targets.device)
        valid = (sets >= 0).expand(-1, num_classes, -1)
        return ((sets >> bits[:, None]) & 1).float() * valid, valid
    ignored = (targets == ignore_index).flatten(-2)
    flat = targets.flatten(-2)
    labels = (flat.float() if mode == "multilabel" else flat.long()).masked_fill(ignored, 0)
    return labels, ~ignored if mode == "multilabel" else ~ignored[:, None]


def are_sets(targets: Tensor, mode: str) -> bool:
    """Whether targets of that mode are sets of classes [B, H, W], not shares [B, K, H, W]."""
    return mode == "multilabel" and targets.ndim == 3 and targets.dtype == torch.int32


def counts(
    targets: Tensor, mode: str, num_classes: int, class_weights: Tensor | None, ignore_index: int = IGNORE_INDEX
) -> dict[str, Tensor]:
    """By what those losses are divided that are means over pixels: the weights of the pixels, or of all sigmoids of them, [] each;
    ``distill`` by the pixels themselves.

    The others are ratios of sums over a batch, which no count makes equal to those of the batch's parts.
    """
    labels, valid = _labels_of(targets, mode, ignore_index, num_classes)
    pixels = valid.sum()
    if class_weights is None:
        weights, focal = pixels, pixels * num_classes
    elif mode == "multilabel":
        weights = focal = (valid.sum((0, 2)) * class_weights).sum()
    else:
        weights, focal = (valid[:, 0] * class_weights[labels]).sum(), pixels * class_weights.sum()
    return {"cross_entropy": weights, "focal": focal if mode == "multiclass" else weights, "distill": pixels}


def _check_targets(logits: Tensor, targets: Tensor, mode: str) -> None:
    if mode not in MODES:
        raise UserError("mode", f"unknown value {mode!r}", nearest(mode, MODES))
    batch, classes, height, width = logits.shape
    if mode == "binary" and classes != 1:
        raise UserError("mode", f"binary has one channel of logits, got {classes}", "build the head with num_classes 1")
    several = mode == "multilabel"
    if are_sets(targets, mode) and targets.shape == (batch, height, width):
        if classes > MOST:
            what = f"have room for {MOST} classes, these are {classes}"
            raise UserError("segmentation targets int32 [B, H, W]", what, "give shares [B, K, H, W]")
        return
    shape = (batch, classes, height, width) if several else (batch, height, width)
    kind = "float or integer" if several else "integer"
    if targets.shape != shape or (targets.is_floating_point() and not several) or targets.dtype == torch.bool:
        what = f"{mode} expects {kind} {list(shape)}, got {targets.dtype} {list(targets.shape)}"
        raise UserError("segmentation targets", what, "choose the mode that the masks were made for")


def truth(pixels: Pixels) -> Tensor:
    """What the probabilities should be: float32 [B, K, N], 0 where ignored."""
    logits, labels, valid, mode = pixels
    if mode == "multilabel":
        return labels
    if mode == "binary":
        return (labels[:, None] == 1).float()
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None]
    return ((labels[:, None] == classes) & valid).float()


def probabilities(logits: Tensor, mode: str) -> Tensor:
    """Logits [B, K, ...] to float32 probabilities of the same shape."""
    return logits.float().softmax(1) if mode == "multiclass" else logits.float().sigmoid()


def cross_entropy(pixels: Pixels, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy averaged over the pixels that are not ignored; binary and multi-label: of every sigmoid.

    ``class_weights`` float32 [K] as in torch: the average is weighted, so that their scale does not matter; binary [2], background
    and foreground. ``label_smoothing``: share of the target spread evenly over the classes (sigmoids: pulled towards 1/2).
    """
    if pixels.mode != "multiclass":
        soft = truth(pixels) * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(pixels.logits, soft, reduction="none")
        return _mean(losses, _pixel_weights(pixels, class_weights))
    # Without reduction torch's kernel is deterministic on a GPU too; its weighted mean divides by the weights of the labels.
    losses = F.cross_entropy(
        pixels.logits, pixels.labels, class_weights, reduction="none", label_smoothing=label_smoothing
    )
    valid = pixels.valid[:, 0].float()
    weights = valid if class_weights is None else valid * class_weights[pixels.labels]
    return _ratio((losses * valid).sum(), weights.sum())


def focal(
    pixels: Pixels, class_weights: Tensor | None = None, gamma: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5) of one sigmoid per class, as smp does it in all modes, averaged over pixels and classes.

    ``gamma`` >= 0 damps what is already right; ``alpha`` in 0..1 weighs positives by it and negatives by the rest.
    """
    target = truth(pixels)
    losses = F.binary_cross_entropy_with_logits(pixels.logits, target, reduction="none")
    # 1 - exp(-loss) loses all digits of a small loss, and its power has no finite gradient at 0 for gamma < 1.
    losses = losses * (-torch.expm1(-losses)).clamp_min(_EPS) ** gamma
    if alpha is not None:
        losses = losses * (alpha * target + (1 - alpha) * (1 - target))
    return _mean(losses, _pixel_weights(pixels, class_weights))


def tversky(pixels: Pixels, class_weights: Tensor | None = None, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN) of each class, of sums over the whole batch (Salehi et al. 2017); then their mean.

    A class without a true pixel in the batch adds 0 and still counts in the mean, as in smp (reference: reference.md 3.4). TP is
    (P + G - |p - g|) / 2, which is also right for soft targets (arXiv 2302.05666). In binary mode only the foreground is scored,
    and weights have no effect.
    """
    target = truth(pixels)
    guess = probabilities(pixels.logits, pixels.mode) * pixels.valid
    guessed, true = guess.sum((0, 2)), target.sum((0, 2))
    hit = (guessed + true - (guess - target).abs().sum((0, 2))) / 2
    score = hit / (hit + alpha * (guessed - hit) + beta * (true - hit)).clamp_min(_EPS)
    return _mean((1 - score) * (true > 0), _class_weights(pixels, class_weights))


def dice(pixels: Pixels, class_weights: Tensor | None = None) -> Tensor:
    """1 - 2 TP / (P + G): Tversky with both weights 1/2."""
    return tversky(pixels, class_weights, 0.5, 0.5)


def jaccard(pixels: Pixels, class_weights: Tensor | None = None) -> Tensor:
    """1 - TP / (P + G - TP), the soft intersection over union: Tversky with both weights 1."""
    return tversky(pixels, class_weights, 1.0, 1.0)


def lovasz(pixels: Pixels, class_weights: Tensor | None = None) -> Tensor:
    """Lovasz extension of the Jaccard loss over the whole batch (Berman et al. 2018, algorithm 1): of softmax errors, averaged
    over the classes present; binary and multi-label the hinge, averaged over all classes."""
    target = truth(pixels)
    if pixels.mode == "multiclass":
        errors = (target - probabilities(pixels.logits, pixels.mode)).abs()
        counted = (target.sum((0, 2)) > 0).float()
    else:
        errors = (1 - pixels.logits * (2 * target - 1)).relu()
        counted = torch.ones_like(target[0, :, 0])
    # An ignored pixel gets the smallest error there is: it sorts behind all that count, and its own term is 0.
    errors = (errors * pixels.valid).transpose(0, 1).flatten(1)
    losses = (errors * _lovasz_weights(errors, target.transpose(0, 1).flatten(1) > 0.5)).sum(1)
    return _mean(losses * counted, _class_weights(pixels, class_weights) * counted)


def _lovasz_weights(errors: Tensor, true: Tensor) -> Tensor:
    """What each error [K, n] weighs: by how much the Jaccard loss grows when the pixel joins those with larger errors."""
    order = errors.argsort(1, descending=True)
    hits = true.gather(1, order).cumsum(1)  # integers: float32 stops counting at 2 ** 24
    total, seen = hits[:, -1:], torch.arange(1, errors.shape[1] + 1, device=errors.device)
    loss = 1 - (total - hits) / (total + seen - hits)
    steps = torch.cat([loss[:, :1], loss.diff(dim=1)], 1)
    return torch.empty_like(errors).scatter_(1, order, steps)


def _pixel_weights(pixels: Pixels, class_weights: Tensor | None) -> Tensor:
    """The weight of every sigmoid [B, K, N], 0 where ignored. Binary weights belong to background and foreground."""
    weights = pixels.valid.float().expand_as(pixels.logits)
    if class_weights is None:
        return weights
    return weights * (class_weights[pixels.labels][:, None] if pixels.mode == "binary" else class_weights[:, None])


def _class_weights(pixels: Pixels, class_weights: Tensor | None) -> Tensor:
    """One weight per channel of logits [K]."""
    if class_weights is None or pixels.mode == "binary":
        return pixels.logits.new_ones(pixels.logits.shape[1])
    return class_weights


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    return _ratio((losses * weights).sum(), weights.sum())


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``, and 0 where nothing was counted."""
    return total / count.masked_fill(count == 0, 1.0)


LOSSES = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "jaccard": jaccard,
    "focal": focal,
    "tversky": tversky,
    "lovasz": lovasz,
}


def parse_losses(terms: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """A weighted sum, to weights by name: ``["cross_entropy", "dice*0.5"]``, or ``{"cross_entropy": 1, "dice": 0.5}``.

    Unknown or repeated names and factors that are not positive numbers raise :class:`UserError`.
    """
    if isinstance(terms, Mapping):
        pairs: list[tuple[str, object]] = [(str(name), factor) for name, factor in terms.items()]
    elif isinstance(terms, str | Sequence):
        pairs = [_term(str(term)) for term in ([terms] if isinstance(terms, str) else terms)]
    else:
        pairs = []
    if not pairs:
        raise UserError(
            "head_options.loss",
            f"expected names of losses, got {terms!r}",
            'write it like ["cross_entropy", "dice*0.5"]',
        )
    weights: dict[str, float] = {}
    for name, factor in pairs:
        if name not in LOSSES:
            raise UserError("head_options.loss", f"unknown loss {name!r}", nearest(name, LOSSES))
        if name in weights:
            raise UserError("head_options.loss", f"{name} stands there twice", "give it one factor")
        if not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise UserError(
                "head_options.loss", f"expected a positive factor for {name}, got {factor!r}", f"write {name}*0.5"
            )
        weights[name] = float(factor)
    return weights


def _term(text: str) -> tuple[str, object]:
    """``name`` or ``name*factor``; a factor that is no number stays text."""
    name, star, factor = text.replace(" ", "").partition("*")
    try:
        return name, float(factor) if star else 1.0
    except ValueError:
        return name, factor
