"""Models as graphs for other runtimes: what they hold, whether they agree, and smaller arithmetic.

Loaded on first use, for heads name the operators of a graph (:mod:`effbackbones.export.operators`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effbackbones.export.exporting import export_model as export_model

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from effbackbones.export import exporting

    return getattr(exporting, name)
