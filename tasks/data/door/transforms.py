"""How images come to the network: the transforms of the tasks, and what a list of the user's own puts at rest."""

from collections.abc import Sequence
from dataclasses import replace

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from tasks.data.door.reading import rate_of, sides
from tasks.data.transforms.images import ClassificationTransform
from tasks.data.transforms.listed import OF_SOUND, TRANSFORMS, Listed, check_listed, names_in
from tasks.data.transforms.waves import WaveTransform
from tasks.data.transforms.window import ViewTransform
from tasks.settings.data import DataConfig


def class_transform(data: DataConfig, spec: ImageSpec, *, train: bool) -> ClassificationTransform | WaveTransform:
    """Images, or recordings, for a classifier that wants them as ``spec`` says."""
    if spec.rate is not None:
        return _wave_transform(data, spec, spec.rate, train=train)
    if data.window is not None:
        raise UserError("data.window", "is for recordings, and the model sees pictures", "choose a backbone sound:NAME")
    if data.name == "sound":
        what = "sees pictures, and the data set sound has recordings"
        raise UserError("model.backbone", what, "write sound: in front of its name")
    data = beside_listed(data)
    augment = data.randaugment
    return ClassificationTransform(
        spec,
        spec.size,
        train,
        crop="none" if data.crop == "whole" else data.crop,
        scale=data.scale,
        ratio=data.ratio,
        flip=data.flip,
        randaugment=None if augment is None else (augment.num_ops, augment.magnitude),
        color_jitter=data.color_jitter,
        erasing=data.erasing,
        first=_listed(data),
        quick=data.resize == "quick",
    )


def _wave_transform(data: DataConfig, spec: ImageSpec, rate: int, *, train: bool) -> WaveTransform:
    """Recordings in windows. What is set and would be done to pictures alone is refused."""
    if data.name == "sound" and rate_of(data) != rate:
        what = f"recordings are brought to {rate_of(data):,} samples a second, and the model hears {rate:,}"
        raise UserError("data.options.rate", what, f"set it, or model.backbone_options.rate, so that both are {rate}")
    _refuse_augmentations(data)
    samples = None if data.window is None else round(data.window * rate)
    after = Listed(data.augment, rate=rate) if data.augment else None
    return WaveTransform(spec, train, samples=samples, centred=data.crop == "center", after=after)


def _refuse_augmentations(data: DataConfig) -> None:
    """Refuse keys and listed transforms that make no sense of recordings. (data.flip, which is on where nobody says otherwise, rests.)"""
    plain = DataConfig()
    for name in _OF_PICTURES:
        if getattr(data, name) != getattr(plain, name):
            raise UserError(f"data.{name}", "is for pictures, and the model hears recordings", "remove it")
    if data.crop not in ("resized", "center"):
        what = (
            f"is {data.crop}, and recordings are heard through windows: at random (resized) or in the middle (center)"
        )
        raise UserError("data.crop", what, "remove it")
    refuse_unheard(data)


def refuse_unheard(data: DataConfig) -> None:
    """Refuse transforms of pictures in ``data.augment``."""
    ours = [name for name in TRANSFORMS.names() if name in OF_SOUND or TRANSFORMS.owner(name)]
    for number, name in enumerate(names_in(data.augment)):
        if name not in ours:
            remedy = f"there are {', '.join(OF_SOUND)}, and what a plug-in registers"
            raise UserError(
                f"data.augment[{number}]", f"{name} is for pictures, and the model hears recordings", remedy
            )


_OF_PICTURES = (
    *("randaugment", "color_jitter", "erasing", "cutmix", "scale", "ratio", "progressive", "device_cache"),
    *("vertical_flip", "flip_mode"),
)
"""Keys that work on pictures alone."""


def view_transform(
    data: DataConfig, spec: ImageSpec, *, train: bool, epochs: float, size_divisor: int
) -> ViewTransform:
    """Images with boxes and masks for a network that wants them as ``spec`` and ``size_divisor`` say, over so many ``epochs``."""
    data = beside_listed(data)
    return ViewTransform(
        spec,
        spec.size,
        train,
        scale_jitter=data.scale_jitter,
        vertical_flip=data.vertical_flip,
        flip=data.flip,
        crop_size=sides(data.crop_size),
        mosaic=data.mosaic,
        closed_from=epochs - data.close_mosaic,
        color_jitter=data.color_jitter,
        min_box=data.min_box,
        crowd=data.crowd,
        batch_shape=data.batch_shape,
        size_divisor=size_divisor,
        own_size=data.tile is not None,
        first=_listed(data),
        quick=data.resize == "quick",
    )


def _listed(data: DataConfig) -> Listed | None:
    return Listed(data.augment) if data.augment else None


def beside_listed(data: DataConfig) -> DataConfig:
    """``data`` as it is where ``data.augment`` lists transforms: our own flips, colours, RandAugment and erasing rest, and so does
    the random crop of classification where the list crops. What makes batches of one size, mosaic and mixing stay."""
    if not data.augment:
        return data
    crops = data.crop in ("resized", "pad") and _cutting(data)
    return replace(
        data,
        flip=0.0,
        vertical_flip=0.0,
        color_jitter=0.0,
        randaugment=None,
        erasing=0.0,
        crop="none" if crops else data.crop,
    )


def _cutting(data: DataConfig) -> list[str]:
    """The names of listed transforms that cut a part out of an image."""
    return [name for name in names_in(data.augment) if "Crop" in name]


def told_of_listed(data: DataConfig, labels: Sequence[str]) -> list[str]:
    """What ``data.augment`` does, what rests for it and what follows it, in a line; refused where it is wrong
    (:func:`tasks.data.transforms.listed.check_listed`), or cuts from images of which ``data.cache`` keeps smaller ones. Empty where it
    lists nothing. ``labels``: what the task reads."""
    if not data.augment:
        return []
    if data.name == "sound":
        refuse_unheard(data)
        check_listed(data.augment, labels)
        return [f"data.augment: {', '.join(names_in(data.augment))}, on each window of training"]
    beside, names = beside_listed(data), ", ".join(names_in(data.augment))
    if data.cache is not None and (cutting := _cutting(data)):
        what = f"data.augment cuts from whole images ({', '.join(cutting)}), and smaller ones are kept"
        raise UserError("data.cache", what, "leave one of the two out")
    check_listed(data.augment, labels, sets=data.multilabel and tuple(labels) == ("mask",))
    windows = {"boxes", "mask"} & set(labels)
    own = ["flip", "color_jitter", *(("vertical_flip",) if windows else ("crop", "randaugment", "erasing"))]
    following = ("scale_jitter", "crop_size", "mosaic") if windows else ("crop", "mixup", "cutmix")
    plain = DataConfig()
    rest = [f"data.{name} {getattr(data, name)}" for name in own if getattr(beside, name) != getattr(data, name)]
    after = [
        f"data.{name} {getattr(beside, name)}"
        for name in following
        if getattr(beside, name) != ("none" if name == "crop" else getattr(plain, name))
    ]
    return [
        f"data.augment: {names}, on each training image as it is read; "
        f"at rest for it: {', '.join(rest) or 'nothing'}; after it: {', '.join([*after, 'resizing'])}"
    ]


def told_of_resizing(data: DataConfig) -> list[str]:
    """In a line, where training images are not resized as those of evaluation are."""
    if data.resize == "exact" or data.name == "sound":
        return []
    text = "training images are resized by torch's kernels, up to two grey levels off those of evaluation"
    return [f"{text} (data.resize: exact has none)"]
