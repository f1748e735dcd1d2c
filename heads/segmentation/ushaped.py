"""U-Net, U-Net++, MA-Net, LinkNet and SegFormer: the decoders of segmentation-models-pytorch (smp) that read every level.

This file and ``segmentation_siblings.py`` are the only ones that touch smp's inner modules. A class says what its decoder asks
of the backbone, checks its options and assembles smp's parts; sizes, losses and predictions are :class:`SegmentationHead`'s.
Defaults are smp's, and so are the names of options, without the prefix ``decoder_``.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from segmentation_models_pytorch.base import SegmentationHead as LastConvolution
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

from effbackbones.contracts import TAPS, BackboneNeeds, FeatureSpec
from effbackbones.errors import UserError
from heads.options import INTERPOLATIONS, choice, whole, wholes
from heads.segmentation.head import SegmentationHead, check_spec, smp_channels

_CHANNELS = (256, 128, 64, 32, 16)


def _needs(levels: Sequence[int] | None, depth: int, tap: str) -> BackboneNeeds:
    """A run of levels that ends at ``depth``; default from C1. One from C2 serves backbones without a C1."""
    wanted = list(range(1, depth + 1)) if levels is None else wholes("levels", levels)
    if not 3 <= depth <= 5 or wanted not in ([*range(1, depth + 1)], [*range(2, depth + 1)]):
        what = (
            f"expected 1 or 2 up to {depth}, the number of the decoder's steps, which must be 3, 4 or 5; got {wanted}"
        )
        raise UserError("head_options.levels", what, "leave it out, or write [2, 3, 4, 5] for a backbone without C1")
    return BackboneNeeds(tuple(f"C{i}" for i in wanted), tap=choice("tap", tap, TAPS))


class _UShapedHead(SegmentationHead):
    """One decoder step per level, each with a skip. Options, besides :class:`SegmentationHead`'s:

    * ``channels``: width of each step, coarsest first; as many as levels, so that three make a U-Net on C1-C3.
    * ``interpolation``: how a step grows its map.
    * ``levels``: ``[2, 3, 4, 5]`` for a backbone without C1; the step to stride 2 then has no skip.
    * ``tap``: ``stem`` takes C1 from the stem, the layout of smp's own EfficientNet encoders; ``smp_b0`` is that of its B0.
    """

    any_stride: ClassVar[bool] = False

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        channels: Sequence[int] = _CHANNELS,
        interpolation: str = "nearest",
        levels: Sequence[int] | None = None,
        tap: str = "stage",
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(
            type(self), spec, self.requires(channels=channels, levels=levels, tap=tap), any_stride=self.any_stride
        )
        self.channels = tuple(channels)
        self.interpolation = choice("interpolation", interpolation, INTERPOLATIONS)

    @classmethod
    def requires(
        cls,
        *,
        channels: Sequence[int] = _CHANNELS,
        levels: Sequence[int] | None = None,
        tap: str = "stage",
        **options: Any,
    ) -> BackboneNeeds:
        """As many levels as steps, C1 as ``tap`` says."""
        return _needs(levels, len(wholes("channels", channels)), tap)

    def _attention(self, attention: str | None, *channels: int) -> str | None:
        choice("attention", attention, (None, "scse"))
        if attention and min(channels) < 16:
            what = f"scse divides every width by 16, but {type(self).__name__} has one of {min(channels)}"
            raise UserError("head_options.attention", what, "widen channels, or leave it out")
        return attention


def _still_attention(step: Any) -> None:
    """Freeze the attention that the last step, having no skip, never runs: smp's files hold it, but without a gradient DDP stops."""
    step.attention1.requires_grad_(False)


