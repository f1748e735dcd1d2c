"""A backbone for recordings: a spectrogram in front of a backbone for pictures. ``sound:b0``, ``sound:timm:resnet18``, ..."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from effbackbones.backbones.families import Family, family_of
from effbackbones.backbones.mel import MelSpec
from effbackbones.backbones.spectrogram import Spectrogram
from effbackbones.contracts import Backbone, ImageSpec
from effbackbones.errors import UserError
from effbackbones.optiontypes import field_types, parameter_types
from effbackbones.registry import BACKBONES
from effbackbones.weights.content import read_content
from effbackbones.weights.kinds import file_kind
from effbackbones.weights.pretrained import Adopted, Pretrained
from effbackbones.weights.reading import read_for, read_weights
from effbackbones.weights.record import FORMAT, Description, parse_record

PREFIX = "sound:"
_NOT_OURS = ("image_spec", "in_channels")
"""Options of the backbone behind the spectrogram that this one sets: it sees a picture of one channel."""


class SoundBackbone(Backbone):
    """Waves, images of one row [B, 1, 1, T] in -1..1, T from 1 up, to the maps of a backbone for pictures that sees their spectrogram
    as a grey picture of ``mels`` rows (:class:`Spectrogram`); a map has ceil(T / stride) columns, the stride in samples.

    ``name``: ``sound:`` and the name of the other backbone, which gets all options that are not named here. The fields of
    :class:`MelSpec` are options too. ``seconds``: what windows of a recording the network is shown.

    SpecAugment (Park et al. 2019, section 2; without warping), in training mode alone, drawn for each recording on the device:
    ``time_masks`` stripes of up to ``time_width`` seconds, and ``freq_masks`` of up to ``freq_width`` filters, become 0, the mean.

    Options out of range raise :class:`UserError`.
    """

    def __init__(
        self,
        name: str,
        *,
        time_masks: int = 0,
        time_width: float = 0.5,
        freq_masks: int = 0,
        freq_width: int = 16,
        **options: Any,
    ) -> None:
        super().__init__()
        self.name = name
        mel = {field.name: options.pop(field.name) for field in fields(MelSpec) if field.name in options}
        self.mel = MelSpec(**mel)
        for option, value in (("time_masks", time_masks), ("time_width", time_width), ("freq_masks", freq_masks)):
            if not 0 <= value <= 1000:
                raise UserError(f"backbone_options.{option}", f"expected 0 or more, got {value}", "0 is none")
        if not 0 <= freq_width <= self.mel.mels:
            what = f"expected 0 to {self.mel.mels} filters, got {freq_width}"
            raise UserError("backbone_options.freq_width", what, "correct it")
        frames = round(time_width * self.mel.rate / self.mel.hop)
        self.masks = {"time_masks": time_masks, "time_width": time_width}
        self.masks |= {"freq_masks": freq_masks, "freq_width": freq_width}
        self._stripes = ((1, freq_masks, freq_width), (2, time_masks, frames))
        self.spectrogram = Spectrogram(self.mel)
        self.net: Backbone = _inside(name).make(**{**options, "in_channels": 1})
        spec = self.net.feature_spec
        strides = tuple(stride * self.mel.hop for stride in spec.strides)
        centres = spec.centres or tuple((stride - 1) / 2 for stride in spec.strides)
        samples = tuple(
            centre * self.mel.hop for centre in centres
        )  # a frame of the spectrogram is centred on a sample
        self.feature_spec = replace(spec, backbone=name, strides=strides, rows=1, centres=samples)
        self.image_spec = ImageSpec.of_sound(self.mel.rate, self.mel.samples)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised float [B, 1, 1, T] to one map [B, channels, mels / stride, ceil(T / stride)] per level, finest first."""
        if images.ndim != 4 or images.shape[1:3] != (1, 1) or not images.is_floating_point():
            what = f"expected waves, float [B, 1, 1, T], got {images.dtype} {list(images.shape)}"
            raise UserError("images", what, "give recordings of one channel: uint16 [B, 1, 1, T], silence 32768")
        picture = self.spectrogram(images.flatten(1))
        if self.training:
            picture = masked(picture, self._stripes)
        maps: list[Tensor] = self.net(picture[:, None].to(self.net.input_dtype))
        return maps

    @property
    def input_dtype(self) -> torch.dtype:
        """float32: in 16 bits what is quiet would drown."""
        return torch.float32

    @property
    def network(self) -> Backbone:
        return self.net.network

    @property
    def numerics(self) -> Any:
        """Those of the backbone inside, where it says them."""
        return getattr(self.net, "numerics", None)

    @classmethod
    def option_types(cls, name: str) -> dict[str, Any]:
        inner = {key: hint for key, hint in _inside(name).types.items() if key not in ("self", "name", "weights")}
        own = parameter_types(cls) | field_types(MelSpec())
        return {key: hint for key, hint in (inner | own).items() if key not in ("self", "name", *_NOT_OURS)}

    @classmethod
    def read_weights(cls, weights: str | Path, name: str, options: Mapping[str, Any]) -> Pretrained | None:
        """Weights of the backbone inside, made for pictures; or a file of ours of this one, whose spectrogram is taken over too."""
        if (saved := _own_options(weights, name)) is not None:
            read = read_weights(weights, name)
            taken = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
            taken |= {"numerics": read.options["numerics"]} if "numerics" in cls.option_types(name) else {}
            unwanted = ("levels", "drop_path", "checkpointing")
            read = replace(read, options={key: value for key, value in taken.items() if key not in unwanted})
        else:
            inner = _inside(name)
            own = {key: value for key, value in options.items() if key in inner.takes} | {"in_channels": 1}
            read = read_for(inner.kind, weights, _inner_name(name), own)
        kept = {key: value for key, value in read.options.items() if key not in _NOT_OURS}
        return replace(read, options=kept)

    def adopt(self, weights: Pretrained) -> Adopted:
        if any(key.startswith("net.") for key in weights.backbone):
            return super().adopt(weights)
        return self.net.adopt(weights)

    def settled(self) -> dict[str, Any]:
        """Every number of the spectrogram, and what the backbone inside says."""
        return {key: value for key, value in self.net.settled().items() if key not in _NOT_OURS} | asdict(self.mel)

    def level_modules(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """Those of the backbone inside, the spectrogram with the first."""
        pieces = dict(self.net.level_modules())
        first = next(iter(pieces))
        return pieces | {first: (self.spectrogram, *pieces[first])}

    def unfreeze(self) -> Self:
        """As :meth:`Backbone.unfreeze`; what the backbone inside keeps frozen stays so."""
        super().unfreeze()
        self.net.unfreeze()
        return self


def masked(picture: Tensor, stripes: tuple[tuple[int, int, int], ...]) -> Tensor:
    """SpecAugment: of pictures [B, mels, frames] in each dimension (1 or 2) so many stripes, uniformly 0 to so many wide and uniformly
    placed, set to 0. Drawn from torch's generator of the device, whatever the sizes: for each recording, stripe by stripe."""
    for dimension, count, widest in stripes:
        if not count or not widest:
            continue
        side = picture.shape[dimension]
        drawn = torch.rand(len(picture), count, 2, device=picture.device)
        width = (drawn[..., 0] * (min(widest, side) + 1)).floor()
        start = (drawn[..., 1] * (side - width + 1)).floor()
        place = torch.arange(side, device=picture.device)
        hidden = ((place >= start[..., None]) & (place < (start + width)[..., None])).any(1)
        picture = picture.masked_fill(hidden[:, :, None] if dimension == 1 else hidden[:, None], 0.0)
    return picture


def _inner_name(name: str) -> str:
    return BACKBONES.canonical(name.removeprefix(PREFIX))


def _inside(name: str) -> Family:
    """The family of the backbone inside; one for recordings raises :class:`UserError`."""
    inner = _inner_name(name)
    if inner.startswith(PREFIX) or not inner:
        raise UserError(f"backbone {name!r}", "expected a backbone for pictures behind sound:", "write sound:b0, say")
    found = family_of(inner)
    if "in_channels" not in found.takes:
        what = f"backbone {inner!r} has no option in_channels, and a spectrogram has one"
        raise UserError(f"backbone {name!r}", what, "choose another")
    return found


def _own_options(weights: str | Path, name: str) -> dict[str, Any] | None:
    """The options that a file of ours of the backbone ``name`` was built with; None for any other weights."""
    path = Path(weights).expanduser()
    if not path.is_file() or file_kind(path) != "safetensors":
        return None
    metadata = read_content(path).metadata
    if metadata.get("format") != FORMAT:
        return None
    about = Description.of(parse_record(metadata, path), path)
    return dict(about.config.get("backbone_options") or {}) if about.backbone == name else None
