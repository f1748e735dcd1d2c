"""Time of our U-Net against segmentation-models-pytorch's: prediction, prediction with batch norm folded, training.

    OMP_WAIT_POLICY=passive python benchmarks/segmenter.py --name b3 --rounds 9
    python benchmarks/segmenter.py --device cuda --precision bf16 --batch 32

Both run in one process, interleaved, so that a busy machine slows both; printed is the median of the ratios ours / smp of each
round, with its quartiles. Below 1 ours is faster. The decoder is the same; random weights, square images. smp runs
as it is distributed, and also in channels_last. Both give the probabilities of all classes, and train on cross-entropy. Ours
starts from uint8 images, smp's from normalised ones: normalising is our model's work. Needs an idle machine to be quoted.
"""

from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from interleaved import arguments
from torch import Tensor, nn

from effbackbones import build_model
from effbackbones.model import Model

CLASSES = 11


def ours_loss(model: Model, images: Tensor, masks: Tensor) -> Tensor:
    """The loss, from images."""
    return torch.stack(list(model.loss(images, masks).values())).sum()


def theirs_loss(network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """The same for a network of smp."""
    return F.cross_entropy(network(images), masks)


def main() -> None:
    bench = arguments(__doc__, "b3", batch=2, side=256)
    print(f"smp {smp.__version__}")
    theirs = smp.Unet(f"efficientnet-{bench.name}", encoder_weights=None, classes=CLASSES).to(bench.device)
    as_smp: dict[str, Any] = {"backbone_options": {"numerics": "same_static"}, "head_options": {"tap": "stem"}}
    ours = build_model("seg", bench.name, num_classes=CLASSES, **as_smp)
    ours = ours.to(bench.device).to(memory_format=torch.channels_last)
    side = bench.side or ours.image_spec.size[0]
    pixels = torch.randint(0, 256, (bench.batch, 3, side, side), dtype=torch.uint8, device=bench.device)
    masks = torch.randint(CLASSES, (bench.batch, side, side), device=bench.device)
    normalised = ours.normalize(pixels)
    for layout in ("contiguous", "channels_last"):
        kind = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        theirs, images = theirs.to(memory_format=kind), normalised.contiguous(memory_format=kind)
        peer = bench.forward(nn.Sequential(theirs.eval(), nn.Softmax(1)), images)
        bench.report(f"predict, smp {layout}", "smp", bench.forward(ours.eval().predict, pixels), peer)
        bench.report(
            f"predict, ours folded, smp {layout}",
            "smp",
            bench.forward(ours.for_inference(backend="eager").predict, pixels),
            peer,
        )
        mine = bench.step(ours.train().parameters(), partial(ours_loss, ours, pixels, masks))
        theirs.train()
        peer = bench.step(theirs.parameters(), partial(theirs_loss, theirs, images, masks))
        bench.report(f"training step, smp {layout}", "smp", mine, peer)


if __name__ == "__main__":
    main()