class UNetHead(_UShapedHead):
    """U-Net (Ronneberger et al. 2015) in smp's wiring: grow to the size of the next finer map, concatenate, two convolutions.

    Goes by the sizes of its maps: takes images of any size, and backbones of any strides. Options as
    :class:`_UShapedHead`'s, and ``attention``: ``scse`` (Roy et al. 2018) in every step.
    """

    any_stride: ClassVar[bool] = True

    def __init__(self, spec: FeatureSpec, num_classes: int, *, attention: str | None = None, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        decoder = UnetDecoder(
            smp_channels(spec),
            self.channels,
            n_blocks=len(self.channels),
            attention_type=self._attention(attention, *self.channels),
            interpolation_mode=self.interpolation,
        )
        _still_attention(decoder.blocks[-1])
        self.assemble(decoder, LastConvolution(self.channels[-1], num_classes, kernel_size=3), size_divisor=1)
        for step, width in zip(decoder.blocks, (spec.channels[-1], *self.channels[:-1]), strict=True):
            step.in_channels = width


class UNetPlusPlusHead(_UShapedHead):
    """U-Net++ (Zhou et al. 2018): a U-Net with dense nested skips. Options as :class:`UNetHead`'s."""

    def __init__(self, spec: FeatureSpec, num_classes: int, *, attention: str | None = None, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        decoder = UnetPlusPlusDecoder(
            smp_channels(spec),
            self.channels,
            n_blocks=len(self.channels),
            attention_type=self._attention(attention, *self.channels, *spec.channels),
            interpolation_mode=self.interpolation,
        )
        _still_attention(decoder.blocks[f"x_0_{decoder.depth}"])
        self.assemble(
            decoder, LastConvolution(self.channels[-1], num_classes, kernel_size=3), size_divisor=spec.strides[-1]
        )
        for name, step in decoder.blocks.items():
            column, row = (int(part) for part in name.removeprefix("x_").split("_"))
            step.in_channels = decoder.skip_channels[row - 1] if column else decoder.in_channels[row]


class MAnetHead(_UShapedHead):
    """MA-Net (Fan et al. 2020): a U-Net with attention between all cells of the coarsest map, and on the skips.

    That attention's memory grows with the fourth power of the image's side. Options as :class:`_UShapedHead`'s, and
    ``pab_channels``, its width.
    """

    def __init__(self, spec: FeatureSpec, num_classes: int, *, pab_channels: int = 64, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        decoder = MAnetDecoder(
            smp_channels(spec),
            list(self.channels),
            n_blocks=len(self.channels),
            pab_channels=whole("pab_channels", pab_channels),
            interpolation_mode=self.interpolation,
        )
        self.assemble(
            decoder, LastConvolution(self.channels[-1], num_classes, kernel_size=3), size_divisor=spec.strides[-1]
        )


class _RunHead(SegmentationHead):
    """A run of levels, of one width. Options: ``levels``, default 1 to 5, may start at 2 and end at 3 or 4; ``tap`` as
    :class:`_UShapedHead`'s."""

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        levels: Sequence[int] | None = None,
        tap: str = "stage",
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires(levels=levels, tap=tap))

    @classmethod
    def requires(cls, *, levels: Sequence[int] | None = None, tap: str = "stage", **options: Any) -> BackboneNeeds:
        """The levels named, C1 as ``tap`` says."""
        return _needs(levels, 5 if levels is None else wholes("levels", levels)[-1], tap)


class LinkNetHead(_RunHead):
    """LinkNet (Chaurasia and Culurciello 2017): transposed convolutions, skips added. Options as :class:`_RunHead`'s, and
    ``channels``, the width before the last convolution."""

    def __init__(self, spec: FeatureSpec, num_classes: int, *, channels: int = 32, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        maps = smp_channels(spec)
        decoder = LinknetDecoder(maps, prefinal_channels=whole("channels", channels), n_blocks=len(maps) - 1)
        self.assemble(decoder, LastConvolution(channels, num_classes, kernel_size=1), size_divisor=spec.strides[-1])


class SegFormerHead(_RunHead):
    """SegFormer's decoder (Xie et al. 2021): every map to one width and to stride 4, concatenated. Options as
    :class:`_RunHead`'s (smp reads C1 too; the paper's are ``[2, 3, 4, 5]``), and ``channels``, that width."""

    def __init__(self, spec: FeatureSpec, num_classes: int, *, channels: int = 256, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        decoder = SegformerDecoder(smp_channels(spec), segmentation_channels=whole("channels", channels))
        last = LastConvolution(channels, num_classes, kernel_size=1, upsampling=4)
        self.assemble(decoder, last, size_divisor=spec.strides[-1])
