"""Which layers of a network are computed in int8: one rule, for graphs that are exported and for training that simulates them.

Left in float32: preprocessing and post-processing; the last weighted layer before each output, whose numbers are the answer; and what
follows a mean over all pixels (squeeze-excite, pooled branches), whose few numbers steer whole channels. What a ReLU or ReLU6 cuts
off gets no numbers: its range is that of the layer before it, too. With the range before the cut, a lite0 on CIFAR-10 falls from top-1
0.76 to 0.50, with this to 0.76. A smooth activation (SiLU, of B0 to B7) cuts nothing off, and small values count: layers before it
give float32, and depthwise ones before it stay in float32. A B0 on CIFAR-10 falls from 0.58 to 0.31 without, to 0.57 with this.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Literal, NamedTuple

_SMOOTH = 0.25
"""Of a network with more layers than this before smooth activations, all give float32: onnxruntime chooses by kind, not one by one."""


class Op(NamedTuple):
    """A step of a computation. ``inputs`` and ``outputs`` are values that depend on the images, in any notation."""

    name: str
    kind: Literal["weighted", "cut", "smooth", "pool", "other"]
    """A layer with weights of its own; ReLU and its like; what a smooth activation begins with; a mean over all pixels."""
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    groups: int = 1


class Int8Layers(NamedTuple):
    """Names of ops: the ``weighted`` ones computed in int8, and the ``cuts`` that alone read what one gives. ``gives_float``: what they
    give is not brought to int8, what they take is."""

    weighted: frozenset[str]
    cuts: frozenset[str]
    gives_float: bool


def int8_layers(ops: Sequence[Op], outputs: Collection[Hashable]) -> Int8Layers:
    """The layers, of ``ops`` in the order of computation that end in ``outputs``."""
    last, pooled = _last_weighted(ops, outputs), _pooled(ops)
    smooth = {op.inputs[0] for op in ops if op.kind == "smooth" and op.inputs}
    weighted = [
        op
        for op in ops
        if op.kind == "weighted"
        and op.inputs
        and op.inputs[0] not in pooled
        and op.name not in last
        and not (op.groups > 1 and op.outputs[0] in smooth)
    ]
    readers = Counter([value for op in ops for value in set(op.inputs)] + list(outputs))
    given = {value for op in weighted for value in op.outputs if readers[value] == 1}
    cuts = frozenset(op.name for op in ops if op.kind == "cut" and op.inputs and op.inputs[0] in given)
    share = sum(op.outputs[0] in smooth for op in weighted) / max(1, len(weighted))
    return Int8Layers(frozenset(op.name for op in weighted), cuts, share > _SMOOTH)


def _pooled(ops: Sequence[Op]) -> set[Hashable]:
    """What is made of means over all pixels alone."""
    pooled: set[Hashable] = set()
    for op in ops:
        if op.kind == "pool" or (op.inputs and set(op.inputs) <= pooled):
            pooled |= set(op.outputs)
    return pooled


def _last_weighted(ops: Sequence[Op], outputs: Collection[Hashable]) -> set[str]:
    """The weighted ops from which an output is reached without passing another one."""
    makers: Mapping[Hashable, Op] = {value: op for op in ops for value in op.outputs}
    found: set[str] = set()
    seen: set[Hashable] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        op = makers.get(value)
        if value in seen or op is None:
            continue
        seen.add(value)
        if op.kind == "weighted":
            found.add(op.name)
        else:
            waiting += op.inputs
    return found
