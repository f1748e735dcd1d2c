"""What ``check --deep`` does in minutes: decode every image, look for images that train and val share, learn eight by heart."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from effbackbones.errors import UserError
from effbackbones.images.geometry import Pixels
from effbackbones.model import Model
from tasks.data.batch import Batch
from tasks.data.dataset import Dataset
from tasks.data.sample import Sample
from tasks.data.sampling import Repeated
from tasks.engine import assembly, feeding, hardware
from tasks.engine.cores import cores
from tasks.settings.sections import Config
from tasks.spec import Goal, TaskSpec
from tasks.telling import Teller

EIGHT, LARGEST_SIDE, MINUTES = 8, 256, 5.0
"""Images learnt by heart, the longest side of them in pixels, and the time allowed."""
SAME_BITS, SAME_LEVELS = 4, 3.0
"""Two images are the same if their hashes differ in at most so many of 64 bits, and their thumbnails on average by so many levels."""
_THUMB = 16  # side of the grey thumbnails that are compared, pixels


def deep_checks(task: TaskSpec, config: Config, datasets: Mapping[str, Dataset], tell: Teller, goal: Goal) -> None:
    """Run all three parts, tell the verdict on each, and raise :class:`UserError` naming those that failed."""
    prints: dict[str, Fingerprints] = {}
    parts: dict[str, Callable[[], str]] = {
        "every image decodes": partial(_decode_all, datasets, prints, tell),
        "train and val share no image": partial(_refuse_shared, prints),
        f"{EIGHT} images can be learnt": partial(learn_eight, task, config, datasets["train"], tell, goal),
    }
    failed = {}
    for name, part in parts.items():
        try:
            tell(f"ok: {name}: {part()}")
        except UserError as error:
            failed[name] = str(error)
            tell(f"FAILED: {name}: {error}")
    if failed:
        raise UserError("check", "; ".join(f"{name}: {text}" for name, text in failed.items()))


@dataclass
class Fingerprints:
    """What is kept of each image of a split: ``names``, difference hashes uint64 [N], thumbnails uint8 [N, 16, 16]."""

    names: list[str]
    hashes: NDArray[np.uint64]
    thumbs: NDArray[np.uint8]


def fingerprint(image: Pixels) -> tuple[int, NDArray[np.uint8]]:
    """Difference hash (64 bits: is a pixel of the 8 x 9 grey thumbnail brighter than its left neighbour?) and a thumbnail."""
    grey = image.mean(2)
    if image.dtype != np.uint8:
        grey = grey / (1 if image.dtype == np.float32 else 65535) * 255
    picture = Image.fromarray(grey.astype(np.uint8))
    small = np.asarray(picture.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big"), np.asarray(picture.resize((_THUMB, _THUMB), Image.Resampling.BOX))


def _decode_all(datasets: Mapping[str, Dataset], prints: dict[str, Fingerprints], tell: Teller) -> str:
    """Read every sample once, in threads (decoders release the interpreter lock)."""
    faults: list[str] = []
    for split, dataset in datasets.items():

        def look(index: int, dataset: Dataset = dataset) -> tuple[str, int, NDArray[np.uint8]] | str:
            try:
                sample = dataset[index]
            except UserError as error:
                return str(error)
            return sample.path or sample.id, *fingerprint(sample.image)

        found: list[tuple[str, int, NDArray[np.uint8]]] = []
        with ThreadPoolExecutor(cores()) as pool:
            for result in tell.watch(_mapped(pool, look, len(dataset)), f"decode {split}"):
                if isinstance(result, str):
                    faults.append(result)
                else:
                    found.append(result)
        names, hashes, thumbs = zip(*found, strict=True) if found else ((), (), ())
        stacked = np.stack(thumbs) if thumbs else np.zeros((0, _THUMB, _THUMB), np.uint8)
        prints[split] = Fingerprints(list(names), np.array(hashes, np.uint64), stacked)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)
    return ", ".join(f"{split} {len(p.names):,}" for split, p in prints.items())


def _mapped(pool: ThreadPoolExecutor, look: Callable[[int], Any], count: int, block: int = 512) -> Iterator[Any]:
    """``look`` over a range, a block at a time, so that not all images wait in memory at once."""
    for first in range(0, count, block):
        yield from pool.map(look, range(first, min(first + block, count)))


def _refuse_shared(prints: Mapping[str, Fingerprints]) -> str:
    others = [split for split in prints if split != "train"]
    shared = [pair for split in others for pair in same_images(prints["train"], prints[split])]
    if shared:
        examples = ", ".join(f"{a} = {b}" for a, b in shared[:3])
        raise UserError(
            "data",
            f"{len(shared)} images of train are also in {' or '.join(others)}: {examples}",
            "remove them from one side",
        )
    return f"compared with {', '.join(others)}"


def same_images(train: Fingerprints, other: Fingerprints) -> list[tuple[str, str]]:
    """Pairs of names of images that look the same: recompressed or resized copies too, flipped or cropped ones not."""
    pairs = []
    for row in range(len(other.names)):
        distance = np.bitwise_count(train.hashes ^ other.hashes[row])
        for near in np.flatnonzero(distance <= SAME_BITS).tolist():
            levels = np.abs(train.thumbs[near].astype(np.int16) - other.thumbs[row]).mean()
            if levels <= SAME_LEVELS:  # a plain image hashes like any other plain one
                pairs.append((train.names[near], other.names[row]))
    return pairs


def learn_eight(task: TaskSpec, config: Config, dataset: Dataset, tell: Teller, goal: Goal) -> str:
    """Train the configured network on eight images, unaugmented, until it reaches the goal on them.

    A network that cannot learn eight images by heart will not learn the others: labels, targets, loss or decoding disagree.
    """
    config, device = _small(config), hardware.run_device(config)
    view = Repeated(dataset, np.array(_first(dataset, goal.has)))
    model = assembly.make_model(config, task, dataset).to(device)
    batches = [batch.to(device) for batch in feeding.evaluation_loader(config, task, view, model)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    start, steps, best = time.monotonic(), 0, 0.0
    while time.monotonic() - start < 60 * MINUTES:
        for batch in batches:
            loss = torch.stack(list(model.train().loss(batch.images, batch.targets, batch.sizes).values())).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            steps += 1
        if steps % 20 == 0:
            best = max(best, _scores(task, config, model, batches, dataset)[goal.score] or 0.0)
            tell(f"after {steps} steps: loss {loss.item():.3f}, {goal.score} {best:.3f}")
            if best > goal.least:
                return f"{goal.score} {best:.3f} after {steps} steps, {time.monotonic() - start:.0f} s"
    text = f"{goal.score} on {len(view)} images is {best:.3f} after {steps} steps and {MINUTES:g} minutes, expected over {goal.least}"
    raise UserError("model", text, "look at the drawn samples; start from pretrained weights (model.weights)")


def _small(config: Config) -> Config:
    """The config at most 256 pixels large, eight images in a batch."""
    size = config.data.image_size or LARGEST_SIDE
    height, width = (size, size) if isinstance(size, int) else size
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    sides = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    data = replace(config.data, image_size=sides, workers=0, eval_batch_size=EIGHT, batch_shape="fixed", tile=None)
    return replace(config, data=data, model=replace(config.model, freeze=None, unfreeze_epoch=None))


def _first(dataset: Dataset, has: Callable[[Sample], bool]) -> Sequence[int]:
    """The first eight samples that ``has`` wants; fewer if there are no more."""
    chosen: list[int] = []
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except UserError:  # the part before has said so
            continue
        if has(sample):
            chosen.append(index)
        if len(chosen) == EIGHT:
            break
    return chosen


@torch.no_grad()
def _scores(task: TaskSpec, config: Config, model: Model, batches: Sequence[Batch], dataset: Dataset) -> dict[str, Any]:
    """Scores on the batches, with batch-norm statistics of exactly these: after so few steps the running ones lag behind."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    for batch in batches:
        model.train()(batch.images, batch.sizes)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    metric = task.metrics(config, task.classes(config, dataset))
    model.eval()
    for batch in batches:
        metric.update(*task.scored(batch, task.predict(config, model, batch)))
    return dict(metric.compute())
