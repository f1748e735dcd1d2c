"""The formats that a graph is written in: each writes a file, and puts a record into it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from effbackbones.errors import UserError
from effbackbones.export.onnxfile import put_record, quiet, require, write_onnx
from effbackbones.export.program import Traced, export_program
from effbackbones.export.quantisation import Change
from effbackbones.export.record import KEY, ExportRecord, Port


class Format(NamedTuple):
    """``write`` (graph, file, precision, what is done to a file of ONNX in between) gives the outputs as a record names them; ``put``
    (file, record) the record into a file."""

    write: Callable[[Traced, Path, str, Change | None], tuple[Port, ...]]
    put: Callable[[Path, ExportRecord], None]


def write_changed(found: Traced, path: Path, precision: str, change: Change | None) -> tuple[Port, ...]:
    """Write a file of ONNX, changed."""
    ports = write_onnx(found, path)
    if change is not None:
        change(path)
    return ports


def write_program(found: Traced, path: Path, precision: str, change: Change | None) -> tuple[Port, ...]:
    """Write a program of ``torch.export``, which cannot be changed."""
    if change is not None:
        raise UserError("precision", f"{precision} is of onnx and openvino, not of torch_export", "export to onnx")
    program = export_program(found)
    with quiet("torch.export"):
        torch.export.save(program, str(path), extra_files={KEY: ""})
    return found.ports(program)


def put_into_program(path: Path, record: ExportRecord) -> None:
    """Put the record into a file of ``torch.export``, one that was just written here."""
    with quiet("torch.export"):
        program = torch.export.load(str(path))
        torch.export.save(program, str(path), extra_files={KEY: record.to_json()})


def write_openvino(found: Traced, path: Path, precision: str, change: Change | None) -> tuple[Port, ...]:
    """Write OpenVINO's ``.xml`` and ``.bin``, by way of ONNX."""
    openvino = require("openvino")
    between = path.with_suffix(".onnx")
    ports = write_changed(found, between, precision, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = openvino.convert_model(str(between))
        except Exception as error:  # openvino's own
            text = " ".join(str(error).split())[:160]
            raise UserError("format openvino", f"does not take this graph ({text})", "export to onnx") from None
    for port, output in zip(ports, model.outputs, strict=True):
        output.set_names({port.name})
    openvino.save_model(model, str(path), compress_to_fp16=False)
    between.unlink()
    return ports


def put_into_openvino(path: Path, record: ExportRecord) -> None:
    """Put the record into OpenVINO's ``.xml``."""
    openvino = require("openvino")
    core = openvino.Core()
    model = core.read_model(str(path))
    model.set_rt_info(record.to_json(), [KEY])
    again = path.with_name(f"again_{path.name}")
    openvino.save_model(model, str(again), compress_to_fp16=False)
    del model  # whose weights lie in the file that is replaced
    again.replace(path)
    again.with_suffix(".bin").replace(path.with_suffix(".bin"))


WRITERS: dict[str, Format] = {
    "onnx": Format(write_changed, put_record),
    "torch_export": Format(write_program, put_into_program),
    "openvino": Format(write_openvino, put_into_openvino),
}
