"""What is asked of a copy for inference, and what this machine can do of it."""

import platform
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from effbackbones.errors import UserError, nearest

BACKENDS = ("auto", "eager", "compile", "onnxruntime", "openvino")
MODES = ("latency", "throughput")
GRAPHS = ("openvino", "onnxruntime")
"""Backends that run a graph outside of torch, on a CPU; the quicker first, as measured (docs/python.md)."""
_EXPORTERS = ("onnx", "onnxscript")
_DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Plan:
    """``backends`` are tried in this order, ``eager`` last; ``asked`` is the word that was given. ``dtype``: of weights and arithmetic,
    None where it is the model's own."""

    asked: str
    backends: tuple[str, ...]
    dtype: torch.dtype | None
    threads: int | None
    mode: str
    device: str

    @property
    def narrow(self) -> bool:
        """Whether arithmetic is of 16 bits."""
        return self.dtype in _NARROW

    @classmethod
    def of(
        cls,
        backend: str,
        dtype: torch.dtype | str | None,
        threads: int | None,
        mode: str,
        device: torch.device,
        own: torch.dtype,
    ) -> tuple["Plan", list[str]]:
        """The plan for a model on ``device`` whose weights are ``own``, and what has to be told of it. What cannot be raises
        :class:`UserError`."""
        if backend not in BACKENDS:
            raise UserError("backend", f"unknown value {backend!r}", nearest(str(backend), BACKENDS))
        if mode not in MODES:
            raise UserError("mode", f"unknown value {mode!r}", nearest(str(mode), MODES))
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise UserError("threads", f"expected a whole number from 1 up, got {threads!r}", "leave it out")
        if backend == "eager" and (threads is not None or mode != "latency"):
            which = "threads" if threads is not None else "mode"
            raise UserError(which, "is not for eager mode", "torch.set_num_threads is; or take openvino or onnxruntime")
        if backend == "compile" and threads is not None:
            raise UserError("threads", "is not for compiled code", "torch.set_num_threads is")
        if backend in GRAPHS and device.type != "cpu":
            raise UserError(
                "backend", f"{backend} is for the CPU here, and the model is on {device}", "take compile or eager"
            )
        if backend in GRAPHS and (missing := _missing(backend)):
            what = f"{backend} needs {', '.join(missing)}, not installed"
            extra = "openvino" if backend == "openvino" else "export"
            raise UserError("backend", what, f"pip install 'effbackbones[{extra}]', or take eager")
        wanted, told = _arithmetic(dtype, device)
        if backend == "onnxruntime" and wanted in _NARROW:
            raise UserError("dtype", f"onnxruntime has no {str(wanted)[6:]} on a CPU", "take openvino, or eager")
        found: tuple[str, ...] = (backend,) if backend != "auto" else ()
        if backend == "auto" and device.type == "cpu" and own == torch.float32:
            found = tuple(
                one for one in GRAPHS if not _missing(one) and not (one == "onnxruntime" and wanted in _NARROW)
            )
        return cls(backend, tuple(dict.fromkeys((*found, "eager"))), wanted, threads, mode, device.type), told


def _missing(backend: str) -> list[str]:
    """Packages that a backend lacks."""
    return [name for name in (backend, *_EXPORTERS) if find_spec(name) is None]


def _arithmetic(dtype: torch.dtype | str | None, device: torch.device) -> tuple[torch.dtype | None, list[str]]:
    """The arithmetic that is asked for, float32 where this processor computes no other faster; what to tell."""
    wanted = _DTYPES.get(dtype, dtype) if dtype is None or isinstance(dtype, str) else dtype
    if wanted is not None and wanted not in _DTYPES.values():
        known = (name for name in _DTYPES if name)
        raise UserError("dtype", f"expected one of {', '.join(known)}, got {dtype!r}", "correct it")
    assert wanted is None or isinstance(wanted, torch.dtype)
    if wanted == torch.float16 and device.type == "cpu":
        raise UserError("dtype", "float16 needs a GPU", "take bfloat16, or float32")
    if wanted == torch.bfloat16 and device.type == "cpu" and not computes_bfloat16():
        return torch.float32, ["bfloat16 is not used: this processor computes it no faster; float32 is"]
    return wanted, []


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself (AVX512_BF16, AMX, or Arm's), which alone makes it faster."""
    if platform.machine().lower() in ("x86_64", "amd64", "i386"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
