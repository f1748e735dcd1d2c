"""The verb ``demo``: a trained model on a page in a browser."""

import sys
import webbrowser
from functools import partial

from effbackbones.serving.trying import add_page
from tasks.data.sets.shapes import ShapesDataset
from tasks.settings.commandline import Extras
from tasks.verbs.serve import served

SAMPLES = 4
"""Images that are drawn for who has none at hand."""


def demo(extras: Extras) -> int:
    """Serve, with the page, until a signal stops it."""
    drawn = ShapesDataset((192, 192), SAMPLES, split="test")
    samples = [drawn[number].image for number in range(SAMPLES)]

    def started(address: str) -> None:
        print(f"the page: {address}/demo", file=sys.stderr, flush=True)
        if extras.own["open"]:
            webbrowser.open(f"{address}/demo")

    return served(extras, partial(add_page, samples=samples), started)
