"""A row of the benchmarks: what is asked, how it is run, and what it found."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from effbackbones.errors import UserError


@dataclass(frozen=True)
class Setting:
    """Where and how long it is measured. ``dry``: at the smallest sizes, to see that it runs."""

    device: str = "cpu"
    threads: int = 2
    rounds: int = 9
    backends: tuple[str, ...] = ()
    dry: bool = False


@dataclass(frozen=True)
class Row:
    """``python -m benchmarks NAME``. ``run`` is ``module:function`` with a function of a :class:`Setting` and of ``arguments``, so that a
    list of rows loads none; ``needs`` are the packages to compare with."""

    name: str
    group: str
    what: str
    run: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    device: str = "cpu"

    def missing(self) -> list[str]:
        """Packages that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def unfit(self) -> str:
        """Why this machine cannot measure it, whatever is installed; empty where it can."""
        if self.device != "cpu" or not self.arguments.get("half"):
            return ""
        from effbackbones.inference.backends.plan import computes_bfloat16  # which loads torch

        if not computes_bfloat16():
            return "this processor multiplies no bfloat16 (AVX512_BF16, AMX)"
        return ""

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Its record, as JSON has it. Raises :class:`UserError` for what is missing here, and for sides that do not do the same."""
        if why := self.unfit():
            raise UserError(f"row {self.name}", why, "leave the row out")
        if missing := self.missing():
            remedy = f"pip install {' '.join(PACKAGES.get(name, name) for name in missing)}, or leave the row out"
            raise UserError(f"row {self.name}", f"compares with {' and '.join(missing)}, not installed here", remedy)
        module, _, function = self.run.partition(":")
        found = getattr(importlib.import_module(module), function)(setting, **self.arguments)
        assert isinstance(found, Found)
        return {"what": self.what, "group": self.group, "device": self.device, **found.record()}


PACKAGES = {"segmentation_models_pytorch": "segmentation-models-pytorch", "PIL": "pillow"}
"""Distributions that are not called as what they bring is."""


@dataclass
class Side:
    """What one side took: ``median`` in the unit of its row, with quartiles over ``count`` rounds. ``share`` of the limits that it
    reaches, by limit; ``spent``, shares of its time by kind of operator."""

    name: str
    ours: bool
    median: float
    low: float
    high: float
    count: int
    share: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Ratio:
    """Ours / peer of the same rounds: median and quartiles."""

    ours: str
    peer: str
    median: float
    low: float
    high: float


@dataclass
class Found:
    """What a row found. ``better``: whether low or high figures are. ``proof``: how the sides were found to do the same work. ``notes``:
    sides that could not be measured, and why. ``curves``: of rows that show how something grows."""

    unit: str
    sides: list[Side] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    better: str = "low"
    proof: str = ""
    notes: list[str] = field(default_factory=list)
    work: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As JSON has it, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", [], {})}
