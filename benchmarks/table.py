"""The rows: what is measured, and against what."""

from benchmarks.row import Row

_SMP = "segmentation_models_pytorch"


def _answers(name: str, what: str, task: str, network: str, batch: int, side: int, *needs: str, **more: str) -> Row:
    arguments = {"task": task, "network": network, "batch": batch, "side": side}
    return Row(name, "inference", what, "benchmarks.inference:answers", arguments, needs, **more)


def _steps(
    name: str, what: str, task: str, network: str, batch: int, side: int, *needs: str, half: bool = False, **more: str
) -> Row:
    arguments = {"task": task, "network": network, "batch": batch, "side": side} | ({"half": True} if half else {})
    return Row(name, "training", what, "benchmarks.training:steps", arguments, needs, **more)


def _peak(name: str, what: str, task: str, network: str, batch: int, side: int, *needs: str) -> Row:
    arguments = {"task": task, "network": network, "batch": batch, "side": side}
    return Row(name, "memory", what, "benchmarks.peaks:steps", arguments, needs)


def _kernel(
    name: str, what: str, channels: int, out: int, kernel: int, side: int, batch: int = 16, gap: int = 1
) -> Row:
    arguments = {"channels": channels, "out": out, "kernel": kernel, "side": side, "batch": batch, "gap": gap}
    return Row(name, "training", what, "benchmarks.convolutions:kernels", arguments)


