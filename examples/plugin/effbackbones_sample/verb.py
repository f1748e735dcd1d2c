"""A verb with an option of its own. A line brings it in: ``--plugins '[effbackbones_sample.verb]'``."""

from tasks.engine.splits import open_splits
from tasks.spec import Option, register_verb


@register_verb(
    "tell how bright the training images are",
    config="needed",
    own={"most": Option("images at most", type=int, default=8)},
)
def brightness(task, config, extras):
    """Called with the task, the config and what the line says besides; returns the exit code."""
    images = open_splits(config, task)["train"]
    count = min(len(images), extras.own["most"])
    mean = sum(images[index].image.mean() for index in range(count)) / count
    print(f"{count} images, brightness {mean:.1f} of 255")
    return 0
