"""Published EfficientDets as records: effdet's files and zylo117's.

Both hold 90 classes, channel k for COCO's category id k + 1. The tests compare effdet's with its installed configurations.
"""

from collections.abc import Iterator
from typing import Any

from effbackbones.images.spec import IMAGENET_MEAN, IMAGENET_STD, ImageSpec
from effbackbones.weights.source import HALF, WeightSource

_EFFDET_URL = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1"
_ZYLO117_URL = "https://github.com/zylo117/Yet-Another-Efficient-Pytorch/releases/download"

# Model, the rest of its file's name (its end is the hash prefix), AP on val2017 with hard suppression
# (effdet, config/model_config.py and README.md). Left out: models whose pyramid or backbone is another.
_EFFDET = """
efficientdet_d0        -f3276ba8    33.6
efficientdet_d1        -bb7e98fe    39.4
tf_efficientdet_d0     _34-f153e0cf 34.2
tf_efficientdet_d0_ap  -d0cdbd0a    34.8
tf_efficientdet_d1     _40-a30f94af 40.1
tf_efficientdet_d1_ap  -7721d075    40.8
tf_efficientdet_d2     _43-8107aa99 43.4
tf_efficientdet_d2_ap  -a2995c19    44.2
tf_efficientdet_d3     _47-0b525f35 47.1
tf_efficientdet_d3_ap  -e4a2feab    47.7
tf_efficientdet_d4     _49-f56376d9 49.2
tf_efficientdet_d4_ap  -f601a5fc    50.2
tf_efficientdet_d5     _51-c79f9be6 51.2
tf_efficientdet_d5_ap  -3673ae5d    52.1
tf_efficientdet_d6     _52-4eda3773 52.0
tf_efficientdet_d7     _53-6d1d7a95 53.1
tf_efficientdet_d7x    -f390b87c    54.3
tf_efficientdet_lite0  -dfacfc78    27.1
tf_efficientdet_lite1  -6dc7ab30    32.2
tf_efficientdet_lite2  -86c5d55b    35.9
tf_efficientdet_lite3  -506852cb    39.6
tf_efficientdet_lite3x -8404c57b    43.6
tf_efficientdet_lite4  -391ddabc    44.2
"""

# Variant, release and number of its file, AP at a score threshold of 0.05 (zylo117, readme.md). No hash is published.
_ZYLO117 = """
d0  1.0 0 33.1
d1  1.0 1 38.8
d2  1.0 2 42.1
d3  1.0 3 45.6
d4  1.0 4 48.8
d5  1.0 5 50.2
d6  1.0 6 50.7
d7  1.2 7 52.7
d7x 1.2 8 53.9
"""

# Variant: backbone, side of its square images in pixels, anchor scale (google/automl, efficientdet/hparams_config.py).
_VARIANTS: dict[str, tuple[str, int, float]] = {
    "d0": ("b0", 512, 4.0),
    "d1": ("b1", 640, 4.0),
    "d2": ("b2", 768, 4.0),
    "d3": ("b3", 896, 4.0),
    "d4": ("b4", 1024, 4.0),
    "d5": ("b5", 1280, 4.0),
    "d6": ("b6", 1280, 4.0),
    "d7": ("b6", 1536, 5.0),
    "d7x": ("b7", 1536, 4.0),
    "lite0": ("lite0", 320, 3.0),
    "lite1": ("lite1", 384, 3.0),
    "lite2": ("lite2", 448, 3.0),
    "lite3": ("lite3", 512, 4.0),
    "lite3x": ("lite3", 640, 3.0),
    "lite4": ("lite4", 640, 4.0),
}


def detectors() -> Iterator[WeightSource]:
    """A record of every published detector that fits our networks."""
    for model, ending, ap in _rows(_EFFDET):
        variant = model.removesuffix("_ap").rpartition("_")[2]
        # Det-AdvProp and Lite were trained on inputs in -1..1.
        half = model.endswith("_ap") or variant.startswith("lite")
        file, tf = f"{model}{ending}.pth", model.startswith("tf_")
        yield _detector(
            variant,
            f"effdet:{model}",
            url=f"{_EFFDET_URL}/{file}",
            file=file,
            hash_prefix=ending[-8:],
            dialect="timm",
            numerics="tf" if tf else "torch",
            half=half,
            licence="Apache-2.0",
            ap=float(ap),
        )
    for variant, release, number, ap in _rows(_ZYLO117):
        name = f"efficientdet-d{number}"
        yield _detector(
            variant,
            f"zylo117:{name}",
            url=f"{_ZYLO117_URL}/{release}/{name}.pth",
            file=f"zylo117-{name}.pth",
            hash_prefix=None,
            dialect="zylo117",
            numerics="tf_original",
            half=False,
            licence="LGPL-3.0",
            ap=float(ap),
        )


def _detector(variant: str, name: str, *, half: bool, **fields: Any) -> WeightSource:
    backbone, size, scale = _VARIANTS[variant]
    mean, std = (HALF, HALF) if half else (IMAGENET_MEAN, IMAGENET_STD)
    spec = ImageSpec((size, size), mean, std, "bilinear", 1.0, "letterbox")
    options: tuple[tuple[str, Any], ...] = (("variant", variant), ("anchor_scale", scale))
    if variant == "lite3x":  # Lite3 with a wider pyramid
        options = (("variant", "lite3"), ("channels", 200), ("anchor_scale", scale))
    return WeightSource(name, backbone, image_spec=spec, head_options=options, **fields)


def _rows(table: str) -> Iterator[list[str]]:
    return (line.split() for line in table.split("\n") if line)
