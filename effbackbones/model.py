"""A backbone and a head made one module."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones.backbones.convolution import fold_batch_norm
from effbackbones.backbones.layout import lay_out
from effbackbones.contracts import Backbone, Head, ImageSizes, ImageSpec, class_names
from effbackbones.errors import UserError
from effbackbones.images.pixels import require_batch, require_unit, white
from effbackbones.images.spec import ReadingSpec
from effbackbones.multihead import MultiHead as MultiHead  # part of the public import


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
        self._scale: Tensor
        self._shift: Tensor
        self._fill: Tensor
        lay_out(backbone)
        lay_out(head)
        self.use_image_spec(image_spec or head.image_spec(backbone.image_spec))

    def use_image_spec(self, image_spec: ImageSpec) -> None:
        """Prepare images by ``image_spec`` from now on; its buffers belong to no state dict."""
        self.image_spec = image_spec
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (image_spec.mean, image_spec.std)
        )
        self.register_buffer("_scale", 1 / std, persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)
        # The letterbox paints with the rounded mean, which is not exactly 0 after normalisation: padding here must equal it.
        self.register_buffer("_fill", ((mean * 255).round() / 255 - mean) / std, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] (uint8 0..255, uint16 0..65535, floating point 0..1) to normalised ones, in the dtype of
        the parameters."""
        if images.ndim != 4 or images.shape[1] != self._scale.shape[1]:
            raise ValueError(f"expected images [B, {self._scale.shape[1]}, H, W], got {tuple(images.shape)}")
        scale = self._scale / white(images)
        return torch.addcmul(self._shift, images.float(), scale).to(next(self.parameters()).dtype)

    def _pad(self, images: Tensor) -> Tensor:
        """Pad right and bottom to the head's ``min_size`` and ``size_divisor`` with the letterbox's colour."""
        height, width = images.shape[-2:]
        grow = [self.head.padded(side) - side for side in (height, width)]
        # An exported graph must serve every size, so there the (possibly empty) padding is always part of it.
        if not torch.compiler.is_exporting() and not any(grow):
            return images
        fill = self._fill.to(images.dtype)
        return F.pad(images - fill, (0, grow[1], 0, grow[0])) + fill

    def forward(self, images: Tensor, sizes: ImageSizes | None = None, normalized: bool = False) -> Any:
        """Images [B, C, H, W], H and W from 1 up, to the head's raw output.

        ``sizes`` says how much of each image is real content (default: all). ``normalized`` skips the normalisation. Raises
        :class:`UserError` for what is no batch, for floating-point images that are plainly not in 0..1 (looked for on the CPU alone),
        and for a training batch that leaves a batch norm a single value.
        """
        require_batch(images)
        if not normalized:
            require_unit(images)
            images = self.normalize(images)
        sizes = sizes or ImageSizes.of(images)
        images = self._pad(images)
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

    def _run(self, images: Tensor, sizes: ImageSizes) -> Any:
        features = self.backbone(images)
        return self.head([features[i] for i in self._read], sizes)

    def loss(self, images: Tensor, targets: Any, sizes: ImageSizes | None = None) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum is the objective. Raises :class:`UserError` for images as :meth:`forward` does, and
        for targets that are out of range (looked at on the CPU alone)."""
        sizes = sizes or ImageSizes.of(images)
        self.head.check_targets(targets, sizes)
        return self.head.loss(self(images, sizes), targets, sizes)

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
        decay_norm_and_bias: bool = False,
    ) -> list[dict[str, Any]]:
        """Optimiser groups that cover every parameter once, frozen or not.

        Keys: ``params``, ``name`` (``"backbone.C3/decay"``), ``lr``, ``lr_scale``, ``weight_decay``. The head has
        ``lr_scale`` 1; the backbone's last level ``layer_decay``, the one before its square, and so on to the stem.
        Parameters of fewer than two dimensions (norms, biases) are not decayed unless ``decay_norm_and_bias``.
        """
        levels = list(self.backbone.level_modules().items())
        parts: list[tuple[str, float, tuple[nn.Module, ...]]] = [
            (f"backbone.{name}", (layer_decay or 1.0) ** (len(levels) - i), modules)
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

    def for_inference(self, *, channels_last: bool = True, compile: bool = False) -> Self:
        """A copy in eval mode, the batch norm of every :class:`ConvNorm` (the EfficientNets and their tail) folded into its
        convolution: the same results, faster. This model stays as it is; the copy cannot be saved."""
        model = copy.deepcopy(self).eval().requires_grad_(False)
        fold_batch_norm(model)
        model.folded = True
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        if compile:
            model.compile()
        return model
