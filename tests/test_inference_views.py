"""Looks at an image beside the usual one: what they are averaged to, and that all of them lead back to the same pixels."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_inference_predictor import narrow
from tests_support import QUIET, class_names, one_line
from torch import Tensor, nn

from effbackbones import (
    BackboneNeeds,
    Detections,
    FeatureSpec,
    Head,
    ImageSizes,
    ImageSpec,
    Model,
    ReadingSpec,
    UserError,
    load_predictor,
    save_model,
)
from effbackbones.contracts import Backbone
from effbackbones.images.geometry import Pixels
from effbackbones.inference.views import Slices, Views
from tasks.verbs.command import run_command

COLOURS = 7  # red, green, and so on: whichever of three channels are on


class Shown(Backbone):
    """A backbone that gives the image as it is."""

    name = "shown"
    feature_spec = FeatureSpec("shown", ("C1",), (3,), (1,))
    image_spec = ImageSpec((192, 192), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 1.0, "letterbox")

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class Eye(Head):
    """Sees each colour that is fully on, exactly: its share of each pixel."""

    min_size = 1

    @classmethod
    def requires(cls, **options: object) -> BackboneNeeds:
        return BackboneNeeds(("C1",), 1)

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        values = features[0]
        colours = torch.tensor(
            [[number >> c & 1 for c in range(3)] for number in range(1, COLOURS + 1)], dtype=torch.float32
        )
        return 1 - (values[:, None] - colours[:, :, None, None]).abs().amax(2)

    def loss(self, raw: Tensor, targets: Any, sizes: ImageSizes) -> dict[str, Tensor]:
        return {}


class Detector(Eye):
    """The box around each colour."""

    task = "det"

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Detections:
        found = torch.zeros(len(raw), COLOURS, 6)
        counts = []
        for image, (shares, (height, width)) in enumerate(zip(raw, sizes.valid.tolist(), strict=True)):
            count = 0
            for label, share in enumerate(shares[:, :height, :width]):
                rows, columns = (share > 0.5).nonzero(as_tuple=True)
                if len(rows):
                    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    found[image, count] = torch.tensor([*map(float, box), 0.9, label])
                    count += 1
            counts.append(count)
        return Detections(found[..., :4], found[..., 4], found[..., 5].long(), torch.tensor(counts))


class Segmenter(Eye):
    """The nearest colour of each pixel, black among them."""

    task = "seg"

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        height, width = sizes.batch
        shares = raw.clamp(min=0)[..., :height, :width]
        return torch.cat([(1 - shares.sum(1, keepdim=True)).clamp(min=0), shares], 1)


def seeing(kind: type[Eye], size: int = 192, **reading: Any) -> Model:
    backbone, count = Shown(), COLOURS + (kind is Segmenter)
    model = Model(
        backbone, kind(backbone.feature_spec, count), classes=class_names(count), config={"backbone": "shown"}
    ).eval()
    model.use_image_spec(replace(backbone.image_spec, size=(size, size)))
    model.reading = ReadingSpec(**reading)
    return model


def scene(
    rng: np.random.Generator, height: int, width: int, most: int = COLOURS
) -> tuple[Pixels, np.ndarray, np.ndarray]:
    """An image with a rectangle of each of some colours, their boxes [n, 4] and labels [n]."""
    image = np.zeros((height, width, 3), np.uint8)
    boxes, labels = [], []
    for label in rng.permutation(COLOURS)[:most]:
        for _ in range(20):
            sides = rng.integers(6, np.maximum(7, np.array([width, height]) // 2))
            if (sides >= (width - 4, height - 4)).any():
                continue
            left, top = rng.integers(2, np.array([width, height]) - sides - 1)
            around = image[max(0, top - 4) : top + sides[1] + 4, max(0, left - 4) : left + sides[0] + 4]
            if not around.any():
                image[top : top + sides[1], left : left + sides[0]] = [255 * ((label + 1) >> c & 1) for c in range(3)]
                boxes.append((left, top, left + sides[0], top + sides[1]))
                labels.append(label)
                break
    order = np.argsort(labels)
    return image, np.array(boxes, np.float64).reshape(-1, 4)[order], np.array(labels, np.int64)[order]


def agrees(found: Any, boxes: np.ndarray, labels: np.ndarray, within: float) -> None:
    order = np.argsort(found.labels)
    assert found.labels[order].tolist() == labels.tolist()
    assert np.abs(found.boxes[order] - boxes).max(initial=0) <= within


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(24, 190), width=st.integers(24, 190))
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("shape", ["any", "tall"])
def test_boxes_of_all_looks_lead_back_within_a_pixel(shape: str, seed: int, height: int, width: int) -> None:
    """Letterboxed to 192 and its multiples, so that a pixel of the network is at most one of the image."""
    rng = np.random.default_rng(seed)
    image, boxes, labels = scene(rng, *((height, width) if shape == "any" else (max(height, 90), 24)))
    found = load_predictor(seeing(Detector), device="cpu", tta="flip,1.25,1.5")(image)
    agrees(found, boxes, labels, 1.0)
    assert found.scores == pytest.approx(np.full(len(labels), 0.9))


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(20, 260), width=st.integers(20, 260))
@settings(max_examples=8, deadline=None)
@pytest.mark.parametrize(("words", "more"), [("64,24", None), ("64,24,whole", "flip")])
def test_boxes_of_slices_are_exact(words: str, more: str | None, seed: int, height: int, width: int) -> None:
    """At the image's own size what is found in slices is what is there, to the pixel, also what fits in none."""
    rng = np.random.default_rng(seed)
    image, boxes, labels = scene(rng, height, width)
    found = load_predictor(seeing(Detector, 64), device="cpu", slices=words, tta=more)(image)
    if more is None:
        agrees(found, boxes, labels, 1e-6)
        return
    # With the whole image shrunk into the network: boxes that no slice holds are as fine as that look; tiny ones may be missed there.
    coarse = max(1.0, max(height, width) / 64)
    agrees(found, boxes, labels, 1.5 * coarse)


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(30, 190), width=st.integers(30, 190), tiled=st.booleans())
@settings(max_examples=8, deadline=None)
def test_masks_of_all_looks_lead_back_within_a_pixel(seed: int, height: int, width: int, tiled: bool) -> None:
    image, boxes, labels = scene(np.random.default_rng(seed), height, width)
    truth = np.zeros((height, width), np.int64)
    sure = np.ones((height, width), bool)
    for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
        truth[top:bottom, left:right] = label + 1
        sure[top - 2 : bottom + 2, left - 2 : right + 2] = False
        sure[top + 1 : bottom - 1, left + 1 : right - 1] = True
        sure[top - 2 : top - 1, left - 2 : right + 2] = True
    reading = {"tile": (64, 64), "tile_overlap": 16} if tiled else {}
    found = load_predictor(seeing(Segmenter, **reading), device="cpu", tta="flip,1.5")(image)
    assert found.labels.shape == (height, width)
    assert (found.labels == truth)[sure].all()
    assert found.confidence[sure].mean() > 0.95


