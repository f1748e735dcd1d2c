"""The forms of non-maximum suppression that a graph holds give what the eager one gives."""

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
