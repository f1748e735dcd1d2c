"""Pictures of results, drawn by the results themselves."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from effbackbones.inference.results import Result
from effbackbones.weights.tensorfile import write_atomically
from tasks.report.outputs import DrawnVideos, OutputNames, make_folder, stem_of

_MARK = "drawn by effbackbones"
_LARGEST = 65_500  # pixels on a side of a JPEG file


class PictureFiles:
    """Writes ``OUT/NAME.jpg`` for each image and ``OUT/NAME.mp4`` for each video. Images of one name get numbers; what is no picture of
    an earlier run is never overwritten."""

    draws = True

    def __init__(self, out: Path) -> None:
        self.out = out
        self._names = OutputNames(lambda name: [out / f"{name}.jpg"], _MARK)
        self._videos = DrawnVideos(lambda name: out / f"{name}.mp4", _MARK)
        make_folder(out)

    def update(self, results: Sequence[Result]) -> None:
        """Draw images."""
        for result in results:
            picture = result.draw()
            if max(picture.size) > _LARGEST:
                picture = result.draw(at_most=_LARGEST)
            if result.moment is not None:
                self._videos.add(np.asarray(picture), result.moment)
                continue
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=92, comment=_MARK.encode())
            write_atomically(self.out / f"{self._names.take(stem_of(result))}.jpg", buffer.getvalue())

    def close(self) -> None:
        self._videos.close()
