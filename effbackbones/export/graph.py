"""What is exported: a model between its preprocessing and its post-processing, tensors in and tensors out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from effbackbones.contracts import Detections, Head, ImageSizes
from effbackbones.errors import UserError
from effbackbones.export.record import HeadFacts, Port
from effbackbones.export.resizing import Resizing
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.thresholds import thresholds_of
from effbackbones.model import Model
from effbackbones.multihead import MultiHead

WITHOUT_SIZES = ("cls", "seg")
"""Tasks whose answers do not depend on how much of an image is padding."""


class Graph(nn.Module):
    """Images uint8 [B, C, H, W] (``preprocessing`` none: normalised float32; of a model that reads files in their own depth: float32 in
    0..1; recordings: uint16), and where the head looks at it ``valid`` int64 [B, 2],
    the (height, width) of real content at the top left of each, to named tensors.

    ``size``: (H, W) of the network's images. ``top_k``: classes that an answer of a classification names.
    """

    def __init__(self, model: Model, *, preprocessing: str, postprocessing: str, top_k: int = 5) -> None:
        super().__init__()
        self.model, self.preprocessing, self.postprocessing, self.top_k = model, preprocessing, postprocessing, top_k
        self.heads = heads_of(model.head)
        self.resizing = Resizing.of(model) if preprocessing == "resize" else None
        if self.resizing and postprocessing == "none":
            what = "raw output is of the resized image, and nothing outside of the graph knows how it was resized"
            raise UserError("preprocessing", what, "export with postprocessing predict or answer")
        # What was trained on 16 bits is not to be squeezed into 8.
        sound = model.image_spec.rate is not None
        self.takes_floats = preprocessing != "none" and not sound and (model.reading or ReadingSpec()).depth == "native"
        floats = self.takes_floats or preprocessing == "none"
        self.dtype = torch.float32 if floats else torch.uint16 if sound else torch.uint8
        self.takes_valid = preprocessing != "resize" and any(
            word not in WITHOUT_SIZES or head.reads_valid for word, head in self.heads.items()
        )

    def forward(self, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        """The values of :meth:`named`, without their names."""
        return tuple(self.named(images, valid).values())

    def named(self, images: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs by name, those of several heads with ``TASK_`` in front."""
        seen, given = images, (images.shape[-2], images.shape[-1])
        sizes = ImageSizes(given, valid) if valid is not None else ImageSizes.of(images)
        if self.resizing:
            seen, sizes = self.resizing(images)
        raw = self.model(seen, sizes, normalized=self.preprocessing == "none")
        found = raw if self.postprocessing == "none" else self.model.head.predict(raw, sizes)
        several = len(self.heads) > 1 or isinstance(self.model.head, MultiHead)
        outputs: dict[str, Tensor] = {}
        for word, head in self.heads.items():
            own, own_raw = (found[word], raw[word]) if several else (found, raw)
            prefix = f"{word}_" if several else ""
            for name, value in self._read(word, head, own, own_raw, images, sizes).items():
                outputs[prefix + name] = value
        return outputs

    def _read(
        self, word: str, head: Head, found: Any, raw: Any, images: Tensor, sizes: ImageSizes
    ) -> dict[str, Tensor]:
        """The outputs of one head."""
        if self.postprocessing == "none":
            return dict(_leaves(found, "logits"))
        if isinstance(found, Detections):
            if self.resizing:
                found = self.resizing.restore_boxes(found, images)
            return {**found._asdict(), "finite": _finite(raw, images)}
        if word == "seg" and self.resizing:
            found = self.resizing.restore_maps(found, images)
        named = self.answered(word, head, dict(_leaves(found, "probabilities" if word in ("cls", "seg") else "output")))
        frames = head.timeline(raw, sizes)
        return named if frames is None else {**named, "frames": frames}

    def answered(self, word: str, head: Head, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Predictions of a head, or where answers are wanted these: the best classes, a label for each pixel, or
        a mask of each class where they overlap."""
        if self.postprocessing != "answer":
            return found
        if word == "seg" and (over := thresholds_of(self.model).get(word)) is not None:
            return {"masks": (found["probabilities"] > torch.tensor(over.values)[:, None, None]).to(torch.uint8)}
        if word == "seg":
            return {"labels": _labels(found["probabilities"])}
        if word == "cls" and head.num_classes > 1:
            top = found["probabilities"].topk(min(self.top_k, head.num_classes))
            return {"scores": top.values, "labels": top.indices}
        return found

    def facts(self, outputs: Mapping[str, Tensor]) -> tuple[HeadFacts, ...]:
        """What a record says of the heads."""
        several = isinstance(self.model.head, MultiHead)
        return tuple(
            HeadFacts(
                task=word,
                num_classes=head.num_classes,
                outputs=tuple(name for name in outputs if not several or name.startswith(f"{word}_")),
                size_divisor=head.size_divisor,
                min_size=head.min_size,
                multilabel=bool(getattr(head, "multilabel", False)),
                frame_step=head.frame_step,
                frame_centre=head.frame_centre,
                thresholds=prediction_options(head),
            )
            for word, head in self.heads.items()
        )


def heads_of(head: Any) -> dict[str, Head]:
    """The heads by task."""
    return (
        {word: cast(Head, one) for word, one in head.heads.items()}
        if isinstance(head, MultiHead)
        else {head.task: head}
    )


def prediction_options(head: Head) -> dict[str, Any]:
    """The options of predictions that a head was built with."""
    values: dict[str, Any] = {}
    for record in (head, *(getattr(head, name) for name in head.option_records)):
        values |= {name: getattr(record, name) for name in head.prediction_options if hasattr(record, name)}
    return values


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a prediction of any kind, by name; a bare one is called ``name``."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    items = tree._asdict() if hasattr(tree, "_asdict") else tree
    pairs = items.items() if isinstance(items, Mapping) else ((str(place), one) for place, one in enumerate(items))
    for key, value in pairs:
        for inner, leaf in _leaves(value, ""):
            yield "_".join(part for part in (str(key), inner) if part), leaf


def _finite(raw: Any, images: Tensor) -> Tensor:
    """For each image whether the raw output is finite for it, bool [B]: boxes are chosen by score, and NaN is below every one."""
    rows = [
        leaf.isfinite().flatten(1).all(1)
        for _, leaf in _leaves(raw, "raw")
        if leaf.is_floating_point() and leaf.ndim > 1 and statically_known_true(leaf.shape[0] == images.shape[0])
    ]
    return torch.stack(rows).all(0)


def _labels(probabilities: Tensor) -> Tensor:
    """The class of each pixel uint8 [B, H, W], the lower of equals; of a single one 1 where it is over 0.5."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).to(torch.uint8)
    return probabilities.argmax(1).to(torch.uint8)


class Example(NamedTuple):
    """What a graph is made with: inputs by name, and which of their dimensions are free, by place and name."""

    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]]

    @classmethod
    def of(cls, graph: Graph, *, dynamic_size: bool) -> "Example":
        """Two images of the network's size; a little larger where height and width are free, and of sides that differ, which cannot
        be taken for one."""
        spec, rows = graph.model.image_spec, graph.model.backbone.feature_spec.rows
        height, width = spec.size
        if dynamic_size:
            step = graph.model.head.size_divisor
            height = rows or graph.model.head.padded(height) + step
            width = graph.model.head.padded(width) + 2 * step
        images = torch.zeros((2, len(spec.mean), height, width), dtype=graph.dtype)
        inputs, free = {"images": images}, {"images": {0: "batch"}}
        if dynamic_size:
            free["images"] |= {3: "width"} if rows else {2: "height", 3: "width"}
        if graph.takes_valid:
            inputs["valid"] = torch.tensor([[height, width]] * 2)
            free["valid"] = {0: "batch"}
        return cls(inputs, free)

    def ports(self) -> tuple[Port, ...]:
        """The inputs as a record names them."""
        of_sound = self.inputs["images"].dtype == torch.uint16
        said = {
            "images": "recordings, one row of samples of 16 bits plus 32768, model.image_spec.rate of them a second"
            if of_sound
            else "RGB images, or as many channels as model.image_spec.mean has values",
            "valid": "height and width of the content at the top left of each image, the rest being padding",
        }
        return tuple(port(name, tensor, said[name], self.free[name]) for name, tensor in self.inputs.items())


