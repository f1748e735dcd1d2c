"""Exported files opened by the runtime that they are made for: arrays by name in, arrays by name out, and the record in them."""

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from effbackbones.errors import UserError
from effbackbones.export.record import KEY, SUFFIXES, ExportRecord, format_of
from effbackbones.weights.kinds import check_file

Arrays = Mapping[str, NDArray[Any]]
TRUST = "EFFBACKBONES_TRUST_PT2"
"""The environment variable that lets files of ``torch.export`` be opened, which may run code."""


class Runtime(ABC):
    """An exported file, opened. It can be pickled: the other process opens the file again."""

    name: str
    """As a report says it."""
    options: ClassVar[Mapping[str, str]] = {}
    """What it is opened with that answers depend on."""
    record: ExportRecord

    def __init__(self, path: Path, *, trusted: bool = False) -> None:
        self.path, self.trusted = path, trusted
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Open ``path`` and read its record."""

    @abstractmethod
    def _run(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by name. A runtime that fails raises :class:`UserError`."""
        try:
            return self._run(inputs)
        except Exception as error:  # each runtime's own, of many kinds
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            reason = " ".join(str(error).split())[:160]
            what = f"{self.name} fails on {shapes} ({type(error).__name__}: {reason})"
            raise UserError(
                str(self.path), what, "give what the record in the file says, or export it again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "trusted": self.trusted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.trusted = state["path"], state["trusted"]
        self._open()


class OnnxRuntime(Runtime):
    """Of ONNX, by onnxruntime: on a GPU where its package has one, else on as many threads as torch uses."""

    name = "onnxruntime"

    def _open(self) -> None:
        self._session = onnx_session(self.path)
        told = self._session.get_modelmeta().custom_metadata_map
        self.record = ExportRecord.of(told.get(KEY), self.path)
        self._names = [one.name for one in self._session.get_outputs()]

    def _run(self, inputs: Arrays) -> Arrays:
        found = self._session.run(self._names, dict(inputs))
        return dict(zip(self._names, found, strict=True))


class OpenVino(Runtime):
    """Of OpenVINO, on the CPU, in the precision of the file: left to itself it takes bfloat16 where the processor has it, and no file can
    say otherwise."""

    name = "OpenVINO"
    options: ClassVar[Mapping[str, str]] = {"INFERENCE_PRECISION_HINT": "f32"}

    def _open(self) -> None:
        openvino = imported("openvino", self.path)
        core = openvino.Core()
        try:
            model = core.read_model(str(self.path))
            text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
        except Exception as error:  # openvino's own
            raise _unreadable(self.path, "OpenVINO", error) from None
        self.record = ExportRecord.of(text, self.path)
        self._requests = Requests(
            core.compile_model(model, "CPU", openvino_options(self.options["INFERENCE_PRECISION_HINT"]))
        )

    def _run(self, inputs: Arrays) -> Arrays:
        return self._requests(inputs)


class TorchProgram(Runtime):
    """Of ``torch.export``. torch reads such files in a way that lets them run code: only those that are trusted are opened."""

    name = "torch.export"

    def _open(self) -> None:
        self.record = ExportRecord.of(_text_of_archive(self.path), self.path)
        if not self.trusted and os.environ.get(TRUST) != "1":
            what = "is a file of torch.export, which runs code when it is opened"
            raise UserError(str(self.path), what, f"set {TRUST}=1 if you made it yourself, or export to ONNX")
        try:
            self._program = torch.export.load(str(self.path)).module()
        except Exception as error:  # torch's own, of many kinds
            raise _unreadable(self.path, "torch.export", error) from None

    @torch.no_grad()
    def _run(self, inputs: Arrays) -> Arrays:
        found = self._program(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        return {port.name: value.numpy() for port, value in zip(self.record.outputs, found, strict=True)}


def onnx_session(path: Path, *, threads: int | None = None, cpu: bool = False) -> Any:
    """A session of onnxruntime: on a GPU where its package has one, unless it is to be on the ``cpu``; on as many ``threads`` as torch
    uses where None. Raises :class:`UserError` for a file that it cannot open."""
    runtime = imported("onnxruntime", path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # which starves what else runs
    options.log_severity_level = 3
    there = () if cpu else runtime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider",) if one in there]
    try:
        return runtime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, of several kinds
        raise _unreadable(path, "ONNX", error) from None


def openvino_options(precision: str = "f32", threads: int | None = None, mode: str = "latency") -> dict[str, Any]:
    """How OpenVINO compiles for a CPU: in ``f32`` unless said otherwise, for by itself it takes bf16 where the processor has it."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "PERFORMANCE_HINT": mode.upper(),
    }


class Requests:
    """A model that OpenVINO compiled, to be asked from several threads: a request can be in one place at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: list[Any] = []
        self.names = [output.get_any_name() for output in compiled.outputs]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        found = request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        # Copies, for the memory is the request's, which is asked again.
        outputs = {name: np.array(found[place]) for place, name in enumerate(self.names)}
        self._idle.append(request)
        return outputs


RUNTIMES: dict[str, type[Runtime]] = {"onnx": OnnxRuntime, "torch_export": TorchProgram, "openvino": OpenVino}


def open_runtime(path: str | Path, *, trusted: bool = False) -> Runtime:
    """The exported file ``path``, opened by the runtime of its suffix; ``trusted``: it may run code. Raises :class:`UserError` for what
    is none, for files without a record, and where the runtime is not installed."""
    path = Path(path)
    known = format_of(path)
    if known is None:
        raise UserError(str(path), "is no exported file by its name", f"they end in {', '.join(SUFFIXES)}")
    check_file(path)
    return RUNTIMES[known](path, trusted=trusted)


def imported(package: str, path: Path) -> Any:
    """A runtime, which is an extra; one that is not installed raises :class:`UserError`."""
    try:
        return import_module(package)
    except ImportError:
        what = f"needs the package {package}, which is not installed"
        raise UserError(str(path), what, f"pip install {package}") from None


def _text_of_archive(path: Path) -> str | None:
    """The record in an archive of ``torch.export``, without opening the program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{KEY}")]
            return archive.read(names[0]).decode() if names else None
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable(path, "torch.export", error) from None


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:160]
    return UserError(str(path), f"cannot be opened as {kind} ({type(error).__name__}: {text})", "export it again")
