"""Two ways to do the same, timed in turns, so that a busy machine slows both."""

import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Run = Callable[[], None]


def forward(network: Callable[[Tensor], object], images: Tensor) -> Run:
    """A pass of ``network`` without gradients."""

    def run() -> None:
        with torch.inference_mode():
            network(images)

    return run


def step(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor]) -> Run:
    """A training step: ``loss``, backward, one step of SGD."""
    optimiser = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    def run() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(loss())
        optimiser.step()

    return run


def compare(ours: Run, theirs: Run, rounds: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the quartiles of their ratio, over interleaved rounds after one to warm up."""
    seconds: dict[Run, list[float]] = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for run in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            run()
            if number:
                seconds[run].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs]), statistics.quantiles(ratios, n=4)


def report(case: str, peer: str, ours: Run, theirs: Run, rounds: int) -> None:
    """Print the times of both, and the median of the ratios ours / theirs with its quartiles."""
    mine, others, (low, middle, high) = compare(ours, theirs, rounds)
    print(
        f"{case:46} ours {mine * 1e3:8.1f} ms  {peer} {others * 1e3:8.1f} ms  ratio {middle:.2f} ({low:.2f}-{high:.2f})",
        flush=True,
    )
