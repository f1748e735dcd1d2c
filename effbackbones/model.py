"""A backbone and a head made one module."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.folding import fold_batch_norm, shed
from effbackbones.backbones.layout import lay_out
from effbackbones.contracts import Backbone, Head, ImageSizes, ImageSpec, class_names, losses_by_name
from effbackbones.errors import UserError
from effbackbones.images.pixels import require_batch, require_channels, require_unit, white
from effbackbones.images.spec import ReadingSpec
from effbackbones.logarithms import ready_logarithms
from effbackbones.multihead import MultiHead as MultiHead  # part of the public import
from effbackbones.registry import import_built_in


class Runner(Protocol):
    """Answers in place of a model's own forward pass."""

    def __call__(self, model: "Model", images: Tensor, sizes: ImageSizes | None, normalized: bool) -> Any:
        """As :meth:`Model.forward`."""


class Model(nn.Module):
    """Images to raw output, losses or predictions.

    ``image_spec`` defaults to what the head makes of the backbone's. ``config`` is what ``build_model`` needs to build it again
    (JSON-like); ``classes`` are the names of the labels, when known: of several tasks, a dict by task. ``reading`` says how files
    become the images that it was trained on; None where nobody said it. It can be set, and :func:`save_model` keeps it.
    """

    resizes: bool = False
    """Whether images are to come as they are, because the model brings them to size itself, as an exported one may."""
    fixed_size: bool = False
    """Whether it takes images of the size of its ``image_spec`` alone, as an exported one may."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        image_spec: ImageSpec | None = None,
        config: Mapping[str, Any] | None = None,
        classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        # A backbone that always gives the same maps may give more than the head reads.
        self._read = [backbone.feature_spec.names.index(name) for name in head.spec.names]
        self.config = dict(config or {})
        self.classes = None if classes is None else class_names(classes)
        self.provenance: dict[str, Any] = {}
        self.reading: ReadingSpec | None = None
        self.folded = False
        self.runner: Runner | None = None
        self._scale: Tensor
        self._shift: Tensor
        self._fill: Tensor
        self.use_image_spec(image_spec or head.image_spec(backbone.image_spec))
        lay_out(backbone)
        lay_out(head)
        self.built_shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        """By which :func:`save_model` tells layers that ``config`` does not know."""

    def use_image_spec(self, image_spec: ImageSpec) -> None:
        """Prepare images by ``image_spec`` from now on; its buffers belong to no state dict."""
        self.image_spec = image_spec
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (image_spec.mean, image_spec.std)
        )
        self.register_buffer("_scale", 1 / std, persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)
        # The letterbox paints with the rounded mean, which is not exactly 0 after normalisation: padding here must equal it.
        levels = 255 if image_spec.rate is None else 65535
        self.register_buffer("_fill", ((mean * levels).round() / levels - mean) / std, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] (uint8 0..255, uint16 0..65535, floating point 0..1) to normalised ones, in the dtype that the
        backbone takes: that of its parameters."""
        require_channels(images, self._scale.shape[1])
        scale = self._scale / white(images)
        return torch.addcmul(self._shift, images.float(), scale).to(self.backbone.input_dtype)

    def _pad(self, images: Tensor) -> Tensor:
        """Pad right and bottom to the head's ``min_size`` and ``size_divisor`` with the letterbox's colour; a recording stays one row."""
        height, width = images.shape[-2:]
        rows = self.backbone.feature_spec.rows
        grow = [0 if rows else self.head.padded(height) - height, self.head.padded(width) - width]
        # An exported graph must serve every size, so there the (possibly empty) padding is always part of it.
        if not torch.compiler.is_exporting() and not any(grow):
            return images
        fill = self._fill.to(images.dtype)
        return F.pad(images - fill, (0, grow[1], 0, grow[0])) + fill

    def forward(self, images: Tensor, sizes: ImageSizes | None = None, normalized: bool = False) -> Any:
        """Images [B, C, H, W], H and W from 1 up, to the head's raw output.

        ``sizes`` says how much of each image is real content (default: all). ``normalized`` skips the normalisation. Raises
        :class:`UserError` for what is no batch or has other channels, for floating-point images that are plainly not in 0..1 or, in eval
        mode, not numbers (looked for on the CPU alone), and for a training batch that leaves a batch norm a single value.
        """
        ready_logarithms(self._scale.device)
        if self.runner is not None and not self.training and not torch.compiler.is_compiling():
            return self.runner(self, images, sizes, normalized)
        return self.plainly(images, sizes, normalized)

    def plainly(self, images: Tensor, sizes: ImageSizes | None = None, normalized: bool = False) -> Any:
        """As :meth:`forward`, by this model's own modules, whatever answers faster."""
        return self.with_features(images, sizes, normalized)[1]

    def with_features(
        self, images: Tensor, sizes: ImageSizes | None = None, normalized: bool = False
    ) -> tuple[list[Tensor], Any]:
        """The maps of the backbone (``backbone.feature_spec``), and what :meth:`plainly` makes of them."""
        sizes = sizes or ImageSizes.of(images)
        images = self._prepared(images, normalized)
        if torch.compiler.is_compiling():
            return self._run(images, sizes)
        try:
            return self._run(images, sizes)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            what = f"{len(images)} of {images.shape[2]} x {images.shape[3]} pixels leaves a batch norm one value to take statistics of"
            remedy = "give at least 2 images, or larger ones; or freeze the batch norms (model.eval())"
            raise UserError("training batch", what, remedy) from None

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of the backbone alone (``backbone.feature_spec``); images as :meth:`forward` takes them."""
        maps: list[Tensor] = self.backbone(self._prepared(images, normalized=False))
        return maps

    def _prepared(self, images: Tensor, normalized: bool) -> Tensor:
        """Images as the backbone takes them."""
        require_batch(images)
        if not normalized:
            # In training, steps that are not finite are counted and skipped.
            require_unit(images, finite=not self.training)
            images = self.normalize(images)
        return self._pad(images)

    def _run(self, images: Tensor, sizes: ImageSizes) -> tuple[list[Tensor], Any]:
        features = self.backbone(images)
        return features, self.head([features[i] for i in self._read], sizes)

    def loss(self, images: Tensor, targets: Any, sizes: ImageSizes | None = None) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum is the objective. Raises :class:`UserError` for images as :meth:`forward` does, and
        for targets that are out of range (looked at on the CPU alone)."""
        sizes = sizes or ImageSizes.of(images)
        self.head.check_targets(targets, sizes)
        return dict(losses_by_name(self.head, self.head.loss(self(images, sizes), targets, sizes)))

    @torch.no_grad()
    def predict(self, images: Tensor, sizes: ImageSizes | None = None) -> Any:
        """The head's predictions, in pixels of ``images``: probabilities [B, K] (classification), :class:`Detections` (boxes xyxy), or
        probabilities [B, K, H, W] (segmentation).

        Images are taken at the size that they have; the commands bring theirs to ``image_spec.size`` first, where a network
        sees best. Raises RuntimeError in training mode, where batch statistics would answer, and :class:`UserError` for images as
        :meth:`forward` does.
        """
        if self.training:
            raise RuntimeError(
                "Model.predict in training mode would use and change batch statistics; call .eval() first"
            )
        sizes = sizes or ImageSizes.of(images)
        return self.head.predict(self(images, sizes), sizes)

    def param_groups(
        self,
        lr: float,
        weight_decay: float = 0.0,
        *,
        layer_decay: float | None = None,
        backbone_scale: float = 1.0,
        decay_norm_and_bias: bool = False,
    ) -> list[dict[str, Any]]:
        """Optimiser groups that cover every parameter once, frozen or not.

        Keys: ``params``, ``name`` (``"backbone.C3/decay"``), ``lr``, ``lr_scale``, ``weight_decay``. The head has
        ``lr_scale`` 1; the backbone's last level ``layer_decay``, the one before its square, and so on to the stem, each times
        ``backbone_scale``.
        Parameters of fewer than two dimensions (norms, biases) are not decayed unless ``decay_norm_and_bias``.
        """
        levels = list(self.backbone.level_modules().items())
        parts: list[tuple[str, float, tuple[nn.Module, ...]]] = [
            (f"backbone.{name}", backbone_scale * (layer_decay or 1.0) ** (len(levels) - i), modules)
            for i, (name, modules) in enumerate(levels)
        ]
        groups: list[dict[str, Any]] = []
        for part, scale, modules in [*parts, ("head", 1.0, (self.head,))]:
            parameters = [p for module in modules for p in module.parameters()]
            for decayed in (True, False):
                chosen = [p for p in parameters if (decay_norm_and_bias or p.ndim > 1) == decayed]
                if chosen:
                    name = f"{part}/{'decay' if decayed else 'no_decay'}"
                    decay = weight_decay if decayed else 0.0
                    groups.append(
                        {"params": chosen, "name": name, "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
                    )
        return groups

    def folded_copy(self, *, whole: bool = False) -> Self:
        """A copy in eval mode without gradients and, unless ``whole``, what only trains, its batch norms folded into the convolutions in
        front of them, as graphs are made of. It cannot be saved."""
        model = copy.deepcopy(self).eval().requires_grad_(False)
        if not whole:
            shed(model)
        fold_batch_norm(model)
        model.folded, model.runner = True, None
        return model

    def for_inference(
        self,
        dtype: torch.dtype | str | None = None,
        backend: str = "auto",
        *,
        threads: int | None = None,
        mode: str = "latency",
    ) -> Self:
        """A copy that answers faster, in eval mode, with the same results within a bound; this model stays as it is.

        ``backend``: ``eager`` folds batch norms, on a CPU fuses activations and lays weights out, and on a GPU takes in 16 bits, layer by
        layer, kernels of its own where they are quicker there than the library's, which the first call for a size finds out;
        ``openvino`` and ``onnxruntime`` run a graph of the network, on a CPU; ``compile`` is ``torch.compile``. ``auto`` takes on a CPU the
        first of ``openvino``, ``onnxruntime`` and ``eager`` that is installed (the first two with onnx and onnxscript), elsewhere
        ``eager``.

        The first call for an image size makes the graph, which takes some seconds and is kept on disk, and compares its raw output with
        this model's, on the images given and on noise: each tensor within 1e-4 of its largest value, in 16 bits within 5e-2. What
        fails, or differs by more, is told in a line of the log, and the next backend, at last ``eager``, answers. After 8 image sizes
        ``eager`` answers for others.

        ``dtype``: ``torch.bfloat16`` computes in it, if the processor does (float32 otherwise, which is told); ``torch.float16`` on a GPU.
        What the head predicts is float32. ``threads`` of the runtimes: as many as torch has. ``mode``: ``latency`` gives all of them to
        one call, ``throughput`` one to each of several calls from as many threads.

        The copy can be copied and pickled, and called from several threads. It cannot be saved, and does not notice when its weights
        change. Raises :class:`UserError` for a backend that is not installed, or not for this device.
        """
        make = import_built_in("effbackbones.inference.backends.fast:for_inference")  # above, which needs this
        model: Self = make(self, backend=backend, dtype=dtype, threads=threads, mode=mode)
        return model
