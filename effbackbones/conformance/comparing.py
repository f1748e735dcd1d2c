"""What the checks of backbones and of heads share: comparing trees of tensors, watching state, exporting."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, between two ways of computing the same in float32."""


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree of lists, dicts and tuples."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """Their shapes."""
    return [tuple(leaf.shape) for leaf in tensors(tree)]


def difference(left: Any, right: Any, tolerance: float = TOLERANCE) -> str:
    """How two trees of tensors differ, in words; empty where they agree."""
    if shapes(left) != shapes(right):
        return f"shapes {shapes(left)} against {shapes(right)}"
    for i, (a, b) in enumerate(zip(tensors(left), tensors(right), strict=True)):
        if not a.numel():
            continue
        a, b = a.detach().double(), b.detach().double()
        distance = float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12)
        if not distance <= tolerance:  # NaN too
            return f"output {i} differs by {distance:.1e} of its largest value"
    return ""


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, also of those outside the state dict."""
    return {name: value.detach().clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def changed(before: dict[str, Tensor], module: nn.Module) -> list[str]:
    """Names of parameters and buffers that are no longer bit-equal."""
    after = snapshot(module)
    return [name for name in before if name not in after or not torch.equal(before[name], after[name])]


def unreached(module: nn.Module) -> list[str]:
    """Names of trainable parameters without a gradient."""
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def not_finite(module: nn.Module) -> list[str]:
    """Names of parameters whose gradient holds NaN or infinity."""
    return [name for name, p in module.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def images(batch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Random images of values around zero, as after normalisation."""
    return torch.randn(batch, channels, *size)


def export_holds(
    module: nn.Module, traced: Tensor, others: Sequence[Tensor], *, rows: int | None = None
) -> Iterator[str]:
    """Export with free batch, width and, unless there are so many ``rows``, height at the size of ``traced``; the program must agree with
    ``module`` at all sizes."""
    free = dict.fromkeys((0, 3) if rows else (0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (traced,), dynamic_shapes=(free,)).module()
    for x in (traced, *others):
        where = f"exported at {list(traced.shape)}, run at {list(x.shape)}"
        try:
            result = program(x)
        except Exception as error:
            yield f"{where}: {' '.join(str(error).split())[:200]}"
            continue
        if said := difference(result, module(x)):
            yield f"{where}: {said}"


def compile_holds(module: nn.Module, inputs: Sequence[Tensor]) -> Iterator[str]:
    """Compile as one graph; the result must agree with ``module``."""
    torch._dynamo.reset()
    try:
        compiled: Callable[[Tensor], Any] = torch.compile(module, backend="eager", fullgraph=True)
        for x in inputs:
            if said := difference(compiled(x), module(x)):
                yield f"at {list(x.shape)}: {said}"
    finally:
        torch._dynamo.reset()
