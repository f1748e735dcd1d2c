"""An exported file in the place of a model: the same questions, answered by the runtime of the file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from effbackbones.contracts import Backbone, Detections, FeatureSpec, Head, ImageSizes, ImageSpec
from effbackbones.errors import UserError
from effbackbones.export.record import ExportRecord, HeadFacts
from effbackbones.images.pixels import require_batch, to_unit
from effbackbones.inference.runtimes import Runtime, open_runtime
from effbackbones.inference.thresholds import SURE
from effbackbones.model import Model
from effbackbones.multihead import MultiHead


class Answered(NamedTuple):
    """What a graph says of a batch: the prediction, and ``finite`` float32 [B, 1], NaN for the images for which it means nothing;
    scores of ``frames``, if it has them."""

    found: Any
    finite: Tensor
    frames: Tensor | None = None


class ExportedModel(Model):
    """The file ``path`` as a :class:`Model` that answers: :meth:`predict` and the forward pass, on images uint8.

    It has the ``image_spec``, ``reading``, ``classes``, ``config`` and ``provenance`` of the model that was exported, and cannot be
    trained, saved or changed. Only files with post-processing ``predict`` say all that is asked of a model; others raise
    :class:`UserError`.
    """

    def __init__(self, runtime: Runtime) -> None:
        record = runtime.record
        if record.postprocessing != "predict" or record.preprocessing == "none":
            what = f"was exported with preprocessing {record.preprocessing} and postprocessing {record.postprocessing}"
            remedy = "export with normalize (or resize) and predict, which the commands and predictors need"
            raise UserError(str(runtime.path), what, remedy)
        about = record.about(runtime.path)
        names = tuple(port.name for port in record.outputs)
        heads = {facts.task: _head(facts, record, names) for facts in record.heads}
        several = not isinstance(about.config.get("task"), str)
        head = MultiHead(_spec(names), heads) if several else next(iter(heads.values()))
        super().__init__(_Outside(names), head, image_spec=about.image_spec, config=about.config, classes=about.classes)
        self.runtime, self.record = runtime, record
        self.provenance = {**about.provenance, "exported": record.format}
        # A graph of one size has no other to fit a batch to.
        aspect = about.reading is not None and about.reading.batch_shape == "aspect" and not record.dynamic_size
        self.reading = replace(about.reading, batch_shape="fixed") if aspect and about.reading else about.reading
        self.resizes = record.preprocessing == "resize"
        self.fixed_size = not record.dynamic_size
        self.folded = True
        self.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.runtime.path, self.image_spec)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an exported file."""
        return cls(open_runtime(path))

    def use_image_spec(self, image_spec: ImageSpec) -> None:
        """As :meth:`Model.use_image_spec`, for what lies outside of the graph: how images are resized; another mean or std, and another
        size of a graph that has a fixed one, raise :class:`UserError`."""
        record: ExportRecord | None = getattr(self, "record", None)
        if record is not None and image_spec != self.image_spec:
            free = ("interpolation", "crop_fraction", "crop_mode", *(("size",) if record.dynamic_size else ()))
            same = replace(image_spec, **{name: getattr(self.image_spec, name) for name in free})
            if record.preprocessing == "resize" or same != self.image_spec:
                what = f"is part of the graph in {self.runtime.path}"
                raise UserError("image_spec", what, "export the model anew with what you want")
        super().use_image_spec(image_spec)

    def forward(self, images: Tensor, sizes: ImageSizes | None = None, normalized: bool = False) -> Any:
        """Images uint8 [B, C, H, W] to what the graph says of them, on their device."""
        require_batch(images)
        port = self.record.inputs[0]
        if port.dtype == "float32" and not normalized:
            images = to_unit(images)
        if normalized or str(images.dtype) != f"torch.{port.dtype}":
            what = f"expected {port.dtype}, got {'normalised ' if normalized else ''}{str(images.dtype).removeprefix('torch.')}"
            raise UserError("images", what, f"the graph in {self.runtime.path} takes nothing else")
        for side, wanted in zip(images.shape, port.shape, strict=True):
            if isinstance(wanted, int) and side != wanted:
                what = f"expected {list(port.shape)}, got {list(images.shape)}"
                raise UserError("images", what, f"the graph in {self.runtime.path} has a fixed size")
        inputs = {"images": np.ascontiguousarray(images.cpu().numpy())}
        if len(self.record.inputs) > 1:
            inputs["valid"] = (sizes or ImageSizes.of(images)).valid.cpu().numpy()
        found = self.runtime(inputs)
        features = [
            torch.from_numpy(np.array(found[name])).to(images.device) for name in self.backbone.feature_spec.names
        ]
        return self.head(features, sizes or ImageSizes.of(images))

    def for_inference(
        self,
        dtype: torch.dtype | str | None = None,
        backend: str = "auto",
        *,
        threads: int | None = None,
        mode: str = "latency",
    ) -> Self:
        """Itself: the graph is what it is. What would change it raises :class:`UserError`."""
        for name, value in (
            ("dtype", dtype),
            ("backend", None if backend == "auto" else backend),
            ("threads", threads),
        ):
            if value is not None:
                what = f"{value} is not for {self.runtime.path}, which is run by {self.runtime.name} as it is"
                raise UserError(name, what, "leave it out, or take the checkpoint that it was exported from")
        return self


