"""Any feature extractor of timm as a backbone: ``timm:resnet50``. Channels and strides are read off its maps, not typed in."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effbackbones.contracts import LEVELS, Backbone, FeatureSpec, ImageSpec
from effbackbones.errors import UserError, nearest
from effbackbones.images.pixels import top_left
from effbackbones.weights.loading import LoadReport
from effbackbones.weights.pretrained import Adopted, Pretrained

_STRIDES: dict[str, int] = {level: 2**i for i, level in enumerate(LEVELS, 1)}


class TimmBackbone(Backbone):
    """A timm model in ``features_only`` form: normalised float images [B, in_channels, H, W] to the maps asked for.

    ``name`` is timm's, with or without ``timm:``; it may carry a tag (``resnet50.a1_in1k``). A level is named after the
    stride of its map, C1 = 2 ... C5 = 32; of several maps at one stride the deepest counts; others (1, 64) are left out.

    ``levels``: default all that the network has. A network with a single level (a plain ViT lies at stride 16 throughout)
    is refused unless that level is asked for. ``output_stride`` below 32 and ``drop_path`` above 0 raise :class:`UserError`
    where timm does not offer them. ``pretrained`` lets timm fetch its own weights for the name and tag.

    ``image_spec``: default what timm states for the weights; with other than three channels the average of mean and std.

    Layers that no map asked for depends on are removed; where the network cannot do without them they are frozen for good.
    Networks that round sizes down (ConvNeXt's patches) see images padded with zeros to their coarsest stride, and their
    maps are cut back to ceil(H / stride). Networks of a fixed input size take other sizes where timm can interpolate.
    """

    def __init__(
        self,
        name: str,
        *,
        levels: Sequence[str] | None = None,
        in_channels: int = 3,
        output_stride: int = 32,
        drop_path: float = 0.0,
        image_spec: ImageSpec | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        timm_name = name.removeprefix("timm:")
        self.name = f"timm:{timm_name}"
        _check_name(timm_name)
        options: dict[str, Any] = {
            "in_chans": in_channels,
            **_any_size(timm_name),
            **({"drop_path_rate": drop_path} if drop_path else {}),
        }
        whole = _probe(timm_name, options)
        position = {
            level: i for i, stride in enumerate(whole.strides) for level in LEVELS if _STRIDES[level] == stride
        }  # the deepest wins
        names = _choose(self.name, tuple(position), whole.strides, levels)
        options |= {"output_stride": output_stride} if output_stride != 32 else {}
        options["out_indices"] = tuple(whole.indices[position[level]] for level in names)
        read = (
            whole
            if names == tuple(position) and len(names) == len(whole.strides) and output_stride == 32
            else _probe(timm_name, options)
        )
        self.net = _build(timm_name, options, pretrained)
        self._dead = () if read.removable else tuple(_parameters(self.net, read.dead))
        if read.removable:
            _remove(self.net, read.dead)
        self.unfreeze()
        self.feature_spec = FeatureSpec(self.name, names, read.channels, read.strides)
        self.image_spec = image_spec or _image_spec(self.net.pretrained_cfg, in_channels)
        self._channels_last = read.channels_last
        self._multiple = 1 if read.rounds_up else max(_STRIDES[level] for level in position)
        self._ends = {level: whole.modules[i].replace(".", "_") for level, i in position.items()}

    def forward(self, images: Tensor) -> list[Tensor]:
        """As :meth:`Backbone.forward`; on networks that round down H and W are padded inside."""
        if not images.is_floating_point():
            raise UserError(
                "images", f"expected floating point, got {images.dtype}", "normalise them: backbone.normalize(images)"
            )
        height, width = images.shape[-2:]
        grow = (-width % self._multiple, -height % self._multiple)
        uneven = self._multiple > 1 and (torch.compiler.is_exporting() or any(grow))  # a graph must serve every size
        maps: list[Tensor] = list(self.net(F.pad(images, (0, grow[0], 0, grow[1])) if uneven else images))
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if uneven:
            maps = [
                top_left(m, (-(-height // s), -(-width // s)))
                for m, s in zip(maps, self.feature_spec.strides, strict=True)
            ]
        return maps

    @classmethod
    def read_weights(cls, weights: str | Path, name: str, options: Mapping[str, Any]) -> Pretrained | None:
        """``"imagenet"``: timm's own weights for the name and tag, which timm fetches itself as the network is built."""
        if weights != "imagenet":
            return None
        import timm

        timm_name = name.removeprefix("timm:")
        _check_name(timm_name)
        stated = timm.get_pretrained_cfg(timm_name)
        tagged = ".".join(filter(None, (stated.architecture, stated.tag))) if stated else timm_name
        licence = (stated.license if stated else None) or "unknown"
        return Pretrained(name, f"timm {tagged}", "timm", licence, options={"pretrained": True})

    def adopt(self, weights: Pretrained) -> Adopted:
        """As :meth:`Backbone.adopt`; timm has loaded its own weights already."""
        if weights.dialect != "timm":
            return super().adopt(weights)
        return Adopted(LoadReport(f"backbone {self.name} from timm", loaded=tuple(self.state_dict())))

    def level_modules(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """As the base class says, where the network is a chain whose links timm names; else one piece, the last level."""
        from timm.models._features import FeatureListNet

        links = dict(self.net.named_children())
        keys = list(links)
        ends = {level: keys.index(end) + 1 for level, end in self._ends.items() if end in links}
        if not isinstance(self.net, FeatureListNet) or self.feature_spec.names[-1] not in ends:
            return super().level_modules()
        stem = max(
            1, next(iter(ends.values())) - 1
        )  # what lies before the first map; that map's own layer if nothing does
        pieces, done = {}, 0
        for level, upto in {"stem": stem, **ends}.items():
            pieces[level] = tuple(links[key] for key in keys[done:upto])
            done = max(done, upto)
        return pieces

    def freeze(self, upto: str | None = None) -> Self:
        """As :meth:`Backbone.freeze`; a network that timm gives in one piece can only be frozen whole."""
        pieces = self.level_modules()
        if upto is not None and len(pieces) == 1 and upto not in pieces and upto in ("stem", *LEVELS):
            raise UserError(
                f"freeze {upto!r}", f"timm gives {self.name!r} in one piece", "freeze all of it, or nothing"
            )
        return super().freeze(upto)

    def unfreeze(self) -> Self:
        """As :meth:`Backbone.unfreeze`; what no map depends on stays frozen."""
        super().unfreeze()
        for parameter in self._dead:
            parameter.requires_grad_(False)
        return self


class _Probe(NamedTuple):
    """What a network shows of itself.

    Per map: timm's index, channels, stride, module. Then: maps are [B, H, W, C]; sizes are rounded up; names of the
    parameters that no map depends on; the network runs without them.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    modules: tuple[str, ...]
    channels_last: bool
    rounds_up: bool
    dead: frozenset[str]
    removable: bool


_FAILURES = (
    RuntimeError,
    TypeError,
    AssertionError,
    AttributeError,
    ValueError,
)  # timm's, for an option that a model lacks


def _probe(name: str, options: Mapping[str, Any]) -> _Probe:
    """Run the network forward and back at its native size and look; on the meta device, so without memory or arithmetic."""
    try:
        return _inspect(name, options, torch.device("meta"))
    except _FAILURES:  # some networks compute while they are built; and an error there would speak of the meta device
        pass
    try:
        return _inspect(name, options, torch.device("cpu"))
    except _FAILURES as error:
        asked = ", ".join(f"{key}={value}" for key, value in options.items())
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"backbone 'timm:{name}'", f"timm cannot build it with {asked}: {reason}", "leave out the option it lacks"
        ) from error


def _inspect(name: str, options: Mapping[str, Any], device: torch.device) -> _Probe:
    with device:
        net = _build(name, options).eval()
    side = net.pretrained_cfg["input_size"][-2:]
    images = torch.zeros(1, options["in_chans"], *side, device=device)
    channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"

    def shape(x: Tensor) -> tuple[int, ...]:
        return tuple((x.permute(0, 3, 1, 2) if channels_last else x).shape[1:])

    maps = net(images)
    torch.autograd.backward([m.sum() for m in maps])
    dead = frozenset(key for key, p in net.named_parameters() if p.grad is None)
    seen = [shape(m) for m in maps]
    strides = tuple(_stride(name, side[0], height) for _, height, _ in seen)
    odd = [size + 1 for size in side]
    with torch.no_grad():
        try:
            ceiled = [tuple(-(-size // stride) for size in odd) for stride in strides]
            rounds_up = [shape(m)[1:] for m in net(images.new_zeros(*images.shape[:2], *odd))] == ceiled
        except _FAILURES:
            rounds_up = False
        try:
            removable = not dead or (
                not any(_parameters(_remove(net, dead), dead)) and [shape(m) for m in net(images)] == seen
            )
        except _FAILURES:
            removable = False
    info = net.feature_info
    return _Probe(
        tuple(info.out_indices),
        tuple(s[0] for s in seen),
        strides,
        tuple(info.module_name()),
        channels_last,
        rounds_up,
        dead,
        removable,
    )


def _build(name: str, options: Mapping[str, Any], pretrained: bool = False) -> Any:  # timm is untyped
    import timm

    try:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        what = f"timm could not load its weights: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise UserError(
            f"backbone 'timm:{name}'",
            what,
            "connect once to fill its cache, choose a tag that has weights, or none: weights=None (null in a config)",
        ) from error


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5, cutoff=0.4)
        remedy = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names them"
        raise UserError(f"backbone 'timm:{name}'", "timm has no such model", remedy)


def _any_size(name: str) -> dict[str, bool]:
    """The option that lets a network of fixed input size take others, where it has one."""
    import timm

    config = timm.get_pretrained_cfg(name)
    for option in (
        ({"dynamic_img_size": True}, {"strict_img_size": False}) if config and config.fixed_input_size else ()
    ):
        try:
            with torch.device("meta"):
                _build(name, option)
        except _FAILURES:
            continue
        return option
    return {}


def _stride(name: str, image: int, cells: int) -> int:
    """Pixels per cell: the power of two that explains the map, or the exact quotient (patches of 14 pixels)."""
    powers: tuple[int, ...] = (1, *_STRIDES.values(), 64)
    for stride in powers:
        if cells in (-(-image // stride), image // stride):
            return stride
    if image % cells:
        raise UserError(
            f"backbone 'timm:{name}'",
            f"a map of {cells} cells for {image} pixels has no whole stride",
            "choose another network",
        )
    return image // cells


def _choose(name: str, known: tuple[str, ...], strides: Sequence[int], levels: Sequence[str] | None) -> tuple[str, ...]:
    """The levels to read, finest first."""
    if not known:
        lie = ", ".join(map(str, sorted(set(strides))))
        raise UserError(
            f"backbone {name!r}", f"its maps lie at stride {lie}, not at 2, 4, 8, 16 or 32", "choose another network"
        )
    if levels is None and len(known) == 1:
        what = f"all its maps lie at stride {_STRIDES[known[0]]}: it is no multi-scale backbone"
        raise UserError(
            f"backbone {name!r}", what, f"ask for levels [{known[0]}] if a single map serves, or choose another network"
        )
    wanted = known if levels is None else tuple(levels)
    for level in wanted:
        if level not in known:
            raise UserError(
                f"level {level!r}", f"backbone {name!r} gives {', '.join(known)}", nearest(str(level), known)
            )
    if not wanted:
        raise UserError("levels", f"backbone {name!r} was asked for no level", f"choose from {', '.join(known)}")
    return tuple(level for level in LEVELS if level in wanted)


def _parameters(net: nn.Module, names: frozenset[str]) -> Iterator[nn.Parameter]:
    return (p for key, p in net.named_parameters() if key in names)


def _remove(net: nn.Module, dead: frozenset[str]) -> nn.Module:
    """Put an identity in place of every outermost module whose parameters are all ``dead``."""

    def visit(module: nn.Module, prefix: str) -> None:
        for key, child in list(module.named_children()):
            names = {f"{prefix}{key}.{name}" for name, _ in child.named_parameters()}
            if names and names <= dead:
                setattr(module, key, nn.Identity())
            elif names & dead:
                visit(child, f"{prefix}{key}.")

    visit(net, "")
    return net


def _image_spec(config: Mapping[str, Any], in_channels: int) -> ImageSpec:
    """timm's statement of how images are prepared for a network; what this project cannot say becomes the nearest it can."""
    interpolation = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    mode = "squash" if config["crop_mode"] == "squash" else "center"
    height, width = config["input_size"][-2:]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return ImageSpec((height, width), mean, std, interpolation, config["crop_pct"], mode).for_channels(in_channels)
