"""A weight file of another library: told apart by its keys, and put under our names.

What it cannot say by itself (padding and batch norm of a bare timm file) must be given; what had to be assumed (mean and std) is
named in :attr:`Pretrained.assumed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from effbackbones.backbones.convolution import Numerics
from effbackbones.backbones.scaling import Scaling, default_image_spec, scaling
from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.registry import LAYOUTS
from effbackbones.weights import dialects
from effbackbones.weights.keraslayers import Preparation
from effbackbones.weights.loading import LoadReport
from effbackbones.weights.networks import BARE, Network
from effbackbones.weights.pretrained import ForeignHead, Pretrained, Remainder
from effbackbones.weights.source import WeightSource

NUMERICS = "backbone_options numerics (in a config model.numerics)"
IMAGE_SPEC = "backbone_options image_spec (in a config model.mean and model.std)"
"""Where the two are said that a weight file may leave open."""


def read_foreign(
    network: Network,
    path: Path,
    source: WeightSource | None,
    row: Scaling,
    given: Numerics | None,
    image_spec: ImageSpec | None,
) -> Pretrained:
    """What the ``network`` of a file holds for the backbone of ``row``; ``source`` is known of published weights. The numerics
    ``given`` and ``image_spec`` win over what the weights imply. Raises :class:`UserError` for weights of another variant, and where
    numerics are needed and not given."""
    backbone = row.name
    parts = _translate(network, path, row)
    head = network.head
    foreign = None if head else _foreign_head(parts, network.state, path, backbone)
    settled, remarks = _numerics(parts, foreign, source, given, path, backbone)
    spec, prepared = image_spec or (source.image_spec if source else None), network.prepared
    if spec is None and prepared:
        spec = _spec_of(prepared, default_image_spec(scaling(backbone)))
        remarks += tuple(f"{path} was {remark}" for remark in prepared.remarks)
    elif spec is None:
        spec = default_image_spec(scaling(backbone))
        remarks += (
            f"{path} does not say its mean and std: assumed {spec.mean} and {spec.std}; {IMAGE_SPEC} says otherwise",
        )
    if source and not source.verifiable:
        remarks += (f"no hash of {source.file} is published: it is held to what was first fetched",)
    unused = foreign.unused if foreign else parts.unused
    if head:
        root = network.prefix.removesuffix("backbone.") + "head."
        unused = tuple(key for key in unused if not key.startswith(root))
    return Pretrained(
        backbone,
        str(source or path),
        foreign.layout if foreign else parts.label,
        source.licence if source else "unknown",
        parts.backbone,
        parts.tail,
        head=head,
        foreign=foreign,
        unread=LoadReport(f"file {path.name}", unused=unused, spare=network.beside)
        if unused or network.beside
        else None,
        options={"numerics": settled, "image_spec": spec},
        published=source.name if source else "",
        head_options=dict(source.head_options) if source else {},
        assumed=(*remarks, *(foreign.remarks if foreign else ())),
    )


def _spec_of(prepared: Preparation, family: ImageSpec) -> ImageSpec:
    """What a file says of its images, and of its ``family`` what it does not say."""
    spec = replace(family, mean=prepared.mean, std=prepared.std)
    return replace(spec, size=prepared.size) if prepared.size else spec


@dataclass
class _Parts:
    """A foreign state dict, sorted, and where in the file its network was found."""

    dialect: dialects.Dialect
    prefix: str
    backbone: dict[str, Tensor] = field(default_factory=dict)
    tail: dict[str, Tensor] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The dialect, for people: ``smp`` where the network is the encoder of something."""
        if self.dialect is dialects.OURS:
            return BARE
        return "smp" if "encoder." in self.prefix else self.dialect.name

    @property
    def has_decoder(self) -> bool:
        """Whether the file is a whole model of segmentation-models-pytorch."""
        root = self.prefix.removesuffix("model.").removesuffix("encoder.")
        return any(key.startswith((f"{root}decoder.", f"{root}segmentation_head.")) for key in self.unused)