def _reopened(path: Path, image_spec: ImageSpec) -> ExportedModel:
    model = ExportedModel.open(path)
    model.use_image_spec(image_spec)
    return model


class _Outside(Backbone):
    """Stands for the backbone, which is in the graph; its maps are the outputs."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.name, self.feature_spec, self.image_spec = "exported", _spec(names), ImageSpec()

    def forward(self, images: Tensor) -> list[Tensor]:
        raise _unable("gives no feature maps")


class ExportedHead(Head):
    """Stands for a head that is in the graph: reads its outputs."""

    task: ClassVar[str] = ""
    built_with: Mapping[str, Any] = {}
    """Options of predictions that are part of the graph."""

    def __init__(self, spec: FeatureSpec, num_classes: int, *, multilabel: bool = False) -> None:
        super().__init__(spec, num_classes)
        self.multilabel, self.thresholds = multilabel, (SURE,) * num_classes
        self._where = nn.Parameter(torch.zeros(0), requires_grad=False)  # says on what device answers are wanted

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Answered:
        """Outputs of the graph, in the order of its names."""
        named = dict(zip((name.removeprefix(f"{self.task}_") for name in self.spec.names), features, strict=True))
        rows = features[0].new_zeros((len(features[0]), 1), dtype=torch.float32)
        if "finite" in named:
            rows = rows.masked_fill(~named.pop("finite")[:, None], torch.nan)
        if named.keys() == set(Detections._fields):
            return Answered(Detections(**named), rows)
        frames = named.pop("frames") if self.frame_step else None
        return Answered(next(iter(named.values())) if len(named) == 1 else named, rows, frames)

    def loss(self, raw: Any, targets: Any, sizes: ImageSizes) -> dict[str, Tensor]:
        raise _unable("cannot be trained")

    def predict(self, raw: Answered, sizes: ImageSizes) -> Any:
        """What the graph says."""
        return raw.found

    def timeline(self, raw: Answered, sizes: ImageSizes) -> Tensor | None:
        return raw.frames


def _unable(what: str) -> UserError:
    return UserError("exported model", what, "take the checkpoint that it was exported from")


def _spec(names: tuple[str, ...]) -> FeatureSpec:
    return FeatureSpec("exported", names, (0,) * len(names), (1,) * len(names))


def _head(facts: HeadFacts, record: ExportRecord, names: tuple[str, ...]) -> Head:
    kind: Any = type("ExportedHead", (ExportedHead,), {"task": facts.task})  # the task is of the class
    head: ExportedHead = kind(
        _spec(tuple(name for name in names if name in facts.outputs)), facts.num_classes, multilabel=facts.multilabel
    )
    head.built_with = facts.thresholds
    head.frame_step, head.frame_centre = facts.frame_step, facts.frame_centre
    head.merge_iou = float(facts.thresholds.get("nms_iou", head.merge_iou))
    head.merge_most = facts.thresholds.get("max_detections")
    if (
        facts.multilabel and "threshold" in facts.thresholds
    ):  # which the graph leaves to whoever reads its probabilities
        own = facts.thresholds["threshold"]
        head.thresholds = tuple(own) if isinstance(own, list | tuple) else (own,) * facts.num_classes
    # What the graph resizes comes as it is; what it pads it pads by itself, so only shapes of batches depend on this.
    head.size_divisor, head.min_size = (
        (1, 1) if record.preprocessing == "resize" else (facts.size_divisor, facts.min_size)
    )
    return head
