"""Tiles: one network on pieces of an image gives what it gives on the whole, in bands, and never holds all of it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tests_support import PEAK_MEMORY, one_line, printed_by
from torch import Tensor, nn

from effbackbones import BackboneNeeds, FeatureSpec, Head, ImageSizes, ImageSpec, Model, UserError, build_model
from effbackbones.contracts import Backbone
from effbackbones.inference.tiling import _along, predict_tiles


class Pixels(Backbone):
    """A backbone that gives the image as it is."""

    name = "pixels"
    feature_spec = FeatureSpec("pixels", ("C1",), (3,), (1,))
    image_spec = ImageSpec()

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class Near(Head):
    """Softmax of a convolution that sees ``radius`` pixels to each side."""

    task = "seg"
    min_size = 4

    def __init__(self, spec: FeatureSpec, num_classes: int, radius: int = 1) -> None:
        super().__init__(spec, num_classes)
        self.convolution = nn.Conv2d(3, num_classes, 2 * radius + 1, padding=radius)
        self.seen: list[tuple[int, ...]] = []

    @classmethod
    def requires(cls, **options: object) -> BackboneNeeds:
        return BackboneNeeds(("C1",), 1)

    def forward(self, features: list[Tensor], sizes: ImageSizes) -> Tensor:
        self.seen.append(tuple(features[0].shape))
        logits: Tensor = self.convolution(features[0])
        return logits[..., : sizes.batch[0], : sizes.batch[1]]

    def loss(self, raw: Tensor, targets: Tensor, sizes: ImageSizes) -> dict[str, Tensor]:
        return {}

    def predict(self, raw: Tensor, sizes: ImageSizes) -> Tensor:
        return raw.softmax(1)


def near(radius: int, k: int = 3, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    backbone = Pixels()
    return Model(backbone, Near(backbone.feature_spec, k, radius)).eval()


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def joined(model: Model, image: Tensor, tile: tuple[int, int], overlap: int, batch_size: int = 1) -> Tensor:
    bands, row = [], 0
    for first, band in predict_tiles(model, image, tile=tile, overlap=overlap, batch_size=batch_size):
        assert first == row
        assert (band.dtype, band.shape[-1]) == (torch.float32, image.shape[-1])
        assert 0 < band.shape[1] <= tile[0]
        row += band.shape[1]
        bands.append(band)
    return torch.cat(bands, 1)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.tuples(st.integers(13, 50), st.integers(13, 50)),
    radius=st.integers(0, 3),
    more=st.integers(0, 8),
    batch_size=st.integers(1, 3),
)
def test_a_short_sighted_network_sees_no_seams(
    height: int, width: int, tile: tuple[int, int], radius: int, more: int, batch_size: int
) -> None:
    model, image = near(radius), picture(height, width)
    whole = model.predict(image[None])[0]
    overlap = min(4 * radius + more, min(tile) - 1)
    found = joined(model, image, tile, overlap, batch_size)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
    assert all(shape[0] <= batch_size for shape in model.head.seen[1:])


def test_without_overlap_it_is_right_away_from_seams() -> None:
    model, image = near(2), picture(64, 64)
    difference = (joined(model, image, (32, 32), 0) - model.predict(image[None])[0]).abs().amax(0)
    assert difference.max() > 1e-3  # the convolution pads every tile
    difference[30:34] = difference[:, 30:34] = 0
    assert difference.max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(side=st.integers(1, 300), tile=st.integers(1, 90), overlap=st.integers(0, 89))
def test_weights_of_every_place_sum_to_one(side: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - 1)
    starts, weights = _along(side, tile, overlap, torch.device("cpu"))
    total = torch.zeros(side)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + len(row)] += row
    torch.testing.assert_close(total, torch.ones(side), atol=1e-6, rtol=0)
    assert weights.min() >= 0
    assert weights.shape[1] == min(tile, side)
    assert starts[0] == 0
    assert starts[-1] == side - weights.shape[1]
    steps = [after - before for before, after in pairwise(starts)]
    assert all(step == tile - overlap for step in steps[:-1])
    assert all(0 < step <= tile - overlap for step in steps)


def test_overlaps_run_from_one_tile_to_the_other() -> None:
    starts, weights = _along(24, 16, 8, torch.device("cpu"))
    assert starts == [0, 8]
    assert weights[1, :8].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    assert weights[0].tolist() == [1] * 8 + [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_images_of_every_kind(dtype: torch.dtype) -> None:
    model = near(1)
    image = torch.rand(3, 40, 50) if dtype == torch.float32 else picture(40, 50).to(dtype)
    torch.testing.assert_close(joined(model, image, (16, 20), 6), model.predict(image[None])[0], atol=1e-5, rtol=0)


def test_what_makes_no_tiles_is_named() -> None:
    model, image = near(1), picture(20, 20)
    for tile, overlap, words in (
        ((3, 16), 0, ("tile", "[3, 16]", "Near needs 4")),
        ((0, 16), 0, ("tile", "[0, 16]")),
        ((16, 16), 16, ("tile_overlap", "16 pixels", "0 to 15")),
        ((16, 16), -1, ("tile_overlap", "-1 pixels")),
    ):
        with pytest.raises(UserError) as error:
            predict_tiles(model, image, tile=tile, overlap=overlap)  # before anything is asked for
        one_line(error, *words)
    with pytest.raises(UserError) as error:
        predict_tiles(model, image, tile=(16, 16), overlap=0, batch_size=0)
    one_line(error, "batch_size")
    with pytest.raises(RuntimeError, match="eval"):
        next(predict_tiles(model.train(), image, tile=(16, 16), overlap=0))
    classifier = build_model(task="cls", backbone="lite0", num_classes=3).eval()
    with pytest.raises(UserError) as error:
        next(predict_tiles(classifier, picture(64, 64), tile=(64, 64), overlap=0))
    one_line(error, "ClassificationHead", "pixels")


@pytest.mark.slow
def test_a_trained_unet_gives_nearly_the_whole_image() -> None:
    """It sees further than a tile, but what decides is near: more than 95 of 100 pixels keep their class, away from seams or not."""
    torch.manual_seed(0)
    model = build_model(task="seg", backbone="lite0", num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(41):
        images = coloured(4, 96, 96)
        loss = torch.stack(list(model.loss(images, images.float().argmax(1)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image = coloured(1, 256, 320)[0]
    whole = model.eval().predict(image[None])[0]
    found = joined(model, image, (128, 128), 64)
    assert (whole.argmax(0) == image.float().argmax(0)).float().mean() > 0.85
    assert (found.argmax(0) == whole.argmax(0)).float().mean() > 0.95
    assert (found - whole).abs().mean() < 0.04


def coloured(count: int, height: int, width: int) -> Tensor:
    """Images of soft spots; the class of a pixel is its strongest channel."""
    spots = torch.rand(count, 3, height // 16, width // 16)
    return (nn.functional.interpolate(spots, (height, width), mode="bilinear") * 255).to(torch.uint8)


LARGE = """
import torch
from effbackbones import build_model
from effbackbones.inference.tiling import predict_tiles
torch.set_num_threads(1)
model = build_model(task="seg", backbone="lite0", num_classes=21).eval()
image = torch.randint(0, 256, (3, 4000, 6000), dtype=torch.uint8)
rows = 0
for first, band in predict_tiles(model, image, tile=(512, 512), overlap=64):
    assert first == rows and band.shape[0] == 21 and band.shape[2] == 6000
    rows += band.shape[1]
    del band
assert rows == 4000
print(peak_memory())
"""


@pytest.mark.slow
def test_a_large_image_takes_less_than_two_gigabytes() -> None:
    """All probabilities alone would take 2.0 GB."""
    most = int(printed_by(PEAK_MEMORY + LARGE, timeout=1800))
    print(f"{most / 1e9:.2f} GB")
    assert most < 2e9
