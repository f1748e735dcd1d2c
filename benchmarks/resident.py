"""Training images a second of classification from the loader and from images that stay on the device (``data.device_cache``).

    python -m benchmarks.resident DATA [--device cpu|cuda] [--batches 40]
DATA holds train/CLASS/* and test/CLASS/*, as of the config cifar10. On a processor: images a
second of this process's own time, one thread and no loader process on either side, so that what else runs counts for little. On a GPU:
of the clock, with a loader process a core.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from itertools import islice

import torch

from effbackbones.build import build_model
from effbackbones.errors import UserError
from effbackbones.registry import TASKS
from tasks.data.door.reading import image_spec
from tasks.engine import feeding
from tasks.engine.order import Share
from tasks.engine.splits import open_splits
from tasks.settings.commandline import parse


def main() -> int:
    """Exit code 0; 2 for what can be mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--limit", type=int, default=10000)
    try:
        measure(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(options: argparse.Namespace) -> None:
    """Both ways one after the other, the loader first; the time to the first batch, and the median of the others."""
    if options.batches < 1:
        raise UserError("--batches", f"is {options.batches}", "give at least 1")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise UserError("--device", f"{options.device} was asked for, and PyTorch sees no GPU here", "use --device cpu")
    line = ["--config", "cifar10", "--data.root", options.data, "--run.device", options.device]
    on_processor = options.device == "cpu"
    if on_processor:
        torch.set_num_threads(1)
        line += ["--data.workers", "0"]
    clock = time.process_time if on_processor else time.perf_counter
    config = parse("classify", [*line, "--data.limit_train", str(options.limit)]).config
    task = TASKS.get("cls")
    train = open_splits(config, task)["train"]
    model = build_model(backbone="b0", **task.heads(config, train))
    model.use_image_spec(image_spec(config, model.image_spec))
    for cached in (False, True):
        asked = replace(config, data=replace(config.data, device_cache=cached))
        feed, _ = feeding.training_feed(asked, task, train, model)
        begun = clock()
        batches = iter(feed.steps(Share(), 0, options.batches + 1))
        next(batches).to(options.device)
        first = clock() - begun
        rates = []
        start = clock()
        for batch in islice(batches, options.batches):
            batch.to(options.device)
            if not on_processor:
                torch.cuda.synchronize()
            rates.append(len(batch) / (clock() - start))
            start = clock()
        name = "device_cache" if cached else f"loader, {feeding.workers(config)} processes"
        print(f"{name}: {statistics.median(rates):,.0f} images/s (median batch), first batch after {first:.1f} s")


if __name__ == "__main__":
    raise SystemExit(main())
