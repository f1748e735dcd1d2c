"""Recordings through what else asks a model: vectors, heat maps, the service and its page; and tasks that are not for them."""

import asyncio
import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_serving_web import LIMITS, request

from effbackbones import build_model, load_predictor
from effbackbones.errors import UserError
from effbackbones.inference.embedding import Embedder
from effbackbones.inference.explaining import explain
from effbackbones.model import Model
from effbackbones.serving.service import Service
from effbackbones.serving.trying import add_page

RATE = 8000
OPTIONS: dict[str, Any] = {
    "rate": RATE,
    "n_fft": 256,
    "hop": 80,
    "mels": 32,
    "seconds": 0.5,
    "width": 0.25,
    "depth": 0.3,
}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    head = {"levels": ["C2", "C5"], "multilabel": True}
    return build_model(
        "cls", "sound:lite0", head="sed", num_classes=2, backbone_options=OPTIONS, head_options=head
    ).eval()


def noise(seconds: float, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).normal(size=round(seconds * RATE)) * 0.1).astype(np.float32)


def test_vectors_are_means_over_all_frequencies_and_windows(model: Model) -> None:
    embed = Embedder(model, device="cpu")
    first, second = noise(0.5), noise(0.5, 1)
    alone = embed([first, second])
    assert alone.shape == (2, 80)
    wave = torch.from_numpy(np.rint(first * 32768) + 32768).to(torch.int32).numpy().astype(np.uint16)
    maps = model.backbone(model.normalize(torch.from_numpy(wave)[None, None, None]))[-1]
    np.testing.assert_allclose(alone[0], maps.mean((2, 3))[0].detach(), atol=1e-4)
    together = embed([np.concatenate([first, second]), noise(0.1)])
    np.testing.assert_allclose(together[0], alone.mean(0), atol=1e-5)


def test_no_heat_maps_of_recordings(model: Model) -> None:
    with pytest.raises(UserError, match="a heat map lies over a picture, and this model hears recordings"):
        explain(model, noise(0.5))


def test_recordings_are_served_and_the_page_is_refused(model: Model) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("python_multipart", reason="the extra serve is not installed")
    from effbackbones.serving.web import web_app

    file = io.BytesIO()
    soundfile.write(file, noise(1.2), RATE, format="WAV", subtype="FLOAT")
    predictor = load_predictor(model, device="cpu", on_error="return")
    service = Service(predictor, limits=LIMITS, wait=0.0)
    try:
        answer = asyncio.run(request(web_app(service), "/predict", file.getvalue(), kind="audio/wav"))
        assert answer.status == 200
        told, expected = answer.json, predictor(noise(1.2))
        assert [event["class"] for event in told["events"]] == [event.name for event in expected.events]
        got = [one["probability"] for one in told["predictions"]]
        np.testing.assert_allclose(got, [one["probability"] for one in expected.to_dict()["predictions"]], atol=1e-4)
        with pytest.raises(UserError, match="the page shows pictures, and this model hears recordings"):
            web_app(service, partial(add_page, samples=[]))
    finally:
        service.close()


def test_what_finds_places_in_pictures_is_refused_beside_others_too() -> None:
    with pytest.raises(
        UserError, match="backbone 'sound:lite0': is for recordings, and detection finds places in pictures"
    ):
        build_model(("cls", "det"), "sound:lite0", num_classes={"cls": 2, "det": 2}, backbone_options=OPTIONS)
