"""Lines of text drawn anew: each epoch shows another picture, and another part, of each line."""

from dataclasses import replace
from typing import Any

import numpy as np

from effbackbones.errors import UserError
from tasks.data.lettering.line import Line
from tasks.data.lettering.style import Style
from tasks.data.sample import Sample

WHERE = "data.augment: DrawLine"


class DrawLine:
    """Draws another picture of the line that a sample of the data set ``lines`` shows. ``looks``: what is to be otherwise than in
    ``data.options``, by the names of :class:`Style`; other samples raise :class:`UserError`."""

    def __init__(self, **looks: Any) -> None:
        Style(()).changed(looks, WHERE)  # a mistake is told before a run
        self.looks = looks

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with another picture."""
        line = sample.source
        if not isinstance(line, Line):
            what = f"draws lines of the data set lines, and {sample.path or sample.id} is none"
            raise UserError(WHERE, what, "remove it, or set data.name: lines")
        written = replace(line, style=line.style.changed(self.looks, WHERE)).drawn(rng)
        return replace(sample, image=written.image)
