"""``data.augment``: transforms of albumentations and users' own, by name, on images with their boxes and masks."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from effbackbones.contracts import ImageSpec
from effbackbones.errors import UserError
from tasks.data.batch import KeyedDataset, Sample
from tasks.data.collating import collate
from tasks.data.door.transforms import class_transform, told_of_listed, view_transform
from tasks.data.transforms.library import library
from tasks.data.transforms.listed import TRANSFORMS, Listed, check_listed, register_transform
from tasks.settings.data import DataConfig
from tasks.settings.tree import build, changed_keys, dump
from tasks.strictyaml import Tree, read_tree, read_value

H, W = 40, 60
BOX = (12, 8, 30, 20)
Point = tuple[float, float]


def scene(kind: str = "all") -> Sample:
    """A bright rectangle on black, class 2 in the mask, with an ignored top row; a crowd covers the right edge."""
    image, mask = np.zeros((H, W, 3), np.uint8), np.zeros((H, W), np.uint8)
    left, top, right, bottom = BOX
    image[top:bottom, left:right] = 200
    mask[top:bottom, left:right] = 2
    mask[-1] = 255
    sample = Sample(image, "a", path="a.png", label=1)
    if kind in ("det", "all"):
        sample.boxes = np.array([BOX, (5, 5, 5, 9), (50, 0, 60, 40)], np.float32)
        sample.box_labels, sample.crowd = np.array([4, 5, 6]), np.array([False, False, True])
    if kind in ("seg", "all"):
        sample.mask = mask
    return sample


# Name and arguments, and where a point of the image goes; all with certainty.
MOVES: list[tuple[Any, Callable[[float, float], Point], tuple[int, int]]] = [
    ({"HorizontalFlip": {"p": 1}}, lambda x, y: (W - x, y), (H, W)),
    ({"VerticalFlip": {"p": 1}}, lambda x, y: (x, H - y), (H, W)),
    ({"Transpose": {"p": 1}}, lambda x, y: (y, x), (W, H)),
    (
        {"Sequential": [{"Transpose": {"p": 1}}, {"VerticalFlip": {"p": 1}}]},
        lambda x, y: (y, W - x),
        (W, H),
    ),  # a quarter
    ({"Crop": {"x_min": 6, "y_min": 4, "x_max": 50, "y_max": 36, "p": 1}}, lambda x, y: (x - 6, y - 4), (32, 44)),
    ({"CenterCrop": {"height": 36, "width": 52, "p": 1}}, lambda x, y: (x - 4, y - 2), (36, 52)),
    ({"Resize": {"height": 80, "width": 90, "p": 1}}, lambda x, y: (1.5 * x, 2 * y), (80, 90)),
    ({"LongestMaxSize": {"max_size": 120, "p": 1}}, lambda x, y: (2 * x, 2 * y), (80, 120)),
    ({"PadIfNeeded": {"min_height": 50, "min_width": 80, "p": 1}}, lambda x, y: (x + 10, y + 5), (50, 80)),
    ({"Affine": {"translate_px": {"x": 7, "y": -3}, "p": 1}}, lambda x, y: (x + 7, y - 3), (H, W)),
    ({"Affine": {"scale": 0.5, "p": 1}}, lambda x, y: (W / 2 + (x - W / 2) / 2, H / 2 + (y - H / 2) / 2), (H, W)),
    ({"Rotate": {"limit": [180, 180], "p": 1}}, lambda x, y: (W - x, H - y), (H, W)),
    ({"RandomBrightnessContrast": {"p": 1}}, lambda x, y: (x, y), (H, W)),
]


@pytest.mark.parametrize("kind", ["cls", "det", "seg"])
@pytest.mark.parametrize(("step", "move", "size"), MOVES, ids=[str(step)[2:40] for step, _, _ in MOVES])
def test_image_boxes_and_mask_go_where_arithmetic_says(step: Any, move: Any, size: Any, kind: str) -> None:
    sample = scene(kind)
    out = Listed([step])(sample, np.random.default_rng(0))
    a, b = move(*BOX[:2]), move(*BOX[2:])
    expected = np.array([min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])])
    assert out.image.shape == (*size, 3)
    assert out.image.dtype == np.uint8
    assert out.label == 1
    assert out.plan is None
    assert np.abs(extent(out.image[..., 0] > 100) - expected).max() <= 1
    assert (out.boxes is None, out.mask is None) == (kind != "det", kind != "seg")
    if out.boxes is not None:
        assert out.box_labels is not None
        assert out.crowd is not None
        assert np.abs(out.boxes[0] - expected).max() <= 1
        assert out.box_labels.tolist() == [4, 6]  # that without an extent is left out
        assert out.crowd.tolist() == [False, True]
    if out.mask is not None:
        assert out.mask.shape == size
        assert out.mask.dtype == np.uint8
        assert np.abs(extent(out.mask == 2) - expected).max() <= 1
        assert set(np.unique(out.mask)) <= {0, 2, 255}


def extent(inside: Any) -> Any:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_uncovered_pixels_of_a_mask_are_ignored_unless_said_otherwise() -> None:
    turn = {"limit": [45, 45], "p": 1}
    sample, rng = scene(), np.random.default_rng
    out, said = (Listed([{"Rotate": a}])(sample, rng(0)).mask for a in (turn, {**turn, "fill_mask": 0}))
    assert out is not None
    assert said is not None
    assert out[0, 0] == out[-1, -1] == 255
    assert said[0, 0] == 0
    holes = Listed([{"CoarseDropout": {"num_holes_range": [1, 1], "hole_height_range": [20, 20], "p": 1}}])
    assert (holes(sample, rng(0)).mask == sample.mask).all()  # None there: the mask stays as it is


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (["HorizontalFip"], r"data.augment\[0\]: .*no transform 'HorizontalFip'.*did you mean HorizontalFlip"),
        (["NoOp", "NoOp", {"HorizontalFlip": {"p": 2}}], r"data.augment\[2\].p: .*less than or equal to 1, got 2; its default is 0.5"),
        ([{"HorizontalFlip": {"q": 1}}], r"data.augment\[0\].q: HorizontalFlip has no such argument; known: p"),
        ([{"Rotate": {"p": True}}], r"data.augment\[0\].p: expected float, got true"),
        ([{"Rotate": {"limit": "x"}}], r"data.augment\[0\].limit: .*got 'x'; its default is \(-90, 90\)"),
        ([{"HorizontalFlip": None, "p": 0.5}], r"expected one transform.*HorizontalFlip, p; write - HorizontalFlip: \{p: 0.5\}"),
        ([{"Rotate": [3]}], r"expected the arguments of Rotate by name, got \[3\]"),
        (["RandomCrop"], r"data.augment\[0\]: RandomCrop needs height and width; write - RandomCrop: \{height: ..., width: ...\}"),
        ([{"Rotate": {"mask_interpolation": 1}}], r"data.augment\[0\].mask_interpolation: would mix the numbers of classes"),
        (["Normalize"], "the model does that by itself"),
        (["Lambda"], "@register_transform"),
        (["FDA"], "works on more than one image"),
        ([{"OneOf": ["HorizontalFlip", {"Rotate": {"lmit": 3}}]}], r"data.augment\[0\].transforms\[1\].lmit: .*did you mean limit"),
        ([{"OneOf": {"transforms": ["NoOp"], "p": 3}}], r"data.augment\[0\].p: expected a number in \[0, 1\], got 3"),
        ([{"OneOf": []}], "OneOf needs a list of transforms"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_the_field(steps: Any, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        check_listed(steps, ("boxes", "mask"))
    assert "\n" not in str(caught.value)


def test_what_does_not_suit_an_image_is_a_line_with_its_file() -> None:
    with pytest.raises(
        UserError, match=r"a.png: data.augment\[0\] \(RandomCrop\) fails on it: Crop size.*; correct its"
    ):
        Listed([{"RandomCrop": {"height": 500, "width": 3, "p": 1}}])(scene(), np.random.default_rng(0))
    with pytest.raises(
        UserError, match=r"\(ToGray\): gives images of uint8 with 1 channels, the data's are uint8 with 3"
    ):
        Listed([{"ToGray": {"num_output_channels": 1, "p": 1}}])(scene(), np.random.default_rng(0))


def test_every_transform_draws_from_the_generator_alone() -> None:
    """All that need no argument, given the same seed twice with other things drawn between; boxes keep their labels."""
    module, tried = library(), 0
    for name in dir(module):
        try:
            check_listed([{name: {"p": 1}}], ("boxes", "mask"))
        except UserError:
            continue
        if name == "Crop":  # whose default is larger than the image
            continue
        tried += 1
        first = Listed([{name: {"p": 1}}])(scene(), np.random.default_rng(7))
        np.random.default_rng().random(3)
        second = pickle.loads(pickle.dumps(Listed([{name: {"p": 1}}])))(scene(), np.random.default_rng(7))  # noqa: S301  # our own
        assert (first.image == second.image).all(), name
        assert (first.mask == second.mask).all(), name
        assert first.boxes is not None
        assert first.box_labels is not None
        assert (first.boxes == second.boxes).all(), name
        assert len(first.boxes) == len(first.box_labels)
    assert tried > 80


@pytest.mark.parametrize("labels", ["cls", "det"])
def test_batches_do_not_depend_on_the_number_of_loaders(labels: str) -> None:
    steps = ({"OneOf": ["HorizontalFlip", {"Rotate": {"p": 1}}]}, "ColorJitter", {"RandomScale": {"p": 1}})
    data, spec = DataConfig(augment=steps, mosaic=0.5 if labels == "det" else 0.0), ImageSpec(size=(32, 32))
    transform: Any = class_transform(data, spec, train=True)
    if labels == "det":
        transform = view_transform(data, spec, train=True, epochs=9, size_divisor=1)
    keyed = KeyedDataset(Scenes(labels), transform, seed=3)
    keys = [[(epoch, index) for index in range(4)] for epoch in range(2)]
    there, here = (
        [batch.images for batch in DataLoader(keyed, batch_sampler=keys, num_workers=count, collate_fn=together)]  # type: ignore[arg-type]
        for count in (0, 2)
    )
    assert all((a == b).all() for a, b in zip(there, here, strict=True))
    assert (there[0] != there[1]).any()
    again = keyed[1, 2].image  # as after a restart in the middle of epoch 1
    assert (again == there[1][2].permute(1, 2, 0).numpy()).all()


class Scenes:
    classes = tuple("abcdefg")

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        return scene(self.kind)


def together(samples: Any) -> Any:
    return collate(samples, targets=lambda samples: None, size_divisor=1, fill=(0.5, 0.5, 0.5))


def test_our_own_flips_and_colours_rest_and_it_is_said() -> None:
    spec = ImageSpec(size=(H, W))
    data = DataConfig(augment=("NoOp",), flip=1.0, color_jitter=0.5, erasing=1.0, crop="none")
    out = class_transform(data, spec, train=True)(scene("cls"), np.random.default_rng(0))
    assert (out.image == scene("cls").image).all()
    window = view_transform(data, spec, train=True, epochs=1, size_divisor=1)(scene(), np.random.default_rng(0))
    assert (window.mask == scene().mask).all()
    assert told_of_listed(data, ("label",)) == [
        "data.augment: NoOp, on each training image as it is read; "
        "at rest for it: data.flip 1.0, data.color_jitter 0.5, data.erasing 1.0; after it: resizing"
    ]
    cropping = DataConfig(augment=({"RandomResizedCrop": {"size": [20, 20]}},), mixup=0.2)
    assert "data.flip 0.5, data.crop resized; after it: data.mixup 0.2" in told_of_listed(cropping, ("label",))[0]
    assert (
        "at rest for it: data.flip 0.5; after it: data.mosaic 0.5, resizing"
        in (told_of_listed(DataConfig(augment=("NoOp",), mosaic=0.5), ("boxes",))[0])
    )
    evaluation = view_transform(
        DataConfig(augment=({"VerticalFlip": {"p": 1}},)), spec, train=False, epochs=1, size_divisor=1
    )
    assert (evaluation(scene(), np.random.default_rng(0)).mask == scene().mask).all()


def test_a_registered_transform_stands_in_the_list(lend: Any) -> None:
    lend(TRANSFORMS, {}, alone=True)

    @register_transform("darken")
    class Darken:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
            sample.image = sample.image // self.by
            return sample

    @register_transform("mirror")
    def mirror(p: float = 1.0) -> Any:
        return library().HorizontalFlip(p=p)

    out = Listed([{"darken": {"by": 2}}, "mirror", {"VerticalFlip": {"p": 1}}])(scene(), np.random.default_rng(0))
    assert out.image.max() == 100
    assert extent(out.mask == 2).tolist() == [W - 30, H - 20, W - 12, H - 8]
    with pytest.raises(UserError, match=r"data.augment\[0\].bi: darken has no such argument; .*by"):
        check_listed([{"darken": {"bi": 2}}], ())
    with pytest.raises(UserError, match=r"data.augment\[0\]: darken needs by"):
        check_listed(["darken"], ())
    with pytest.raises(UserError, match=r"data.augment\[0\].transforms\[0\]: OneOf of albumentations holds"):
        check_listed([{"OneOf": [{"darken": {"by": 2}}]}], ())
    with pytest.raises(UserError, match="did you mean darken"):
        check_listed(["darkn"], ())


def test_the_list_is_kept_with_the_run_and_compared(tmp_path: Any) -> None:
    text = "data:\n  augment:\n    - HorizontalFlip: {p: 0.5}\n    - OneOf: [Blur, {Rotate: {limit: [-5, 5]}}]\n    - ToGray\n"
    values, places = read_value(text, "a.yaml")
    assert isinstance(values, dict)
    config = build(Tree(values, places))
    assert config.data.augment[2] == "ToGray"
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    again = build(read_tree(tmp_path / "config.yaml", "config.yaml"))
    assert again == config
    assert changed_keys(config, again) == []
    values["data"] = {"augment": ["ToGray"]}
    assert changed_keys(config, build(Tree(values, places))) == ["data.augment"]
    with pytest.raises(UserError, match=r"data.augment: expected a list of transforms, each its name or"):
        build(Tree({"data": {"augment": "ToGray"}}, {}))
