"""Accuracy on spoken digits: ours, and two plain baselines on the same log-mel pictures of the same split.

    python -m benchmarks.sound_accuracy ours --data fsdd --test index=0-4 --seed 0        config digits, Lite0 from ImageNet weights
    python -m benchmarks.sound_accuracy linear --data fsdd --test speaker=theo            mean, deviation of each mel, logistic regression
    python -m benchmarks.sound_accuracy cnn --data fsdd --test speaker=theo               four plain convolutions, 20 epochs

The last line is one of JSON: what, test, seed, top1 of the test split, its recordings, minutes of the processor. Words that are not known
here go to the command (``--optim.epochs 3``; ``--model.backbone_options.normalize fixed`` for log-mels without PCEN, ours and theirs).
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effbackbones import ImageSpec
from effbackbones.backbones.mel import MelSpec
from effbackbones.backbones.spectrogram import Spectrogram
from effbackbones.errors import UserError
from tasks.classification.task import TASK
from tasks.classify import main as classify
from tasks.data.dataset import Dataset
from tasks.data.transforms.waves import WaveTransform
from tasks.engine.splits import open_splits
from tasks.settings.commandline import parse

Data = tuple[Tensor, Tensor]
EPOCHS, BATCH = 20, 32


def main(argv: Sequence[str] | None = None) -> int:
    """Train one of the three and tell its accuracy on the test split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ours", "linear", "cnn"))
    parser.add_argument("--data", required=True, help="folder of the recordings")
    parser.add_argument("--test", default="index=0-4", help="which are for the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/sound"))
    asked, more = parser.parse_known_args(argv)
    line = ["--config", "digits", "--data.root", asked.data, "--data.test", asked.test, "--run.seed", str(asked.seed)]
    begun = time.process_time()
    if asked.what == "ours":
        out = asked.out / f"{asked.test}-{asked.seed}"
        code = classify([*line, "--run.out", str(out), "--data.workers", "0", *more])
        if code:
            return code
        record = json.loads((out / "metrics.json").read_text())
        score, count = record[record["best"]]["top1"], record[record["best"]]["samples"]
    else:
        try:
            score, count = baseline(asked.what, parse("classify", ["train", *line, *more]).config, asked.seed)
        except UserError as error:
            parser.error(str(error))
    minutes = (time.process_time() - begun) / 60
    told = {"what": asked.what, "test": asked.test, "seed": asked.seed, "top1": round(score, 4), "recordings": count}
    print(json.dumps(told | {"minutes": round(minutes, 2)}))
    return 0


def baseline(what: str, config: Any, seed: int) -> tuple[float, int]:
    """Top-1 on the test split, and of how many. Of validation there is none: it is trained on too."""
    options, heard = config.model.backbone_options, {one.name for one in fields(MelSpec)}
    spec = MelSpec(**{name: value for name, value in options.items() if name in heard})
    splits = open_splits(config, TASK)
    (x, y), (x2, y2), (test, labels) = (pictures(splits[name], spec) for name in ("train", "val", "test"))
    x, y = torch.cat([x, x2]), torch.cat([y, y2])
    found = linear(x, y, test) if what == "linear" else cnn(x, y, test, seed)
    return float((found == labels).float().mean()), len(labels)


def pictures(dataset: Dataset, spec: MelSpec) -> Data:
    """Log-mel pictures float32 [N, mels, frames] of all recordings, from their beginning, and their labels."""
    fit = WaveTransform(ImageSpec.of_sound(spec.rate, spec.samples), train=False)
    samples = [fit(dataset[index], np.random.default_rng(0)) for index in range(len(dataset))]
    waves = torch.from_numpy(np.stack([one.image[0, :, 0] for one in samples]).astype(np.float32)) / 32768 - 1
    make = Spectrogram(spec)
    made = torch.cat([make(part) for part in torch.split(waves, 256)])
    return made, torch.tensor([one.label for one in samples])


def linear(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Logistic regression (scikit-learn) on mean and deviation over time of each mel, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(pictures: Tensor) -> Any:
        return torch.cat([pictures.mean(2), pictures.std(2)], 1).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return torch.from_numpy(model.fit(features(x), y.numpy()).predict(features(test)))


def cnn(x: Tensor, y: Tensor, test: Tensor, seed: int) -> Tensor:
    """Four convolutions with batch norm and pooling, a mean over the rest, a layer; AdamW, one cycle, each recording shifted in time."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    widths = (1, 16, 32, 64, 128)
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, int(y.max()) + 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            if len(rows) < BATCH:
                continue
            seen = torch.stack([x[row].roll(int(torch.randint(0, x.shape[2], ())), 1) for row in rows])
            loss = nn.functional.cross_entropy(model(seen[:, None]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        found: Tensor = torch.cat([model(part[:, None]) for part in torch.split(test, 256)]).argmax(1)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
