"""Answers of a network that are no numbers, seen where they are made: what is selected from them may hide it (a score of NaN is
below every threshold, and a picture without objects looks like an answer)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from effbackbones.model import Model

NOT_FINITE = "the network answers with what is not finite (NaN or infinity)"
REMEDY = "set run.precision fp32, or train or convert the weights anew"


class FiniteWatch:
    """Which images got an answer that is not finite: the calls since the last :meth:`note` are of the images that it names.
    ``images``: all of them, by name, in the order met."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self._calls: list[Tensor] = []

    def note(self, names: Sequence[str]) -> list[int]:
        """Of the images ``names`` those with such an answer; all, where one of them is it and the calls do not say which (as of
        tiles). Waits for the device."""
        calls, self._calls = self._calls, []
        bad = torch.cat(calls) if calls else torch.zeros(0, dtype=torch.bool)
        if not bool(bad.any()):
            return []
        rows: list[int] = bad.nonzero().flatten().tolist() if len(bad) == len(names) else list(range(len(names)))
        self.images += [names[row] for row in rows]
        return rows

    def look(self, head: Any, arguments: Any, raw: Any) -> None:
        """Hook on the forward pass of a head."""
        features = arguments[0]
        batch = len(next(iter(features.values()) if isinstance(features, dict) else iter(features)))
        rows = _fine(raw, batch)
        if rows is not None:
            self._calls.append(~rows)

    def look_at_model(self, model: Any, arguments: Any, raw: Any) -> None:
        """Hook on the forward pass of a model, whose head may not be called."""
        rows = _fine(raw, len(arguments[0]))
        if rows is not None:
            self._calls.append(~rows)


def finite_rows(raw: Any, batch: int) -> list[bool]:
    """For each image of a batch whether the raw output of a head is finite for it. Waits for the device."""
    rows = _fine(raw, batch)
    return [True] * batch if rows is None else rows.tolist()


def _fine(raw: Any, batch: int) -> Tensor | None:
    """The same as bool [B] on the device; None where no tensor goes by images."""
    rows = [t.detach().isfinite().reshape(batch, -1).all(1) for t in _leaves(raw) if t.dim() and len(t) == batch]
    return torch.stack(rows).all(0) if rows else None


def _leaves(tree: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value)


@contextmanager
def finite_watch(model: Model) -> Iterator[FiniteWatch]:
    """Inside, the raw output of ``model``'s head is looked at."""
    watch = FiniteWatch()
    plain = model.runner is None
    handle = model.head.register_forward_hook(watch.look) if plain else model.register_forward_hook(watch.look_at_model)
    try:
        yield watch
    finally:
        handle.remove()
