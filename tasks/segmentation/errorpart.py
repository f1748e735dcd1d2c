"""The part of a segmentation report that tells where errors lie, and which classes they swap."""

from collections.abc import Mapping
from typing import Any

from tasks.report.page import Report
from tasks.report.skeleton import percent

_FIRST = 8
"""Classes; the rest is folded."""


def add_errors(report: Report, errors: Mapping[str, Any]) -> None:
    """What :func:`tasks.segmentation.anatomy.anatomy` found: two tables, where there are errors at all."""
    places = {name: errors[name] for name in ("boundary", "interior") if name in errors}
    total = sum(row["wrong"] for row in places.values())
    if not total:
        return
    report.table(
        "Errors along borders and inside",
        ["where", "wrong pixels", "share of all errors", "of the pixels there wrong"],
        [
            [name, row["wrong"], percent(row["wrong"] / total), percent(_share(row["wrong"], row["pixels"]))]
            for name, row in places.items()
        ],
        "Boundary: within 2 % of the image's diagonal of a true border, of ignored pixels or of the image's edge, the band of "
        "boundary IoU. Errors there are of outlines; those inside are of classes, or whole regions."
        + (" Each class has its own borders, and a pixel counts once for each." if errors.get("overlap") else ""),
    )
    by_class = [(name, row) for name, row in errors["by_class"].items() if row["missed"] + row["extra"]]
    rows = [
        [
            name,
            row["missed"],
            percent(_share(row["missed_boundary"], row["missed"])),
            _named(row["missed_as"], row["missed"]),
            row["extra"],
            percent(_share(row["extra_boundary"], row["extra"])),
            _named(row["extra_of"], row["extra"]),
        ]
        for name, row in sorted(by_class, key=lambda item: -item[1]["missed"] - item[1]["extra"])
    ]
    header = ["class", "missed", "at borders", "predicted there", "wrongly predicted", "at borders", "true there"]
    report.table("Errors by class", header, rows, "In pixels, most errors first.", first=_FIRST, rest="{} more classes")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _named(others: Mapping[str, int], total: int) -> str | None:
    """The most frequent other class, and its share."""
    return next((f"{name} {percent(pixels / total)}" for name, pixels in others.items()), None)
