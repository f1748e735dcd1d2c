"""AP of a detector after a few hundred steps on blood cells: ours, or torchvision's own, trained by the same engine on the same samples.

    python -m benchmarks.detector_accuracy retinanet --data DATA/bccd --seed 0 --steps 400
    python -m benchmarks.detector_accuracy retinanet --data DATA/bccd --torchvision              its neck, head, losses on our Lite0
    python -m benchmarks.detector_accuracy retinanet --data DATA/bccd --torchvision --backbone torchvision_mobilenet --file STATE_DICT.pth

The last line is one of JSON: head, backbone, seed, steps, AP, AP50, minutes. Words that are not known here go to the command (``--optim.lr
2e-3``).
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.detect import main as detect

PLUGIN = Path(__file__).with_name("torchvision_plugin.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, which ends with scores of the test split, and tell them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head")
    parser.add_argument("--data", required=True, help="folder of BCCD, as config bccd wants it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--torchvision", action="store_true", help="torchvision's head of that name instead of ours")
    parser.add_argument("--backbone", help="default: Lite0 with its ImageNet weights")
    parser.add_argument("--file", help="weights of a backbone of torchvision, a state dict; default: random")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    asked, more = parser.parse_known_args(argv)
    if asked.file and not asked.backbone:
        parser.error("--file goes with --backbone: Lite0 has weights of its own")
    head = f"torchvision_{asked.head}" if asked.torchvision else asked.head
    out = asked.out / f"{head}-{asked.backbone or 'lite0'}-{asked.seed}"
    line = ["--config", "bccd", "--data.root", asked.data, "--model.head", head, "--optim.max_steps", str(asked.steps)]
    line += [
        "--run.seed",
        str(asked.seed),
        "--run.out",
        str(out),
        *(["--plugins", str(PLUGIN)] if asked.torchvision else []),
    ]
    if asked.backbone:
        options = json.dumps({"file": asked.file} if asked.file else {})
        line += ["--model.backbone", asked.backbone, "--model.backbone_options", options, "--model.weights", "null"]
    begun = time.perf_counter()
    code = detect([*line, *more])
    minutes = (time.perf_counter() - begun) / 60
    if code:
        return code
    scores = json.loads((out / "metrics.json").read_text())  # a run ends with an evaluation of the test split
    found = scores[scores["best"]]  # of the averages or of the raw weights, whichever is kept
    told = {"head": head, "backbone": asked.backbone or "lite0", "seed": asked.seed, "steps": asked.steps}
    print(json.dumps(told | {name: found[name] for name in ("AP", "AP50")} | {"minutes": round(minutes, 2)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
