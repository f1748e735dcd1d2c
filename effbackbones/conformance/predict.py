"""The promises of a head's ``predict``, one function each: it yields a sentence for everything that breaks the promise."""

from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree

from effbackbones.conformance.case import HeadCase
from effbackbones.conformance.comparing import changed, difference, listed, shapes, snapshot, tensors
from effbackbones.contracts import Detections, ImageSizes


def predict_pure(case: HeadCase) -> Iterator[str]:
    """``predict`` gives the same twice, carries no gradient, changes neither state nor raw output."""
    head = case.build().eval()
    with torch.no_grad():
        features, sizes = case.inputs(head)
        raw = head(features, sizes)
        given, before = [t.clone() for t in tensors(raw)], snapshot(head)
        first, second = head.predict(raw, sizes), head.predict(raw, sizes)
    if said := difference(second, first, 0.0):
        yield f"a second call differs: {said}"
    if any(t.requires_grad for t in tensors(first)):
        yield "its result carries a gradient"
    if names := changed(before, head):
        yield f"it changed {listed(names)}"
    if said := difference(raw, given, 0.0):
        yield f"it changed the raw output: {said}"


def fixed_shapes(case: HeadCase) -> Iterator[str]:
    """The shapes of predictions depend on the size of the images, not on what is seen in them; the batch comes first."""
    head = case.build().eval()
    seen = set()
    with torch.no_grad():
        for scale in (0.0, 1.0, 30.0):
            features, sizes = case.inputs(head, 3, scale)
            predictions = head.predict(head(features, sizes), sizes)
            seen.add(tuple(shapes(predictions)))
    if len(seen) > 1:
        yield f"shapes vary with the content: {' or '.join(map(str, sorted(seen)))}"
    if wrong := [shape for shape in next(iter(seen)) if shape[:1] != (3,)]:
        yield f"the batch of 3 is not the first dimension of {wrong}"


def valid_extent(case: HeadCase) -> Iterator[str]:
    """Boxes end where the content of their image does, at ``sizes.valid``; no prediction changes its shape with that."""
    head = case.build().eval()
    with torch.no_grad():
        features, sizes = case.inputs(head, 3)
        raw, (height, width) = head(features, sizes), sizes.batch
        valid = torch.tensor([[height // 2, width], [height, width // 3], [5, 7]])
        whole, predictions = head.predict(raw, sizes), head.predict(raw, ImageSizes(sizes.batch, valid))
    if shapes(predictions) != shapes(whole):
        yield f"shapes {shapes(whole)} become {shapes(predictions)} where only a part of the images is content"
    found = pytree.tree_leaves(predictions, is_leaf=lambda node: isinstance(node, Detections))
    for boxes, _, _, count in (leaf for leaf in found if isinstance(leaf, Detections)):
        outside = ((boxes < 0) | (boxes > valid.flip(1).repeat(1, 2)[:, None])).any(2)
        outside &= torch.arange(boxes.shape[1]) < count[:, None]
        if bool(outside.any()):
            yield f"{int(outside.sum())} boxes leave the content of their image"
