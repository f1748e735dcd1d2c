"""Two ways to do the same, timed in turns, so that a busy machine slows both."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], None]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Bench:
    """Where and how two sides are timed; ``name`` is the network's, ``batch`` and ``side`` what its pictures are."""

    name: str
    rounds: int
    device: torch.device
    precision: str
    batch: int
    side: int | None
    json: Path | None

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast to the precision asked for, in a fresh context; nothing for fp32."""
        dtype = _DTYPES[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def forward(self, network: Callable[[Tensor], object], images: Tensor) -> Run:
        """A pass of ``network`` without gradients."""

        def run() -> None:
            with torch.inference_mode(), self.arithmetic():
                network(images)

        return run

    def step(self, parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor]) -> Run:
        """A training step: ``loss``, backward, one step of SGD."""
        optimiser = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

        def run() -> None:
            optimiser.zero_grad()
            with self.arithmetic():
                value = loss()
            torch.autograd.backward(value)
            optimiser.step()

        return run

    def report(self, case: str, peer: str, ours: Run, theirs: Run) -> None:
        """Print the times of both and the median of the ratios ours / theirs with its quartiles; add them to the JSON file."""
        mine, others = self._timed(ours, theirs)
        ratios = [a / b for a, b in zip(mine.seconds, others.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        first, second = statistics.median(mine.seconds) * 1e3, statistics.median(others.seconds) * 1e3
        times = f"{case:46} ours {first:8.2f} ms  {peer} {second:8.2f} ms  ratio {middle:.2f} ({low:.2f}-{high:.2f})"
        memory = f"  peak {mine.peak / 1e6:.0f} and {others.peak / 1e6:.0f} MB" if mine.peak else ""
        print(f"{times}{memory}", flush=True)
        if self.json:
            row = {
                "case": case,
                "peer": peer,
                "ours_ms": first,
                "peer_ms": second,
                "ratio": middle,
                "quartiles": [low, high],
            }
            told = {name: str(value) for name, value in asdict(self).items() if name != "json"}
            peaks = {"ours_peak_bytes": mine.peak, "peer_peak_bytes": others.peak} if mine.peak else {}
            with self.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told | row | peaks) + "\n")

    def _timed(self, *runs: Run) -> "list[_Times]":
        """Seconds of each run over interleaved rounds, after two to warm up, and what it had on the GPU at most."""
        times = [_Times([], self._peak(run)) for run in runs]
        for number in range(self.rounds + 2):
            order = list(zip(runs, times, strict=True))
            for run, found in order if number % 2 else order[::-1]:
                self._wait()
                start = time.perf_counter()
                run()
                self._wait()
                if number > 1:
                    found.seconds.append(time.perf_counter() - start)
        return times

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self, run: Run) -> int:
        """Bytes that a second run has on the GPU at most, its weights included; 0 on the CPU."""
        if self.device.type != "cuda":
            return 0
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


@dataclass
class _Times:
    seconds: list[float]
    peak: int


def arguments(description: str | None, name: str, *, batch: int, side: int | None = None) -> Bench:
    """Read the command line of a benchmark, and say what it runs on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=name, help="of the network, such as %(default)s")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(_DTYPES), default="fp32", help="of the arithmetic, by autocast")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument(
        "--side", type=int, default=side, help="of the images in pixels; default: %(default)s, None the published one"
    )
    parser.add_argument("--json", type=Path, help="file that gets a line for each row")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if found.device == "cuda" else f"CPU, {found.threads} threads"
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    print(
        f"torch {torch.__version__}, {where}, OMP_WAIT_POLICY {policy}, {found.name}, {found.precision}, batch {found.batch}"
    )
    device = torch.device(found.device)
    return Bench(found.name, found.rounds, device, found.precision, found.batch, found.side, found.json)