def _translate(network: Network, path: Path, expected: Scaling) -> _Parts:
    """Sort a state dict into backbone, tail and the rest, under our names; check that it is of ``expected``."""
    dialect, prefix = network.dialect, network.prefix
    named, unused = {}, []
    for key, tensor in network.state.items():
        ours = dialect.translate(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if ours is None:
            unused.append(key)
        else:
            named[ours] = _flat(ours, tensor)
    _check_variant(named, path, expected, alone=dialect is not dialects.OURS)
    parts = _Parts(dialect, prefix, unused=tuple(unused))
    for key, tensor in _with_counters(named).items():
        name = dialects.restage(key, expected)
        (parts.backbone if name.startswith(("stem.", "stages.")) else parts.tail)[name] = tensor
    return parts


def _foreign_head(parts: _Parts, state: Mapping[str, Tensor], path: Path, backbone: str) -> ForeignHead | None:
    """The head behind the backbone, as the first layout says that knows it; None if none does."""
    if not parts.unused:
        return None
    rest = {key: state[key] for key in parts.unused}
    remainder = Remainder(rest, parts.dialect.name, parts.prefix, backbone, path)
    found = (LAYOUTS.get(name)(remainder) for name in LAYOUTS.names())
    return next((head for head in found if head is not None), None)


def _check_variant(named: Mapping[str, Tensor], path: Path, expected: Scaling, *, alone: bool) -> None:
    """Refuse the weights of another variant in one line that names both. Those that fit none may be of a network that was built with
    multipliers of its own, unless variants are all that there is (``alone``)."""
    shape = dialects.shape_of(named)
    if shape.fits(expected):
        return
    fitting = dialects.variants(shape)
    if fitting:
        remedy = f"build {fitting[0]}, or give weights of {expected.name}"
        raise UserError(str(path), f"holds weights of {' or '.join(fitting)}, not of {expected.name}", remedy)
    if not alone:
        return
    se, width = "with" if shape.squeeze_excite else "without", shape.blocks[-1] if shape.blocks else 0
    what = f"expected {expected.name}, found {len(shape.blocks)} blocks {se} squeeze-excite, the last with {width} channels"
    raise UserError(str(path), what, f"give weights of {expected.name}")


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Squeeze-excite of others is a 1x1 convolution [R, C, 1, 1]; ours is a linear layer [R, C]."""
    return tensor.flatten(1) if ".squeeze_excite." in name and tensor.ndim == 4 else tensor


def _with_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the batch counters that files older than PyTorch 0.4.1, or from TensorFlow, lack."""
    means = [name.removesuffix("running_mean") for name in state if name.endswith(".running_mean")]
    return {f"{name}num_batches_tracked": torch.tensor(0) for name in means} | state


def _numerics(
    parts: _Parts,
    foreign: ForeignHead | None,
    source: WeightSource | None,
    given: Numerics | None,
    path: Path,
    backbone: str,
) -> tuple[Numerics, tuple[str, ...]]:
    """The numerics that go with the weights, and what had to be assumed."""
    name, sentences = (source.numerics, ()) if source else _implied(parts, backbone, foreign)
    if given is not None:
        differ = name is not None and given != Numerics.named(name)
        return given, (f"numerics as given, though these weights go with {name}",) if differ else ()
    if name is None:
        label = foreign.layout if foreign else parts.label
        what = f"its keys ({label}) cannot say which padding and batch norm it was trained with"
        if parts.dialect is dialects.TIMM:
            values = '"tf" (of tf_efficientnet) or "torch"'
        else:
            values = '"torch", "torch_tf", "tf" or "same_static", as it was trained'
        where = 'backbone_options={"numerics": ...}, or model.numerics in a config'
        raise UserError(str(path), what, f"give numerics {values}: {where}")
    return Numerics.named(name), sentences


def _implied(parts: _Parts, backbone: str, foreign: ForeignHead | None = None) -> tuple[str | None, tuple[str, ...]]:
    """Name of the numerics that the layout of a file implies (None: it implies none), and what that assumes."""
    lite = backbone.startswith("lite")
    if parts.dialect is dialects.TORCHVISION:
        return ("torch_tf" if backbone in ("b5", "b6", "b7") else "torch"), ()
    if parts.dialect is dialects.LUKEMELAS:
        return ("tf" if lite else "same_static"), ()
    if parts.dialect in (dialects.ZYLO117, dialects.KERAS):
        return "tf_original", ()  # SAME padding by the size of each input, whatever its class is called
    if foreign and foreign.numerics:
        return foreign.numerics, (foreign.numerics_remark,)
    if parts.dialect is dialects.TIMM and parts.prefix.endswith("encoder.") and parts.has_decoder:
        return "torch", ()  # the `timm-` encoders of segmentation-models-pytorch, lite ones included
    if parts.dialect is dialects.TIMM and lite:
        return "tf", (
            "padding and batch norm assumed to be TensorFlow's, as in timm's tf_efficientnet_lite; "
            f"{NUMERICS} says otherwise",
        )
    return None, ()
