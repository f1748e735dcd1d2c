"""A model followed through one call without numbers: which layers it calls in which order, and which of these are computed in int8.

On the device ``meta`` tensors have shapes alone, so that it costs neither memory nor arithmetic, and no graph is exported for it.
Batch norms are passed over, for in the file they are part of the layers in front of them.
"""

import copy
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effbackbones.backbones.folding import shed
from effbackbones.errors import UserError
from effbackbones.export.int8layers import Op, int8_layers
from effbackbones.model import Model

_WEIGHTS = {"convolution": 1, "linear": 1, "mm": 1, "bmm": 1, "addmm": 2}
"""Where a weighted operation has its weights."""
_CUTS = ("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_")
_SMOOTH = ("silu", "silu_", "sigmoid", "sigmoid_")


class Called(NamedTuple):
    """The calls of weighted layers in their order: the name of the ``weight``, whether it is computed in ``int8`` there, and whether what
    it gives is read by a function alone that ``cut``s it off. ``gives_float``: what those give is not brought to int8."""

    weights: tuple[str, ...]
    int8: tuple[bool, ...]
    cut: tuple[bool, ...]
    gives_float: bool


def follow(model: Model) -> Called:
    """What a call of ``model`` for an image of its size would compute in int8. Raises :class:`UserError` for a model that cannot be
    followed without numbers."""
    shape = copy.deepcopy(model).eval().requires_grad_(False).to("meta")
    shed(shape)  # what is in no graph stays float32
    shape.runner = None
    height, width = (shape.head.padded(side) for side in shape.image_spec.size)
    images = torch.empty(2, len(shape.image_spec.mean), height, width, device="meta")
    recorder = _Recorder({id(p): name for name, p in shape.named_parameters()})
    recorder.constant |= {id(buffer) for buffer in shape.buffers()}
    try:
        with torch.no_grad(), recorder:
            raw = shape(images, None, normalized=True)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        what = f"{type(model.head).__name__} on {model.backbone.name} cannot be followed without numbers"
        raise UserError("int8", f"{what} ({' '.join(str(error).split())[:120]})", "train it without int8") from error
    outputs = [recorder.value(leaf) for leaf in tree_leaves(raw) if isinstance(leaf, Tensor)]
    layers = int8_layers(recorder.ops, outputs)
    calls = [op for op in recorder.ops if op.kind == "weighted"]
    names = tuple(recorder.weights[op.name] for op in calls)
    cut = {op.inputs[0] for op in recorder.ops if op.name in layers.cuts}
    int8, cuts = tuple(op.name in layers.weighted for op in calls), tuple(op.outputs[0] in cut for op in calls)
    return Called(names, int8, cuts, layers.gives_float)


class _Recorder(TorchDispatchMode):
    """Writes down what is computed from the images. A value is a tensor at a time: one that is overwritten becomes another."""

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = dict(parameters)
        self.constant = set(parameters)
        """Tensors that do not depend on the images."""
        self.ops: list[Op] = []
        self.weights: dict[str, str] = {}
        """Of weighted ops, by name, the name of their weights."""
        self.kept: list[Tensor] = []
        """All tensors, so that none gets the identity of another."""
        self._values: dict[int, int] = {}
        self._count = 0

    def value(self, tensor: Tensor) -> Hashable:
        """What ``tensor`` is now."""
        return self._values.get(id(tensor), -id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        moving = tuple(self.value(one) for one in given if id(one) not in self.constant)
        out = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        self.kept += made
        if given and not moving:  # of constants alone, such as a weight that is transposed
            self.constant |= {id(one) for one in made}
            if len(given) == 1 and id(given[0]) in self.names:
                self.names |= {id(one): self.names[id(given[0])] for one in made}
            return out
        name, plain = f"{len(self.ops)}", func._schema.name.partition("::")[2]
        kind, groups = self._kind(plain, args), 1
        if kind == "weighted":
            self.weights[name] = self.names[id(args[_WEIGHTS[plain]])]
            groups = int(args[8]) if plain == "convolution" else 1
        if "batch_norm" in plain:
            self._values[id(made[0])] = self._values[id(args[0])]
            return out
        for one in made:
            self._count += 1
            self._values[id(one)] = self._count
        self.ops.append(Op(name, kind, moving, tuple(self.value(one) for one in made), groups))
        return out

    def _kind(self, plain: str, args: Any) -> Any:
        if plain in _WEIGHTS:
            return "weighted" if id(args[_WEIGHTS[plain]]) in self.names else "other"
        if plain == "mean":
            axes = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
            return "pool" if args[0].ndim == 4 and sorted(axis % 4 for axis in axes) == [2, 3] else "other"
        if plain.startswith("_adaptive_avg_pool2d"):
            return "pool" if list(args[1]) == [1, 1] else "other"
        return "cut" if plain in _CUTS else "smooth" if plain in _SMOOTH else "other"
