"""The certificate of an exported file: it and the model it was made from answer the same real images, and what differs is said."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effbackbones.contracts import Detections
from effbackbones.errors import UserError
from effbackbones.export.agreement import Agreement, Tolerance
from effbackbones.export.graph import Graph
from effbackbones.images.pixels import to_unit
from effbackbones.inference.boxes import restore_boxes
from effbackbones.inference.preparing import Fitted
from effbackbones.inference.runtimes import Runtime
from effbackbones.multihead import MultiHead

Scores = Callable[[Any], Mapping[str, float | None]]
"""The scores of a model on the images of a certificate, by name."""


EXACT = Tolerance()


@dataclass(frozen=True)
class Bounds:
    """What an export may cost: at least ``agreement`` (a share) of top classes, boxes and pixels are the same, within ``tolerance``;
    no score changes by more than ``score`` (0.001 is a tenth of a point)."""

    agreement: float
    score: float
    tolerance: Tolerance = EXACT

    @classmethod
    def of(cls, precision: str, preprocessing: str) -> "Bounds":
        """What is allowed where nothing was said: of the same arithmetic nothing but rounding, of a smaller one more; a resize inside
        of the graph is not that of PIL."""
        if precision == "int8":
            return cls(0.7, 0.03, Tolerance(8.0, 0.15, 0.2, 0.1))
        if precision == "fp16":
            return cls(0.95, 0.005, Tolerance(2.0, 0.02, 0.02, 0.1))
        if preprocessing == "resize":
            return cls(0.9, 0.01, Tolerance(2.0, 0.03, 0.02, 0.1))
        return cls(0.995, 0.001)


def certify(
    graph: Graph, runtime: Runtime, images: Sequence[Fitted], originals: Sequence[NDArray[Any]], bounds: Bounds
) -> dict[str, Any]:
    """Run ``graph``, on the model as it was trained, and ``runtime`` on the same images; what was found, JSON-like.

    ``images``: as a predictor fits them, all of one size; ``originals``: as they were read, which a graph that resizes is given.
    """
    found = Agreement(bounds.tolerance)
    facts = {head.task: head for head in runtime.record.heads}
    for rows in _batches(len(images), one_by_one=graph.preprocessing == "resize"):
        some = [images[row] for row in rows]
        feed = fed(graph, some, [originals[row] for row in rows])
        answers = runtime({name: tensor.numpy() for name, tensor in feed.items()})
        if graph.preprocessing == "resize":
            expected = _restored(graph, _expected(graph, some), some)
        else:
            with torch.no_grad():
                expected = {name: value.numpy() for name, value in graph.named(**feed).items()}
        several = isinstance(graph.model.head, MultiHead)
        for row in range(len(rows)):
            for task, about in facts.items():
                prefix = f"{task}_" if several else ""
                own = [
                    {name.removeprefix(prefix): value[name][row] for name in about.outputs}
                    for value in (expected, answers)
                ]
                found.add(task, *own, multilabel=about.multilabel)
    return {
        "images": len(images),
        "largest_difference": found.largest,
        "agreement": {what: found.same[what] / found.all[what] for what in found.all if found.all[what]},
        "compared": dict(found.all),
        "least_agreement": found.share(),
        "bounds": asdict(bounds),
        "runtime": runtime.name,
        "runtime_options": dict(runtime.options),
    }


def scored(
    certificate: Mapping[str, Any], before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, Any]:
    """The certificate with the scores of the model and of the file, on the same images."""
    names = [name for name in before if before[name] is not None or after.get(name) is not None]
    scores = {name: {"model": before[name], "exported": after.get(name)} for name in names}
    return {**certificate, "scores": scores}


def refused(certificate: Mapping[str, Any]) -> str | None:
    """Why the file is not to be used, or None."""
    bounds = certificate["bounds"]
    nothing = [what for what, count in certificate["compared"].items() if not count]
    if nothing and bounds["agreement"] > 0:
        return f"on these {certificate['images']} images there are no {nothing[0]} to compare"
    if certificate["least_agreement"] < bounds["agreement"]:
        shares = ", ".join(f"{share:.2%} of {what}" for what, share in certificate["agreement"].items())
        return f"the exported file agrees with the model in {shares} alone, expected {bounds['agreement']:.2%}"
    for name, pair in certificate.get("scores", {}).items():
        values = pair["model"], pair["exported"]
        if None in values or abs(values[0] - values[1]) > bounds["score"]:
            told = " and ".join("undefined" if value is None else f"{value:.4f}" for value in values)
            return f"{name} of the model and of the exported file is {told}, expected within {bounds['score']:g}"
    return None


def _batches(count: int, *, one_by_one: bool) -> Iterator[list[int]]:
    """Rows in batches of 1, 3, 1, 3, ...: a graph must take any number."""
    borders = [0]
    while borders[-1] < count:
        borders.append(min(count, borders[-1] + (1 if one_by_one or len(borders) % 2 else 3)))
    yield from (list(range(first, last)) for first, last in pairwise(borders))


def fed(graph: Graph, some: Sequence[Fitted], originals: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
    """What the graph is fed: images as they were read where it resizes them, else as they were fitted."""
    pixels = originals if graph.preprocessing == "resize" else [one.pixels for one in some]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    if graph.preprocessing == "none":
        images = graph.model.normalize(images).contiguous()
    elif graph.takes_floats:
        images = to_unit(images)
    feed = {"images": images}
    if graph.takes_valid:
        feed["valid"] = torch.tensor([one.plan.valid for one in some], dtype=torch.int64)
    return feed


def _expected(graph: Graph, some: Sequence[Fitted]) -> dict[str, Tensor]:
    """What the model says of images that were resized outside of it, before answers are read."""
    plain = Graph(graph.model, preprocessing="normalize", postprocessing="predict")
    with torch.no_grad():
        return plain.named(**fed(plain, some, []))


def _restored(graph: Graph, found: Mapping[str, Tensor], some: Sequence[Fitted]) -> dict[str, NDArray[Any]]:
    """The answers of a single image in its original pixels, in the form that ``graph`` gives them."""
    plan = some[0].plan
    several = isinstance(graph.model.head, MultiHead)
    outputs: dict[str, Any] = {}
    for task, head in graph.heads.items():
        prefix = f"{task}_" if several else ""
        own = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        if "boxes" in own:
            boxes = restore_boxes(Detections(own["boxes"], own["scores"], own["labels"], own["count"]), [plan])[0]
            full = own["boxes"].clone().double()
            full[0, : len(boxes.corners)] = torch.from_numpy(boxes.corners)
            own["boxes"] = full
        elif task == "seg":
            own = {"probabilities": plan.restore_map(own["probabilities"][0])[None]}
        for name, value in graph.answered(task, head, own).items():
            outputs[prefix + name] = value.numpy()
    return outputs


def require_images(images: Sequence[Fitted], graph: Graph) -> None:
    """Images of a certificate must have one size, that of the graph."""
    shapes = {one.pixels.shape for one in images}
    if graph.preprocessing != "resize" and len(shapes) > 1:
        raise UserError("images", f"are fitted to {len(shapes)} sizes", "export a model whose images are fitted to one")