_MEANINGS = {
    "probabilities": "of each class, 0..1 (of each pixel: [batch, classes, height, width])",
    "scores": "falling, 0..1",
    "frames": "of each class in each frame, 0..1; frame j is centred on sample heads.frame_centre + j * heads.frame_step",
    "masks": "1 where a class is, else 0: in the order of model.classes, which may overlap",
    "labels": "numbers of classes, in the order of model.classes",
    "boxes": "x1 y1 x2 y2 in pixels of the images given; rows from count on are 0",
    "count": "boxes of each image",
    "finite": "false: the network answered with NaN or infinity, and the other rows of this image mean nothing",
}


def output_ports(names: Sequence[str], values: Sequence[Any], sides: Mapping[str, str]) -> tuple[Port, ...]:
    """The outputs as a record names them; ``values`` are their stand-ins in the graph, ``sides`` the names of its free sides."""
    found = []
    for name, value in zip(names, values, strict=True):
        shape = tuple(side if isinstance(side, int) else sides.get(str(side), str(side)) for side in value.shape)
        kind, meaning = (
            str(value.dtype).removeprefix("torch."),
            _MEANINGS.get(name.rpartition("_")[2], "as the head gives it"),
        )
        found.append(Port(name, kind, shape, meaning))
    return tuple(found)


def port(name: str, tensor: Tensor, meaning: str, free: Mapping[int, str]) -> Port:
    """A tensor as a record names it."""
    shape = tuple(free.get(place, side) for place, side in enumerate(tensor.shape))
    return Port(name, str(tensor.dtype).removeprefix("torch."), shape, meaning)
