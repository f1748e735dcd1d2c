"""What the layers of a Keras file are: their names where it has none, their tensors, and how a model prepares its images.

Source: ``keras/src/applications/efficientnet.py`` (the order of layers, ``Rescaling`` and ``Normalization`` inside of the model).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from effbackbones.contracts import IMAGENET_STD

_LEAVES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@dataclass(frozen=True)
class Layer:
    """A layer in a file: ``prefix`` names the models around it (``"efficientnetb0."``), ``kind`` is its class in snake case, ``order``
    its number among those of its kind, ``fields`` its arrays as Keras calls and lays them out."""

    prefix: str
    name: str
    kind: str
    order: int
    fields: Mapping[str, np.ndarray]


class Preparation(NamedTuple):
    """How a model prepares images of values in 0..1: mean and std of each channel; the size (H, W) it was built for, None where the
    file does not say it; and what there is to say of that in sentences."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    remarks: tuple[str, ...] = ()


def name_by_order(layers: Sequence[Layer]) -> list[Layer]:
    """``layers`` with the names that EfficientNet's have in Keras, where a file of an early Keras 3 has none: convolutions, depthwise
    ones and batch norms are numbered in the order of the network, which is one chain."""
    named: list[Layer] = []
    for prefix in dict.fromkeys(layer.prefix for layer in layers):
        inside = [layer for layer in layers if layer.prefix == prefix]
        names = {} if any(layer.name for layer in inside) else _chain(inside)
        numbered = ((layer, f"{layer.kind}_{layer.order}" if layer.order else layer.kind) for layer in inside)
        named += [replace(one, name=one.name or names.get(id(one), number)) for one, number in numbered]
    return named


def _chain(layers: Sequence[Layer]) -> dict[int, str]:
    """Names of an EfficientNet's layers, by their ``id``; empty for another network."""
    kinds = ("conv2d", "depthwise_conv2d", "batch_normalization", "dense")
    convs, depthwise, norms, dense = (
        sorted((layer for layer in layers if layer.kind == kind), key=lambda layer: layer.order) for kind in kinds
    )
    names: dict[int, str] = {}
    take = {"conv": iter(convs), "bn": iter(norms)}

    def called(kind: str, name: str) -> Layer:
        layer = next(take[kind])
        names[id(layer)] = name
        return layer

    try:
        called("conv", "stem_conv"), called("bn", "stem_bn")
        stage, channels, letter, ahead = 0, 0, "a", next(take["conv"])
        for layer in depthwise:
            width, parts = layer.fields["depthwise_kernel"].shape[2], []
            if _inputs(ahead) != width:  # a convolution that widens is in front, but not in the first stage
                parts.append((ahead, "expand_conv"))
                parts.append((next(take["bn"]), "expand_bn"))
                ahead = next(take["conv"])
            reduce, expand, project = ahead, next(take["conv"]), next(take["conv"])
            parts += [(layer, "dwconv"), (next(take["bn"]), "bn"), (reduce, "se_reduce"), (expand, "se_expand")]
            parts += [(project, "project_conv"), (next(take["bn"]), "project_bn")]
            if (
                outputs := project.fields["kernel"].shape[-1]
            ) != channels:  # each stage has more channels than the last
                stage, channels, letter = stage + 1, outputs, "a"
            else:
                letter = chr(ord(letter) + 1)
            names |= {id(part): f"block{stage}{letter}_{name}" for part, name in parts}
            ahead = next(take["conv"])
        names[id(ahead)] = "top_conv"
        called("bn", "top_bn")
    except (StopIteration, KeyError, IndexError):
        return {}
    if len(dense) == 1 and next(take["bn"], None) is None:
        names[id(dense[0])] = "predictions"
    return names


def _inputs(layer: Layer) -> int:
    return int(layer.fields["kernel"].shape[2])


def tensors_of(layers: Iterable[Layer]) -> dict[str, Tensor]:
    """The parameters and buffers of ``layers`` by name (``"efficientnetb0.block1a_dwconv.weight"``), in PyTorch's order."""
    return {
        f"{layer.prefix}{layer.name}.{leaf}": tensor for layer in layers for leaf, tensor in _tensors(layer).items()
    }


