"""The words that backbones, heads and tasks speak: specs, sizes, targets, predictions, and the two base classes.

A head knows of a backbone only its :class:`FeatureSpec`; a backbone knows of a head only its :class:`BackboneNeeds`.
Boxes are ``xyxy`` in pixels everywhere; labels are ``0..K-1`` without a background class.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effbackbones.errors import UserError, nearest
from effbackbones.images.pixels import require_batch, to_unit
from effbackbones.images.spec import (
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    LARGEST_SIDE as LARGEST_SIDE,
    ImageSpec as ImageSpec,
)
from effbackbones.optiontypes import field_types, parameter_types
from effbackbones.weights.loading import load_state
from effbackbones.weights.pretrained import Adopted, Decided, Pretrained

LEVELS = ("C1", "C2", "C3", "C4", "C5")
TAPS = ("stage", "stem", "smp_b0")
"""Where a backbone takes its maps, as its option ``tap`` says."""
Classes = tuple[str, ...] | dict[str, tuple[str, ...]]
"""Names of the labels 0..K-1; of several tasks, by task."""


def class_names(classes: Sequence[str] | Mapping[str, Sequence[str]]) -> Classes:
    """Names as tuples; anything but sequences of names raises TypeError."""
    if isinstance(classes, Mapping):
        return {str(task): _names(own) for task, own in classes.items()}
    return _names(classes)


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str | Mapping):
        raise TypeError(f"expected a list of names, got {str(classes)[:60]!r}")
    return tuple(map(str, classes))


@dataclass(frozen=True)
class FeatureSpec:
    """What a head may know of a backbone: one entry per feature map, finest first.

    ``names`` such as ``("C3", "C4", "C5")``; ``channels`` and ``strides`` (input pixels per cell) in the same order.
    ``bn_eps`` and ``bn_momentum`` are the batch-norm settings behind the features, for a head that continues the
    network (the published classifier tail does). ``rows``: the height of every image that it takes, 1 of a recording, which has no
    rows that a stride could be of; None: any. ``centres``: of each map, on which pixel of its stride a cell's receptive field is
    centred, (stride - 1) / 2 in its middle; None: not known.
    """

    backbone: str
    names: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    rows: int | None = None
    centres: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.channels) == len(self.strides) > 0:
            raise ValueError(f"FeatureSpec needs as many names as channels and strides, at least one; got {self}")

    def select(self, names: tuple[str, ...]) -> "FeatureSpec":
        """The spec of the named maps alone, in the order of ``names``. Unknown names raise :class:`UserError`."""
        for name in names:
            if name not in self.names:
                raise UserError(
                    f"level {name!r}", f"backbone {self.backbone!r} does not give it", nearest(name, self.names)
                )
        where = [self.names.index(name) for name in names]
        channels, strides = tuple(self.channels[i] for i in where), tuple(self.strides[i] for i in where)
        centres = None if self.centres is None else tuple(self.centres[i] for i in where)
        return replace(self, names=names, channels=channels, strides=strides, centres=centres)


@dataclass(frozen=True)
class BackboneNeeds:
    """What a head asks of its backbone before that is built; levels that nobody asks for are never built."""

    levels: tuple[str, ...] = LEVELS
    output_stride: int = 32
    tap: str = "stage"


class ImageSizes(NamedTuple):
    """Sizes of the images given: ``batch`` (H, W) of the tensor; ``valid`` int64 [B, 2], (H, W) of the real content
    at the top left of each image (the rest is letterbox)."""

    batch: tuple[int, int]
    valid: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "ImageSizes":
        """Sizes of a batch [B, C, H, W] that is real content everywhere."""
        require_batch(images)
        batch, _, height, width = images.shape
        sides = [torch.full((batch,), side, dtype=torch.int64, device=images.device) for side in (height, width)]
        return cls((height, width), torch.stack(sides, 1))

    def select(self, rows: Tensor) -> "ImageSizes":
        """Those of the images ``rows`` (int64 [b]) alone."""
        return self._replace(valid=self.valid.index_select(0, rows))


class BoxTargets(NamedTuple):
    """Ground-truth boxes of a batch: ``boxes`` float32 [B, M, 4] xyxy pixels, ``labels`` int64 [B, M] with -1 for
    padding, ``crowd`` bool [B, M]."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


