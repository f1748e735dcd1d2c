"""The verb ``bench``: size, speed and memory of a model, here."""

import json
from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import torch

from effbackbones.export.record import files_of
from effbackbones.inference.exported import ExportedModel
from effbackbones.model import Model
from tasks.data.door.reading import image_spec
from tasks.engine import assembly
from tasks.engine.cost import ROUNDS, WARM_UP, latency, multiply_adds, peak_memory
from tasks.engine.hardware import Hardware
from tasks.report.metricsfile import environment
from tasks.report.words import network
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.models import answering, as_asked

WIDTH = 80


def bench(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Parameters, multiply-adds, latency and peak memory of the configured model, here: JSON on standard output, and progress and
    a table for the eye on standard error."""
    hardware = Hardware.of(config)
    device = hardware.device
    model = assembly.load_or_make(config, task, extras.checkpoint)
    if extras.checkpoint:
        model = as_asked(config, extras, model)
    model.to(device)
    height, width = image_spec(config, model.image_spec).size
    record: dict[str, Any] = {
        "backbone": model.config["backbone"],
        "head": model.config["head"],
        "image_size": [height, width],
        **_work(model, height, width),
        "precision": hardware.precision,
        "threads": torch.get_num_threads(),
        **environment(),
        "latency": [],
    }
    exported = isinstance(model, ExportedModel)
    asked = extras.backend is not None or extras.dtype is not None
    if exported:
        variants = {"exported": answering(hardware, extras, model)}
    else:
        named = ", ".join(filter(None, ("for_inference", extras.backend, extras.dtype)))
        fast = answering(hardware, extras, model) if asked else (hardware, model.for_inference(backend="eager"))
        variants = {"plain": (hardware, model), named: fast}
    if config.run.compile and not exported:
        variants["for_inference, compiled"] = hardware, model.for_inference(backend="compile")
    cases = [(name, *variant, batch_size) for batch_size in (1, 16) for name, variant in variants.items()]
    tell, done = Teller(config.run.progress), 0
    with tell.bar(len(cases) * (WARM_UP + ROUNDS), 0, "bench", "call"):
        for name, arithmetic, variant, batch_size in cases:
            shape = (batch_size, len(model.image_spec.mean), height, width)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            images = images.contiguous(memory_format=torch.channels_last)

            def call(
                arithmetic: Hardware = arithmetic, variant: Model = variant, images: torch.Tensor = images
            ) -> None:
                nonlocal done
                with arithmetic.autocast():
                    variant.predict(images)
                done += 1

            def told(name: str = name, batch_size: int = batch_size) -> None:
                tell.step(done, WARM_UP + ROUNDS, {"model": name, "batch": str(batch_size)})

            milliseconds = latency(call, device, told)
            rate = 1e3 * batch_size / milliseconds
            record["latency"].append(
                {"model": name, "batch": batch_size, "ms": milliseconds, "images_per_second": rate}
            )
    record["peak_memory_mb"], record["peak_memory_of"] = peak_memory(device)
    print(json.dumps(record, indent=1))
    tell(table(record, device))
    return 0


def _work(model: Model, height: int, width: int) -> dict[str, Any]:
    """How large a model is; of an exported one the size of its file, for nobody can count in it."""
    if isinstance(model, ExportedModel):
        path, record = model.runtime.path, model.record
        size = sum(file.stat().st_size for file in files_of(path))
        about = {"format": record.format, "arithmetic": record.precision, "runtime": model.runtime.name}
        return {**about, "file_megabytes": size / 2**20}
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply_adds": multiply_adds(model, height, width)}


def table(record: Mapping[str, Any], device: torch.device) -> str:
    """What was measured, for the eye: lines of at most 80 columns."""
    size = " x ".join(map(str, record["image_size"]))
    lines = [
        *wrap(f"{network(record)} at {size}", WIDTH),
        _said_of_work(record),
        f"{record['precision']} on {device}" + (f", {record['threads']} threads" if device.type == "cpu" else ""),
        f"{'model':<28}{'batch':>6}{'ms':>12}{'images/s':>12}",
    ]
    for row in record["latency"]:
        lines.append(f"{row['model']:<28}{row['batch']:>6}{row['ms']:>12.2f}{row['images_per_second']:>12.1f}")
    lines.append(f"peak memory {record['peak_memory_mb']:,.0f} MB {record['peak_memory_of']}")
    return "\n".join(lines)


def _said_of_work(record: Mapping[str, Any]) -> str:
    if "parameters" in record:
        return f"{record['parameters'] / 1e6:.2f} M parameters, {record['multiply_adds'] / 1e9:.2f} G multiply-adds an image"
    return f"{record['format']} of {record['file_megabytes']:.1f} MB, {record['arithmetic']}, by {record['runtime']}"
