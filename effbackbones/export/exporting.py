"""From a model to a file for another runtime: traced, written, compared with the model, and only then put in its place."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effbackbones.checkpoint import load_model, record_of
from effbackbones.errors import UserError, nearest
from effbackbones.export.certificate import Bounds, Scores, certify, fed, refused, require_images, scored
from effbackbones.export.formats import WRITERS
from effbackbones.export.graph import Example, Graph
from effbackbones.export.program import Traced, may_be_free
from effbackbones.export.quantisation import Change, quantise
from effbackbones.export.record import (
    FORMATS,
    POSTPROCESSING,
    PRECISIONS,
    PREPROCESSING,
    ExportRecord,
    Port,
    beside,
    format_of,
)
from effbackbones.export.simulation import learnt_ranges
from effbackbones.images.reading import MAX_PIXELS
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.exported import ExportedModel
from effbackbones.inference.inputs import source_for
from effbackbones.inference.predictor import BEST, fitting_of
from effbackbones.inference.preparing import Fitted
from effbackbones.inference.runtimes import open_runtime
from effbackbones.model import Model
from effbackbones.weights.record import versions

Tell = Callable[[str], None]


def export_model(
    source: Model | str | PathLike[str],
    out: str | PathLike[str],
    *,
    images: Sequence[Any] | None,
    format: str | None = None,
    preprocessing: str = "normalize",
    postprocessing: str = "predict",
    precision: str = "fp32",
    dynamic_size: bool | None = None,
    top_k: int = 5,
    bounds: Bounds | None = None,
    scores: Scores | None = None,
    calibration: Sequence[Any] = (),
    origin: str | PathLike[str] | None = None,
    tell: Tell = lambda line: None,
) -> ExportRecord:
    """Write a model (itself, its file, or a run folder's best) as a graph to ``out``; returns the record that is in the file, and beside
    it as JSON.

    ``format``: ``onnx`` (``.onnx``), ``torch_export`` (``.pt2``) or ``openvino`` (``.xml``); by the suffix where None. ``preprocessing``,
    ``postprocessing``, ``top_k``: what is part of the graph (:class:`effbackbones.export.record.ExportRecord`). ``precision``: ``fp32``,
    ``fp16``, or ``int8``, which needs ``calibration`` images. ``dynamic_size`` None: height and width are free where the head allows it
    (not for boxes); the batch always is.

    ``origin``: the file that a model given as such was loaded from, for the record.

    ``images`` (as a predictor takes them): those of the certificate; with ``scores`` the scores of model and file are compared too. None:
    nothing is measured, which the record says. Raises :class:`UserError`, and leaves nothing behind, where the file does not agree with
    the model within ``bounds``.
    """
    out = Path(out)
    kind = file_format(out, format)
    if precision == "int8_dynamic":
        what = "quantises products of matrices alone, and leaves convolutions, which are all of these networks, as they are or slower"
        raise UserError("precision int8_dynamic", what, "int8 is static: it takes calibration images")
    for name, value, known in (
        ("preprocessing", preprocessing, PREPROCESSING),
        ("postprocessing", postprocessing, POSTPROCESSING),
        ("precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise UserError(name, f"unknown value {value!r}", nearest(value, known))
    if images is not None and not len(images):
        raise UserError("images", "there is none to compare the file and the model on", "give some")
    model, file = _model(source, origin)
    graph = Graph(model, preprocessing=preprocessing, postprocessing=postprocessing, top_k=top_k)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    write = partial(
        _written,
        graph,
        folder / out.name,
        kind,
        precision,
        source=_digest(file),
        calibration=calibration,
        images=images,
        bounds=bounds or Bounds.of(precision, preprocessing),
        scores=scores,
        tell=tell,
    )
    try:
        free = may_be_free(graph, dynamic_size)
        try:
            record = write(free=free)
        except UserError as error:
            if not free or dynamic_size:
                raise
            tell(f"height and width are fixed, for with free ones: {str(error)[:200]}")
            record = write(free=False)
        beside(folder / out.name).write_text(record.to_json(indent=2) + "\n", encoding="utf-8")
        for file in sorted(folder.iterdir()):
            file.replace(out.parent / file.name)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(str(out), what, "free space, or choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def file_format(out: Path, asked: str | None) -> str:
    """The format, which the name of the file must say too: it is read back by it."""
    if asked is not None and asked not in FORMATS:
        remedy = nearest(asked, FORMATS)
        if asked in OTHERS:
            remedy = f"export to onnx, then {OTHERS[asked]}"
        raise UserError("format", f"unknown value {asked!r}", remedy)
    said = format_of(out)
    if said is None or asked not in (None, said):
        raise UserError(
            str(out), f"is no name for {asked or 'an exported file'}", "name it .onnx, .pt2 or .xml (openvino)"
        )
    return said


OTHERS = {
    "tensorrt": "trtexec --onnx=FILE.onnx --saveEngine=FILE.engine (--fp16)",
    "coreml": "convert the torch_export file: coremltools.convert(torch.export.load('FILE.pt2'))",
}
"""What other formats are made with."""


def _model(source: Model | str | PathLike[str], origin: str | PathLike[str] | None) -> tuple[Model, Path | None]:
    """The model in eval mode on the CPU, and the file that it comes from."""
    if isinstance(source, ExportedModel):
        raise UserError(
            "export", f"{source.runtime.path} is exported already", "take the checkpoint that it was made from"
        )
    if isinstance(source, Model):
        return source.cpu().eval(), None if origin is None else Path(origin)
    path = Path(source)
    file = path / BEST if path.is_dir() else path
    return load_model(file), file


def _digest(file: Path | None) -> dict[str, Any]:
    """Name and sha256 of the checkpoint."""
    if file is None:
        return {"file": None, "sha256": None}
    with open(file, "rb") as opened:
        return {"file": file.name, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _written(
    graph: Graph,
    path: Path,
    kind: str,
    precision: str,
    *,
    free: bool,
    source: Mapping[str, Any],
    calibration: Sequence[Any],
    images: Sequence[Any] | None,
    bounds: Bounds,
    scores: Scores | None,
    tell: Tell,
) -> ExportRecord:
    """The file, with height and width ``free`` or not, and its record, which is in it; one that does not agree with the model raises
    :class:`UserError`. One with free sides is asked at the size of the model, another than it was traced with."""
    model = graph.model
    folded = replace_model(graph, _smaller(model.folded_copy(), precision))
    found, outputs = _traced(folded, path, kind, precision, _change(graph, precision, calibration), free=free)
    named = graph.named(**found.example.inputs)
    record = ExportRecord(
        format=kind,
        precision=precision,
        preprocessing=graph.preprocessing,
        postprocessing=graph.postprocessing,
        inputs=found.example.ports(),
        outputs=outputs,
        heads=graph.facts(named),
        dynamic_size=free,
        model=record_of(model, model.classes, {}, model.provenance),
        source=dict(source),
        versions=versions(),
    )
    WRITERS[kind].put(path, record)
    if images is None:
        if free:
            plain = Example.of(graph, dynamic_size=False).inputs
            open_runtime(path, trusted=True)({name: value.numpy() for name, value in plain.items()})
        return record
    certificate = _certificate(graph, path, images, bounds, scores, tell)
    if why := refused(certificate):
        nothing = "to compare" in why
        remedy = "give images that show something" if nothing else _remedy(precision, graph.preprocessing)
        raise UserError(str(path.parents[1] / path.name), f"not exported: {why}", remedy)
    record = record.with_certificate(certificate)
    WRITERS[kind].put(path, record)
    return record


def _traced(
    graph: Graph, path: Path, kind: str, precision: str, change: Change | None, *, free: bool
) -> tuple[Traced, tuple[Port, ...]]:
    """The graph, traced and written, and its outputs. One that the exporters do not take raises :class:`UserError`."""
    found = Traced.of(graph, dynamic_size=free)
    try:
        return found, WRITERS[kind].write(found, path, precision, change)
    except UserError:
        raise
    except Exception as error:  # torch's, onnxscript's and onnxruntime's own, of many kinds
        if isinstance(error, OSError) and error.errno is not None:  # a full disk is no fault of the graph
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        what = f"{type(graph.model.head).__name__} cannot be exported to {kind} ({type(error).__name__}: {reason})"
        raise UserError("export", what, "try another format, or fixed sizes") from error


def replace_model(graph: Graph, model: Model) -> Graph:
    """The same graph of another model."""
    return Graph(
        model, preprocessing=graph.preprocessing, postprocessing=graph.postprocessing, top_k=graph.top_k
    ).eval()


def _smaller(model: Model, precision: str) -> Model:
    """The model in fp16, where that is asked for: from normalised images to raw output; before and after all stays fp32."""
    if precision == "fp16":
        spec = model.image_spec
        model.half().use_image_spec(spec)
    return model


def _change(graph: Graph, precision: str, calibration: Sequence[Any]) -> Change | None:
    """What is done to a file of ONNX in between."""
    if precision != "int8":
        return None
    if not len(calibration):
        raise UserError(
            "calibration", "int8 takes its ranges from real images, and there is none", "give some, 100 or more"
        )
    fitted, originals = _fitted(graph.model, calibration)
    feeds = [
        {name: value.numpy() for name, value in fed(graph, [one], [image]).items()}
        for one, image in zip(fitted, originals, strict=True)
    ]
    return partial(quantise, feeds=feeds, ranges=learnt_ranges(graph.model))


def _certificate(
    graph: Graph, path: Path, images: Sequence[Any], bounds: Bounds, scores: Scores | None, tell: Tell
) -> dict[str, Any]:
    """What is measured on ``images``."""
    fitted, originals = _fitted(graph.model, images)
    require_images(fitted, graph)
    runtime = open_runtime(path, trusted=True)  # it was just written
    certificate = certify(graph, runtime, fitted, originals, bounds)
    if scores is not None:
        certificate = scored(certificate, scores(graph.model), scores(ExportedModel(runtime)))
    shares = ", ".join(f"{share:.2%} of {what}" for what, share in certificate["agreement"].items())
    tell(f"agreement on {len(images)} images: {shares}")
    return certificate


def _fitted(model: Model, images: Sequence[Any]) -> tuple[list[Fitted], list[NDArray[Any]]]:
    """Images as a predictor brings them to size, and as they were read."""
    reading = model.reading or ReadingSpec()
    fit = fitting_of(model, replace(reading, tile=None, batch_shape="fixed"))  # all of one size
    fitted, originals = [], []
    for number, image in enumerate(images):
        source = source_for(image, number, model.image_spec, reading, max_pixels=MAX_PIXELS)
        pixels: Any = source()
        fitted.append(Fitted(source, *fit(pixels)))
        originals.append(np.asarray(pixels))
    return fitted, originals


def _remedy(precision: str, preprocessing: str) -> str:
    if precision != "fp32":
        return "export in fp32, calibrate with more images, or widen the bounds"
    if preprocessing == "resize":
        return "resize outside of the graph, as the commands do, or widen the bounds"
    return "export with another version of torch or of the runtime; the graph does not compute what the model does"
