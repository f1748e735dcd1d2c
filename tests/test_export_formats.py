"""Every head on three backbones says in other runtimes what it says in torch; smaller arithmetic; and no torch where it is deployed."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import calibrated

from effbackbones import Model, UserError, build_model, list_heads, load_predictor
from effbackbones.export import export_model
from effbackbones.export.agreement import Agreement, Tolerance
from effbackbones.export.certificate import Bounds
from effbackbones.export.quantisation import quantised_nodes
from effbackbones.export.resizing import Resizing
from effbackbones.images.spec import ReadingSpec
from effbackbones.inference.predictor import fitting_of
from effbackbones.inference.runtimes import TRUST, open_runtime
from effbackbones.registry import HEADS

pytestmark = pytest.mark.slow
SIZES = {"cls": (64, 96), "det": (128, 128), "seg": (64, 96)}


def scenes(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)) for _ in range(count)]
    return [np.asarray(one.resize((140 + 9 * i, 110), Image.Resampling.BICUBIC)) for i, one in enumerate(small)]


def made(backbone: str, head: str) -> Model:
    """A model that tells images and classes apart."""
    torch.manual_seed(0)
    task = HEADS.get(head).task
    model = build_model(task, backbone, head=head, num_classes=3).eval()
    last = [one for one in model.head.modules() if isinstance(one, torch.nn.Conv2d | torch.nn.Linear)]
    if task == "det":
        nets = (net for name, net in model.head.named_modules() if name.endswith("class_net"))
        last = [one for one in next(nets).modules() if isinstance(one, torch.nn.Conv2d)]
    torch.nn.init.normal_(last[-1].weight, std=0.3 if task == "det" else 0.05)  # rounding grows with it
    model.use_image_spec(replace(model.image_spec, size=SIZES[task]))
    made: Model = calibrated(model, scenes(4))
    return made


def outputs(model: Model, images: torch.Tensor) -> dict[str, Any]:
    found = model.predict(images)
    return found._asdict() if hasattr(found, "_asdict") else {"probabilities": found}


@pytest.mark.parametrize(
    ("backbone", "suffix"), [*itertools.product(["lite0", "b0", "b3"], [".onnx", ".xml"]), ("lite0", ".pt2")]
)
@pytest.mark.parametrize("head", list_heads())
def test_a_runtime_says_what_torch_says(backbone: str, head: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
    model, path = made(backbone, head), tmp_path / f"model{suffix}"
    export_model(model, path, images=scenes(4))
    runtime = open_runtime(path, trusted=True)
    height, width = SIZES[model.head.task]
    exact = copy.deepcopy(model).double()
    fixed = HEADS.get(head).task == "det"  # anchors of one size
    assert runtime.record.dynamic_size != fixed
    sizes = [(height, width)] if fixed else [(height, width), (height + 13, width - 21)]
    for batch, size in ((3, sizes[0]), (1, sizes[-1])):
        shown = [np.asarray(Image.fromarray(one).resize(size[::-1])) for one in scenes(3)[:batch]]
        images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous()
        feed = {"images": images.numpy(), "valid": np.array([size] * batch)}
        answers = runtime({port.name: feed[port.name] for port in runtime.record.inputs})
        expected = {name: value.numpy() for name, value in outputs(model, images).items()}
        answer = next(iter(expected.values()))
        assert batch == 1 or np.abs(answer[0] - answer[1]).max() > 0.02  # two images are told apart
        # What rounding does to a network of random weights shows where torch computes in float64.
        said = "scores" if fixed else "probabilities"  # scores fall, whichever boxes they are of
        rounding = np.abs(outputs(exact, images)[said].numpy() - expected[said]).max() if said in expected else 0
        assert rounding < 1e-3  # else nothing could be told
        tolerance = Tolerance(pixels=0.05, score=max(1e-4, 4 * float(rounding)))
        found = Agreement(tolerance)  # boxes of equal scores may change places
        for row in range(batch):
            both = [{name: values[name][row] for name in expected} for values in (expected, answers)]
            found.add(model.head.task, *both)
        assert found.largest.get("probabilities", 0.0) <= tolerance.score
        if model.head.task == "det":
            assert found.share() == 1
            assert found.all["boxes"] > 100


def test_a_program_of_torch_says_what_its_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = made("lite0", "efficientdet"), scenes(3)
    export_model(model, tmp_path / "model.pt2", images=images)
    with pytest.raises(UserError, match=r"model\.pt2: is a file of torch\.export, which runs code when it is opened"):
        load_predictor(tmp_path / "model.pt2")
    monkeypatch.setenv(TRUST, "1")
    for one, other in zip(load_predictor(model)(images), load_predictor(tmp_path / "model.pt2")(images), strict=True):
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-2)


def nudged(pixels: torch.Tensor) -> torch.Tensor:
    """One pixel of seven a level lighter or darker."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.rand(pixels.shape, generator=generator) < 1 / 7
    signs = torch.randint(0, 2, pixels.shape, generator=generator) * 2 - 1
    return (pixels.int() + moved * signs).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("head", ["classification", "efficientdet", "unet"])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_graph_that_resizes_takes_images_as_they_are(head: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
    model, images = made("lite0", head), scenes(3)
    record = export_model(
        model, tmp_path / f"model{suffix}", images=images, preprocessing="resize", bounds=Bounds(0.0, 1.0)
    )
    assert record.certificate is not None
    options = {"INFERENCE_PRECISION_HINT": "f32"} if suffix == ".xml" else {}
    assert record.certificate["runtime_options"] == options
    resize, fit = Resizing.of(model), fitting_of(model, ReadingSpec())
    for image, one, other in zip(
        images, load_predictor(model)(images), load_predictor(tmp_path / f"model{suffix}")(images), strict=True
    ):
        assert one.size == other.size
        if head == "efficientdet":
            continue
        # A level or two beside PIL's, which random weights make much of (0.1): the answer is the model's to these pixels, but for
        # those that a runtime rounds the other way (0.03).
        given = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        seen = (255 * resize(given)[0]).round().to(torch.uint8)
        if head == "unet":
            expected, shaken = (
                resize.restore_maps(model.predict(shown), given).argmax(1)[0].numpy() for shown in (seen, nudged(seen))
            )
            # OpenVINO rounds one pixel of seven to the level beside torch's.
            enough = 0.97 if suffix == ".onnx" else (shaken == expected).mean() - 0.1
            assert (other.labels == expected).mean() > enough > 0.5
        if head == "classification":
            assert np.abs(seen[0].permute(1, 2, 0).numpy().astype(int) - fit(image)[0]).max() <= 2
            np.testing.assert_allclose(other.probabilities, model.predict(seen)[0].numpy(), atol=0.05)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("head", ["classification", "efficientdet", "unet"])
def test_smaller_arithmetic_makes_a_smaller_file(head: str, precision: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, images = made("b0", head), scenes(4)
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export_model(model, whole, images=None)
    export_model(model, small, images=images, precision=precision, calibration=images, bounds=Bounds(0.0, 1.0))
    share = small.stat().st_size / whole.stat().st_size
    assert share < (0.6 if precision == "fp16" else 0.5)
    if precision == "int8":
        graph = onnx.load(str(whole)).graph
        weighted = {node.name for node in graph.node if node.op_type in ("Conv", "Gemm")}
        names = weighted.intersection(quantised_nodes(graph).weighted)
        # Squeeze-excite alone has two in each of 16 blocks.
        assert 0.35 * len(weighted) < len(names) < len(weighted) - 16


def test_dynamic_quantisation_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision int8_dynamic: quantises products of matrices alone"):
        export_model(made("lite0", "classification"), tmp_path / "a.onnx", images=None, precision="int8_dynamic")
    with pytest.raises(UserError, match="calibration: int8 takes its ranges from real images"):
        export_model(made("lite0", "classification"), tmp_path / "a.onnx", images=None, precision="int8")
