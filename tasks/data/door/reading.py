"""Where the files of a data set lie, and how images are read and seen."""

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from effbackbones.images.geometry import Size
from effbackbones.images.reading import FRAMES
from effbackbones.images.recordings import RATE
from effbackbones.images.spec import OF_SOUND, RATES, ReadingSpec
from tasks.data.files.reading import ImageReader, SoundReader
from tasks.settings.checks import choice
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config

READ = ("channels", "depth", "reduced", "frames")
"""Options of all data sets with files: those of :func:`image_reader`."""
CLASSES = ("classes", "rename")
"""Options of those whose classes have names in the files."""


def image_reader(data: DataConfig, split: str) -> ImageReader:
    """By ``data.exif``, ``data.max_pixels`` and the options ``channels`` (3), ``depth`` (``8`` or ``native``), ``frames`` (of files with
    several: ``stop``, or ``first``), ``reduced``
    (false; true: JPEGs of the training split may be decoded at 1/2, 1/4 or 1/8 as long as both sides stay twice
    ``data.image_size``; evaluation always reads them whole)."""
    channels, depth, reduced = (
        data.options.get("channels", 3),
        str(data.options.get("depth", "8")),
        data.options.get("reduced", False),
    )
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        what = f"expected a number of channels, got {channels!r}"
        raise UserError("data.options.channels", what, "give 1, 3, 4, ...")
    choice("data.options.depth", depth, ("8", "native"))
    frames = str(data.options.get("frames", "stop"))
    choice("data.options.frames", frames, FRAMES)
    size = sides(data.image_size)
    if not isinstance(reduced, bool) or (reduced and size is None):
        what = f"expected true or false, and true with data.image_size; got {reduced!r}"
        raise UserError("data.options.reduced", what, "correct it")
    at_least = (2 * size[0], 2 * size[1]) if size and reduced and split == "train" else None
    return ImageReader(channels, depth, data.exif, data.max_pixels, at_least, frames)


def rate_of(data: DataConfig) -> int:
    """The samples a second to which recordings are brought: the option ``rate``."""
    rate = data.options.get("rate", RATE)
    if not isinstance(rate, int) or isinstance(rate, bool) or not RATES[0] <= rate <= RATES[1]:
        what = f"expected {RATES[0]} to {RATES[1]} samples a second, got {rate!r}"
        raise UserError("data.options.rate", what, "give 8000, 16000, 32000, ...")
    return rate


def file_reader(data: DataConfig, spec: ImageSpec) -> ImageReader:
    """What reads files as a model wants them that was made with ``spec``: pictures, or recordings."""
    if spec.rate is not None:
        return SoundReader(channels=len(spec.mean), max_pixels=data.max_pixels, rate=spec.rate)
    return replace(image_reader(data, "val"), channels=len(spec.mean))


def reading_spec(data: DataConfig) -> ReadingSpec:
    """How evaluation reads images, as a model file says it."""
    depth = str(data.options.get("depth", "8"))
    depth = depth if depth in ("8", "native") else "8"  # a data set from outside may call something else so
    return ReadingSpec(depth, data.exif, sides(data.tile), data.tile_overlap, data.batch_shape)


def image_spec(config: Config, spec: ImageSpec) -> ImageSpec:
    """The image spec of the weights with the config's own words on top."""
    names = ("mean", "std", "interpolation", "crop_fraction", "crop_mode")
    if spec.rate is not None:
        _refuse_of_pictures(config)
    elif config.model.crop_mode in OF_SOUND:
        raise UserError(
            "model.crop_mode", f"{config.model.crop_mode} is for recordings", "choose a backbone sound:NAME"
        )
    whole = {"crop_mode": "squash", "crop_fraction": 1.0} if config.data.crop == "whole" else {}
    own: dict[str, Any] = whole | {
        name: getattr(config.model, name) for name in names if getattr(config.model, name) is not None
    }
    size = config.data.image_size
    if size is not None:
        own["size"] = (size, size) if isinstance(size, int) else tuple(size)
    return replace(spec, **own)


def _refuse_of_pictures(config: Config) -> None:
    """Refuse keys that say how pictures are brought to size, of a model that is made for recordings."""
    model, data = config.model, config.data
    remedy = "remove it: the window is model.backbone_options.seconds, and that of training data.window"
    for key, given in (
        ("data.image_size", data.image_size is not None),
        ("data.crop", data.crop == "whole"),
        ("model.crop_fraction", model.crop_fraction is not None),
        ("model.interpolation", model.interpolation is not None),
        ("model.crop_mode", model.crop_mode not in (None, *OF_SOUND)),
        ("model.normalization", model.normalization == "data"),
    ):
        if given:
            raise UserError(key, "is for pictures, and the model hears recordings", remedy)


def read_as(
    data: DataConfig, reading: ReadingSpec, kept: Collection[str], rate: int | None = None
) -> tuple[DataConfig, tuple[str, ...]]:
    """``data`` that reads images as ``reading`` says, but for the dotted keys ``kept``, which stay as they are; and a sentence for
    each in which the two differed. ``rate``: that of a model of recordings, to which they are brought where nothing else is said."""
    configured, changed, told = reading_spec(data), {}, []
    if rate is not None and data.name == "sound":
        data = replace(data, options={"rate": rate, **data.options})
    for field in fields(reading):
        ours, trained = getattr(configured, field.name), getattr(reading, field.name)
        if ours == trained or (field.name == "tile_overlap" and reading.tile is None):
            continue
        key = "data.options.depth" if field.name == "depth" else f"data.{field.name}"
        if key in kept or (field.name == "depth" and "data.options" in kept and "depth" in data.options):
            told.append(f"{key} {_shown(ours)} as asked for; the model was made with {_shown(trained)}")
        else:
            told.append(f"{key} {_shown(trained)} as the model was made with, not {_shown(ours)} as configured")
            changed[field.name] = trained
    depth = changed.pop("depth", None)
    options = data.options if depth is None else {**data.options, "depth": depth}
    return replace(data, options=options, **changed), tuple(told)


def _shown(value: object) -> str:
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def sides(size: int | tuple[int, int] | None) -> Size | None:
    """(H, W) of what a config says in one number or two."""
    return (size, size) if isinstance(size, int) else size


def name_of(data: DataConfig, split: str) -> str:
    """What the config calls a split; by default its own name."""
    name: str | None = getattr(data, split)
    return name or split


def root_of(data: DataConfig, *, or_file: bool = False) -> Path:
    """``data.root`` as a folder that exists, or perhaps a YAML file."""
    if data.root is None:
        raise UserError("data.root", f"data set {data.name!r} needs a folder", "set data.root")
    root = Path(data.root).expanduser()
    if not root.is_dir() and not (or_file and root.is_file() and root.suffix in (".yaml", ".yml")):
        raise UserError("data.root", f"there is no folder {root}", "correct data.root")
    return root


def sets_wanted(data: DataConfig) -> bool:
    """Whether masks are to hold sets of classes. Of several tasks together ``data.multilabel`` speaks of the labels of images."""
    return data.multilabel and data.labels == ("mask",)
