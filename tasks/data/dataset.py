"""What a data set is, and the door for data sets: one for ours and for users' own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from effbackbones.registry import Registry

if TYPE_CHECKING:
    from tasks.data.sample import Sample
    from tasks.settings.data import DataConfig

T = TypeVar("T")
DATASETS = Registry(
    "dataset",
    {
        "folder": "tasks.data.door.labels:folder",
        "table": "tasks.data.door.labels:table",
        "lines": "tasks.data.door.labels:lines",
        "sound": "tasks.data.door.sound:sound",
        "shapes": "tasks.data.door.labels:shapes",
        "coco": "tasks.data.door.boxes:coco",
        "voc": "tasks.data.door.boxes:voc",
        "yolo": "tasks.data.door.boxes:yolo",
        "masks": "tasks.data.door.masks:masks",
    },
)
ABOUT = {
    "folder": "class folders of images",
    "table": "CSV files of image paths and labels",
    "lines": "text files, one for each class: their lines as pictures",
    "sound": "recordings in class folders, in tables, or with names that say their labels",
    "shapes": "drawn shapes with labels, boxes and masks; no files",
    "coco": "COCO annotation files: labels, boxes, masks",
    "voc": "Pascal VOC folders: labels and boxes",
    "yolo": "YOLO label files, data.yaml or darknet lists: labels and boxes",
    "masks": "folders of images and of masks",
}
"""What each of ours reads, in a line."""


@runtime_checkable
class Dataset(Protocol):
    """A data set: class names, a length, and samples by index; the same sample for the same index, always.

    ``classes`` are the names behind ``label``, ``labels`` and ``box_labels``; those of the values of ``mask`` too, unless there
    is an attribute ``mask_classes`` that names these. What is asked of each sample is in ``data.labels``.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> "Sample": ...


DatasetFactory = Callable[["DataConfig", str, tuple[str, ...] | None], Dataset]
"""(data, split, classes) -> data set. ``split`` is train, val or test; ``classes`` None: derive the label map from this split."""


def register_dataset(name: str) -> Callable[[T], T]:
    """Register a :data:`DatasetFactory` under ``name``, for ``data.name`` in a config."""
    return DATASETS.register(name)
