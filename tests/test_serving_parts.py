"""What a service is made of, without a web server: limits, bodies, batches, figures, and images to answers."""

import asyncio
import io
import json
import re
import threading
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_inference_predictor import narrow
from tests_support import ROOT

from effbackbones import UserError, load_predictor
from effbackbones.images.opening import Encoded
from effbackbones.inference.predictor import Predictor
from effbackbones.serving import bodies, running
from effbackbones.serving.batching import Batcher
from effbackbones.serving.bodies import check_headers, clean_name, discard, read_body
from effbackbones.serving.figures import Figures
from effbackbones.serving.limits import BODIES_AT_ONCE, Limits, RefusedError, Room
from effbackbones.serving.service import Service, _nameless
from tasks.settings.commandline import parse

SMALL = Limits(max_bytes=100, max_files=2, queue=3, body_seconds=0.2)


def encoded(number: int, size: tuple[int, int] = (40, 56)) -> Encoded:
    """A JPEG of noise in memory."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
    return Encoded(f"{number}.jpg", file.getvalue())


# Batches


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-3, 30), max_size=20), st.integers(1, 5))
def test_every_item_has_its_own_result_and_a_bad_one_fails_alone(items: list[int], size: int) -> None:
    sizes: list[int] = []

    def answer(batch: list[int]) -> list[int]:
        if any(item < 0 for item in batch):
            raise ValueError("bad")
        return [item * 10 for item in batch]

    batcher: Batcher[int, int] = Batcher(answer, batch_size=size, wait=0.0, watch=sizes.append)
    futures = [batcher.submit(item) for item in items]
    batcher.close()
    for item, future in zip(items, futures, strict=True):
        if item < 0:
            assert str(future.exception()) == "bad"
        else:
            assert future.result() == item * 10
    assert sum(sizes) == len(items)
    assert max(sizes, default=1) <= size


def test_batches_are_full_in_order_and_do_not_wait_longer_than_told() -> None:
    seen: list[list[int]] = []
    hold = threading.Event()

    def answer(batch: list[int]) -> list[int]:
        hold.wait(5)
        seen.append(batch)
        return batch

    batcher = Batcher(answer, batch_size=4, wait=0.02)
    first = batcher.submit(0)
    time.sleep(0.1)  # its batch has begun
    others = [batcher.submit(item) for item in range(1, 7)]
    gone = others.pop()
    assert gone.cancel()  # who gave up is not answered
    hold.set()
    batcher.close()
    assert first.result() == 0
    assert [one.result() for one in others] == [1, 2, 3, 4, 5]
    assert seen == [[0], [1, 2, 3, 4], [5]]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)
    assert not batcher.alive


def test_a_wrong_number_of_results_and_an_exit_are_told_and_the_thread_lives() -> None:
    def answer(batch: list[int]) -> list[int]:
        if batch == [1]:
            raise SystemExit(3)
        return [] if batch == [2] else batch

    batcher = Batcher(answer, batch_size=1, wait=0.0)
    assert isinstance(batcher.submit(1).exception(5), SystemExit)
    assert "0 results for 1 items" in str(batcher.submit(2).exception(5))
    assert batcher.submit(3).result(5) == 3
    assert batcher.alive
    batcher.close()


# Limits and bodies


def test_room_is_given_back_whatever_happens() -> None:
    room = Room(SMALL)

    def crowd() -> None:
        with room.held() as one, room.held() as other:
            one.take(images=2, size=50)
            other.take(images=1)
            assert (room.images, room.bytes) == (3, 50)
            other.take(images=1)

    with pytest.raises(RefusedError, match="busy") as refused:
        crowd()
    assert (refused.value.status, refused.value.after) == (503, 1)
    assert (room.images, room.bytes) == (0, 0)
    with pytest.raises(RefusedError), room.held() as one:
        one.take(size=100 * BODIES_AT_ONCE + 1)


@pytest.mark.parametrize("name", ["max_bytes", "max_files", "queue", "body_seconds"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: expected at least 1, got 0"):
        Limits(**{name: 0})


async def chunks(*parts: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(pause)
        yield part


def body_of(*parts: bytes, pause: float = 0.0) -> bytes:
    async def read() -> bytes:
        with Room(SMALL).held() as share:
            return await read_body(chunks(*parts, pause=pause), SMALL, share)

    return asyncio.run(read())


def test_bodies_are_read_whole_and_in_time() -> None:
    assert body_of(b"a" * 60, b"b" * 40) == b"a" * 60 + b"b" * 40
    assert body_of() == b""
    with pytest.raises(RefusedError, match="allowed are 100 bytes") as refused:  # whatever length was told
        body_of(b"a" * 60, b"b" * 41)
    assert refused.value.status == 413
    with pytest.raises(RefusedError, match=r"not come whole within 0.2 s \(1 bytes did\)") as refused:
        body_of(*[b"a"] * 3, pause=0.15)
    assert refused.value.status == 408


def test_what_is_sent_in_vain_is_read_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(50)
            yield b"x" * 50

    asyncio.run(discard(endless(), SMALL))
    assert sum(read) == 4 * SMALL.max_bytes + 50
    monkeypatch.setattr(bodies, "_DISCARD_SECONDS", 0.05)
    asyncio.run(discard(chunks(b"a", b"b", pause=10), SMALL))  # nor longer


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"content-type": "image/jpeg"}, 0, ""),
        ({"content-type": "Image/PNG; q=1", "content-length": "100"}, 0, ""),
        ({"content-type": "application/octet-stream", "content-encoding": "identity"}, 0, ""),
        ({}, 415, "Content-Type is missing"),
        ({"content-type": "text/plain"}, 415, "Content-Type 'text/plain' is not taken"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "multipart/form-data with files"),
        ({"content-type": "image/png", "content-encoding": "gzip"}, 415, "Content-Encoding 'gzip'"),
        ({"content-type": "image/png", "content-length": "101"}, 413, "the body has 101 bytes; allowed are 100"),
    ],
)
def test_headers_are_looked_at_before_the_body(headers: dict[str, str], status: int, says: str) -> None:
    if not status:
        return check_headers(headers, SMALL)
    with pytest.raises(RefusedError) as refused:
        check_headers(headers, SMALL)
    assert refused.value.status == status
    assert says in refused.value.reason
    return None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.jpg", "a.jpg"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/abs/é.png", "é.png"),
        ("a\r\nX: y\0.png", "aX: y.png"),
        ("..", "image 7"),
        ("", "image 7"),
        ("dir/", "image 7"),
        ("x" * 300 + ".npy", "x" * 96 + ".npy"),
    ],
)
def test_names_lose_their_folders(given: str, kept: str) -> None:
    assert clean_name(given, 7) == kept


def test_origins_lose_their_folders() -> None:
    told = {
        "/home/me/b.safetensors": "b.safetensors",
        "hf-hub:A/B": "hf-hub:A/B",
        "torchvision:V1": "torchvision:V1",
        3: 3,
    }
    assert [_nameless(given) for given in told] == list(told.values())  # type: ignore[arg-type]


# Figures


def test_figures_add_up() -> None:
    figures = Figures()
    for seconds in (0.004, 0.005, 0.3, 99.0):
        figures.request("/predict", 200, seconds)
    figures.request("/health", 200)
    figures.request("/predict", 422, 0.1)
    figures.batch(3)
    figures.image("answered")
    lines = figures.text({"ready": ("1 where requests are wanted.", 1)}).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['effbackbones_requests_total{path="/predict",status="200"}'] == "4"
    assert values['effbackbones_predict_seconds_bucket{le="0.005"}'] == "2"
    assert values['effbackbones_predict_seconds_bucket{le="0.1"}'] == "3"
    assert values['effbackbones_predict_seconds_bucket{le="30"}'] == "4"
    assert (
        values['effbackbones_predict_seconds_bucket{le="+Inf"}'] == values["effbackbones_predict_seconds_count"] == "5"
    )
    assert float(values["effbackbones_predict_seconds_sum"]) == pytest.approx(99.409)
    assert values['effbackbones_batch_images_bucket{le="2"}'] == "0"
    assert values['effbackbones_batch_images_bucket{le="4"}'] == "1"
    assert values["effbackbones_ready"] == "1"
    named = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(named) == len(set(named)) == 5


# Images to answers


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor(narrow("det", size=32), on_error="return", batch_size=4, max_pixels=1_000_000)


@pytest.fixture
def service(predictor: Predictor) -> Iterator[Service]:
    made = Service(predictor, wait=0.05)
    yield made
    made.close()


def test_answers_are_those_of_the_predictor_in_order(service: Service, predictor: Predictor) -> None:
    files = [encoded(number, (30 + number, 50)) for number in range(6)]
    files.insert(2, Encoded("broken.jpg", files[0].content[:300]))
    found = asyncio.run(service.predict(files, predictor))
    alone = load_predictor(predictor.model, on_error="return")
    for file, answer in zip(files, found, strict=True):
        one = alone(file)
        assert json.loads(answer.text) == one.to_dict()
        assert answer.refused == (file.name == "broken.jpg")
        assert answer.error == getattr(one, "error", "")
    assert "runcated" in found[2].error
    text = service.metrics()
    assert 'effbackbones_images_total{outcome="answered"} 6' in text
    assert 'effbackbones_images_total{outcome="refused"} 1' in text


def test_who_asks_otherwise_in_the_same_batch_gets_what_was_asked(service: Service, predictor: Predictor) -> None:
    file = encoded(1)
    whole = predictor(file).to_dict()
    limit = whole["boxes"][3]["score"]

    async def both() -> list[Any]:
        asking = [service.asking(None, None), service.asking(limit, None), service.asking(None, 2)]
        return await asyncio.gather(*(service.predict([file], one) for one in asking))

    everything, sure, two = (json.loads(one[0].text)["boxes"] for one in asyncio.run(both()))
    assert everything == whole["boxes"]
    assert sure == [box for box in everything if box["score"] >= limit]
    assert two == everything[:2]
    with pytest.raises(UserError, match="top_k: expected at least 1"):
        service.asking(None, 0)
    strict = Service(predictor.limited(threshold=0.6))  # a request says what it does not want as the command line said
    assert strict.asking(None, 2).wishes.threshold == 0.6
    strict.close()


def test_several_heads_answer_by_task() -> None:
    both = load_predictor(narrow(("det", "seg"), size=64), on_error="return", batch_size=2)
    made = Service(both)
    made.warm()
    assert made.ready
    file = encoded(3)
    (answer,) = asyncio.run(made.predict([file], both))
    assert json.loads(answer.text) == {word: one.to_dict() for word, one in both(file).items()}
    assert made.facts()["classes"].keys() == {"det", "seg"}
    made.close()
    assert not made.ready


def test_what_would_change_nothing_and_what_cannot_predict_is_refused() -> None:
    model = narrow("cls", size=32)
    made = Service(load_predictor(model, on_error="return"))
    with pytest.raises(UserError, match="threshold: is for boxes, masks"):
        made.asking(0.5, None)
    assert len(json.loads(asyncio.run(made.predict([encoded(1)], made.asking(None, 2)))[0].text)["predictions"]) == 2
    with pytest.raises(UserError, match="threshold: is for boxes, masks"):
        Service(load_predictor(model, on_error="return", threshold=0.5))
    next(model.head.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        made.warm()
    assert not made.ready
    made.close()


def test_an_image_whose_prediction_breaks_fails_alone(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = predictor.answer

    def breaking(batch: Any) -> Any:
        if any(place.source.name == "1.jpg" for place in batch.places):
            raise RuntimeError("no such kernel")
        return answer(batch)

    monkeypatch.setattr(predictor, "answer", breaking)
    made = Service(predictor, wait=0.2)

    async def three() -> list[Any]:
        asked = (made.predict([encoded(number)], predictor) for number in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(three())
    made.close()
    assert isinstance(second, RuntimeError)
    assert json.loads(first[0].text)["source"] == "0.jpg"
    assert json.loads(third[0].text)["source"] == "2.jpg"


def test_a_service_wants_a_predictor_that_returns_errors(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="on_error"):
        Service(load_predictor(predictor.model))


# Start


def test_a_taken_port_and_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with running.bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1 port {port} cannot be served at") as told:
            running.bound("127.0.0.1", port)
        assert "take another" in str(told.value)
    with pytest.raises(UserError, match="expected 0 to 65535, got 70000"):
        running.bound("127.0.0.1", 70000)
    with pytest.raises(UserError, match="cannot be served at"):
        running.bound("x" * 70, 0)  # no name: nobody is asked
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"effbackbones\[serve\]"):
        running.require_packages()


def test_files_in_memory_are_looked_for_nowhere(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is one of a file, or a folder, here changes nothing that is said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert "the file is empty" in predictor.read(Encoded("there", b"")).error  # type: ignore[union-attr]
    assert "not in one of the formats" in predictor.read(Encoded("there", b"x")).error  # type: ignore[union-attr]
    array = np.zeros((20, 30, 3), np.uint8)
    np.save(tmp_path / "a.npy", array)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").unlink()
    assert predictor(Encoded("a.npy", content)).size == (20, 30)


def test_the_dockerfile_copies_what_is_there_and_starts_what_is_understood() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"pyproject.toml", "effbackbones", "heads", "tasks"} <= set(sources)
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    for name in sources:
        assert (ROOT / name).exists()
        assert f"!{name}" in let_through
    entry = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT "))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert entry[0] in project["scripts"]
    request = parse(entry[1], entry[2:])
    assert (request.verb, request.extras.own["host"], request.extras.own["port"]) == ("serve", "0.0.0.0", 8000)
    extras = re.search(r"\.\[([\w,]+)\]", "\n".join(lines))
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)
