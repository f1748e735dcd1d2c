"""The siblings of U-Net that read a few levels: FPN, UPerNet, PSPNet, DeepLabV3 and V3+, PAN and DPT, with smp's decoders.

As in ``segmentation.py``, whose first lines say how.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from segmentation_models_pytorch.base import SegmentationHead as LastConvolution
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor

from effbackbones.contracts import BackboneNeeds, FeatureSpec, ImageSizes
from effbackbones.errors import UserError
from heads.options import INTERPOLATIONS, choice, number, whole, wholes
from heads.segmentation.head import SegmentationHead, check_spec, smp_channels

_PYRAMID = ("C2", "C3", "C4", "C5")


class FPNHead(SegmentationHead):
    """Semantic FPN (Kirillov et al. 2019) on C2-C5. Options: ``pyramid_channels``, ``segmentation_channels`` (a multiple of
    32), ``merge`` (``add`` or ``cat``), ``dropout``, ``interpolation``."""

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        pyramid_channels: int = 256,
        segmentation_channels: int = 128,
        merge: str = "add",
        dropout: float = 0.2,
        interpolation: str = "nearest",
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires())
        if whole("segmentation_channels", segmentation_channels) % 32:
            what = f"its group norm has 32 groups, got {segmentation_channels}"
            raise UserError("head_options.segmentation_channels", what, "choose a multiple of 32")
        decoder = FPNDecoder(
            smp_channels(spec),
            pyramid_channels=whole("pyramid_channels", pyramid_channels),
            segmentation_channels=segmentation_channels,
            dropout=number("dropout", dropout, 0, below=1),
            merge_policy=choice("merge", merge, ("add", "cat")),
            interpolation_mode=choice("interpolation", interpolation, INTERPOLATIONS),
        )
        last = LastConvolution(decoder.out_channels, num_classes, kernel_size=1, upsampling=4)
        self.assemble(decoder, last, size_divisor=spec.strides[-1])
        if segmentation_channels == 32:  # groups of one channel: on a single cell torch refuses to normalise them
            self.min_size = 2 * spec.strides[-1]

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """C2 to C5."""
        return BackboneNeeds(_PYRAMID)


class UPerNetHead(SegmentationHead):
    """UPerNet (Xiao et al. 2018): pyramid pooling on C5, then an FPN on C2-C5. Option: ``channels``."""

    pools_to_one: ClassVar[bool] = True

    def __init__(self, spec: FeatureSpec, num_classes: int, *, channels: int = 256, **options: Any) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires())
        decoder = UPerNetDecoder(smp_channels(spec), decoder_channels=whole("channels", channels))
        self.assemble(
            decoder, LastConvolution(channels, num_classes, kernel_size=1, upsampling=4), size_divisor=spec.strides[-1]
        )

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """C2 to C5."""
        return BackboneNeeds(_PYRAMID)


class PSPNetHead(SegmentationHead):
    """PSPNet (Zhao et al. 2017): pyramid pooling on a single map. Options: ``channels``; ``dropout``; ``depth``, the level it
    stands on, 3 (default) to 5: the backbone ends there."""

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        channels: int = 512,
        dropout: float = 0.2,
        depth: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires(depth=depth))
        if spec.channels[-1] % 4:
            what = f"{spec.names[-1]} has {spec.channels[-1]} channels, pyramid pooling needs a multiple of 4"
            raise UserError(f"backbone {spec.backbone!r}", what, "choose another backbone or head")
        decoder = PSPDecoder(
            smp_channels(spec), out_channels=whole("channels", channels), dropout=number("dropout", dropout, 0, below=1)
        )
        stride = spec.strides[-1]
        self.assemble(
            decoder, LastConvolution(channels, num_classes, kernel_size=3, upsampling=stride), size_divisor=stride
        )

    @classmethod
    def requires(cls, *, depth: int = 3, **options: Any) -> BackboneNeeds:
        """The level ``depth`` alone."""
        return BackboneNeeds((f"C{choice('depth', depth, (3, 4, 5))}",))


class _DeepLabHead(SegmentationHead):
    """Dilated convolutions of several rates on C5 (ASPP), the backbone dilated too.

    Options: ``output_stride`` of the backbone, 8 or 16; ``channels``; ``atrous_rates``, three; ``separable`` convolutions in the
    ASPP; ``dropout``, there.
    """

    pools_to_one: ClassVar[bool] = True

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        channels: int = 256,
        atrous_rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        if len(wholes("atrous_rates", atrous_rates)) != 3:
            raise UserError(
                "head_options.atrous_rates", f"expected three, got {list(atrous_rates)}", "12, 24 and 36 are published"
            )
        self.channels, self.atrous_rates = whole("channels", channels), tuple(atrous_rates)
        self.dropout = number("dropout", dropout, 0, below=1)


class DeepLabV3Head(_DeepLabHead):
    """DeepLabV3 (Chen et al. 2017). Options as :class:`_DeepLabHead`'s; ``output_stride`` 8 and no ``separable`` by default."""

    def __init__(
        self, spec: FeatureSpec, num_classes: int, *, output_stride: int = 8, separable: bool = False, **options: Any
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires(output_stride=output_stride))
        choice("separable", separable, (False, True))
        decoder = DeepLabV3Decoder(spec.channels[-1], self.channels, self.atrous_rates, separable, self.dropout)
        last = LastConvolution(self.channels, num_classes, kernel_size=1, upsampling=output_stride)
        self.assemble(decoder, last, size_divisor=output_stride)

    @classmethod
    def requires(cls, *, output_stride: int = 8, **options: Any) -> BackboneNeeds:
        """C5 at ``output_stride``."""
        return BackboneNeeds(("C5",), choice("output_stride", output_stride, (8, 16)))


