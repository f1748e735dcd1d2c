"""Pictures on the disk, and batches of samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from effbackbones.contracts import ImageSizes
from effbackbones.images.geometry import ResizePlan, Size
from tasks.data.batch import Batch, ImageMeta
from tasks.data.sample import Sample, Truth


def write_picture(path: Path, size: Size = (60, 80), level: int = 90) -> Path:
    """A grey image of ``size`` (H, W), in folders that are made; gives its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def letterboxed(samples: Sequence[Sample], size: Size = (64, 64)) -> Batch:
    """Samples letterboxed as an evaluation does it; boxes and masks to score against are kept in original pixels."""
    rows, metas, valid = [], [], []
    for sample in samples:
        original = sample.image.shape[:2]
        plan = ResizePlan.letterbox(original, size)
        rows.append(torch.from_numpy(plan.apply_image(sample.image, "bilinear", 0).copy()).permute(2, 0, 1))
        truth = sample.truth or Truth.of(sample)
        metas.append(ImageMeta(sample.id, sample.path, original, plan, truth=truth, mask=sample.mask))
        valid.append(plan.valid)
    return Batch(torch.stack(rows), ImageSizes(size, torch.tensor(valid)), None, metas)
