"""The settings of what is read and how it is augmented."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from effbackbones.errors import UserError
from tasks.settings.checks import Options, Section, Steps


@dataclass(frozen=True)
class RandAugmentConfig(Section):
    """RandAugment: random photometric and geometric operations."""

    SECTION: ClassVar = "data.randaugment"
    LIMITS: ClassVar = {"num_ops": "[1, 10]", "magnitude": "[0, 30]"}

    num_ops: int = 2
    """Operations for each image."""
    magnitude: float = 9.0
    """Strength of each operation, 0 to 30."""


@dataclass(frozen=True)
class DataConfig(Section):
    """What is read, and how it is augmented."""

    SECTION: ClassVar = "data"
    LIMITS: ClassVar = {
        "val": "(0, 1)",
        "test": "(0, 1)",
        "image_size": "[1, 16384]",
        "crop_size": "[1, 16384]",
        "window": "(0, 600]",
        "tile": "[32, 16384]",
        "tile_overlap": "[0, 16384]",
        "batch_size": "[1, 1000000]",
        "eval_batch_size": "[1, 1000000]",
        "workers": "[0, 256]",
        "timeout": "[0, inf)",
        "max_pixels": "[1, inf)",
        "scale": "(0, 1]",
        "ratio": "(0, 100]",
        "progressive": "(0, 1)",
        "flip": "[0, 1]",
        "color_jitter": "[0, 1]",
        "erasing": "[0, 1]",
        "mixup": "[0, 100]",
        "cutmix": "[0, 100]",
        "vertical_flip": "[0, 1]",
        "scale_jitter": "(0, 10]",
        "mosaic": "[0, 1]",
        "close_mosaic": "[0, inf)",
        "repeat_threshold": "(0, 1]",
        "balance": "[0, 1]",
        "min_box": "[0, inf)",
        "limit_train": "[1, inf)",
        "limit_val": "[1, inf)",
    }
    MEANT_FOR: ClassVar = {
        **dict.fromkeys(
            (
                "crop",
                "scale",
                "ratio",
                "randaugment",
                "erasing",
                "mixup",
                "cutmix",
                "balance",
                "device_cache",
                "window",
            ),
            ("cls",),
        ),
        "multilabel": ("cls", "seg", "multi"),
        "tile": ("seg",),
        "tile_overlap": ("seg",),
        "mosaic": ("det", "seg", "multi"),
        **dict.fromkeys(("crop_size", "vertical_flip", "scale_jitter", "close_mosaic"), ("det", "seg", "multi")),
        **dict.fromkeys(("repeat_threshold", "min_box", "crowd"), ("det", "multi")),
    }

    name: str = "folder"
    """Data set: folder, table, lines, sound, shapes, coco, voc, yolo, masks, or a registered one."""
    root: str | None = None
    """Folder of the data."""
    train: str | None = None
    """Folder or file of the training split, inside of root; null: the data set's own name for it."""
    val: str | float | None = None
    """As train, for validation; a number in (0, 1): that share of the images of train."""
    test: str | float | None = None
    """As val, for the final test."""
    split_by: Literal["class", "random"] = "class"
    """How shares are drawn: of each class its share (class), or of all images together (random)."""
    split_group: str | None = None
    """Regular expression on the ids of images: those for which its first group is the same stay in one split."""
    division: str | None = None
    """File of an earlier division by shares (split.json of a run), in place of drawing one."""
    options: Options = field(default_factory=dict)
    """Options of the data set."""
    image_size: int | tuple[int, int] | None = None
    """Pixels: one number or [height, width]; null: what the weights were trained with."""
    crop_size: int | tuple[int, int] | None = None
    """Pixels of a training crop of the image at image_size (detection, segmentation): one number or [height, width]; null: image_size."""
    window: float | None = None
    """Seconds of the window of a recording that training takes at random; null: as long as those of evaluation."""
    progressive: tuple[float, ...] = ()
    """Shares of image_size and crop_size at which training begins, such as [0.5, 0.75]: each for an equal part of the steps, the last
    part at image_size itself. Evaluation is always at image_size."""
    resize: Literal["quick", "exact"] = "quick"
    """Resizing of training images: quick (torch's kernels, up to two grey levels off), or exact (PIL's, as evaluation always has)."""
    cache: str | None = None
    """Folder that keeps training images as they were read and resized, for later epochs and runs; null: each is read anew."""
    device_cache: bool = False
    """Whether all training images stay on the device as bytes, where they are shifted and mirrored too (classification); by default each is
    read and sent anew."""
    tile: int | tuple[int, int] | None = None
    """Evaluation and prediction at the images' own size, in tiles of so many pixels (segmentation); null: whole, at image_size."""
    tile_overlap: int = 64
    """Pixels that neighbouring tiles share."""
    labels: tuple[str, ...] = ()
    """What is read of each image: label, labels, boxes, mask, target; set by the command."""
    batch_size: int = 32
    """Images per optimiser step over all devices together."""
    eval_batch_size: int | None = None
    """Images per evaluation batch over all devices; null: batch_size."""
    workers: int | None = None
    """Loader processes per device; null: one per core, at most 8. Where predict draws, a thread reads ahead instead."""
    timeout: float = 300.0
    """Seconds without a batch after which a loader counts as hanging; 0: never."""
    multilabel: bool = False
    """Whether an image (classification) or a pixel (segmentation: classes that overlap) may have several labels or none."""
    exif: Literal["apply", "ignore"] = "apply"
    """Whether the orientation that a photograph carries is applied."""
    on_error: Literal["stop", "skip"] = "stop"
    """Unreadable image: stop, or skip and count it (more than 1 % stop the run)."""
    links: Literal["inside", "anywhere"] = "inside"
    """Where symbolic links among the files may lead: inside of root alone, or anywhere."""
    max_pixels: int = 64_000_000
    """Larger images are refused."""
    crop: Literal["resized", "pad", "center", "none", "whole"] = "resized"
    """Training crop: resized (random area and aspect), pad (pad by an eighth, crop at random), center (as in evaluation), none (squash);
    whole: the whole image, squashed, in training and evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a resized crop, as a share of the image."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect (width / height) of a resized crop."""
    augment: Steps = ()
    """Transforms of albumentations by name with their arguments, or registered ones, on each training image as it is read, with its
    boxes and mask, such as [HorizontalFlip, {Rotate: {limit: 15}}]; data.flip, vertical_flip, color_jitter, randaugment, erasing rest
    then, and a random data.crop if the list crops."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    flip_mode: Literal["random", "alternating"] = "random"
    """Horizontal flips by chance (random), or every image mirrored in every other epoch (alternating), half of them from the first on."""
    randaugment: RandAugmentConfig | None = None
    """RandAugment, such as {num_ops: 2, magnitude: 9}; null: none."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0: none."""
    erasing: float = 0.0
    """Probability of random erasing."""
    mixup: float = 0.0
    """Alpha of mixup; 0: none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0: none."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip (detection, segmentation)."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Range of a random factor on the letterboxed image, which is then cropped or padded (detection, segmentation)."""
    mosaic: float = 0.0
    """Probability that four images are set together as one (detection, segmentation)."""
    close_mosaic: float = 0.0
    """Epochs at the end of training without mosaic."""
    repeat_threshold: float | None = None
    """Images with a class that fewer images than this share have are repeated, by sqrt(threshold / share); null: none."""
    balance: float = 0.0
    """Images of rare classes are repeated, by (images of the most frequent class / of theirs) to this power; 1: all classes alike."""
    batch_shape: Literal["fixed", "aspect"] = "fixed"
    """Letterbox: fixed (all images at image_size), or aspect (batches of similar aspect ratio, padded no more than they need)."""
    min_box: float = 1.0
    """Training boxes with a side of fewer pixels after augmentation are left out (detection)."""
    crowd: Literal["skip", "ignore"] = "skip"
    """Crowd regions in training: skip, or ignore (what lies in them is not pushed to background either)."""
    keep_empty: bool = True
    """Whether images without objects are trained on (data sets of boxes and COCO masks)."""
    allow_bad_boxes: bool = False
    """Go on although more than 20 % of the boxes had to be dropped."""
    limit_train: int | None = None
    """Use only so many training images; null: all."""
    limit_val: int | None = None
    """Use only so many validation images; null: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "ratio", "scale_jitter"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"data.{name}", f"expected [low, high], got [{low}, {high}]", "swap the two")
        shares = self.shares
        if sum(shares.values()) >= 1:
            what = f"expected shares of less than 1 together, got {', '.join(map(str, shares.values()))}"
            raise UserError("data.val and data.test", what, "leave some images for training")
        if list(self.progressive) != sorted(set(self.progressive)):
            what = f"expected shares that grow, got {list(self.progressive)}"
            raise UserError("data.progressive", what, "write [0.5, 0.75]")
        tile = self.tile if isinstance(self.tile, tuple) else (self.tile,)
        if self.tile is not None and self.tile_overlap >= min(side for side in tile if side is not None):
            what = f"expected less than a tile, got {self.tile_overlap} pixels of tiles of {self.tile}"
            raise UserError("data.tile_overlap", what, "lower it, or raise data.tile")
        if self.multilabel and (self.cutmix or (self.mixup and self.name != "sound")):  # sounds add up, pictures do not
            raise UserError(
                f"data.{'mixup' if self.mixup and self.name != 'sound' else 'cutmix'}",
                "does not go with data.multilabel",
                "set it to 0",
            )

    @property
    def shares(self) -> dict[str, float]:
        """The splits that are shares of the training images."""
        return {split: share for split in ("val", "test") if isinstance(share := getattr(self, split), float)}

    def undivided(self, split: str) -> bool:
        """Whether a split is opened as the single list of samples that shares divide; others lie where they are named."""
        return bool(self.shares) and split == "train"
