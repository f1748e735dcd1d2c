"""Time of our EfficientNet against timm's on the CPU: inference, folded inference, one training step.

    python benchmarks/backbone_cpu.py --name b0 --rounds 9

Both networks run in one process, interleaved, so that a busy machine slows both; printed is the median of the ratios
ours / timm of each round, with its quartiles. Below 1 ours is faster. Random weights, float32, channels_last, no classifier.
Needs an idle machine to be quoted; on a busy one differences under 5 % mean nothing.
"""

import argparse
import copy
from collections.abc import Callable

import timm
import torch
from interleaved import compare
from torch import Tensor, nn

from effbackbones.efficientnet import EfficientNet, fold_batch_norm


def inference(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A forward pass without gradients."""

    def run() -> None:
        with torch.inference_mode():
            network(images)

    return run


def training(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward, backward, one step of SGD."""
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(network(images)[-1].square().mean())
        optimiser.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="b0", help="b0-b7, or lite0-lite4")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8, help="of inference; a training step takes twice as many, at 4/7 of the side")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {options.threads} threads, {options.name}, batch {options.batch}")
    for numerics in ("tf",) if options.name.startswith("lite") else ("torch", "tf"):
        prefix = "tf_" if numerics == "tf" else ""
        reference = timm.create_model(f"{prefix}efficientnet_{options.name}", features_only=True, out_indices=(4,), drop_path_rate=0.2)
        ours = EfficientNet(options.name, levels=("C5",), numerics=numerics)
        networks = [network.to(memory_format=torch.channels_last) for network in (ours, reference)]
        side = ours.image_spec.size[0]
        images = torch.randn(options.batch, 3, side, side).to(memory_format=torch.channels_last)
        small = torch.randn(2 * options.batch, 3, side * 4 // 7, side * 4 // 7).to(memory_format=torch.channels_last)
        folded = copy.deepcopy(ours).eval()
        fold_batch_norm(folded)
        cases = {
            "inference": [inference(network.eval(), images) for network in networks],
            "inference, batch norm folded": [inference(folded, images), inference(networks[1], images)],
        }
        for case, (mine, theirs) in cases.items():
            report(numerics, case, compare(mine, theirs, options.rounds))
        steps = [training(network.train(), small) for network in networks]
        report(numerics, "training step", compare(steps[0], steps[1], options.rounds))


def report(numerics: str, case: str, figures: tuple[float, float, list[float]]) -> None:
    ours, theirs, (low, middle, high) = figures
    print(f"{numerics:6} {case:30} ours {ours * 1e3:8.1f} ms  timm {theirs * 1e3:8.1f} ms  ratio {middle:.2f} ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