class Detections(NamedTuple):
    """Detections of a batch: ``boxes`` float32 [B, N, 4] xyxy pixels of the images given, ``scores`` float32 [B, N]
    falling, ``labels`` int64 [B, N], ``count`` int64 [B] valid rows of each image."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls on detections

    def unbatch(self) -> list["Detections"]:
        """One :class:`Detections` per image, cut to its count ([n, 4], [n], [n], [])."""
        counts = self.count.tolist()
        return [
            Detections(self.boxes[i, :n], self.scores[i, :n], self.labels[i, :n], self.count[i])
            for i, n in enumerate(counts)
        ]


class Labelled(NamedTuple):
    """Targets of some images of a batch: ``rows`` int64 [b], b >= 0, each image once, and the ``targets`` of those alone, in
    that order, as a head's loss wants them for a batch of b."""

    rows: Tensor
    targets: Any


for _words in (
    ImageSizes,
    BoxTargets,
    Detections,
    Labelled,
):  # otherwise an exported program with one of them cannot be saved
    pytree._register_namedtuple(_words, serialized_type_name=f"effbackbones.{_words.__name__}")


class Backbone(nn.Module, ABC):
    """A network from normalised images to feature maps.

    A subclass sets ``name``, ``feature_spec`` and ``image_spec``, and implements :meth:`forward`; with
    :meth:`level_modules` it can also be frozen level by level. Every promise is checked by ``conformance.check_backbone``.
    """

    name: str
    feature_spec: FeatureSpec
    image_spec: ImageSpec

    def __init__(self) -> None:
        super().__init__()
        self._frozen: tuple[str, ...] = ()
        self.provenance: dict[str, Any] = {}

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised float images [B, C, H, W] to one map [B, channels, ceil(H / stride), ceil(W / stride)] per level
        of ``feature_spec``, finest first."""

    def normalize(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] (uint8 0..255, uint16 0..65535, floating point 0..1) by mean and std of ``image_spec``, in the dtype
        of the parameters."""
        spec = torch.tensor([self.image_spec.mean, self.image_spec.std]).view(2, -1, 1, 1)
        mean, std = spec.to(images.device, non_blocking=True).unbind()  # the host does not wait
        return ((to_unit(images) - mean) / std).to(self.input_dtype)

    @property
    def input_dtype(self) -> torch.dtype:
        """In what normalised images come. Default: that of the parameters."""
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())

    @property
    def network(self) -> "Backbone":
        """The backbone that the weights are of: itself, or the one inside."""
        return self

    @classmethod
    def option_types(cls, name: str) -> dict[str, Any] | None:
        """The options of the network that is built as ``name``, with their types. Default, None: what ``__init__`` says."""
        return None

    @classmethod
    def read_weights(cls, weights: str | Path, name: str, options: Mapping[str, Any]) -> Pretrained | None:
        """Read ``weights`` (a file, or the name of a source) for the network that is built as ``name`` with ``options``.

        A family that knows weights of others overrides this; the ``options`` of its answer reach ``__init__`` where none are
        given. Default, None: it knows none, and only files that ``save_model`` wrote fit.
        """
        return None

    def adopt(self, weights: Pretrained) -> Adopted:
        """Load what is the backbone's. Default: by name and shape. Too little that fits raises :class:`UserError`."""
        what = f"backbone {weights.name} from {weights.origin}"
        return Adopted(load_state(self, weights.backbone, what=what))

    def settled(self) -> dict[str, Any]:
        """Options that this network was not given and that a model file keeps, so that a rebuilt one agrees whatever was
        decided here, by its weights or its head. Default: none."""
        return {}

    def level_modules(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """The modules that each level adds to the ones before, in forward order, all parameters covered once.

        Keys are ``"stem"`` and level names, also of levels that are computed but not read. The default knows a single
        piece, the last level.
        """
        return {self.feature_spec.names[-1]: tuple(self.children())}

    def freeze(self, upto: str | None = None) -> Self:
        """Freeze parameters and batch-norm statistics from the stem through level ``upto`` (None: all of it).

        ``"stem"`` freezes the stem alone. Stays so through ``.train()``. An unknown level raises :class:`UserError`.
        """
        names = tuple(self.level_modules())
        if upto is not None and upto not in names:
            raise UserError(f"freeze {upto!r}", f"backbone {self.name!r} has no such level", nearest(upto, names))
        self.unfreeze()
        self._frozen = names if upto is None else names[: names.index(upto) + 1]
        for module in self._frozen_modules():
            module.requires_grad_(False)
        return self.train(self.training)

    def unfreeze(self) -> Self:
        """Make every parameter trainable and every batch norm live again."""
        self._frozen = ()
        self.requires_grad_(True)
        return self.train(self.training)

    @property
    def frozen_levels(self) -> tuple[str, ...]:
        """Names of the frozen levels, in forward order."""
        return self._frozen

    def _frozen_modules(self) -> Iterator[nn.Module]:
        for name, modules in self.level_modules().items():
            if name in self._frozen:
                yield from modules

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but frozen levels stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules() if self._frozen else ():
            module.eval()
        return self


class Head(nn.Module, ABC):
    """A network on top of feature maps, with two pure readings of its raw output: :meth:`loss` and :meth:`predict`.

    A subclass sets ``task`` and names its options as keyword arguments of ``__init__``; what is left over is passed on
    to this class, which refuses it. Every promise is checked by ``conformance.check_head``.
    """

    task: ClassVar[str]
    option_records: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold dataclasses; their fields are options too, as the head's ``__init__`` sees to."""
    prediction_options: ClassVar[tuple[str, ...]] = ()
    """Options that change what :meth:`predict` makes of the raw output and nothing else: a trained model takes others."""
    size_divisor: int = 1
    """Images are padded at the right and bottom to a multiple of this many pixels."""
    min_size: int = 32
    """Smaller images are padded up to this many pixels."""
    merge_iou: float = 0.5
    """Of a detector: two boxes of one class that overlap more (IoU) are one object, where several looks at an image are made one."""
    merge_most: int | None = None
    """Of a detector: so many boxes of an image stay where several looks at it are made one, as of one look; None: all. What is found in
    slices is not limited: each of them holds as many."""
    reads_valid: bool = False
    """Of a head for classes: whether its answer depends on how much of an image is content."""
    frame_step: int = 0
    """Of a head that says when something is heard: columns of an image from one frame of :meth:`timeline` to the next; 0: it does not."""
    frame_centre: float = 0.0
    """The column that its first frame is centred on."""
    counted: tuple[str, ...] = ()
    """Losses, by name, that are divided by a :meth:`count`: for a batch in pieces, or shared by processes, they are divided by that of
    the whole batch. The others are means over images, and are averaged."""
    distill_temperature: float = 1.0
    """By what the logits of student and teacher are divided in :meth:`distill`, unless somebody says otherwise."""
    distilled: tuple[str, ...] = ()
    """Losses of :meth:`distill`, by name, that are divided by a :meth:`count`, as :attr:`counted` of :meth:`loss`."""

    def __init__(self, spec: FeatureSpec, num_classes: int, **options: Any) -> None:
        super().__init__()
        if options:
            name, known = next(iter(options)), head_options(type(self))
            raise UserError(f"head_options.{name}", f"{type(self).__name__} has no such option", nearest(name, known))
        if num_classes < 1:
            raise UserError("num_classes", f"expected at least 1, got {num_classes}", "count the classes of the data")
        self.spec = spec
        self.num_classes = num_classes

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """What this head, built with ``options``, needs of its backbone. Default: all levels, at stride 32."""
        return BackboneNeeds()

    @classmethod
    def named_weights(cls, weights: Any, options: Mapping[str, Any]) -> Any:
        """The weights that ``weights`` means for this head with ``options``. Default: as given."""
        return weights

    @classmethod
    def options_with(
        cls, weights: Pretrained, options: Mapping[str, Any], spec: FeatureSpec, num_classes: int
    ) -> Decided:
        """The ``options``, with those that the weights decide where none are given. Default: as given. Options that contradict
        the weights raise :class:`UserError`."""
        return Decided(dict(options))

    def adopt(self, weights: Pretrained) -> Adopted:
        """Load what is the head's, which may be only a part of it. Default: by name and shape."""
        what = f"head from {weights.origin}"
        return Adopted(load_state(self, weights.for_heads, what=what, allow_missing=True, known=weights.tail))

    def padded(self, side: int) -> int:
        """The side in pixels, of ``side``, of images padded for this head: a multiple of ``size_divisor``, ``min_size`` at
        least. A graph that is exported keeps it as a function of the side."""
        divisor = self.size_divisor
        least = math.ceil(self.min_size / divisor) * divisor
        return larger((side + divisor - 1) // divisor * divisor, least)

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        """How images are prepared for this head on a backbone whose weights were trained with ``spec``. Default: as there."""
        return spec

    @abstractmethod
    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Any:
        """Feature maps to raw output (a tensor, or a NamedTuple or dict of tensors); the same in train and eval mode."""

    @abstractmethod
    def loss(self, raw: Any, targets: Any, sizes: ImageSizes) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum is the objective. No state, no host synchronisation."""

    def count(self, targets: Any, sizes: ImageSizes) -> dict[str, Tensor]:
        """By what :meth:`loss` and :meth:`distill` divide each loss of :attr:`counted` and :attr:`distilled` for these targets: a number
        [] that adds up over the images of a batch, such as its labelled pixels. Known from the targets alone, before any forward pass.
        No host synchronisation."""
        return {}

    def prepare(self, raw: Any, targets: Any, sizes: ImageSizes) -> Any:
        """What :meth:`loss` and :meth:`distill` both make of ``targets`` first, and take in their place: so it is made once where both are
        asked. No state, no host synchronisation. Default: the targets."""
        return targets

    def divisor(self, name: str, count: Tensor) -> Tensor:
        """What the loss ``name`` is divided by where its :meth:`count` is ``count``. Default: that, or 1 where it is 0."""
        return count.masked_fill(count == 0, 1)

    def check_targets(self, targets: Any, sizes: ImageSizes) -> None:  # a head need not look
        """Raise :class:`UserError`, naming field and value, for targets that :meth:`loss` would take for something else or fail on.
        :meth:`Model.loss` asks; values are looked at on the CPU alone. The engine does not: who reads data vouches for it."""

    @abstractmethod
    def predict(self, raw: Any, sizes: ImageSizes) -> Any:
        """Predictions of fixed shape, in pixels of the images given. No state."""

    def timeline(self, raw: Any, sizes: ImageSizes) -> Tensor | None:
        """Of a head with a :attr:`frame_step`: probabilities float32 [B, K, F] of each class in each frame, frame j being centred on column
        ``frame_centre + j * frame_step``. No state. Default, None: it does not say."""
        return None

    def select(self, raw: Any, rows: Tensor) -> Any:
        """The raw output of the images ``rows`` (int64 [b]) of a batch alone. Default: dimension 0 of every tensor is the batch;
        a head whose raw output holds others overrides this. No host synchronisation."""
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.index_select(0, rows), raw)

    def check_teacher(self, teacher: "Head") -> None:
        """Raise :class:`UserError` unless the raw output of ``teacher`` compares with this head's, so that :meth:`distill` may be asked.
        A teacher may be made to pad images as this head does."""
        if type(self).distill is Head.distill:
            name, remedy = type(self).__name__, "set optim.distill.weight 0 and name optim.distill.features"
            raise UserError("optim.distill", f"head {name} says nothing of learning from a teacher's output", remedy)
        if (teacher.task, teacher.num_classes) != (self.task, self.num_classes):
            what = f"its head is for {teacher.num_classes} classes of {teacher.task}, the student's for {self.num_classes} of {self.task}"
            raise UserError("optim.distill.teacher", what, "give a teacher that was trained on the same classes")

    def distill(
        self, raw: Any, teacher: Any, targets: Any, sizes: ImageSizes, temperature: float | None = None
    ) -> dict[str, Tensor]:
        """Scalar losses of ``raw`` against the raw output of a ``teacher`` on the same images, by names that begin with ``distill``; 0
        where they agree. Gradients reach ``raw`` alone. ``targets`` say what does not count, and which anchors have an object;
        ``temperature`` None: :attr:`distill_temperature`. No state, no host synchronisation. Default: none is known."""
        raise NotImplementedError

    def resting(self) -> dict[str, str]:
        """Options that change nothing beside the others that this head has, and why, in words: who set one is told. Default: none."""
        return {}

    def diagnose(self, targets: Any, sizes: ImageSizes) -> dict[str, Tensor]:
        """Figures on how well the targets fit this head (optional)."""
        return {}

    def fit_to_data(self, box_sides: Tensor, image_size: tuple[int, int]) -> dict[str, Any]:
        """Options that suit boxes of these sides better than this head's (optional): float [N, 2], (width, height) in pixels
        of images resized to ``image_size``. Default: none."""
        return {}


def losses_by_name(head: Head, losses: Any) -> Mapping[str, Tensor]:
    """What ``head.loss`` gave, which must be scalars by name; :class:`UserError` says what it is otherwise."""
    wrong = None if isinstance(losses, Mapping) else type(losses).__name__
    if wrong is None:
        shapes = {name: list(getattr(value, "shape", ["no tensor"])) for name, value in losses.items()}
        wrong = next((f"{name!r} of shape {shape}" for name, shape in shapes.items() if shape), None)
    if wrong is not None:
        remedy = 'return {"NAME": a scalar, ...}'
        raise UserError(f"{type(head).__name__}.loss", f"expected a dict of scalars by name, got {wrong}", remedy)
    found: Mapping[str, Tensor] = losses
    return found


def head_option_types(head: type[Head]) -> dict[str, Any]:
    """The types of the :func:`head_options`, as the signatures and the fields of the records say them."""
    types: dict[str, Any] = {}
    for name in head.option_records:
        types |= field_types(getattr(head, name))
    for cls in reversed(head.__mro__):
        if "__init__" in vars(cls) and issubclass(cls, Head) and cls is not Head:
            types |= parameter_types(cls)
    return types


def head_options(head: type[Head]) -> dict[str, Any]:
    """Options that a head's ``__init__`` and its records name, with their defaults, through all its base classes."""
    records = [getattr(head, name) for name in head.option_records]
    options = {field.name: getattr(record, field.name) for record in records for field in fields(record)}
    for cls in reversed(head.__mro__):
        if "__init__" in vars(cls) and issubclass(cls, Head) and cls is not Head:
            parameters = list(inspect.signature(cls.__init__).parameters.values())[3:]  # self, spec, num_classes
            options |= {p.name: p.default for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return options


def larger(one: int, other: int) -> int:
    """The larger of two sides. A graph of ``torch.export`` keeps it as a function of the images' side; one of ``torch.jit.trace``,
    where sides are tensors, serves the side that it was traced with."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call] # untyped in torch
        return max(int(one), int(other))
    return cast(int, torch.sym_max(one, other))
