"""Training samples as they go into the network, drawn on one sheet."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from effbackbones.drawing.boxes import Picture
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.data.sample import Sample
from tasks.data.sampling import spread
from tasks.engine import feeding
from tasks.settings.sections import Config
from tasks.spec import TaskSpec

COUNT = 12
"""Samples on a sheet, spread over the set."""


def draw_samples(
    task: TaskSpec,
    config: Config,
    model: Model,
    dataset: Dataset,
    out: Path,
    sheet: Callable[[Sequence[Sample], Sequence[str]], Picture],
) -> Path:
    """Draw augmented training samples into ``out/samples.jpg``; ``sheet`` draws samples and the names of their classes."""
    training, _ = feeding.training_feed(config, task, dataset, model)
    samples = [training.feed.samples[0, index] for index in spread(len(dataset), COUNT).tolist()]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "samples.jpg"
    Image.fromarray(sheet(samples, task.classes(config, dataset))).save(path, quality=90)
    return path
