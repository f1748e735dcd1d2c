"""What a model file of ours says about its model: the JSON record in its metadata, written and read back."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from effbackbones.contracts import Classes, ImageSpec, class_names
from effbackbones.errors import UserError
from effbackbones.images.spec import ReadingSpec
from effbackbones.weights.kinds import file_kind
from effbackbones.weights.tensorfile import read_header

FORMAT, FORMAT_VERSION = "effbackbones", 2

_CONFIG_KEYS = ("task", "backbone", "head", "num_classes", "backbone_options", "head_options", "loss_weights")

_LARGEST, _LONGEST, _DEEPEST = 2.0**32, 100_000, 20
"""Numbers, lists and nesting in the config of a model file."""

_LIBRARIES = ("effbackbones", "torch", "timm")


@dataclass(frozen=True)
class Description:
    """What a file says about its model: JSON-like values only.

    ``config`` holds the arguments of ``build_model``; ``reading`` says how images were read, None where nobody said it (files of
    format 1 cannot); ``numerics`` those of the backbone's :class:`Numerics`, None for
    backbones without; ``provenance`` library versions, and origin and licence of the weights that training began with.
    """

    config: dict[str, Any]
    image_spec: ImageSpec
    reading: ReadingSpec | None
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
            spec: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in record["image_spec"].items()
            }
            classes, reading = record["classes"], record["reading"] if record["version"] > 1 else None
            found = cls(
                dict(record["config"]),
                ImageSpec(**spec),
                None if reading is None else ReadingSpec.of(reading),
                record["numerics"],
                None if classes is None else class_names(classes),
                dict(record["metrics"]),
                dict(record["provenance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(
                str(path), f"its description is broken ({one_line(error)})", "save the model again"
            ) from None
        if set(found.config) - set(_CONFIG_KEYS) or "backbone" not in found.config:
            raise UserError(
                str(path), f"its config has keys {sorted(found.config)}", f"expected {', '.join(_CONFIG_KEYS)}"
            )
        check_classes(found.classes, found.config, path)
        _check_sane(found.config, "config", path)
        return found


def check_classes(classes: object, config: Mapping[str, Any], path: Path) -> None:
    """Classes by task must be of tasks that the model has."""
    tasks = config.get("task")
    if isinstance(classes, Mapping) and not (
        isinstance(tasks, list | tuple) and classes.keys() <= set(map(str, tasks))
    ):
        what = f"its classes are of the tasks {str(list(classes))[:60]}, its config of {str(tasks)[:60]}"
        raise UserError(str(path), what, "name the classes by the tasks that the model has")
    counts, several = config.get("num_classes"), isinstance(classes, Mapping)
    named: Mapping[str, Any] = classes if isinstance(classes, Mapping) else {"": classes}
    for task, names in named.items():
        count = counts.get(task) if several and isinstance(counts, Mapping) else counts
        # One class may be told by two names: what it is, and what it is not.
        if names is not None and isinstance(count, int) and len(names) != count and (count, len(names)) != (1, 2):
            where = f" of {task}" if task else ""
            what = f"names {len(names)} classes{where}, and its head has {count}"
            raise UserError(str(path), what, "give one name for each class")


def _check_sane(value: Any, where: str, path: Path, depth: int = 0) -> None:
    """Refuse numbers and lists that no network has, before anything is built from them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_sane(item, f"{where}.{str(key)[:40]}", path, depth + 1)
    elif isinstance(value, list) and len(value) <= _LONGEST:
        for item in value:
            _check_sane(item, where, path, depth + 1)
    elif isinstance(value, list):
        raise UserError(str(path), f"{where} has {len(value):,} values", "do not trust this file")
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
        raise UserError(str(path), f"{where} is {str(value)[:40]}", "do not trust this file")
    if depth > _DEEPEST:
        raise UserError(str(path), f"{where[:80]} is nested too deep", "do not trust this file")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The record of a file of ours, as plain values: ``config``, ``image_spec``, ``numerics``, ``classes``, ``metrics``,
    ``provenance``, ``version``. Its tensors are not looked at."""
    path = Path(path)
    if file_kind(path) != "safetensors":
        raise not_ours(path)
    return parse_record(read_header(path).get("__metadata__", {}), path)


def parse_record(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The JSON record in the metadata of a file of ours; a foreign file or a newer format raises :class:`UserError`."""
    if metadata.get("format") != FORMAT or "sha256" not in metadata:
        raise not_ours(path)
    try:
        record = json.loads(metadata["record"])
        number = record["version"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise UserError(str(path), "its record is not the expected JSON", "save the model again") from None
    if not isinstance(number, int) or not 1 <= number <= FORMAT_VERSION:
        ours = f"format {FORMAT_VERSION} (effbackbones {versions().get('effbackbones', '?')})"
        raise UserError(
            str(path), f"is of format {number}, this installation reads up to {ours}", "update effbackbones"
        )
    return dict(record)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def not_ours(path: Path) -> UserError:
    return UserError(
        str(path), "is not a model file of effbackbones", 'foreign weights go into build_model(..., weights="FILE")'
    )


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def as_mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def plain(value: Any, where: str, *, finite: bool = False) -> Any:
    """``value`` as JSON has it; numbers that JSON lacks (nan, inf) become None, or are refused (``finite``). Anything else that
    it lacks raises :class:`UserError` with its place."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, ImageSpec):
        value = value.record()
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
    raise UserError(
        where,
        f"is a {type(value).__name__}, and a model file holds plain values only",
        "give a number, text, list or dict",
    )