_B4 = {"backbone": "b4", "batch": 2, "side": 896}
_SCORES = {"images": 5000, "classes": 80, "detections": 100}
_ROWS = (
    _answers("b0-batch8", "B0, 8 images of 224", "cls", "b0", 8, 224, "timm"),
    _answers("b0-batch1", "B0, 1 image of 224", "cls", "b0", 1, 224, "timm"),
    _answers("b4-batch2", "B4, 2 images of 380", "cls", "b4", 2, 380, "timm"),
    _answers("d0-predict", "EfficientDet-D0, 1 image of 512, boxes after suppression", "det", "d0", 1, 512, "effdet"),
    _answers("retinanet-predict", "RetinaNet on B0, 1 image of 256", "det", "retinanet-b0", 1, 256, "torchvision"),
    _answers("fcos-predict", "FCOS on B0, 1 image of 256", "det", "fcos-b0", 1, 256, "torchvision"),
    _answers("ssd-predict", "SSDLite on B0, 1 image of 320", "det", "ssd-b0", 1, 320, "torchvision"),
    _answers("unet-predict", "U-Net on B3, 2 images of 256", "seg", "b3", 2, 256, _SMP),
    _steps("b0-step", "B0, 16 images of 128", "cls", "b0", 16, 128, "timm"),
    _steps("d0-step", "EfficientDet-D0, 2 images of 512, targets from boxes", "det", "d0", 2, 512, "effdet"),
    _steps("retinanet-step", "RetinaNet on B0, 2 images of 256", "det", "retinanet-b0", 2, 256, "torchvision"),
    _steps("fcos-step", "FCOS on B0, 2 images of 256", "det", "fcos-b0", 2, 256, "torchvision"),
    _steps("ssd-step", "SSDLite on B0, 4 images of 320", "det", "ssd-b0", 4, 320, "torchvision"),
    _steps("unet-step", "U-Net on B3, 2 images of 256", "seg", "b3", 2, 256, _SMP),
    _steps("b0-step-bf16", "B0, 16 images of 128, bf16", "cls", "b0", 16, 128, "timm", half=True),
    _steps("d0-step-bf16", "EfficientDet-D0, 2 images of 512, bf16", "det", "d0", 2, 512, "effdet", half=True),
    _steps("unet-step-bf16", "U-Net on B3, 2 images of 256, bf16", "seg", "b3", 2, 256, _SMP, half=True),
    _kernel("depthwise-gradient", "gradient of 5x5 depthwise weights, 16 maps of 240 x 16 x 16", 240, 240, 5, 16),
    _kernel(
        "dilated-gradient", "both gradients of 5x5 with gaps of 2, 2 maps of 1152 x 32 x 32", 1152, 1152, 5, 32, 2, 2
    ),
    _kernel("pointwise", "1x1 convolution there and back, 16 maps of 112 to 672 x 8 x 8", 112, 672, 1, 8),
    _peak("b0-memory", "B0, 16 images of 128", "cls", "b0", 16, 128, "timm"),
    _peak("d0-memory", "EfficientDet-D0, 2 images of 512", "det", "d0", 2, 512, "effdet"),
    _peak("unet-memory", "U-Net on B3, 2 images of 256", "seg", "b3", 2, 256, _SMP),
    Row(
        "b4-checkpointing",
        "training",
        "B4, 2 images of 896, activations recomputed",
        "benchmarks.checkpointing:seconds",
        _B4,
    ),
    Row("b4-checkpointing-memory", "memory", "the same step", "benchmarks.checkpointing:memory", _B4),
    Row(
        "tiles",
        "memory",
        "U-Net on lite0, 6000 x 4000 pixels in tiles of 512",
        "benchmarks.tiles:memory",
        {"backbone": "lite0"},
    ),
    Row(
        "coco-scores",
        "data",
        "COCO scores of 5,000 images",
        "benchmarks.coco_scores:seconds",
        _SCORES,
        ("pycocotools",),
    ),
    Row(
        "allocation",
        "inference",
        "B0, 8 images of 224, freed memory kept as by the commands",
        "benchmarks.allocation:seconds",
        {"batch": 8, "side": 224},
    ),
    Row(
        "logarithms",
        "training",
        "softplus of 260,000 numbers, in new processes",
        "benchmarks.logarithms:seconds",
        {"count": 260_000},
    ),
    Row(
        "loader-512",
        "data",
        "photographs to 512 pixels with boxes, one core",
        "benchmarks.loader:boxes",
        {"side": 512},
        ("PIL", "albumentations"),
    ),
    Row(
        "loader-224",
        "data",
        "photographs to random parts of 224 pixels, one core",
        "benchmarks.loader:crops",
        {"side": 224},
        ("timm",),
    ),
    Row("startup", "start", "import, and help of the command", "benchmarks.startup:seconds"),
    _answers("gpu-b0", "B0, 256 images of 224, bf16", "cls", "b0", 256, 224, "timm", device="cuda"),
    _answers("gpu-d0-latency", "EfficientDet-D0, 1 image of 512", "det", "d0", 1, 512, "effdet", device="cuda"),
    _steps("gpu-b0-step", "B0, 128 images of 224, bf16", "cls", "b0", 128, 224, "timm", device="cuda"),
    _steps("gpu-d0-step", "EfficientDet-D0, 32 images of 512, bf16", "det", "d0", 32, 512, "effdet", device="cuda"),
    _steps("gpu-unet-step", "U-Net on B3, 32 images of 256, bf16", "seg", "b3", 32, 256, _SMP, device="cuda"),
    Row("scaling-image", "scaling", "size of the image", "benchmarks.scaling:image_size"),
    Row("scaling-batch", "scaling", "images in a batch", "benchmarks.scaling:batch_size"),
    Row("scaling-model", "scaling", "variant of the network", "benchmarks.scaling:variants"),
    Row("scaling-classes", "scaling", "classes", "benchmarks.scaling:classes"),
    Row("scaling-boxes", "scaling", "boxes in an image", "benchmarks.scaling:objects"),
    Row("scaling-data", "scaling", "images of a data set", "benchmarks.datasets:opening"),
    Row("scaling-scores", "scaling", "images that are scored", "benchmarks.datasets:scoring"),
)
ROWS = {row.name: row for row in _ROWS}
GROUPS = tuple(dict.fromkeys(row.group for row in _ROWS))
APART = ("scaling",)
"""Groups that are measured only where they are asked for."""
