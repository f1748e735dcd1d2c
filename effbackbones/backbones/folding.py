"""Batch norms made part of the convolutions in front of them, wherever a module tells that they are neighbours."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from effbackbones.backbones.convolution import Foldable, fold_into


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every :class:`Foldable` inside ``module``, and batch norms that follow a convolution in an ``nn.Sequential``, in place (copy
    first to keep the original); for eval mode only."""
    for part in module.modules():
        if isinstance(part, Foldable):
            part.fold()
    for first, second in neighbours(module):
        conv, norm = first.module, second.module
        if type(conv) is nn.Conv2d and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            fold_into(conv, norm)
            second.replace(nn.Identity())


class Shedding(nn.Module, ABC):
    """A module of which a part only trains: predictions are made without it."""

    @abstractmethod
    def shed(self) -> None:
        """Go on without that part, in place."""


def shed(module: nn.Module) -> None:
    """Take what only trains out of ``module``, in place (copy first to keep it): the same predictions, of less raw output."""
    for part in list(module.modules()):
        if isinstance(part, Shedding):
            part.shed()


class Hastening(nn.Module, ABC):
    """A module with layers that a folded copy, which only answers, can compute in another way, the same but for the last digits."""

    @abstractmethod
    def hasten(self) -> None:
        """Compute them so from now on, in place, for images of the sizes that allow it."""


def hasten(module: nn.Module) -> None:
    """Ask every :class:`Hastening` inside a folded ``module``, in place."""
    for part in list(module.modules()):
        if isinstance(part, Hastening):
            part.hasten()


class Position(NamedTuple):
    """A module in its place: the child ``name`` of ``parent``."""

    parent: nn.Module
    name: str
    module: nn.Module

    def replace(self, module: nn.Module) -> None:
        """Put another in its place."""
        self.parent.add_module(self.name, module)


def neighbours(module: nn.Module) -> Iterator[tuple[Position, Position]]:
    """Modules that are called one right after the other, on nothing but what the first gives: those of plain ``nn.Sequential``, which may
    lie in one another. Modules that stand in several places, or have hooks, are nobody's neighbours."""
    seen = Counter(id(one) for _, one in module.named_modules(remove_duplicate=False))
    inner = {id(child) for part in module.modules() if _is_chain(part) for child in part.children() if _is_chain(child)}
    for part in module.modules():
        if _is_chain(part) and id(part) not in inner:
            chain = [one for one in _opened(part) if type(one.module) is not nn.Identity]
            for pair in pairwise(chain):
                if all(seen[id(one.module)] == 1 and not one.module._forward_hooks for one in pair):
                    yield pair


def _is_chain(module: nn.Module) -> bool:
    plain = type(module).forward is nn.Sequential.forward or getattr(type(module), "calls_in_order", False)
    return isinstance(module, nn.Sequential) and plain


def _opened(chain: nn.Module) -> Iterator[Position]:
    for name, child in chain.named_children():
        if _is_chain(child) and not child._forward_hooks:
            yield from _opened(child)
        else:
            yield Position(chain, name, child)
