"""What an EfficientNet costs, counted from its row of the table, without building it or loading torch."""

from typing import NamedTuple

from effbackbones.backbones.scaling import (
    LEVEL_STAGES,
    STAGES,
    Scaling,
    stage_channels,
    stage_layers,
    stem_channels,
)


class Costs(NamedTuple):
    """Of stem and stages, without a classifier: trained ``parameters``, and ``multiply_adds`` of convolutions and matrix products for one
    image."""

    parameters: int
    multiply_adds: int


def costs(row: Scaling, size: tuple[int, int] | None = None) -> Costs:
    """Costs of a row for images of ``size`` (H, W) in pixels, by default its native one; all levels, three channels, ``output_stride`` 32.

    Each convolution has filters and a batch norm (weight and bias); a stride halves sides, rounded up, whatever the padding; the two
    layers of squeeze-excite see one pixel, and have biases. Structure: :class:`effbackbones.backbones.efficientnet.EfficientNet`.
    """
    height, width = size or (row.resolution, row.resolution)
    parameters = work = 0

    def convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        nonlocal parameters, work
        filters = inputs // groups * outputs * kernel**2
        parameters += filters + 2 * outputs
        work += filters * height * width

    height, width = -(-height // 2), -(-width // 2)
    channels = stem_channels(row)
    convolution(3, channels, 3)
    for stage, outputs, layers in zip(STAGES, stage_channels(row), stage_layers(row), strict=True):
        for layer in range(layers):
            middle = channels * stage.expand
            if stage.expand != 1:
                convolution(channels, middle, 1)
            if layer == 0:
                height, width = -(-height // stage.stride), -(-width // stage.stride)
            convolution(middle, middle, stage.kernel, groups=middle)
            if row.family == "b":
                reduced = max(1, channels // 4)
                parameters += 2 * middle * reduced + reduced + middle
                work += 2 * middle * reduced
            convolution(middle, outputs, 1)
            channels = outputs
    return Costs(parameters, work)


def level_channels(row: Scaling) -> tuple[int, ...]:
    """Channels of C1 to C5."""
    channels = stage_channels(row)
    return tuple(channels[stage - 1] for stage in LEVEL_STAGES.values())
