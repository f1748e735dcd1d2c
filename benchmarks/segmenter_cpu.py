"""Time of our U-Net against segmentation-models-pytorch's on the CPU: prediction, prediction with batch norm folded, training.

    OMP_WAIT_POLICY=passive python benchmarks/segmenter_cpu.py --name b3 --rounds 9

Both run in one process, interleaved, so that a busy machine slows both; printed is the median of the ratios ours / smp of each
round, with its quartiles. Below 1 ours is faster. The decoder is the same; random weights, float32, two square images. smp runs
as it is distributed, and also in channels_last. Both give the probabilities of all classes, and train on cross-entropy. Ours
starts from uint8 images, smp's from normalised ones: normalising is our model's work. Needs an idle machine to be quoted.
"""

import argparse
import os
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from interleaved import forward, report, step
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="b3", choices=[f"b{i}" for i in range(8)])
    parser.add_argument("--side", type=int, default=256, help="of the images, pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions, policy = f"torch {torch.__version__}, smp {smp.__version__}", os.environ.get("OMP_WAIT_POLICY", "not set")
    print(f"{versions}, {options.threads} threads, OMP_WAIT_POLICY {policy}, {options.name} at {options.side} pixels")
    torch.manual_seed(0)
    theirs = smp.Unet(f"efficientnet-{options.name}", encoder_weights=None, classes=CLASSES)
    as_smp: dict[str, Any] = {"backbone_options": {"numerics": "same_static"}, "head_options": {"tap": "stem"}}
    ours = build_model("seg", options.name, num_classes=CLASSES, **as_smp).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (2, 3, options.side, options.side), dtype=torch.uint8)
    masks = torch.randint(CLASSES, (2, options.side, options.side))
    normalised = ours.normalize(pixels)
    for layout in ("contiguous", "channels_last"):
        kind = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        theirs, images = theirs.to(memory_format=kind), normalised.contiguous(memory_format=kind)
        peer = forward(nn.Sequential(theirs.eval(), nn.Softmax(1)), images)
        report(f"predict, smp {layout}", "smp", forward(ours.eval().predict, pixels), peer, options.rounds)
        report(
            f"predict, ours folded, smp {layout}",
            "smp",
            forward(ours.for_inference().predict, pixels),
            peer,
            options.rounds,
        )
        steps = (
            step(ours.train().parameters(), partial(ours_loss, ours, pixels, masks)),
            step(theirs.train().parameters(), partial(theirs_loss, theirs, images, masks)),
        )
        report(f"training step, smp {layout}", "smp", *steps, options.rounds)


if __name__ == "__main__":
    main()