class DeepLabV3PlusHead(_DeepLabHead):
    """DeepLabV3+ (Chen et al. 2018): refined by C2. Options as :class:`_DeepLabHead`'s; ``output_stride`` 16 and ``separable``
    by default."""

    def __init__(
        self, spec: FeatureSpec, num_classes: int, *, output_stride: int = 16, separable: bool = True, **options: Any
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires(output_stride=output_stride))
        choice("separable", separable, (False, True))
        decoder = DeepLabV3PlusDecoder(
            smp_channels(spec), 5, self.channels, self.atrous_rates, output_stride, separable, self.dropout
        )
        last = LastConvolution(self.channels, num_classes, kernel_size=1, upsampling=4)
        self.assemble(decoder, last, size_divisor=output_stride)

    @classmethod
    def requires(cls, *, output_stride: int = 16, **options: Any) -> BackboneNeeds:
        """C2, and C5 at ``output_stride``."""
        return BackboneNeeds(("C2", "C5"), choice("output_stride", output_stride, (8, 16)))


class PANHead(SegmentationHead):
    """Pyramid attention network (Li et al. 2018) on C2-C5. Images are padded to eight cells of C5, which it halves three times.
    Options: ``output_stride`` of the backbone, 16 (default) or 32; ``channels``; ``interpolation``."""

    pools_to_one: ClassVar[bool] = True

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        output_stride: int = 16,
        channels: int = 32,
        interpolation: str = "bilinear",
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires(output_stride=output_stride))
        mode = choice("interpolation", interpolation, INTERPOLATIONS)
        decoder = PANDecoder(smp_channels(spec), 5, whole("channels", channels), mode)
        self.assemble(
            decoder, LastConvolution(channels, num_classes, kernel_size=3, upsampling=4), size_divisor=output_stride
        )
        self.min_size = 8 * output_stride

    @classmethod
    def requires(cls, *, output_stride: int = 16, **options: Any) -> BackboneNeeds:
        """C2 to C5, these at most at ``output_stride``."""
        return BackboneNeeds(_PYRAMID, choice("output_stride", output_stride, (16, 32)))


class DPTHead(SegmentationHead):
    """DPT's decoder (Ranftl et al. 2021) on C2-C5, read as its hybrid form reads a convolutional backbone.

    A plain vision transformer has a single level here and is refused; a registered backbone that gives four of its maps under
    the names C2-C5, all at stride 16, is taken. No readout of prefix tokens, which a backbone does not give. Options:
    ``channels``; ``intermediate_channels``, one per level.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        num_classes: int,
        *,
        channels: int = 256,
        intermediate_channels: Sequence[int] = (256, 512, 1024, 1024),
        **options: Any,
    ) -> None:
        super().__init__(spec, num_classes, **options)
        check_spec(type(self), spec, self.requires(), any_stride=True)
        if odd := [stride for stride in spec.strides if stride & (stride - 1)]:
            raise UserError(
                f"backbone {spec.backbone!r}",
                f"DPTHead needs strides that are powers of 2, got {odd[0]}",
                "choose another",
            )
        if len(wholes("intermediate_channels", intermediate_channels)) != 4:
            raise UserError(
                "head_options.intermediate_channels",
                f"expected four, got {list(intermediate_channels)}",
                "one per level",
            )
        decoder = DPTDecoder(
            spec.channels,
            spec.strides,
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=tuple(intermediate_channels),
            fusion_channels=whole("channels", channels),
        )
        self.assemble(decoder, DPTSegmentationHead(channels, num_classes), size_divisor=max(32, *spec.strides))

    def _decode(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        decoded: Tensor = self.decoder(features, [None] * len(features))
        return decoded

    @classmethod
    def requires(cls, **options: Any) -> BackboneNeeds:
        """C2 to C5."""
        return BackboneNeeds(_PYRAMID)
