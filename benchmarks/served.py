"""The verb ``serve`` under load on this machine: are all answers those of the predictor, how long do they take, does its memory grow.

    python benchmarks/served.py --requests 1000 --at-once 8
    python benchmarks/served.py --checkpoint runs/detect/bccd --images photos

Starts the verb in a process of its own, sends it images over so many connections, and at the end, with requests on their way, SIGTERM. One
line of JSON: answers that differ from ``Predictor`` called directly (none may), milliseconds of the 50th and 99th of a hundred, requests a
second, images in a batch on average, megabytes of the process after the first hundred requests and at the end, and what the signal lost.
"""

import argparse
import http.client
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from effbackbones import build_model, load_predictor, save_model
from effbackbones.images.opening import Encoded

LAST = 16
"""Requests that are on their way when the signal comes."""


class Served:
    """The verb in a process, ready for requests."""

    def __init__(self, model: str, *more: str) -> None:
        line = [sys.executable, "-m", "tasks.run", "detect", "serve", "--checkpoint", model, "--port", "0", *more]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for text in self.process.stderr:
            print(text, end="", file=sys.stderr)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", text):
                self.port = int(found[1])
                return
        raise SystemExit("the service did not start")

    def megabytes(self) -> float:
        """Memory that it has now (Linux)."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else float("nan")

    def figures(self) -> dict[str, float]:
        """Its figures, by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def waiting(self) -> int:
        """Images that it has taken and not yet answered."""
        return int(self.figures()["effbackbones_queue_images"])


def pictures(folder: str | None, count: int) -> list[bytes]:
    """Files of a folder, or JPEGs of several sizes with something in them."""
    if folder:
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*.jp*g"))[:count]]
    found = []
    for number in range(count):
        random = np.random.default_rng(number)
        size = tuple(random.integers(200, 900, 2).tolist())
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def load(served: Served, images: list[bytes], requests: range, at_once: int) -> dict[int, tuple[int, Any, float]]:
    """Status, answer and seconds of each request, over so many connections at once; none where it was not answered."""
    numbers, answers = iter(requests), {}
    lock = threading.Lock()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            start = time.monotonic()
            connection.request("POST", "/predict", images[number % len(images)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            answers[number] = answer.status, content, time.monotonic() - start

    threads = [threading.Thread(target=ask) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main() -> int:
    """Measure and print; 1 where an answer is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", help="a model file or run folder; default: a small detector with random weights"
    )
    parser.add_argument("--images", help="folder of JPEGs; default: made ones of several sizes")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--threshold", default="0.05")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.checkpoint or f"{folder}/model.safetensors"
        if not given.checkpoint:
            small = build_model(task="det", backbone="b0", num_classes=3, backbone_options={"width": 0.5}).eval()
            small.use_image_spec(replace(small.image_spec, size=(128, 128)))
            save_model(small, model)
        images = pictures(given.images, 32)
        served = Served(model, "--threshold", given.threshold)
        began = load(served, images, range(100), given.at_once)
        early, start = served.megabytes(), time.monotonic()
        answers = began | load(served, images, range(100, given.requests), given.at_once)
        seconds, late, figures = time.monotonic() - start, served.megabytes(), served.figures()

        last: dict[int, Any] = {}
        ending = threading.Thread(target=lambda: last.update(load(served, images, range(LAST), LAST)))
        ending.start()
        while ending.is_alive() and served.waiting() < LAST // 2:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        ending.join()
        code = served.process.wait(60)
        direct = load_predictor(model, threshold=float(given.threshold))
        expected = [direct(Encoded("image", content)).to_dict() for content in images]
    wrong = [n for n, (status, content, _) in answers.items() if (status, content) != (200, expected[n % len(images)])]
    lost = [n for n in range(LAST) if n not in last or last[n][:2] != (200, expected[n % len(images)])]
    times = statistics.quantiles([one[2] * 1000 for one in answers.values()], n=100)
    told = {
        "requests": len(answers),
        "wrong": len(wrong),
        "p50_ms": round(times[49], 1),
        "p99_ms": round(times[98], 1),
        "per_second": round((given.requests - 100) / seconds, 1),
        "batch": round(figures["effbackbones_batch_images_sum"] / figures["effbackbones_batch_images_count"], 2),
        "mb_after_100": round(early, 1),
        "mb_at_end": round(late, 1),
        "lost_at_sigterm": len(lost),
        "exit_code": code,
    }
    print(json.dumps(told))
    return int(bool(wrong or lost or len(answers) != given.requests or code != 143))


if __name__ == "__main__":
    sys.exit(main())
