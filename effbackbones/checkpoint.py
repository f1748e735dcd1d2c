"""Our model file: tensors in safetensors, everything else as JSON in its metadata. Read back with no config and no network.

Format 2. Metadata: ``format``, ``record`` (JSON of a :class:`Description`), ``sha256`` over the whole file. Nothing in it
names code: heads, backbones and tasks are looked up in the registry, and a missing one is named. Format 1 did not say how images
are read.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from effbackbones.build import build_model
from effbackbones.errors import UserError
from effbackbones.model import Model
from effbackbones.weights import dialects
from effbackbones.weights.kinds import file_kind
from effbackbones.weights.own import refuse_state
from effbackbones.weights.record import (
    FORMAT,
    FORMAT_VERSION,
    Description,
    as_mapping,
    check_classes,
    not_ours,
    one_line,
    parse_record,
    plain,
    versions,
)
from effbackbones.weights.repository import fetch_repository, is_repository
from effbackbones.weights.tensorfile import pack, read_tensors, write_atomically
from effbackbones.weights.values import check_values

_LOG = logging.getLogger("effbackbones")
_SPARE, _CALLS, _GENEROSITY = 1 << 28, 10_000, 4
"""What building a model may take: bytes and tensors, and so many times those in its file."""


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a :class:`Model` to ``path`` (``.safetensors``), atomically.

    ``classes`` default to the model's own; ``provenance`` is added to the model's. What is wrapped around a model (compiled,
    DataParallel, DistributedDataParallel, AveragedModel) is taken off.

    Raises :class:`UserError` when a tensor is not finite, when layers were put into the model that its config does not know (the file
    could not be loaded), when the file cannot be written, and for another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(str(path), f"unknown suffix {path.suffix!r}", "name it .safetensors")
    model = _unwrapped(model)
    if getattr(model, "folded", False):
        raise UserError(
            str(path), "not written: the model is a copy made for inference", "save the model it was made from"
        )
    config: Any = model.config
    if "backbone" not in config:
        what = "not written: this model does not know how it was built"
        raise UserError(str(path), what, "make it with build_model, or give Model(config=...)")
    names: Any = model.classes if classes is None else classes
    tasks = config.get("task")
    if isinstance(tasks, list | tuple) and not (names is None or isinstance(names, Mapping)):
        what = f"one list of classes for a model of the tasks {', '.join(tasks)}"
        raise UserError(str(path), what, f"name them by task: classes={{{tasks[0]!r}: [...]}}")
    check_classes(names, config, path)
    tensors = {dialects.clean(name): tensor for name, tensor in model.state_dict().items()}
    _check_as_built(model, tensors, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                str(path),
                f"not written: {name} is not finite",
                "training has diverged; go back to an earlier checkpoint",
            )
    told = {**as_mapping(getattr(model, "provenance", {})), **(provenance or {})}
    text = json.dumps(record_of(model, names, metrics or {}, told), allow_nan=False)
    write_atomically(path, pack(tensors, {"format": FORMAT, "record": text}))


def _check_as_built(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a model whose layers were replaced after it was built: its config builds another, which could not load the file."""
    shapes: Mapping[str, torch.Size] = getattr(model, "built_shapes", {})
    built = {dialects.clean(name): shape for name, shape in shapes.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    changed = [name for name in {**found, **built} if found.get(name) != built.get(name)] if built else []
    if changed:
        name = changed[0]
        was, now = (list(sizes[name]) if name in sizes else "nothing" for sizes in (built, found))
        what = f"not written: {len(changed)} of its tensors are not those that its config builds, such as {name}: {was} then, {now} now"
        remedy = (
            "build it so (num_classes, head_options, a head of your own), or keep model.state_dict() with torch.save"
        )
        raise UserError(str(path), what, remedy)


def record_of(model: Any, classes: Any, metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says about ``model``, as :meth:`Description.of` reads it: plain values."""
    numerics = getattr(getattr(model.backbone, "_orig_mod", model.backbone), "numerics", None)
    record = {
        "version": FORMAT_VERSION,
        "config": model.config,
        "image_spec": model.image_spec,
        "reading": getattr(model, "reading", None),
        "numerics": numerics if is_dataclass(numerics) else None,
        "classes": classes,
        "metrics": metrics,
        "provenance": {**versions(), **provenance},
    }
    plain_record: dict[str, Any] = plain(record, "record")
    return plain_record


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what ``torch.compile`` and the wrappers of torch put around it, each of which has it as an attribute."""
    while not isinstance(model, Model):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def load_model(path: str | Path) -> Model:
    """Rebuild the :class:`Model` that :func:`save_model` wrote, in eval mode on the CPU.

    Needs no config and no network, and imports nothing that the file names: a head, backbone or task that is not registered
    raises :class:`UserError` naming it. So do damaged files, and files of a newer format.
    """
    path = fetch_repository(path) if is_repository(path) else Path(path)
    if file_kind(path) != "safetensors":
        raise not_ours(path)
    tensors, metadata = read_tensors(path)
    refuse_state(metadata, path)
    record = parse_record(metadata, path)
    about = Description.of(record, path)
    if record["version"] == 1:
        _LOG.warning(
            "%s: format 1 does not say how images are read (depth, exif, tile); Model.reading can be set", path
        )
    with _Budget(tensors):
        model = _build(about, path)
    _check_fit(model, tensors, path)
    check_values(tensors, path)
    model.use_image_spec(about.image_spec)
    model.classes, model.provenance, model.reading = about.classes, about.provenance, about.reading
    model.load_state_dict(tensors)
    return model.eval()


def with_head_options(model: Model, options: Mapping[str, Any]) -> Model:
    """The weights of ``model`` under a head that was built with ``options`` (by task, where there are several heads), on the CPU, in
    its mode. Options that make another network raise RuntimeError; those that the head refuses :class:`UserError`."""
    config: Any = {**model.config, "head_options": dict(options)}
    other = build_model(weights=None, **config)
    other.use_image_spec(model.image_spec)
    other.classes, other.provenance, other.reading = model.classes, model.provenance, model.reading
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


def _build(about: Description, path: Path) -> Model:
    try:
        return build_model(weights=None, **about.config)
    except UserError as error:
        raise UserError(str(path), f"cannot be rebuilt here: {error}") from error
    except MemoryError as error:
        raise UserError(
            str(path), "its config asks for far more memory than its tensors take", "do not trust this file"
        ) from error
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
        raise UserError(str(path), f"its config cannot be built ({one_line(error)})", "save the model again") from error


class _Budget(TorchFunctionMode):
    """Stops a construction that asks for far more memory than the file's tensors take: a hostile config could ask for any."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.calls = _CALLS + _GENEROSITY * len(tensors)
        self.left = _SPARE + _GENEROSITY * sum(tensor.nbytes for tensor in tensors.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device") or torch.get_default_device()
        if (
            func in (torch.empty, torch.zeros, torch.ones) and torch.device(device).type != "meta"
        ):  # a plan takes no memory
            self.calls -= 1  # a million layers of next to no size take for ever
            self.left -= torch.empty(*args, **{**kwargs, "device": "meta"}).nbytes
            if self.left < 0 or self.calls < 0:
                raise MemoryError
        return func(*args, **kwargs)


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not exactly those of ``model``, by name and shape."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    if wrong:
        first = wrong[0]
        expected, found = (list(shapes[first]) if first in shapes else "nothing" for shapes in (own, theirs))
        what = f"{len(wrong)} of its tensors do not fit its own config, such as {first}: expected {expected}, found {found}"
        raise UserError(str(path), what, "save the model again")
