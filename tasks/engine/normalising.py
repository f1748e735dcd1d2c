"""One normaliser for a whole batch, however many pieces and processes share it.

The mean over the labelled pixels of a batch is not the mean of the means of its parts: a part with few of them would weigh as much
as one with many. So each part's loss, divided by its own count, is given the share that its count has in that of the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from effbackbones.contracts import Head


class Normaliser:
    """What the losses of each of this process's ``pieces`` weigh in the batch of all pieces and all ``world`` processes.

    ``counts``: of each piece by what its losses are divided, by name; ``divisor`` says of such a name what a count of it divides by
    (:meth:`Head.divisor`). Processes agree on the sums here, once a step, and no host waits for it.
    """

    def __init__(
        self,
        pieces: int = 1,
        world: int = 1,
        counts: Sequence[Mapping[str, Tensor]] = (),
        divisor: Callable[[str, Tensor], Tensor] = lambda name, count: count,
    ) -> None:
        self._equal = 1 / pieces
        self._shares: list[dict[str, Tensor]] = [{} for _ in range(pieces)]
        self._parts = f"{pieces} pieces" if world == 1 else f"{pieces} pieces in each of {world} processes"
        self.alone = pieces * world == 1
        self.averaged: dict[str, None] = {}
        """Losses that have no count of their own, so far."""
        names = list(counts[0]) if counts else []
        if not names:
            return
        # float32 cannot tell 2 ** 24 pixels from one more; Apple's GPUs have nothing finer.
        precise = torch.float32 if counts[0][names[0]].device.type == "mps" else torch.float64
        own = torch.stack([torch.stack([piece[name].to(precise) for name in names]) for piece in counts])
        whole = own.sum(0)
        if world > 1:
            torch.distributed.all_reduce(whole)
        for share, piece in zip(self._shares, own, strict=True):
            for name, part, total in zip(names, piece, whole, strict=True):
                # The gradients of processes are averaged, not added.
                share[name] = world * divisor(name, part) / divisor(name, total)

    def shares(self, losses: Mapping[str, Tensor], piece: int) -> Mapping[str, Tensor]:
        """The losses of a piece as its part of those of the whole batch, which is their sum over pieces and mean over processes.

        One that is not counted itself is by the count of its name up to the last slash, if there is one; the rest are averaged.
        """
        if self.alone:
            return losses
        found = {}
        for name, value in losses.items():
            share = self._shares[piece].get(name)
            if share is None:
                self.averaged[name] = None
                share = self._shares[piece].get(name[: name.rfind("/") + 1])
            found[name] = value * (self._equal if share is None else share.to(value.dtype))
        return found

    def told(self, head: Head) -> str:
        """One line on the losses that are averaged."""
        names, own = ", ".join(self.averaged), type(head).__name__
        return f"a batch is computed in {self._parts}: {names} ({own}) is the mean of what each has by itself; no count adds it up"
