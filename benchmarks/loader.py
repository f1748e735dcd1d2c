"""Time that one core needs to make batches of files: ours against PIL's decoding alone, albumentations' and timm's pipelines.

Photographs are those of coco_mini in the folder of ``EFFBACKBONES_DATA``, else drawn ones of 640 x 480 pixels. Every side begins with
the files and ends with batches of eight: reading and decoding, resizing, mirroring, what is known of each image, and the copy into a
batch of bytes. Random
parts of images are decoded no further down than they reach where the extra ``fast`` is installed. Ours also with images kept by
``data.cache``. Shown first: our pixels are those of PIL's decoder and filter but for two levels.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.row import Found, Ratio, Setting, Side
from benchmarks.turns import Run, Spread, in_turns, ratios
from effbackbones.errors import UserError
from effbackbones.images.spec import ImageSpec
from tasks.data.batch import KeyedDataset
from tasks.data.collating import box_targets, class_targets, collate
from tasks.data.door.boxes import coco
from tasks.data.door.caching import image_cache, with_cache
from tasks.data.door.transforms import class_transform, view_transform
from tasks.settings.data import DataConfig

BATCH = 8
MOST = 80
OURS, CACHED, EXACT = "training", "training, data.cache", "training, data.resize exact"


def boxes(setting: Setting, side: int) -> Found:
    """Detection: letterbox to ``side``, mirrored by half."""
    with _one_core(), tempfile.TemporaryDirectory() as folder:
        data, files = _photographs(Path(folder), MOST if not setting.dry else BATCH, side, ("boxes",))
        dataset = coco(data, "train", None)
        transform = view_transform(data, _spec(side), train=True, epochs=1e9, size_divisor=128)
        exact = view_transform(DataConfig(resize="exact"), _spec(side), train=True, epochs=1e9, size_divisor=128)
        proof = _shown(dataset, transform, exact)
        batched = partial(collate, targets=box_targets, size_divisor=1, fill=_spec(side).mean)
        sides = {
            OURS: _epoch(KeyedDataset(dataset, transform), batched),
            EXACT: _epoch(KeyedDataset(dataset, exact), batched),
            CACHED: _epoch(KeyedDataset(with_cache(dataset, image_cache(data, transform)), transform), batched),
            "PIL, decoding alone": _each(files, _decoded),
            "albumentations": _each(files, _albumentations(side), _stacked),
        }
        return _found(sides, len(files), setting, proof)


def crops(setting: Setting, side: int) -> Found:
    """Classification: a random part of each image at ``side``, mirrored by half."""
    from timm.data.loader import fast_collate
    from timm.data.transforms_factory import create_transform

    with _one_core(), tempfile.TemporaryDirectory() as folder:
        data, files = _photographs(Path(folder), MOST if not setting.dry else BATCH, side, ("labels",))
        dataset = coco(data, "train", None)
        transforms = [
            class_transform(settings, _spec(side), train=True) for settings in (data, DataConfig(resize="exact"))
        ]
        proof = _shown(dataset, *transforms)
        batched = partial(collate, targets=class_targets, size_divisor=None, fill=_spec(side).mean)
        made: Any = create_transform(
            side, is_training=True, use_prefetcher=True, color_jitter=0.0, auto_augment=None, interpolation="bilinear"
        )
        sides = {
            OURS: _epoch(KeyedDataset(dataset, transforms[0]), batched),
            EXACT: _epoch(KeyedDataset(dataset, transforms[1]), batched),
            "timm": _each(files, lambda file: (made(Image.open(file).convert("RGB")), 0), fast_collate),
        }
        return _found(sides, len(files), setting, proof)


def _spec(side: int) -> ImageSpec:
    return ImageSpec((side, side), interpolation="bilinear")


@contextmanager
def _one_core() -> Iterator[None]:
    """This process on one core, in one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        os.sched_setaffinity(0, {max(cores)})
        torch.set_num_threads(1)
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _photographs(folder: Path, count: int, side: int, labels: tuple[str, ...]) -> tuple[DataConfig, list[str]]:
    """How ``count`` of them are read as COCO, and their files."""
    given = Path(os.environ.get("EFFBACKBONES_DATA", "")) / "coco_mini"
    if os.environ.get("EFFBACKBONES_DATA") and given.is_dir():
        content = json.loads((given / "annotations" / "instances_train2017.json").read_text(encoding="utf-8"))
        images = given / "train2017"
    else:
        images = folder / "images"
        images.mkdir()
        content = _drawn(images, count)
    kept = content["images"][:count]
    ids = {image["id"] for image in kept}
    content |= {"images": kept, "annotations": [row for row in content["annotations"] if row["image_id"] in ids]}
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    if not (link := folder / "images").exists():
        link.symlink_to(images.resolve())
    data = DataConfig(
        name="coco",
        root=str(folder),
        train="train.json",
        options={"images": "images"},
        links="anywhere",
        image_size=side,
        labels=labels,
        cache=str(folder / "kept"),
    )
    return data, [str(images / image["file_name"]) for image in kept]


