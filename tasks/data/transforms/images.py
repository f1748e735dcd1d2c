"""Images to the size that the network gets: evaluation by the published numbers, training by random crops and more.

A transform is any callable ``(sample, rng) -> sample`` that draws from ``rng`` alone; pixels stay uint8 (or uint16,
float32). torchvision and albumentations are imported only when RandAugment or colour jitter is asked for.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from effbackbones.errors import UserError
from effbackbones.images import bytewise
from effbackbones.images.colours import fill_of, in_dtype
from effbackbones.images.geometry import Pixels, ResizePlan, Size, resize
from effbackbones.inference.fitting import Fitting
from tasks.data.sample import Sample, Transform
from tasks.data.transforms.library import library, seeded

if TYPE_CHECKING:
    from effbackbones.contracts import ImageSpec


class ClassificationTransform:
    """Brings the image of a sample to ``size`` (H, W) by ``image_spec``; the label stays, boxes and mask are dropped.

    In training ``first`` comes first, on the image as it was read.

    Evaluation (``train`` False): resize and centre crop, the numbers of torchvision and timm on PIL images. Training, by
    what is asked for, in this order: ``crop`` (``resized``: random area by ``scale`` and ``ratio``; ``pad``: by an eighth, then at
    random; ``center``: as in evaluation; ``none``: squash), ``flip`` (probability), ``randaugment`` (operations, magnitude),
    ``color_jitter`` (strength), the callables ``extra``, random ``erasing`` (probability). ``quick``: training images are resized and
    turned by torch's kernels (:mod:`effbackbones.images.bytewise`).
    """

    def __init__(
        self,
        image_spec: "ImageSpec",
        size: Size,
        train: bool,
        extra: Sequence[Transform] = (),
        *,
        crop: str = "resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        flip: float = 0.5,
        randaugment: tuple[int, float] | None = None,
        color_jitter: float = 0.0,
        erasing: float = 0.0,
        first: Transform | None = None,
        quick: bool = False,
    ) -> None:
        self.image_spec, self.size, self.train = image_spec, size, train
        self.first, self.quick = first if train else None, quick and train
        self.crop, self.scale, self.ratio, self.flip = crop if train else "center", scale, ratio, flip
        self.fitting = replace(Fitting.of_classes(image_spec), size=size)
        self.steps: list[Transform] = []
        if train and randaugment is not None:
            self.steps.append(RandAugment(*randaugment, image_spec))
        if train and color_jitter > 0:
            self.steps.append(ColorJitter(color_jitter))
        if train:
            self.steps += extra
        if train and erasing > 0:
            self.steps.append(RandomErasing(erasing, image_spec))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample at ``size``."""
        sample = replace(sample, boxes=None, box_labels=None, crowd=None, mask=None)
        if self.first is not None:
            sample = self.first(sample, rng)
        height, width = sample.image.shape[:2]
        image, plan = self._crop(sample.image, rng)
        drawn = self.train and self.flip > rng.random()
        if drawn if sample.mirrored is None else sample.mirrored and self.flip > 0:
            image, plan = (bytewise.mirrored(image, False, True) if self._is_quick(image) else image[:, ::-1]), None
        sample = replace(sample, image=image, original=(height, width), plan=plan)
        for step in self.steps:
            sample = step(sample, rng)
        return sample

    def scaled(self, share: float) -> "ClassificationTransform":
        """The same for images of this ``share`` of the sides."""
        other = copy.copy(self)
        other.size = share_of(self.size, share)
        other.fitting = replace(self.fitting, size=other.size)
        return other

    def kept(self) -> Fitting:
        """To what size images may be brought before, once for all samples. Raises :class:`UserError` where what is cut from an image, and
        so how large it becomes, is left to chance."""
        if self.crop == "resized":
            what = "data.crop resized cuts its random parts from whole images, and smaller ones are kept"
            raise UserError("data.cache", what, "set data.crop to pad, center, none or whole, or data.cache to null")
        squash = replace(self.fitting, mode="squash", crop_fraction=1.0)
        return self.fitting if self.crop == "center" else squash

    def lowest(self, key: tuple[int, ...]) -> Callable[[Size], int] | None:
        """Down to which row the sample is looked at whose numbers are drawn by ``key``, from the size (H, W) of its image; None where
        all of it is. A subclass may look elsewhere."""
        if type(self) is not ClassificationTransform or self.crop != "resized" or self.first is not None:
            return None
        return lambda size: random_area(size, self.scale, self.ratio, np.random.default_rng(key))[3]

    def _crop(self, image: Pixels, rng: np.random.Generator) -> tuple[Pixels, ResizePlan | None]:
        """The image at ``size``, and the plan where the result is not random."""
        spec, crop = self.image_spec, self.crop
        height, width = image.shape[:2]
        if crop == "resized":
            left, top, right, bottom = random_area((height, width), self.scale, self.ratio, rng)
            image = image[top:bottom, left:right]
            if self._is_quick(image):
                return bytewise.resized(image.astype(np.uint8, copy=False), self.size, spec.interpolation), None
            return resize(image, self.size, spec.interpolation), None
        if crop == "center":
            return self.fitting(image, quick=self.quick)
        plan = ResizePlan.squash((height, width), self.size)
        image = plan.apply_image(image, spec.interpolation, fill_of(image, spec.mean).tolist(), quick=self.quick)
        if crop == "pad":
            return shifted(image, *self.draw_shift(rng), fill_of(image, spec.mean)), None
        return image, plan

    def draw_shift(self, rng: np.random.Generator) -> tuple[int, int]:
        """By how many pixels down and right the crop ``pad`` moves an image: up to an eighth either way."""
        return drawn_shift(self.size[0] // 8, self.size[1] // 8, rng)

    def _is_quick(self, image: Pixels) -> bool:
        return self.quick and image.dtype == np.uint8 and self.image_spec.interpolation in bytewise.MODES


def share_of(size: Size, share: float, divisor: int = 1) -> Size:
    """Sides (H, W) times ``share``, to the nearest multiple of ``divisor`` that is none of 0."""
    height, width = (max(divisor, round(side * share / divisor) * divisor) for side in size)
    return height, width


def random_area(
    size: Size, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom) inside of an image of ``size``, whole pixels.

    Its area is uniform in ``scale`` times the image's, its aspect (width / height) log-uniform in ``ratio``; after ten
    boxes that do not fit, the largest central one of an aspect in ``ratio`` (Szegedy et al. 2015, section 6; the rule of
    torchvision's ``RandomResizedCrop``).
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw, x, y in rng.random((10, 4)).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def drawn_shift(rows: int, columns: int, rng: np.random.Generator) -> tuple[int, int]:
    """By how many pixels down and right an image is moved: up to ``rows`` and ``columns`` either way, all alike."""
    return int(rng.random() * (2 * rows + 1)) - rows, int(rng.random() * (2 * columns + 1)) - columns


def shifted(image: Pixels, down: int, right: int, fill: Pixels) -> Pixels:
    """``image`` moved ``down`` and ``right``, by negative numbers of pixels up and left; ``fill`` comes in."""
    height, width = image.shape[:2]
    moved = np.empty_like(image)
    moved[:] = fill
    seen = image[max(0, -down) : height - down, max(0, -right) : width - right]
    moved[max(0, down) : height + down, max(0, right) : width + right] = seen
    return moved


class RandAugment:
    """torchvision's RandAugment (Cubuk et al. 2019), made a function of ``rng``. For uint8 images of 1 or 3 channels.

    ``num_ops`` operations for each image; ``magnitude`` counts in 31 steps, 0..30; areas moved in from outside take the mean colour.
    """

    def __init__(self, num_ops: int, magnitude: float, image_spec: "ImageSpec") -> None:
        self.num_ops, self.magnitude, self.image_spec = num_ops, magnitude, image_spec
        self._policy: Any = None  # torchvision's module, made where it is used: it is slow to import

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_policy": None}

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with its image changed."""
        import torch
        from PIL import Image

        if self._policy is None:
            self._policy = self._built(sample)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, which is the model's
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            image = Image.fromarray(
                np.ascontiguousarray(sample.image.squeeze(2) if sample.image.shape[2] == 1 else sample.image)
            )
            pixels = np.asarray(self._policy(image))
        return replace(sample, image=pixels.reshape(sample.image.shape), plan=None)

    def _built(self, sample: Sample) -> Any:
        from torchvision.transforms import InterpolationMode, RandAugment as Policy

        if sample.image.dtype != np.uint8 or sample.image.shape[2] not in (1, 3):
            what = f"needs uint8 images of 1 or 3 channels, got {sample.image.dtype} with {sample.image.shape[2]}"
            raise UserError("data.randaugment", what, "set it to null")
        fill = fill_of(sample.image, self.image_spec.mean).tolist()
        return Policy(self.num_ops, round(self.magnitude), interpolation=InterpolationMode.BILINEAR, fill=fill)


class ColorJitter:
    """albumentations' ``ColorJitter``: brightness, contrast, saturation within 1 - ``strength`` .. 1 + ``strength``. For images
    of 1 or 3 channels."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._compose: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compose": None}

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with its image changed."""
        if sample.image.shape[2] not in (1, 3):
            raise UserError(
                "data.color_jitter", f"needs images of 1 or 3 channels, got {sample.image.shape[2]}", "set it to 0"
            )
        if self._compose is None:
            albumentations = library()
            span = (max(0.0, 1 - self.strength), 1 + self.strength)
            jitter = albumentations.ColorJitter(brightness=span, contrast=span, saturation=span, hue=(0, 0), p=1.0)
            self._compose = albumentations.Compose([jitter])
        return replace(sample, image=seeded(self._compose, rng)(image=np.ascontiguousarray(sample.image))["image"])


class RandomErasing:
    """With ``probability``, a random box becomes noise of the data's mean and deviation (Zhong et al. 2017): area 2 % to
    a third of the image, aspect 0.3 to 3.3."""

    def __init__(self, probability: float, image_spec: "ImageSpec") -> None:
        self.probability, self.image_spec = probability, image_spec

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, perhaps with a box erased."""
        if rng.random() >= self.probability:
            return sample
        image = np.array(sample.image)
        height, width, channels = image.shape
        left, top, right, bottom = random_area((height, width), (0.02, 1 / 3), (0.3, 10 / 3), rng)
        noise = rng.normal(self.image_spec.mean, self.image_spec.std, (bottom - top, right - left, channels)).clip(0, 1)
        image[top:bottom, left:right] = in_dtype(noise, image)
        return replace(sample, image=image)
