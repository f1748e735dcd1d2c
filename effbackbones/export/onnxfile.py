"""Files of ONNX: written from a graph, and their record put in."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from effbackbones.errors import UserError
from effbackbones.export.operators import translations
from effbackbones.export.program import Traced
from effbackbones.export.record import KEY, ExportRecord, Port

OPSET = 18
NEEDS = "onnx, onnxruntime and onnxscript; pip install 'effbackbones[export]'"


def write_onnx(found: Traced, path: Path) -> tuple[Port, ...]:
    """Write the graph to ``path`` in one file; returns its outputs as a record names them."""
    require("onnx", "onnxscript")
    with quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
        program = torch.onnx.export(
            found.graph,
            found.arguments,
            dynamo=True,
            dynamic_shapes=found.dynamic_shapes(),
            input_names=list(found.example.inputs),
            output_names=list(found.outputs),
            opset_version=OPSET,
            custom_translation_table=dict(translations()),
            verbose=False,
        )
    assert program is not None
    assert program.exported_program is not None
    ports = found.ports(program.exported_program)
    _name_sides(program.model, found, ports)
    program.save(str(path), external_data=False)
    return ports


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Within, the loggers of these packages tell of errors alone: they speak of their own insides."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _name_sides(model: Any, found: Traced, ports: tuple[Port, ...]) -> None:
    """Give the free sides of inputs and outputs the names that the record has for them."""
    import onnx_ir as ir  # of onnxscript, of the extra `export`

    inputs = {one.name: one.shape for one in found.example.ports()}
    for values, shapes in ((model.graph.inputs, inputs), (model.graph.outputs, {one.name: one.shape for one in ports})):
        for value in values:
            value.shape = ir.Shape(list(shapes[value.name]))


def put_record(path: Path, record: ExportRecord) -> None:
    """Put the record into the file ``path``, in place of one that is there."""
    onnx = require("onnx")
    model = onnx.load(str(path))
    kept: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props if entry.key != KEY}
    onnx.helper.set_model_props(model, {**kept, KEY: record.to_json()})
    model.producer_name = "effbackbones"
    onnx.save(model, str(path))


def require(*names: str) -> Any:
    """Import packages of the extras ``export`` and ``openvino``; the first is returned. A missing one raises :class:`UserError`."""
    import importlib

    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError:
            what = f"needs the package {name}, which is not installed"
            remedy = "pip install 'effbackbones[openvino]'" if name == "openvino" else f"install {NEEDS}"
            raise UserError("export", what, remedy) from None
    return modules[0]