def _drawn(folder: Path, count: int) -> dict[str, Any]:
    """Pictures that take about the bytes of photographs, with a box each."""
    rng, rows, columns = np.random.default_rng(0), *np.mgrid[:480, :640]
    images, found = [], []
    for number in range(count):
        waves = [np.sin(rows / rng.uniform(5, 60) + columns / rng.uniform(5, 60)) for _ in range(3)]
        pixels = 128 + 70 * np.stack(waves, 2) + rng.normal(0, 6, (480, 640, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        box = {"bbox": [50, 60, 200, 100], "area": 20000, "iscrowd": 0}
        found.append({"id": number, "image_id": number, "category_id": 1, **box})
    return {"images": images, "annotations": found, "categories": [{"id": 1, "name": "wave"}]}


def _epoch(dataset: KeyedDataset, batched: Callable[[Any], object]) -> Run:
    """All samples once, in batches."""

    def run() -> None:
        for first in range(0, len(dataset), BATCH):
            batched([dataset[0, index] for index in range(first, min(first + BATCH, len(dataset)))])

    return run


def _each(files: Sequence[str], read: Callable[[str], Any], batched: Callable[[Any], object] = len) -> Run:
    def run() -> None:
        for first in range(0, len(files), BATCH):
            batched([read(file) for file in files[first : first + BATCH]])

    return run


def _decoded(file: str) -> object:
    return np.asarray(Image.open(file).convert("RGB"))


def _albumentations(side: int) -> Callable[[str], Any]:
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    steps = [
        albumentations.LongestMaxSize(side),
        albumentations.PadIfNeeded(side, side, border_mode=0, position="top_left"),
        albumentations.HorizontalFlip(p=0.5),
        albumentations.Normalize(),
    ]
    composed = albumentations.Compose(steps)
    read: Any = cv2.imread
    return lambda file: composed(image=cv2.cvtColor(read(file), cv2.COLOR_BGR2RGB))["image"]


def _stacked(images: Sequence[Any]) -> object:
    return torch.from_numpy(np.stack(images))


def _shown(dataset: Any, quick: Any, exact: Any) -> str:
    """That both transforms give the same pixels but for two levels, from PIL's decoding."""
    furthest = 0
    for index in range(min(len(dataset), BATCH)):
        sample = dataset[index]
        if not np.array_equal(sample.image, np.asarray(Image.open(sample.path).convert("RGB"))):
            raise UserError("loader", f"{sample.path} is decoded to other pixels than PIL's", "report it")
        one, other = (transform(sample, np.random.default_rng(index)).image.astype(int) for transform in (quick, exact))
        furthest = max(furthest, int(np.abs(one - other).max()))
    if furthest > 2:
        raise UserError("loader", f"resized images are {furthest} levels from PIL's", "report it")
    return f"pixels of the decoder are PIL's, those of training {furthest} levels at most from PIL's filter"


def _found(sides: dict[str, Run], count: int, setting: Setting, proof: str) -> Found:
    """Milliseconds an image of each side, and ours / theirs."""
    times = {name: [1e3 * spent / count for spent in row] for name, row in in_turns(sides, setting.rounds).items()}
    found = Found("ms", proof=f"{proof}; one core, batches of {BATCH}")
    mine = [name for name in times if name.startswith(OURS)]
    for name, row in times.items():
        spread = Spread.of(row)
        found.sides.append(Side(name, name in mine, spread.median, spread.low, spread.high, spread.count))
    for name in mine:
        for peer in times.keys() - set(mine):
            spread = ratios(times[name], times[peer])
            found.ratios.append(Ratio(name, peer, spread.median, spread.low, spread.high))
    return found
