"""The forms of non-maximum suppression that a graph holds give what the eager one gives."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from heads.detection.nms import Candidates, _hard_nms_of_onnx, _hard_nms_unrolled, hard_nms


def made(seed: int, count: int, classes: int, *, images: int = 2) -> Candidates:
    """Candidates by falling score, some of which are none, and some of equal scores and boxes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(images, count, 2, generator=generator) * 30], 2)
    boxes[:, 1::5] = boxes[:, ::5][:, : boxes[:, 1::5].shape[1]]
    scores = (torch.rand(images, count, generator=generator) * 20).round() / 20
    scores = torch.where(scores < 0.1, -1.0, scores).sort(1, descending=True).values
    return Candidates(boxes, scores, torch.randint(0, classes, (images, count), generator=generator))


@pytest.mark.parametrize("form", ["onnx", "unrolled"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 40),
    classes=st.integers(1, 4),
    iou=st.sampled_from([0.1, 0.5, 0.9]),
    most=st.integers(1, 30),
)
def test_a_form_for_graphs_gives_what_the_eager_one_gives(
    form: str, seed: int, count: int, classes: int, iou: float, most: int
) -> None:
    found, how = made(seed, count, classes), {"iou": iou, "threshold": 0.2, "most": most}
    expected = hard_nms(found, **how)  # type: ignore[arg-type]
    ours = _hard_nms_of_onnx(found, classes, **how) if form == "onnx" else _hard_nms_unrolled(found, **how)  # type: ignore[arg-type]
    for name, one, other in zip(expected._fields, expected, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, msg=name)


def suppressed(boxes: Sequence[Sequence[float]], labels: Sequence[int], iou: Fraction) -> list[int]:
    """The definition, in numbers that are not rounded: rows that stay, of boxes by falling score."""
    kept: list[int] = []
    for row, box in enumerate(boxes):
        for other in (boxes[k] for k in kept if labels[k] == labels[row]):
            sides = [min(box[a + 2], other[a + 2]) - max(box[a], other[a]) for a in range(2)]
            shared = max(Fraction(sides[0]), 0) * max(Fraction(sides[1]), 0)
            areas = [(Fraction(b[2]) - Fraction(b[0])) * (Fraction(b[3]) - Fraction(b[1])) for b in (box, other)]
            if shared > iou * (sum(areas) - shared):
                break
        else:
            kept.append(row)
    return kept


@pytest.mark.parametrize("form", ["eager", "onnx", "unrolled"])
@pytest.mark.parametrize(("classes", "whole"), [(2, True), (365, False), (1203, False)])
def test_classes_and_borders_are_those_of_the_definition(form: str, classes: int, whole: bool) -> None:
    """Boxes of a few pixels of the last of many classes, in a large image; and whole numbers, of which many pairs overlap by 3 / 5."""
    draw = torch.Generator().manual_seed(classes)
    middles, kinds = torch.rand(12, 2, generator=draw) * 1500, classes - 1 - torch.randint(0, 2, (12,), generator=draw)
    place = torch.randint(0, 12, (150,), generator=draw)
    corner = middles[place] + torch.rand(150, 2, generator=draw) * 4
    sides = 4 + 5 * torch.rand(150, 2, generator=draw)
    corner, sides = (corner.round(), sides.round()) if whole else (corner, sides)
    labels, iou = kinds[place], 0.6
    boxes = torch.cat([corner, corner + sides], 1)
    found = Candidates(boxes[None], torch.linspace(0.9, 0.3, 150)[None], labels[None])
    kept = suppressed(boxes.tolist(), labels.tolist(), Fraction(3, 5))
    how = {"iou": iou, "threshold": 0.2, "most": 150}
    if form == "onnx":
        ours = _hard_nms_of_onnx(found, classes, **how)  # type: ignore[arg-type]
    else:
        ours = (hard_nms if form == "eager" else _hard_nms_unrolled)(found, **how)  # type: ignore[arg-type]
    assert 30 < len(kept) < 140
    assert ours.boxes[0, : int(ours.count)].tolist() == boxes[kept].tolist()
