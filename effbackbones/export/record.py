"""What an exported file says about itself: one JSON record, in its metadata and beside it, written and read back here alone.

It stands under the key :data:`KEY`: in ``metadata_props`` of ONNX, ``extra_files`` of ``torch.export``, ``rt_info`` of OpenVINO.
Imports no runtime, so that whoever has read the text needs nothing else to understand it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from effbackbones.errors import UserError
from effbackbones.weights.record import Description

KEY = "effbackbones"
"""Under which the record stands in a file's metadata."""
EXPORT_VERSION = 1
FORMATS = ("onnx", "torch_export", "openvino")
SUFFIXES = {".onnx": "onnx", ".pt2": "torch_export", ".xml": "openvino"}
"""The format of a file by its suffix; ``.xml`` has its weights in a ``.bin`` of the same name."""
PREPROCESSING = ("none", "normalize", "resize")
POSTPROCESSING = ("none", "predict", "answer")
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: ``shape`` with numbers where fixed and names where free (``batch``, ``height``, ``width``)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class HeadFacts:
    """What whoever asks the graph needs to know of a head: its ``outputs`` by name, and how they are read."""

    task: str
    num_classes: int
    outputs: tuple[str, ...]
    size_divisor: int = 1
    min_size: int = 1
    multilabel: bool = False
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    """Options of predictions that are part of the graph."""
    frame_step: int = 0
    frame_centre: float = 0.0


@dataclass(frozen=True)
class ExportRecord:
    """The record. ``model`` is that of the model file that was exported (:mod:`effbackbones.weights.record`): config, image spec,
    reading, numerics, classes, metrics, provenance.

    ``preprocessing``: ``none`` (normalised float images in), ``normalize`` (images as ``model.image_spec`` shows them to the network,
    bytes), ``resize`` (bytes of any size). ``postprocessing``: ``none`` (raw output), ``predict`` (as ``Model.predict``), ``answer`` (as
    a user wants it: top-k, boxes, a mask of labels). ``dynamic_size``: whether height and width are free. ``source``: name and sha256
    of the checkpoint. ``certificate``: what was measured, None where nothing was.
    """

    format: str
    precision: str
    preprocessing: str
    postprocessing: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    heads: tuple[HeadFacts, ...]
    dynamic_size: bool
    model: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    certificate: dict[str, Any] | None = None

    def with_certificate(self, certificate: Mapping[str, Any] | None) -> Self:
        """The same with what was measured."""
        return replace(self, certificate=None if certificate is None else dict(certificate))

    def to_json(self, indent: int | None = None) -> str:
        """The text that a file carries."""
        return json.dumps({"version": EXPORT_VERSION, **asdict(self)}, allow_nan=False, indent=indent)

    def about(self, path: Path) -> Description:
        """The model that was exported, as its own file would describe it."""
        return Description.of(self.model, path)

    @classmethod
    def of(cls, text: str | bytes | None, path: Path) -> Self:
        """Read the ``text`` that the file ``path`` carries; none, another format or a newer version raises :class:`UserError`."""
        if not text:
            what = f"carries no record {KEY!r}: it was not exported here"
            raise UserError(str(path), what, "export the model again with the verb export")
        try:
            record = dict(json.loads(text))
            version = record.pop("version")
            if isinstance(version, int) and version > EXPORT_VERSION:
                what = f"its record is of version {version}, this installation reads up to {EXPORT_VERSION}"
                raise UserError(str(path), what, "update effbackbones")
            record |= {name: tuple(_port(one) for one in record[name]) for name in ("inputs", "outputs")}
            record["heads"] = tuple(HeadFacts(**{**one, "outputs": tuple(one["outputs"])}) for one in record["heads"])
            return cls(**{each.name: record[each.name] for each in fields(cls)})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"its record {KEY!r} is broken ({type(error).__name__}: {str(error)[:80]})"
            raise UserError(str(path), what, "export the model again") from None


def _port(values: Mapping[str, Any]) -> Port:
    return Port(**{**values, "shape": tuple(values["shape"])})


def format_of(path: str | Path) -> str | None:
    """The format that a file name says, None if it is no exported file's."""
    return SUFFIXES.get(Path(path).suffix)


def beside(path: Path) -> Path:
    """The JSON file beside an exported one."""
    return path.with_name(path.name + ".json")


def files_of(path: Path) -> list[Path]:
    """The files that an exported one consists of: OpenVINO's weights lie beside its graph."""
    return [path, path.with_suffix(".bin")] if format_of(path) == "openvino" else [path]
