"""Time of our EfficientNet against timm's: inference, folded inference, one training step.

    OMP_WAIT_POLICY=passive python benchmarks/backbone.py --name b0 --rounds 9
    python benchmarks/backbone.py --device cuda --precision bf16 --batch 256

Both networks run in one process, interleaved, so that a busy machine slows both; printed is the median of the ratios
ours / timm of each round, with its quartiles. Below 1 ours is faster. Random weights, channels_last, no classifier. A training
step takes twice the batch, at 4/7 of the side. Needs an idle machine to be quoted; on a busy one differences under 5 % mean
nothing.
"""

import copy
from functools import partial

import timm
import torch
from interleaved import arguments
from torch import Tensor, nn

from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.backbones.folding import fold_batch_norm


def loss(network: nn.Module, images: Tensor) -> Tensor:
    """Something to train on."""
    value: Tensor = network(images)[-1].square().mean()
    return value


def main() -> None:
    bench = arguments(__doc__, "b0", batch=8)
    print(f"timm {timm.__version__}")
    for numerics in ("tf",) if bench.name.startswith("lite") else ("torch", "tf"):
        prefix = "tf_" if numerics == "tf" else ""
        reference = timm.create_model(
            f"{prefix}efficientnet_{bench.name}", features_only=True, out_indices=(4,), drop_path_rate=0.2
        )
        ours = EfficientNet(bench.name, levels=("C5",), numerics=numerics)
        networks = [network.to(bench.device).to(memory_format=torch.channels_last) for network in (ours, reference)]
        side = bench.side or ours.image_spec.size[0]
        images = _images(bench.batch, side, bench.device)
        small = _images(2 * bench.batch, side * 4 // 7, bench.device)
        folded = copy.deepcopy(ours).eval()
        fold_batch_norm(folded)
        cases = {"inference": ours.eval(), "inference, batch norm folded": folded}
        for case, network in cases.items():
            mine, theirs = bench.forward(network, images), bench.forward(reference.eval(), images)
            bench.report(f"{numerics}: {case}", "timm", mine, theirs)
        steps = [bench.step(network.parameters(), partial(loss, network.train(), small)) for network in networks]
        bench.report(f"{numerics}: training step", "timm", steps[0], steps[1])


def _images(batch: int, side: int, device: torch.device) -> Tensor:
    return torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