def _tensors(layer: Layer) -> dict[str, Tensor]:
    """Parameters and buffers of a layer as PyTorch orders them: filters [O, I, H, W], of Keras [H, W, I, O], depthwise ones
    [C, 1, H, W], of Keras [H, W, C, 1]; matrices [O, I], of Keras [I, O]."""
    found = {}
    for field, array in layer.fields.items():
        if field not in _LEAVES or array.dtype.kind not in "fiu":
            continue
        if array.ndim == 4:
            array = array.transpose((2, 3, 0, 1) if layer.kind == "depthwise_conv2d" else (3, 2, 0, 1))
        elif array.ndim == 2:
            array = array.T
        found[_LEAVES[field]] = torch.from_numpy(np.ascontiguousarray(array))
    return found


def preparation(layers: Sequence[Layer], config: Mapping[str, Any]) -> dict[str, Preparation]:
    """How each EfficientNet among ``layers`` prepares its images, by its prefix; ``config`` is the model's where the file has one."""
    models = dict(_models(config))
    found = {}
    for prefix in dict.fromkeys(layer.prefix for layer in layers if layer.name == "stem_conv"):
        inside = [layer for layer in layers if layer.prefix == prefix]
        name = prefix.rstrip(".").rpartition(".")[2]
        steps = models.get(name) or (next(iter(models.values())) if len(models) == 1 else None)
        prepared = _by_config(steps, inside) if steps else _by_layers(inside)
        if prepared:
            found[prefix] = prepared
    return found


def _models(config: Any, name: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The lists of layers in a config that an EfficientNet is in, by the name of the model."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(layers, list):
        return
    layers = [layer for layer in layers if isinstance(layer, dict) and isinstance(layer.get("config"), dict)]
    if any(layer["config"].get("name") == "stem_conv" for layer in layers):
        yield name and str(inner.get("name", name)), layers
    for layer in layers:
        yield from _models(layer, str(layer["config"].get("name", "inside")))


def _by_config(steps: Sequence[Mapping[str, Any]], layers: Sequence[Layer]) -> Preparation | None:
    """By the layers in front of the stem: each scales and shifts."""
    scale, shift = np.ones(1), np.zeros(1)
    weights = {layer.name: layer.fields for layer in layers if layer.kind == "normalization"}
    shape: Any = ()
    for step in steps:
        options, kind = step["config"], step.get("class_name")
        if options.get("name") == "stem_conv":
            break
        if kind == "InputLayer":
            shape = options.get("batch_shape") or options.get("batch_input_shape") or ()
        elif kind == "Rescaling":
            factor = _numbers(options.get("scale", 1.0))
            scale, shift = scale * factor, shift * factor + _numbers(options.get("offset", 0.0))
        elif kind == "Normalization":
            own = weights.get(str(options.get("name")), {})
            mean, variance = (
                _numbers(own.get(field, options.get(field))).reshape(-1) for field in ("mean", "variance")
            )
            scale, shift = scale / np.sqrt(variance), (shift - mean) / np.sqrt(variance)
    height, width = shape[1:3] if len(shape) == 4 else (None, None)
    remarks: tuple[str, ...] = ()
    if len(shape) == 4 and not (height and width):
        remarks = (
            "built for images of any size, where Keras pads as for even maps: equal features where 32 divides the sides",
        )
    return _prepared(1 / (255 * scale), -shift / (255 * scale), (height, width) if height and width else None, remarks)


def _by_layers(layers: Sequence[Layer]) -> Preparation | None:
    """By the weights of the normalisation alone. Keras divides by the root of what is called variance. In its published files that is
    the standard deviation, and a second layer divides by its root again, which the files of 2020 cannot name yet."""
    norm = next((layer.fields for layer in layers if layer.kind == "normalization"), {})
    if not {"mean", "variance"} <= norm.keys():
        return None
    mean, variance = (np.asarray(norm[field], dtype=np.float64).reshape(-1) for field in ("mean", "variance"))
    std = np.sqrt(variance)
    twice = sum(layer.kind == "rescaling" for layer in layers) > 1
    if len(variance) == 3 and (twice or np.allclose(variance, IMAGENET_STD, atol=1e-6)):
        std = std * np.sqrt(IMAGENET_STD)
    return _prepared(std, mean, None)


def _prepared(
    std: np.ndarray, mean: np.ndarray, size: tuple[int, int] | None, remarks: tuple[str, ...] = ()
) -> Preparation | None:
    mean, std = np.broadcast_arrays(mean, std)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        return None
    return Preparation(tuple(map(float, mean)), tuple(map(float, std)), size, remarks)


def _numbers(value: Any) -> np.ndarray:
    """A number or list of a config, which may be written as an array of numpy."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value")
    return np.asarray(value, dtype=np.float64)
