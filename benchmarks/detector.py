"""Time of our EfficientDet against effdet's: prediction, prediction with batch norm folded, one training step.

    OMP_WAIT_POLICY=passive python benchmarks/detector.py --name d0 --rounds 9
    python benchmarks/detector.py --device cuda --precision bf16 --batch 16

Both run in one process, interleaved, so that a busy machine slows both; printed is the median of the ratios ours / effdet of
each round, with its quartiles. Below 1 ours is faster. Random weights with spread class logits, the same in both;
images at the published size, one to predict for every two to train on. effdet runs as it is distributed, and also in channels_last.
Ours starts from uint8 images, effdet's from normalised ones: normalising is our model's work. Needs an idle machine to be
quoted; on a busy one differences under 5 % mean nothing, and without the waiting policy single rounds take many times as long.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import effdet
import torch
from effdet.bench import DetBenchPredict, DetBenchTrain
from interleaved import arguments
from torch import Tensor, nn

from effbackbones import BoxTargets, build_model
from effbackbones.model import Model
from heads.detection.variants import VARIANTS

CLASSES, BOXES = 90, 12
SPREAD = 2.0  # standard deviation to bring the class logits near: at the prior all scores tie


def networks(name: str) -> tuple[Model, nn.Module]:
    """Ours and effdet's, channels_last."""
    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    config.num_classes = CLASSES
    theirs = effdet.EfficientDet(config, pretrained_backbone=False)
    backbone = config.backbone_name.removeprefix("tf_efficientnet_")
    options: dict[str, Any] = {"backbone_options": {"numerics": "tf"}, "head_options": {"variant": name}}
    ours = build_model("det", backbone, num_classes=CLASSES, **options)
    with torch.no_grad():
        for weight in (
            theirs.class_net.predict.conv_pw.weight,
            ours.head.get_parameter("class_net.predict.pointwise.weight"),
        ):
            weight.normal_(std=SPREAD / weight.shape[1] ** 0.5)
    return ours.to(memory_format=torch.channels_last), theirs


def ours_loss(model: Model, images: Tensor, targets: BoxTargets) -> Tensor:
    """The loss, from images."""
    return torch.stack(list(model.loss(images, targets).values())).sum()


def theirs_bench(network: nn.Module, images: Tensor, targets: BoxTargets) -> tuple[nn.Module, Callable[[], Tensor]]:
    """effdet's training bench, its labeler included, and the loss that it gives."""
    bench = DetBenchTrain(network).train().to(images.device)
    target = {"bbox": targets.boxes[..., [1, 0, 3, 2]], "cls": targets.labels + 1.0}
    return bench, lambda: bench(images, target)["loss"]


def boxes(batch: int, side: int, device: torch.device) -> BoxTargets:
    """Random boxes, BOXES in each image."""
    corner = torch.rand(batch, BOXES, 2, device=device) * 0.6
    extent = 0.05 + 0.35 * torch.rand(batch, BOXES, 2, device=device)
    labels = torch.randint(CLASSES, (batch, BOXES), device=device)
    return BoxTargets(
        torch.cat([corner, corner + extent], 2) * side, labels, torch.zeros_like(labels, dtype=torch.bool)
    )


def main() -> None:
    bench = arguments(__doc__, "d0", batch=2)
    side = bench.side or VARIANTS[bench.name].resolution
    print(f"effdet {version('effdet')}, {side} pixels")
    ours, theirs = networks(bench.name)
    ours, theirs = ours.to(bench.device), theirs.to(bench.device)
    pixels = torch.randint(0, 256, (bench.batch, 3, side, side), dtype=torch.uint8, device=bench.device)
    normalised, half = ours.normalize(pixels), max(1, bench.batch // 2)
    for layout in ("contiguous", "channels_last"):
        kind = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        theirs, images = theirs.to(memory_format=kind), normalised.contiguous(memory_format=kind)
        peer = bench.forward(DetBenchPredict(theirs.eval()).eval().to(bench.device), images[:half])
        bench.report(f"predict, effdet {layout}", "effdet", bench.forward(ours.eval().predict, pixels[:half]), peer)
        folded = ours.for_inference(backend="eager")
        bench.report(
            f"predict, ours folded, effdet {layout}", "effdet", bench.forward(folded.predict, pixels[:half]), peer
        )
        targets = boxes(bench.batch, side, bench.device)
        trained, loss = theirs_bench(theirs, images, targets)
        mine = bench.step(ours.train().parameters(), partial(ours_loss, ours, pixels, targets))
        bench.report(f"training step, effdet {layout}", "effdet", mine, bench.step(trained.parameters(), loss))


if __name__ == "__main__":
    main()
