"""Our model file: tensors in safetensors, everything else as JSON in its metadata. Read back with no config and no network.

Format 1. Metadata: ``format``, ``record`` (JSON of a :class:`Description`), ``sha256`` over the whole file. Nothing in it
names code: heads, backbones and tasks are looked up in the registry, and a missing one is named.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from effbackbones import dialects
from effbackbones.contracts import Classes, ImageSpec, class_names
from effbackbones.errors import UserError
from effbackbones.tensorfile import header, pack, read_bytes, read_tensors, write_atomically

if TYPE_CHECKING:
    from effbackbones.model import Model

FORMAT, FORMAT_VERSION = "effbackbones", 1
_CONFIG_KEYS = ("task", "backbone", "head", "num_classes", "backbone_options", "head_options", "loss_weights")
_SPARE, _GENEROSITY = 1 << 28, 4
"""Memory that building a model may take: bytes, and bytes per byte of its tensors."""
_LIBRARIES = ("effbackbones", "torch", "timm")


@dataclass(frozen=True)
class Description:
    """What a file says about its model: JSON-like values only.

    ``config`` holds the arguments of ``build_model``; ``numerics`` those of the backbone's :class:`Numerics`, None for
    backbones without; ``provenance`` library versions, and origin and licence of the weights that training began with.
    """

    config: dict[str, Any]
    image_spec: ImageSpec
    numerics: dict[str, Any] | None
    classes: Classes | None
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def backbone(self) -> str:
        return str(self.config["backbone"])

    @property
    def licence(self) -> str:
        return str(self.provenance.get("licence", "unknown"))

    @classmethod
    def of(cls, record: Mapping[str, Any], path: Path) -> Self:
        """Read a record; one that is not of this shape raises :class:`UserError` naming the file."""
        try:
            spec: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record["image_spec"].items()}
            classes = record["classes"]
            found = cls(
                dict(record["config"]), ImageSpec(**spec), record["numerics"], None if classes is None else class_names(classes),
                dict(record["metrics"]), dict(record["provenance"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(str(path), f"its description is broken ({_short(error)})", "save the model again") from None
        if set(found.config) - set(_CONFIG_KEYS) or "backbone" not in found.config:
            raise UserError(str(path), f"its config has keys {sorted(found.config)}", f"expected {', '.join(_CONFIG_KEYS)}")
        _check_classes(found.classes, found.config, path)
        return found


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a :class:`Model` to ``path`` (``.safetensors``), atomically.

    ``classes`` default to the model's own; ``provenance`` is added to the model's. A compiled model is saved under its plain
    names. Raises :class:`UserError` when a tensor is not finite, when the file cannot be written, and for another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(str(path), f"unknown suffix {path.suffix!r}", "name it .safetensors")
    model = getattr(model, "_orig_mod", model)
    if getattr(model, "folded", False):
        raise UserError(str(path), "not written: the model is a copy made for inference", "save the model it was made from")
    config: Any = model.config
    if "backbone" not in config:
        what = "not written: this model does not know how it was built"
        raise UserError(str(path), what, "make it with build_model, or give Model(config=...)")
    names: Any = model.classes if classes is None else classes
    _check_classes(names, config, path)
    tensors = {dialects.clean(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(str(path), f"not written: {name} is not finite", "training has diverged; go back to an earlier checkpoint")
    backbone: Any = model.backbone
    numerics = getattr(getattr(backbone, "_orig_mod", backbone), "numerics", None)
    record = {
        "version": FORMAT_VERSION,
        "config": config,
        "image_spec": model.image_spec,
        "numerics": numerics if is_dataclass(numerics) else None,
        "classes": names,
        "metrics": metrics or {},
        "provenance": {**_versions(), **_mapping(getattr(model, "provenance", {})), **(provenance or {})},
    }
    text = json.dumps(plain(record, "record"), allow_nan=False)
    write_atomically(path, pack(tensors, {"format": FORMAT, "record": text}))


def _check_classes(classes: object, config: Mapping[str, Any], path: Path) -> None:
    """Classes by task must be of tasks that the model has."""
    tasks = config.get("task")
    if isinstance(classes, Mapping) and not (isinstance(tasks, list | tuple) and classes.keys() <= set(map(str, tasks))):
        what = f"its classes are of the tasks {str(list(classes))[:60]}, its config of {str(tasks)[:60]}"
        raise UserError(str(path), what, "name the classes by the tasks that the model has")


def load_model(path: str | Path) -> "Model":
    """Rebuild the :class:`Model` that :func:`save_model` wrote, in eval mode on the CPU.

    Needs no config and no network, and imports nothing that the file names: a head, backbone or task that is not registered
    raises :class:`UserError` naming it. So do damaged files, and files of a newer format.
    """
    from effbackbones.model import Model

    path = Path(path)
    tensors, metadata = read_tensors(path)
    about = Description.of(parse_record(metadata, path), path)
    with _Budget(tensors):
        model = _build(about, path)
    _check_fit(model, tensors, path)
    if (model.image_spec, model.classes) != (about.image_spec, about.classes):
        model = Model(model.backbone, model.head, image_spec=about.image_spec, config=model.config, classes=about.classes)
    model.provenance = about.provenance
    model.load_state_dict(tensors)
    return model.eval()


def _build(about: Description, path: Path) -> "Model":
    from effbackbones.build import build_model

    try:
        return build_model(weights=None, **about.config)
    except UserError as error:
        raise UserError(str(path), f"cannot be rebuilt here: {error}") from error
    except MemoryError as error:
        raise UserError(str(path), "its config asks for far more memory than its tensors take", "do not trust this file") from error
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
        raise UserError(str(path), f"its config cannot be built ({_short(error)})", "save the model again") from error


class _Budget(TorchFunctionMode):
    """Stops a construction that asks for far more memory than the file's tensors take: a hostile config could ask for any."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.left = _SPARE + _GENEROSITY * sum(tensor.nbytes for tensor in tensors.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device") or torch.get_default_device()
        if func in (torch.empty, torch.zeros, torch.ones) and torch.device(device).type != "meta":  # a plan takes no memory
            self.left -= torch.empty(*args, **{**kwargs, "device": "meta"}).nbytes
            if self.left < 0:
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


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The record of a file of ours, as plain values: ``config``, ``image_spec``, ``numerics``, ``classes``, ``metrics``,
    ``provenance``, ``version``. Its tensors are not looked at."""
    path = Path(path)
    if path.suffix != ".safetensors" and not path.is_dir():
        raise _foreign(path)
    return parse_record(header(read_bytes(path), path).get("__metadata__", {}), path)


def parse_record(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The JSON record in the metadata of a file of ours; a foreign file or a newer format raises :class:`UserError`."""
    if metadata.get("format") != FORMAT or "sha256" not in metadata:
        raise _foreign(path)
    try:
        record = json.loads(metadata["record"])
        number = record["version"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise UserError(str(path), "its record is not the expected JSON", "save the model again") from None
    if not isinstance(number, int) or not 1 <= number <= FORMAT_VERSION:
        ours = f"format {FORMAT_VERSION} (effbackbones {_versions().get('effbackbones', '?')})"
        raise UserError(str(path), f"is of format {number}, this installation reads up to {ours}", "update effbackbones")
    return dict(record)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def _foreign(path: Path) -> UserError:
    return UserError(str(path), "is not a model file of effbackbones", 'foreign weights go into build_model(..., weights="FILE")')


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def plain(value: Any, where: str, *, finite: bool = False) -> Any:
    """``value`` as JSON has it; numbers that JSON lacks (nan, inf) become None, or are refused (``finite``). Anything else that
    it lacks raises :class:`UserError` with its place."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}", finite=finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", finite=finite) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if finite:
            raise UserError(where, f"is {value}, which a model file cannot hold", "give a finite number")
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise UserError(where, f"is a {type(value).__name__}, and a model file holds plain values only", "give a number, text, list or dict")
