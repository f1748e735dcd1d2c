"""A model as a graph of ONNX, run by OpenVINO or onnxruntime: from images to the head's raw output."""

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effbackbones.contracts import ImageSizes
from effbackbones.export.graph import Graph
from effbackbones.export.onnxfile import write_onnx
from effbackbones.export.program import Traced
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.backends.cache import fingerprint, graph_folder, kept
from effbackbones.inference.backends.plan import Plan
from effbackbones.inference.runtimes import Requests, imported, onnx_session, openvino_options
from effbackbones.model import Model

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def takes_bytes(model: Model, images: Tensor, *, normalized: bool) -> bool:
    """Whether the graph normalises: of bytes; all else is normalised by torch, which reads every kind of image."""
    native = (model.reading or ReadingSpec()).depth == "native"
    return images.dtype == torch.uint8 and not normalized and not native


@dataclass
class GraphRun:
    """A graph, opened: images and their sizes to the tensors of the raw output, in their order. ``bytes``: it takes them as they are."""

    run: Run
    inputs: list[str]
    outputs: list[str]
    bytes: bool

    def __call__(self, model: Model, images: Tensor, sizes: ImageSizes, normalized: bool) -> list[Tensor]:
        """The tensors."""
        shown = images if self.bytes or normalized else model.normalize(images)
        feed = {
            "images": np.ascontiguousarray(shown.detach().numpy() if self.bytes else shown.detach().float().numpy())
        }
        if "valid" in self.inputs:
            feed["valid"] = sizes.valid.numpy()
        found = self.run(feed)
        return [torch.from_numpy(found[name]) for name in self.outputs]


def graph_run(
    model: Model,
    backend: str,
    plan: Plan,
    shape: torch.Size,
    *,
    bytes: bool,
    fixed_batch: bool,
    anew: bool,
    tell: Callable[[str], None],
) -> tuple[GraphRun, bool]:
    """A graph of ``model`` for images of ``shape``, of its batch alone where that is fixed (OpenVINO's are quicker then), and whether it
    was made just now, or found on disk. ``anew``: what is found is not trusted."""
    size = (int(shape[-2]), int(shape[-1]))
    graph = _graph(model, size, bytes=bytes)

    def make(path: Path) -> None:
        tell(f"makes a graph for images of {size[0]} x {size[1]}, which takes some seconds once")
        write_onnx(Traced.of(graph, dynamic_size=False), path)

    path, made = kept(fingerprint(model, size, bytes), make, anew=anew)
    try:
        return GraphRun(*_opened(path, backend, plan, int(shape[0]) if fixed_batch else None), bytes), made
    finally:
        if path.parent != graph_folder():
            os.unlink(path)


def _graph(model: Model, size: tuple[int, int], *, bytes: bool) -> Graph:
    shown = copy.copy(model)  # shares all that is heavy
    shown.image_spec, shown.runner = replace(model.image_spec, size=size), None
    # Whoever watches the model waits for answers, not for the tensors without values that a graph is made with.
    shown._forward_hooks, shown._forward_pre_hooks = OrderedDict(), OrderedDict()
    return Graph(shown, preprocessing="normalize" if bytes else "none", postprocessing="none").eval()


def _opened(path: Path, backend: str, plan: Plan, batch: int | None) -> tuple[Run, list[str], list[str]]:
    """The graph in the file ``path``, and the names of its inputs and outputs."""
    threads = plan.threads or torch.get_num_threads()
    if backend == "onnxruntime":
        session = onnx_session(path, threads=1 if plan.mode == "throughput" else threads, cpu=True)
        inputs, outputs = ([one.name for one in ports] for ports in (session.get_inputs(), session.get_outputs()))
        return lambda feed: dict(zip(outputs, session.run(outputs, dict(feed)), strict=True)), inputs, outputs
    core = imported("openvino", path).Core()
    read = core.read_model(str(path))
    if batch is not None:
        read.reshape({port.any_name: [batch, *list(port.partial_shape)[1:]] for port in read.inputs})
    precision = "bf16" if plan.dtype == torch.bfloat16 else "f32"
    requests = Requests(core.compile_model(read, "CPU", openvino_options(precision, threads, plan.mode)))
    return requests, [port.any_name for port in read.inputs], requests.names