def test_photographs_that_are_turned_are_mirrored_upright(tmp_path: Path) -> None:
    image, boxes, labels = scene(np.random.default_rng(3), 120, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    found = load_predictor(seeing(Detector), device="cpu", tta="flip,1.5")(tmp_path / "turned.png")
    assert found.size == (120, 60)
    agrees(found, boxes, labels, 1.0)


@pytest.mark.parametrize("task", ["cls", "det", "seg", ("det", "seg")])
def test_a_look_is_what_the_model_says_of_the_mirrored_image(task: Any) -> None:
    model, size = narrow(task), 64
    image = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)).resize((size, size))
    )
    ask = load_predictor(model, device="cpu")
    found = load_predictor(model, device="cpu", tta="flip", probabilities="seg" in task)(image)
    plain, turned = ask(image), ask(image[:, ::-1])
    if task == "cls":
        assert found.probabilities == pytest.approx((plain.probabilities + turned.probabilities) / 2, abs=1e-6)
    if "seg" in task:
        mask = found["seg"] if isinstance(found, dict) else found
        both = load_predictor(model, device="cpu", probabilities=True)([image, image[:, ::-1]])
        one, other = (
            (each["seg"] if isinstance(each, dict) else each).probabilities.astype(np.float32) for each in both
        )
        mean = (one + other[..., ::-1]) / 2
        assert np.abs(mask.probabilities - mean).max() < 2e-3
        assert (mask.labels != mean.argmax(0)).mean() < 0.01
    if task == "det":
        assert 0 < len(found) <= len(plain) + len(turned)
        assert found.scores.max() <= max(plain.scores.max(), turned.scores.max()) + 1e-6
        assert (np.diff(found.scores) <= 0).all()


def test_looks_keep_as_many_boxes_as_a_head_gives_of_one() -> None:
    model, image = narrow("det"), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    model.head = type(model.head)(model.backbone.feature_spec, 3, channels=16, repeats=1, max_detections=7).eval()
    model.head.load_state_dict(narrow("det").head.state_dict())
    assert model.head.merge_most == 7
    every = copy.deepcopy(model)
    every.head.merge_most = None
    cut, whole = (load_predictor(one, device="cpu", tta="flip,1.5")(image) for one in (model, every))
    assert len(whole) > len(cut) == 7
    assert cut.scores.tolist() == whole.scores[:7].tolist()


