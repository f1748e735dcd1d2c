"""Operators whose translation to ONNX is ours.

Suppression is one node there, where plain tensor operations would be thousands: a head asks :func:`for_onnx` and calls it; everywhere
else, in ``torch.export`` too, it computes with tensors alone. Pooling to a number of cells is what ONNX lacks, and torch's own
translation holds the places of the cells in the image it was traced with: at another size it fails, or in OpenVINO answers wrongly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def for_onnx() -> bool:
    """Whether the graph that is being made will be one of ONNX."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


@torch.library.custom_op("effbackbones::suppress", mutates_args=())
def suppress(boxes: Tensor, ranks: Tensor, iou: float, most: int) -> Tensor:
    """Non-maximum suppression class by class: bool [B, N], which of boxes float32 [B, N, 4] xyxy stay.

    ``ranks`` float32 [B, K, N]: of each class the boxes that are of it, the larger the better, no two equal; 0: not of it. Those
    that overlap a better one which stays by more than ``iou`` go; ``most`` stay of each class. As ONNX' NonMaxSuppression.
    """
    stay = torch.zeros(ranks.shape[::2], dtype=torch.bool, device=boxes.device)
    for image, (own, classes) in enumerate(zip(boxes, ranks, strict=True)):
        for rank in classes:
            left = rank.argsort(descending=True)[: int((rank > 0).sum())]
            for _ in range(most):
                if not len(left):
                    break
                stay[image, left[0]] = True
                left = left[1:][_iou(own[left[0]], own[left[1:]]) <= iou]
    return stay


@suppress.register_fake
def _(boxes: Tensor, ranks: Tensor, iou: float, most: int) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def _iou(box: Tensor, others: Tensor) -> Tensor:
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    shared = sides.clamp(min=0).prod(1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1)
    return shared / (area + areas - shared)


def translations() -> Mapping[Any, Callable[..., Any]]:
    """What the exporter of ONNX makes of these operators."""
    from onnxscript import opset18  # heavy, and of the extra `export`

    op: Any = opset18  # its types are those of each operator's own tensors

    def suppress_onnx(boxes: Any, ranks: Any, iou: float, most: int) -> Any:
        limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[iou]), op.Constant(value_floats=[0.0])
        chosen = op.NonMaxSuppression(boxes, ranks, *limits)  # rows of image, class, box
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        one = op.Constant(value_ints=[1])
        ones = op.Expand(one, op.Slice(op.Shape(chosen), op.Constant(value_ints=[0]), one))
        shape = op.Slice(op.Shape(boxes), op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        none = op.Expand(op.Constant(value_ints=[0]), shape)
        return op.Cast(op.ScatterND(none, places, ones), to=9)  # to bool

    def side_mean(maps: Any, axis: int, cells: int) -> Any:
        """[cells, side] what each place of a side counts in the mean of a cell: of ``side`` places cell i has those from
        floor(i side / cells) to ceil((i + 1) side / cells)."""
        side = op.Slice(op.Shape(maps), op.Constant(value_ints=[axis]), op.Constant(value_ints=[axis + 1]))
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        number = op.Constant(value_ints=[cells])
        first, after = (
            op.Unsqueeze(op.Div(top, number), op.Constant(value_ints=[1]))
            for top in (
                op.Mul(op.Constant(value_ints=list(range(cells))), side),
                op.Add(
                    op.Mul(op.Constant(value_ints=list(range(1, cells + 1))), side), op.Constant(value_ints=[cells - 1])
                ),
            )
        )
        place = op.Range(zero, op.Squeeze(side), one)
        inside = op.And(op.GreaterOrEqual(place, first), op.Less(place, after))
        return op.CastLike(op.Div(op.Cast(inside, to=1), op.Cast(op.Sub(after, first), to=1)), maps)

    def pool_onnx(maps: Any, output_size: Sequence[int]) -> Any:
        rows, columns = output_size
        if rows == columns == 1:
            return op.ReduceMean(maps, op.Constant(value_ints=[2, 3]), keepdims=1)
        across = op.Transpose(side_mean(maps, 3, columns), perm=[1, 0])
        return op.MatMul(side_mean(maps, 2, rows), op.MatMul(maps, across))

    pools = torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten._adaptive_avg_pool2d.default
    return {torch.ops.effbackbones.suppress.default: suppress_onnx, **dict.fromkeys(pools, pool_onnx)}
