"""Heat maps of what speaks for a class."""

from typing import Any

import numpy as np
import pytest
import torch
from test_inference_predictor import narrow
from torch import Tensor, nn
from torch.nn import functional as F

from effbackbones import FeatureSpec, ImageSpec, UserError, load_predictor
from effbackbones.contracts import Backbone, Head
from effbackbones.inference.explaining import explain, grad_cam
from effbackbones.model import Model


class Coarse(Backbone):
    """A backbone that gives the image at a quarter of its size."""

    name = "coarse"
    feature_spec = FeatureSpec("coarse", ("C2",), (3,), (4,))
    image_spec = ImageSpec((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 1.0, "squash")

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, 4)]


class Linear(Head):
    """Logits that are weighted means of the channels: class 0 of red less green, class 1 of blue."""

    task = "cls"
    weights = torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 1.0]])

    def forward(self, features: list[Tensor], sizes: Any) -> Tensor:
        return features[-1].mean((2, 3)) @ self.weights.T

    def loss(self, raw: Any, targets: Any, sizes: Any) -> dict[str, Tensor]:
        return {"mean": raw.mean()}

    def predict(self, raw: Tensor, sizes: Any) -> Tensor:
        return raw.softmax(1)


class Everywhere(Linear):
    """The same weighted sums for each pixel."""

    task = "seg"

    def forward(self, features: list[Tensor], sizes: Any) -> Tensor:
        large = F.interpolate(features[-1], sizes.batch, mode="nearest")
        return torch.einsum("kc,bchw->bkhw", self.weights, large)


def two_objects() -> np.ndarray[Any, Any]:
    """A red square at the top left, a smaller blue one at the bottom right, a little green between."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8, :8, 0], image[12:, 12:, 2], image[:4, 4:8, 1] = 255, 255, 255
    return image


def test_the_map_is_that_of_the_paper_worked_out_by_hand() -> None:
    maps = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[3.0, 0.0], [1.0, 1.0]]])
    gradients = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-2.0, 0.0], [0.0, 0.0]]])
    # weights 0.5 and -0.5: 0.5 * (1 - 3, 2 - 0, 0 - 1, 4 - 1), without what is negative
    assert torch.equal(grad_cam(maps, gradients), torch.tensor([[0.0, 1.0], [0.0, 1.5]]))


def test_of_a_linear_network_it_is_its_weighted_maps() -> None:
    model = Model(Coarse(), Linear(Coarse.feature_spec, 2), classes=("red", "blue")).eval()
    found = explain(model, two_objects(), device="cpu")
    assert (found.task, found.label, found.name, found.level, found.size) == ("cls", 0, "red", "C2", (16, 16))
    cells = torch.zeros(1, 1, 4, 4)
    cells[0, 0, :2, :2] = torch.tensor([[1.0, 0.5], [1.0, 1.0]])  # 1 where red, 0.5 where green too
    expected = F.interpolate(cells, (16, 16), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(found.heat, expected / expected.max(), atol=1e-6)
    blue = explain(model, two_objects(), label="blue", device="cpu").heat
    assert blue[14, 14] == 1
    assert blue[:10, :10].max() == 0


def test_of_pixels_and_at_another_size_the_object_is_hottest() -> None:
    model = Model(Coarse(), Everywhere(Coarse.feature_spec, 2), classes=("red", "blue")).eval()
    image = two_objects().repeat(3, 0).repeat(3, 1)
    for label, inside in ((0, np.s_[:24, :24]), (1, np.s_[36:, 36:])):
        heat = explain(model, image, label=label, device="cpu").heat
        assert heat.shape == (48, 48)
        own = np.zeros((48, 48), bool)
        own[inside] = True
        assert own.flat[heat.argmax()]
        assert heat[own].mean() > 5 * heat[~own].mean()


@pytest.mark.parametrize("task", ["cls", "det", "seg"])
def test_every_head_gives_a_map_in_pixels_of_the_image_and_keeps_the_model(task: str) -> None:
    model = narrow(task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    for level in (None, model.head.spec.names[-2] if len(model.head.spec.names) > 1 else None):
        found = explain(model, image, level=level, device="cpu")
        assert found.heat.shape == (50, 90)
        assert found.heat.dtype == np.float32
        assert found.heat.min() >= 0
        assert found.heat.max() in (0, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_chosen_box_has_another_map_than_its_class_alone() -> None:
    model = narrow("det")
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = load_predictor(model, device="cpu")(image)
    box = tuple(found.boxes[0].tolist())
    near = explain(model, image, box=box, label=int(found.labels[0]), device="cpu")
    assert near.label == found.labels[0]
    anywhere = explain(model, image, label=int(found.labels[0]), device="cpu")
    assert not np.allclose(near.heat, anywhere.heat, atol=1e-3)
    with pytest.raises(UserError, match="no place of the network predicts a box there"):
        explain(model, image, box=(-500, -500, -499, -499), device="cpu")


def test_what_is_not_there_is_told() -> None:
    model = Model(Coarse(), Linear(Coarse.feature_spec, 2), classes=("red", "blue")).eval()
    image = two_objects()
    for wrong, says in (
        ({"label": 2}, "label: expected 0 to 1, got 2"),
        ({"label": "rde"}, "label: there is no class 'rde'"),
        ({"level": "C9"}, "level: the head reads no C9"),
        ({"task": "seg"}, "task: the model has no seg"),
        ({"box": (0, 0, 1, 1)}, "box: goes with detection"),
    ):
        with pytest.raises(UserError, match=says):
            explain(model, image, device="cpu", **wrong)
    joint = narrow(("det", "seg"))
    with pytest.raises(UserError, match="task: the model has several"):
        explain(joint, image, device="cpu")
    assert explain(joint, image, task="seg", device="cpu").task == "seg"
