"""Static int8: weights per channel, activations by what they are on calibration images, written as pairs of QuantizeLinear and
DequantizeLinear (QDQ), which onnxruntime, OpenVINO and TensorRT read. Which layers: :mod:`effbackbones.export.int8layers`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.export.int8layers import Int8Layers, Op, int8_layers
from effbackbones.export.onnxfile import quiet, require

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CUTS = ("Clip", "Relu")
_POOLS = ("ReduceMean", "GlobalAveragePool")
Feed = Mapping[str, NDArray[Any]]
Change = Callable[[Path], None]
"""What is done to a file of ONNX once it is written."""


def quantise(path: Path, feeds: Sequence[Feed], ranges: Sequence[tuple[float, float]] | None = None) -> None:
    """Replace the file of ONNX ``path`` by one in int8, calibrated on ``feeds``, inputs by name.

    ``ranges``: those of training in int8 (:class:`effbackbones.export.simulation.Int8Simulation`), two of each layer in the order of
    calls, in place of calibrated ones. Others than the layers of the graph have raise :class:`UserError`.
    """
    onnx = require("onnx", "onnxruntime")
    from onnxruntime import quantization  # slow to import, of the extra `export`

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped
        """Hands out the images one by one."""

        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            """The next inputs, None at the end."""
            feed = next(self.left, None)
            return None if feed is None else dict(feed)

    model = onnx.load(str(path))
    for number, node in enumerate(model.graph.node):  # chosen by name below
        node.name = node.name or f"node_{number}"
    onnx.save(model, str(path))
    layers = quantised_nodes(model.graph)
    options: dict[str, Any] = {"CalibMovingAverage": True}
    if layers.gives_float:
        options["OpTypesToExcludeOutputQuantization"] = list(WEIGHTED)
    if ranges is not None:
        options["TensorQuantOverrides"] = overrides(model.graph, layers, ranges)
    out = path.with_name(f"int8_{path.name}")
    with quiet("root"):
        quantization.quantize_static(
            str(path),
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=sorted(layers.weighted | layers.cuts),
            op_types_to_quantize=[*WEIGHTED, *CUTS],
            extra_options=options,
        )
    if ranges is not None:
        made = onnx.load(str(out))
        _read_early(made.graph, early_readers(model.graph, layers))
        onnx.save(made, str(out))
    out.replace(path)


def early_readers(graph: Any, layers: Int8Layers) -> set[tuple[str, str]]:
    """Name of a node and of a value that it reads before a layer rounds it: in training, these read what is not rounded."""
    places = points(graph, layers)
    rounded = {name for place in places[1::2] for name in place}
    taken = {node.name: place for node, place in zip(_weighted(graph, layers), places[::2], strict=True)}
    found, waiting = set[tuple[str, str]](), dict[str, list[str]]()
    for node in graph.node:
        for name in taken.get(node.name, ()):
            found |= {(reader, name) for reader in waiting.pop(name, ())}
            rounded.add(name)
        for name in node.input:
            if name not in rounded:
                waiting.setdefault(name, []).append(node.name)
    return found


def _read_early(graph: Any, early: Collection[tuple[str, str]]) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            value = name.removesuffix("_DequantizeLinear_Output")
            if value != name and (node.name, value) in early:
                node.input[place] = value


def _weighted(graph: Any, layers: Int8Layers) -> list[Any]:
    return [node for node in graph.node if node.name in layers.weighted]


def overrides(graph: Any, layers: Int8Layers, ranges: Sequence[tuple[float, float]]) -> dict[str, list[dict[str, Any]]]:
    """Scale and zero point of what the layers take and give, by the name of the value, as onnxruntime is told them; not where training saw
    nothing, for what it had rounded at another place already."""
    names = points(graph, layers)
    if len(ranges) != len(names):
        what = f"it was trained in {len(ranges) // 2} calls of layers in int8, and the graph has {len(names) // 2}"
        raise UserError("int8", what, "train it with optim.quantise again, or export it with another precision")
    found: dict[str, list[dict[str, Any]]] = {}
    for values, given in zip(names, ranges, strict=True):
        if given == (0.0, 0.0):
            continue
        steps = next((found[name] for name in values if name in found), [_steps(*given)])
        found |= {name: steps for name in values}
    return found


def points(graph: Any, layers: Int8Layers) -> list[tuple[str, ...]]:
    """The values that are rounded, two places a layer: what it takes, with zeros around it and without, and what it gives, before a cut
    and after it."""
    cuts = {node.input[0]: node.output[0] for node in graph.node if node.name in layers.cuts}
    padded = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Pad"}
    found: list[tuple[str, ...]] = []
    for node in _weighted(graph, layers):
        taken, given = node.input[0], node.output[0]
        found += [(padded.get(taken, taken), taken), () if layers.gives_float else (given, cuts.get(given, given))]
    return found


def _steps(low: float, high: float) -> dict[str, Any]:
    """256 steps from ``low`` to ``high``, 0 among them, computed in float32 as the simulation does."""
    least, most = np.float32(min(low, 0)), np.float32(max(high, 0))
    scale = np.float32((most - least) / np.float32(255))
    if scale < np.finfo(np.float32).tiny:
        scale = np.float32(1)
    zero = np.clip(np.round(-least / scale), 0, 255)
    return {"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}


def quantised_nodes(graph: Any) -> Int8Layers:
    """The nodes of a graph of ONNX that are computed in int8, by name."""
    constant = {one.name for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    ops = []
    for node in graph.node:
        moving = tuple(name for name in node.input if name and name not in constant)
        kind: Any
        if node.op_type in WEIGHTED and any(name in constant for name in node.input[1:2]):
            kind = "weighted"
        elif node.op_type in _POOLS and _spatial(node, makers, graph):
            kind = "pool"
        else:
            kind = "cut" if node.op_type in CUTS else "smooth" if node.op_type == "Sigmoid" else "other"
        ops.append(Op(node.name, kind, moving, tuple(node.output), _groups(node)))
    return int8_layers(ops, [output.name for output in graph.output])


def _groups(node: Any) -> int:
    return next((int(one.i) for one in node.attribute if one.name == "group"), 1)


def _spatial(node: Any, makers: Mapping[str, Any], graph: Any) -> bool:
    """Whether a mean is one over the two last axes of maps."""
    if node.op_type == "GlobalAveragePool":
        return True
    values = {one.name: one for one in graph.initializer}
    axes = None
    if len(node.input) > 1:
        stored = values.get(node.input[1])
        made = makers.get(node.input[1])
        if stored is None and made is not None and made.op_type == "Constant":
            stored = made.attribute[0].t
        axes = None if stored is None else np.frombuffer(stored.raw_data, np.int64).tolist() or list(stored.int64_data)
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]
