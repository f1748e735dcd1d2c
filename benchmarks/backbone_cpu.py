"""Time of our EfficientNet against timm's on the CPU: inference, folded inference, one training step.

    python benchmarks/backbone_cpu.py --name b0 --rounds 9

Both networks run in one process, interleaved, so that a busy machine slows both; printed is the median of the ratios
ours / timm of each round, with its quartiles. Below 1 ours is faster. Random weights, float32, channels_last, no classifier.
Needs an idle machine to be quoted; on a busy one differences under 5 % mean nothing.
"""

import argparse
import copy
from functools import partial

import timm
import torch
from interleaved import forward, report, step
from torch import Tensor, nn

from effbackbones.backbones.convolution import fold_batch_norm
from effbackbones.backbones.efficientnet import EfficientNet


def loss(network: nn.Module, images: Tensor) -> Tensor:
    """Something to train on."""
    value: Tensor = network(images)[-1].square().mean()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="b0", help="b0-b7, or lite0-lite4")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--batch", type=int, default=8, help="of inference; a training step takes twice as many, at 4/7 of the side"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {options.threads} threads, {options.name}, batch {options.batch}"
    )
    for numerics in ("tf",) if options.name.startswith("lite") else ("torch", "tf"):
        prefix = "tf_" if numerics == "tf" else ""
        reference = timm.create_model(
            f"{prefix}efficientnet_{options.name}", features_only=True, out_indices=(4,), drop_path_rate=0.2
        )
        ours = EfficientNet(options.name, levels=("C5",), numerics=numerics)
        networks = [network.to(memory_format=torch.channels_last) for network in (ours, reference)]
        side = ours.image_spec.size[0]
        images = torch.randn(options.batch, 3, side, side).to(memory_format=torch.channels_last)
        small = torch.randn(2 * options.batch, 3, side * 4 // 7, side * 4 // 7).to(memory_format=torch.channels_last)
        folded = copy.deepcopy(ours).eval()
        fold_batch_norm(folded)
        cases = {
            "inference": [forward(network.eval(), images) for network in networks],
            "inference, batch norm folded": [forward(folded, images), forward(networks[1], images)],
        }
        for case, (mine, theirs) in cases.items():
            report(f"{numerics}: {case}", "timm", mine, theirs, options.rounds)
        steps = [step(network.parameters(), partial(loss, network.train(), small)) for network in networks]
        report(f"{numerics}: training step", "timm", steps[0], steps[1], options.rounds)


if __name__ == "__main__":
    main()