def test_looks_at_several_images_go_through_the_network_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Detector.forward
    monkeypatch.setattr(
        Detector,
        "forward",
        lambda self, features, sizes_: (sizes.append(len(features[0])), plain(self, features, sizes_))[1],
    )
    images = [scene(np.random.default_rng(seed), 60 + seed, 90)[0] for seed in range(4)]
    ask = load_predictor(seeing(Detector), device="cpu", tta="flip", batch_size=8)
    assert len(ask(images)) == 4
    assert sizes == [8]


@pytest.mark.slow
def test_an_evaluation_says_what_a_predictor_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, rows, images = np.random.default_rng(0), [], []
    for number, size in enumerate([(70, 100), (110, 64), (90, 90)]):
        coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        rows += [
            {
                "id": 3 * number + k,
                "image_id": number,
                "category_id": k + 1,
                "bbox": [5, 5, 30, 30],
                "area": 900,
                "iscrowd": 0,
            }
            for k in range(3)
        ]
    names = [{"id": k + 1, "name": name} for k, name in enumerate(class_names(3))]
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": names}))
    model = narrow("det")
    save_model(model, tmp_path / "model.safetensors")
    data = [
        "--data.name",
        "coco",
        "--data.root",
        str(tmp_path),
        "--data.train",
        "val.json",
        "--data.val",
        "val.json",
        "--data.options",
        f"{{images: {tmp_path}}}",
    ]
    line = [
        "evaluate",
        "--checkpoint",
        str(tmp_path / "model.safetensors"),
        "--out",
        str(tmp_path / "out"),
        *QUIET,
        *data,
    ]
    assert run_command("detect", [*line, "--tta", "flip", "--slices", "64,16"]) == 0
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    ask = load_predictor(tmp_path / "model.safetensors", device="cpu", tta="flip", slices="64,16")
    for number, found in enumerate(ask([tmp_path / f"{number}.png" for number in range(3)])):
        mine = [row for row in said if row["image_id"] == number]
        assert len(mine) == len(found) > 3
        assert [row["score"] for row in mine] == pytest.approx(found.scores, abs=1e-5)
    assert "AP " in capsys.readouterr().out


def test_words() -> None:
    assert Views.of("flip,0.8,1,1.25") == Views(True, (0.8, 1.25))
    assert [*Views.of("1.5")] == [(1.0, False), (1.5, False)]
    assert Views.of(True).count == 2
    assert Views.of("1").count == Views.of(None).count == 1
    assert Slices.of("640,128,whole") == Slices(640, 128, True)
    assert Slices.of(512) == Slices(512)
    assert Slices.of(None) is None


WRONG: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = [
    ("det", {"tta": "flipp"}, ("tta", "'flipp'", "flip,0.8")),
    ("det", {"tta": "flip,1_2"}, ("tta", "'1_2'", "flip,0.8")),
    ("det", {"tta": "9"}, ("tta", "'9'", "0.2 and 5")),
    ("det", {"tta": "nan"}, ("tta", "'nan'")),
    ("det", {"tta": 3}, ("tta", "int")),
    ("det", {"slices": "640;3"}, ("slices", "640;3", "SIDE")),
    ("det", {"slices": "8"}, ("slices", "at least 32")),
    ("det", {"slices": "64,64"}, ("slices", "64", "less than the side")),
    ("det", {"slices": True}, ("slices", "True")),
    ("seg", {"slices": 64}, ("slices", "detectors", "data.tile")),
    (("det", "seg"), {"slices": 64}, ("slices", "detectors")),
]


@pytest.mark.parametrize(("task", "options", "words"), WRONG)
def test_wrong_words_are_one_line(task: Any, options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        load_predictor(narrow(task), device="cpu", **options)
    one_line(error, *words)


def test_what_cannot_be_looked_at_so_is_one_line() -> None:
    class Stretch:
        def __call__(self, image: Pixels) -> Any:
            raise AssertionError

    with pytest.raises(UserError) as error:
        load_predictor(narrow("cls"), device="cpu", fit=Stretch(), tta="1.5")
    one_line(error, "tta", "Stretch", "flip alone")
    with pytest.raises(UserError) as error:
        load_predictor(narrow("det", size=512), device="cpu", slices="32")(np.zeros((5000, 5000, 3), np.uint8))
    one_line(error, "slices", "[5000, 5000]", "larger")
