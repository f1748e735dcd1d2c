"""A backbone: a strided convolution for each level."""

from torch import nn

from effbackbones import Backbone, FeatureSpec, ImageSpec

WIDTHS = {"C1": 8, "C2": 16, "C3": 24, "C4": 32, "C5": 48}


class Tiny(Backbone):
    """Five strided convolutions. ``levels``: those whose maps are given; deeper ones are not built."""

    def __init__(self, *, levels=tuple(WIDTHS)):
        super().__init__()
        self.name, self.image_spec = "tiny_sample", ImageSpec(size=(64, 64))
        names = list(WIDTHS)[: 1 + max(list(WIDTHS).index(level) for level in levels)]
        self.stages = nn.ModuleDict()
        for name, before in zip(names, [3, *WIDTHS.values()], strict=False):
            convolution = nn.Conv2d(before, WIDTHS[name], 3, stride=2, padding=1, bias=False)
            self.stages[name] = nn.Sequential(convolution, nn.BatchNorm2d(WIDTHS[name]), nn.ReLU())
        wanted = tuple(name for name in names if name in levels)
        strides = tuple(2 ** (1 + names.index(name)) for name in wanted)
        self.feature_spec = FeatureSpec(self.name, wanted, tuple(WIDTHS[name] for name in wanted), strides)

    def forward(self, images):
        maps = {}
        for name, stage in self.stages.items():
            images = maps[name] = stage(images)
        return [maps[name] for name in self.feature_spec.names]  # finest first

    def level_modules(self):
        return {name: (stage,) for name, stage in self.stages.items()}  # so that it freezes and learns level by level
