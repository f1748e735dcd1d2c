"""Every promise of :mod:`effbackbones.contracts` as a named check, for our tests and for authors of plug-ins.

    from effbackbones.conformance import check_head, enforce
    enforce(check_head(MyHead, num_classes=3, options={"width": 32}))

A check returns what it found; :func:`enforce` raises with the names of the broken promises. Needs no test framework.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from effbackbones.conformance.backbone import BACKBONE_PROMISES, BackboneCase
from effbackbones.conformance.case import HeadCase, default_spec, default_targets
from effbackbones.conformance.head import HEAD_PROMISES
from effbackbones.contracts import Backbone, FeatureSpec, Head, ImageSizes
from effbackbones.errors import UserError, nearest

Case = TypeVar("Case")


class Violation(NamedTuple):
    """A broken promise: its name, such as ``gradient_reach``, and what was seen."""

    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


class ContractError(AssertionError):
    """Promises of the contract are broken; ``violations`` lists them."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("broken promises:\n" + "\n".join(f"  {violation}" for violation in violations))
        self.violations = tuple(violations)


def enforce(violations: Sequence[Violation]) -> None:
    """Raise :class:`ContractError` unless ``violations`` is empty."""
    if violations:
        raise ContractError(violations)


def check_backbone(
    build: Callable[[], Backbone] | Backbone,
    *,
    sizes: Sequence[tuple[int, int]] = ((64, 96), (65, 79)),
    promises: Sequence[str] | None = None,
) -> list[Violation]:
    """Check a backbone, given as a function that builds a fresh one (better: hidden state shows) or as a module (a copy is used).

    ``sizes``: (H, W) in pixels to run at; a network of fixed size has just that one. ``promises``: names of those to check
    (keys of ``BACKBONE_PROMISES``), default all.
    """
    return _run(BACKBONE_PROMISES, BackboneCase(build, tuple(sizes)), promises)


def check_head(
    head_class: type[Head],
    *,
    num_classes: int = 3,
    options: Mapping[str, Any] | None = None,
    spec: FeatureSpec | None = None,
    targets: Callable[[ImageSizes, int, bool], Any] | None = None,
    promises: Sequence[str] | None = None,
) -> list[Violation]:
    """Check a head class built with ``options``.

    ``spec``: the backbone that it sits on, default B0's with the levels that the head asks for. ``targets(sizes, num_classes,
    empty)`` makes the targets of a batch, ``empty`` without any object or labelled pixel where the task knows that; default by
    the head's task (``cls``, ``det``, ``seg``). ``promises``: names of those to check (keys of ``HEAD_PROMISES``), default all.
    """
    options = dict(options or {})
    case = HeadCase(
        head_class,
        spec or default_spec(head_class, options),
        num_classes,
        options,
        targets or default_targets(head_class.task, options),
    )
    return _run(HEAD_PROMISES, case, promises)


def _run(
    promises: Mapping[str, Callable[[Case], Iterator[str]]], case: Case, only: Sequence[str] | None
) -> list[Violation]:
    for name in only or ():
        if name not in promises:
            raise UserError(f"promise {name!r}", "no such promise", nearest(name, promises))
    violations = []
    for name in promises if only is None else only:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                violations += [Violation(name, what) for what in promises[name](case)]
            except Exception as error:  # whatever a plug-in raises is what its author must read
                reason = " ".join(str(error).split())[:300]
                violations.append(Violation(name, f"raised {type(error).__name__}: {reason}"))
    return violations
