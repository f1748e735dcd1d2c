"""Names of scores and of networks in the words of people."""

from collections.abc import Mapping
from typing import Any

_LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP",
    "micro_ap": "AP of all classes",
    "macro_f1": "F1, mean over classes",
    "micro_f1": "F1 of all entries",
    "f1": "F1",
    "ece": "calibration error",
    "miou": "mIoU",
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "ap": "AP",
    "ap50": "AP50",
    "ar": "AR",
    "non_finite": "not finite",
    "ground_truth": "objects",
    "support": "samples",
}
_SIZES = ("small", "medium", "large")


def label(name: str) -> str:
    """A score's name as a reader sees it: ``AP_small`` as "AP, small objects"; what belongs to one of several tasks keeps its
    word. Names of users' own metrics only lose their underscores."""
    task, slash, last = name.rpartition("/")
    first, _, size = last.rpartition("_")
    if first in ("AP", "AR") and size in _SIZES:
        shown = f"{first}, {size} objects"
    elif first == "AR" and size.isdecimal():
        shown = f"AR, {size} box{'es' if size != '1' else ''} an image"
    else:
        shown = _LABELS.get(last, last.replace("_", " "))
    return f"{task}{slash}{shown}"


def network(config: Mapping[str, Any]) -> str:
    """Backbone and head, or heads, of a model's ``config``: "b0 + efficientdet, unet"."""
    head = config["head"]
    return f"{config['backbone']} + {', '.join(head.values()) if isinstance(head, Mapping) else head}"
