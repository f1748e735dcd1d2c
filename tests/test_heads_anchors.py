"""Anchors: where they are, what is written relative to them, and which box each of them gets."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from heads.detection.anchors import anchor_grid, anchor_shapes, assign, decode, encode, intersections, pairwise_iou

ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
D0 = torch.tensor(anchor_shapes(4.0, 3, ASPECTS), dtype=torch.float64)


def maps_of(height: int, width: int, levels: range = range(3, 8)) -> list[tuple[int, int]]:
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def test_the_grid_is_the_published_one() -> None:
    """Reference sheet 2.5, there y before x: the second anchor of a cell is wide."""
    boxes = anchor_grid((512, 512), maps_of(512, 512), D0)
    assert boxes.dtype == torch.float32
    assert boxes.shape == (36864 + 9216 + 2304 + 576 + 144, 4)
    first = [
        (-12, -12, 20, 20),
        (-18.4, -7.2, 26.4, 15.2),
        (-7.2, -18.4, 15.2, 26.4),
        (-16.159, -16.159, 24.159, 24.159),
    ]
    torch.testing.assert_close(boxes[:4], torch.tensor(first), atol=1e-3, rtol=0)
    assert float(boxes.double().abs().sum()) == pytest.approx(50_638_299.56, abs=0.01)


def test_cells_run_row_by_row_and_anchors_stand_on_their_middle() -> None:
    boxes = anchor_grid((64, 128), [(2, 4)], torch.tensor([[1.0, 1.0], [2.0, 0.5]]))
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert middle[::2].tolist() == [[16 + 32 * x, 16 + 32 * y] for y in range(2) for x in range(4)]
    assert torch.equal(middle[::2], middle[1::2])
    assert (boxes[1, 2:] - boxes[1, :2]).tolist() == [64, 16]


def test_strides_follow_the_maps_on_each_axis() -> None:
    boxes = anchor_grid((100, 90), [(3, 2)], torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(boxes[-1], torch.tensor([45.0, 200 / 3, 90.0, 100.0]))


@pytest.mark.peer
@pytest.mark.parametrize("size", [(512, 512), (320, 320), (448, 448), (128, 1536), (384, 640)])
@pytest.mark.parametrize(("scale", "levels"), [(4.0, range(3, 8)), (5.0, range(3, 9)), (3.0, range(2, 6))])
def test_the_grid_equals_the_reference(size: tuple[int, int], scale: float, levels: range) -> None:
    effdet = pytest.importorskip("effdet.anchors")
    expected = effdet.Anchors(levels[0], levels[-1], 3, ASPECTS, scale, size).boxes[:, [1, 0, 3, 2]]
    boxes = anchor_grid(
        size, maps_of(*size, levels), torch.tensor(anchor_shapes(scale, 3, ASPECTS), dtype=torch.float64)
    )
    assert (boxes - expected).abs().max() <= 1e-4


COORDINATE = st.floats(-500, 500, width=32)
SIDE = st.floats(0.5, 400, width=32)


@settings(deadline=None, max_examples=200)
@given(st.tuples(COORDINATE, COORDINATE, SIDE, SIDE), st.tuples(COORDINATE, COORDINATE, SIDE, SIDE))
def test_decoding_undoes_encoding(box: tuple[float, ...], anchor: tuple[float, ...]) -> None:
    (x, y, w, h), (ax, ay, aw, ah) = box, anchor
    boxes, anchors = torch.tensor([[x, y, x + w, y + h]]), torch.tensor([[ax, ay, ax + aw, ay + ah]])
    deltas = encode(boxes, anchors)
    expected = [(y + h / 2 - ay - ah / 2) / ah, (x + w / 2 - ax - aw / 2) / aw, math.log(h / ah), math.log(w / aw)]
    torch.testing.assert_close(deltas[0], torch.tensor(expected), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(decode(deltas, anchors), boxes, atol=2e-2, rtol=1e-4)


@pytest.mark.peer
def test_coder_equals_the_reference() -> None:
    effdet, detection = pytest.importorskip("effdet.anchors"), pytest.importorskip("effdet.object_detection")
    boxes, anchors = random_boxes(50, seed=1), random_boxes(50, seed=2)
    order = [1, 0, 3, 2]
    lists = (detection.BoxList(boxes[:, order]), detection.BoxList(anchors[:, order]))
    expected = detection.FasterRcnnBoxCoder().encode(*lists)
    torch.testing.assert_close(encode(boxes, anchors), expected, atol=1e-6, rtol=1e-6)
    deltas = torch.randn(50, 4)
    torch.testing.assert_close(
        decode(deltas, anchors), effdet.decode_box_outputs(deltas, anchors[:, order], output_xyxy=True)
    )


def random_boxes(count: int, seed: int, size: float = 256.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, side = (torch.rand(count, 2, generator=generator) for _ in range(2))
    return torch.cat([corner, corner + 0.02 + side.square() * 0.8], 1) * size


@pytest.mark.peer
def test_overlap_equals_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    boxes, others = random_boxes(40, seed=1), random_boxes(60, seed=2)
    torch.testing.assert_close(pairwise_iou(boxes, others), ops.box_iou(boxes, others))
    torch.testing.assert_close(pairwise_iou(boxes.expand(3, 40, 4), others)[2], ops.box_iou(boxes, others))


def test_empty_boxes_share_nothing() -> None:
    empty = torch.zeros(2, 4)
    assert not pairwise_iou(empty, empty).any()
    assert not intersections(empty, torch.tensor([[0.0, 0.0, 5.0, 5.0]])).any()


ANCHORS = anchor_grid((256, 256), maps_of(256, 256), D0)


def used(count: int, rows: int) -> Tensor:
    return (torch.arange(rows) < count)[None]


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(5))
def test_matches_equal_the_reference(seed: int) -> None:
    """Random boxes, with twins that tie everywhere, an empty one, tiny ones and one outside: they ask for the same anchors."""
    effdet, detection = pytest.importorskip("effdet.anchors"), pytest.importorskip("effdet.object_detection")
    boxes = random_boxes(30, seed)
    odd = torch.tensor([[50.0, 50, 50, 90], [7.0, 7, 8, 8], [7.0, 7, 8.5, 8], [600.0, 600, 700, 700]])
    boxes = torch.cat([boxes, boxes[:4], odd, ANCHORS[[700, 1500]].clamp(0, 256)])
    matcher = effdet.AnchorLabeler(effdet.Anchors(3, 7, 3, ASPECTS, 4.0, (256, 256)), 3).target_assigner._matcher
    order = [1, 0, 3, 2]
    similarity = detection.IouSimilarity().compare(
        detection.BoxList(boxes[:, order]), detection.BoxList(ANCHORS[:, order])
    )
    expected = matcher.match(similarity).match_results
    padded = torch.cat([boxes, torch.full((5, 4), 77.0), ANCHORS[100:103]])
    found = assign(ANCHORS, torch.stack([padded, padded]), used(len(boxes), len(padded)).expand(2, -1)).match
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], expected)
    assert 60 < int((expected >= 0).sum()) < len(ANCHORS) / 4


def test_padding_never_matches() -> None:
    padding = ANCHORS[[0, 50, 5000]][None]
    found = assign(ANCHORS, padding, torch.zeros(1, 3, dtype=torch.bool))
    assert (found.match == -1).all()
    assert found.ignored is None
    hidden = assign(ANCHORS, padding, torch.tensor([[False, True, False]])).match
    assert set(hidden.unique().tolist()) == {-1, 1}


def test_every_box_gets_an_anchor_and_the_first_of_equals_wins() -> None:
    sliver = torch.tensor([0.0, 100.0, 256.0, 101.0])
    boxes = torch.stack([sliver, torch.tensor([20.0, 20.0, 80.0, 90.0]), sliver])[None]
    match = assign(ANCHORS, boxes, torch.ones(1, 3, dtype=torch.bool)).match[0]
    best = pairwise_iou(sliver[None], ANCHORS)[0]
    assert best.max() < 0.5
    assert match[best.argmax()] == 0
    assert (match == 0).sum() == 1
    assert (match == 2).sum() == 0
    assert (match == 1).sum() > 1


def test_anchors_inside_a_crowd_are_ignored_unless_they_have_a_box() -> None:
    boxes = torch.tensor([[[20.0, 20.0, 80.0, 80.0], [0.0, 0.0, 128.0, 256.0]]])
    usable, crowd = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    found = assign(ANCHORS, boxes, usable, crowd)
    assert found.ignored is not None
    clipped = torch.minimum(ANCHORS, torch.tensor([128.0, 256, 128, 256])).clamp(min=0)
    inside = (clipped[:, 2:] - clipped[:, :2]).prod(1) / (ANCHORS[:, 2:] - ANCHORS[:, :2]).prod(1) > 0.5
    assert torch.equal(found.ignored[0], inside & (found.match[0] < 0))
    assert torch.equal(found.match, assign(ANCHORS, boxes, usable).match)
    assert int((found.match >= 0).sum()) > 0


def test_a_batch_gives_what_its_images_give() -> None:
    batch = torch.stack([random_boxes(6, seed) for seed in range(3)])
    usable = torch.tensor([[True] * 6, [False] * 6, [True] * 3 + [False] * 3])
    together = assign(ANCHORS, batch, usable).match
    for i, expected in itertools.product(range(3), [together]):
        assert torch.equal(assign(ANCHORS, batch[i : i + 1], usable[i : i + 1]).match[0], expected[i])
    assert (together[1] == -1).all()
    assert together[2].max() == 2


def test_assignment_in_groups_of_images_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit in memory at once is matched image group by image group."""
    from heads.detection import anchors as module

    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5, 7, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 5 + torch.rand(5, 7, 2, generator=generator) * 60], 2)
    usable, crowd = torch.rand(5, 7, generator=generator) > 0.2, torch.rand(5, 7, generator=generator) > 0.7
    grid = anchor_grid((128, 128), [(16, 16), (8, 8)], torch.tensor(anchor_shapes(4.0, 3, [(1.0, 1.0), (1.4, 0.7)])))
    whole = [assign(grid, boxes, usable & ~crowd, c) for c in (crowd, None)]
    calls = []
    honest = module._assign
    monkeypatch.setattr(module, "_assign", lambda *arguments: calls.append(1) or honest(*arguments))
    monkeypatch.setattr(module, "_MOST_PAIRS", 2 * 7 * len(grid))
    grouped = [assign(grid, boxes, usable & ~crowd, c) for c in (crowd, None)]
    assert len(calls) == 6  # 2 + 2 + 1 images, twice
    for one, other in zip(whole, grouped, strict=True):
        assert torch.equal(one.match, other.match)
        assert (one.ignored is None) == (other.ignored is None)
    assert torch.equal(whole[0].ignored, grouped[0].ignored)
    assert whole[0].ignored.any()
