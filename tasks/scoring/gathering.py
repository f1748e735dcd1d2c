"""Rows for each image, gathered from all processes as scores are."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class GatheredRows(Metric):
    """``update(ids, truth, rows)`` takes ids of images, a checksum of each one's truth, and a tensor [images, ``width``] of ``dtype``;
    ``compute()`` gives them of all images so far, of the first process's first."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    names: list[Tensor]
    lengths: list[Tensor]
    rows: list[Tensor]

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype_of_rows = width, dtype
        for name in ("names", "lengths", "rows"):
            self.add_state(name, [], "cat")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        # Processes are joined by shape and type, and one of them may have no image.
        self._append(b"", np.zeros((0, 2), np.int64), torch.zeros(0, self.width, dtype=self.dtype_of_rows))

    def _append(self, names: bytes, lengths: np.ndarray, rows: Tensor) -> None:
        self.names.append(torch.from_numpy(np.frombuffer(names, np.uint8).copy()).to(self.device))
        self.lengths.append(torch.from_numpy(lengths).to(self.device))
        self.rows.append(rows.to(self.device))

    def update(self, ids: Sequence[str], truth: Sequence[int], rows: Tensor) -> None:
        """Add images."""
        names = [id_.encode("utf-8", "surrogateescape") for id_ in ids]
        lengths = [(len(name), sum_) for name, sum_ in zip(names, truth, strict=True)]
        table = np.array(lengths, np.int64).reshape(-1, 2)
        self._append(b"".join(names), table, rows.detach().to(self.dtype_of_rows).reshape(len(names), self.width))

    def compute(self) -> tuple[tuple[str, ...], "np.ndarray", "np.ndarray"]:
        """Ids, checksums uint32 [n], rows [n, width]."""
        lengths, text, rows = (dim_zero_cat(state).cpu().numpy() for state in (self.lengths, self.names, self.rows))
        ends, raw = np.cumsum([0, *lengths[:, 0].tolist()]).tolist(), text.tobytes()
        ids = tuple(raw[start:stop].decode("utf-8", "surrogateescape") for start, stop in pairwise(ends))
        return ids, lengths[:, 1].astype(np.uint32), rows
