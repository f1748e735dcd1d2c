"""The verb ``export``: a trained model as a graph for other runtimes, with a certificate that it says what the model says."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError
from effbackbones.export.certificate import Bounds
from effbackbones.export.exporting import export_model, file_format
from effbackbones.export.record import beside, files_of
from effbackbones.model import Model
from effbackbones.numbers import plain_number
from tasks.data.dataset import Dataset
from tasks.data.sampling import Repeated, spread
from tasks.engine import assembly, splits
from tasks.engine.evaluation import monitor, score_model
from tasks.engine.hardware import Hardware
from tasks.settings.commandline import Extras
from tasks.settings.data import DataConfig
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.inputs import image_files
from tasks.verbs.limits import count_of
from tasks.verbs.models import as_model, asked_model, data_classes

IMAGES, CALIBRATION = 32, 128
"""Images of a certificate, and of a calibration."""


def export(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Write the model of ``--checkpoint`` to ``--out``, where it agrees with the model on images of the data, or those named."""
    if not extras.out:
        raise UserError("--out", "no file is named", "give --out FILE.onnx, FILE.pt2 or FILE.xml")
    tell, out = Teller(config.run.progress), Path(extras.out)
    file_format(out, extras.format)  # all that the line says, before the work
    bounds, count = _bounds(extras), count_of("--certify", extras.certify) or IMAGES
    if "run.device" in extras.overrides and config.run.device != "cpu":
        tell("run.device changes nothing: graphs are made and compared on the processor")
    config = replace(config, run=replace(config.run, device="cpu"))
    model, classes, config = asked_model(task, config, extras, tell, require_classes=False)
    model.classes = model.classes or classes
    # The same images for both, of the one size that a graph may have.
    config = replace(config, data=replace(config.data, batch_shape="fixed"))
    calibration: Any
    if extras.inputs:
        files: list[Any] = [str(file) for file in image_files(extras.inputs)]
        images, scores, calibration = files[:count], None, files[:CALIBRATION]
        tell("named images have no labels: agreement is measured, no score")
    else:
        dataset = _data(task, config, extras, model, classes)
        some = Repeated(dataset, spread(len(dataset), count))
        images = [some[row].image for row in range(len(some))]
        scores = _scores(task, as_model(config, model), some, classes, tell)
        calibration = _calibration(task, config, extras, model, classes) if extras.precision == "int8" else ()
    record = export_model(
        model,
        out,
        images=images,
        format=extras.format,
        preprocessing=extras.preprocess,
        postprocessing=extras.postprocess,
        precision=extras.precision,
        dynamic_size=False if extras.fixed else None,
        bounds=bounds,
        scores=scores if extras.postprocess == "predict" and extras.preprocess != "none" else None,
        calibration=calibration,
        origin=str(assembly.checkpoint_file(extras.checkpoint)) if extras.checkpoint else None,
        tell=tell,
    )
    for name, pair in (record.certificate or {}).get("scores", {}).items():
        print(f"{name} {pair['model']:.6g} {pair['exported']:.6g}")
    size = sum(file.stat().st_size for file in files_of(out))
    tell(f"exported {out}, {size / 2**20:.1f} MB; certificate {beside(out)}")
    return 0


def _bounds(extras: Extras) -> Bounds | None:
    if extras.bound is None:
        return None
    try:
        agreement, score = (plain_number(part) for part in extras.bound.split(","))
    except ValueError:
        agreement = score = -1.0
    if not (0 <= agreement <= 1 and 0 <= score <= 1):
        raise UserError(
            "--bound", f"expected two numbers of 0 to 1, AGREEMENT,CHANGE, got {extras.bound!r}", "correct it"
        )
    return replace(Bounds.of(extras.precision, extras.preprocess), agreement=agreement, score=score)


def _data(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> Dataset:
    """The split that the certificate is measured on."""
    if config.data == DataConfig():
        raise UserError("--checkpoint", "no run is named whose data could be looked at", _REMEDY)
    try:
        return splits.open_dataset(config, task, extras.split, data_classes(task, config, extras, model, classes))
    except UserError as error:
        raise UserError(str(error), "", _REMEDY) from None


_REMEDY = "the certificate needs real images: name some after the options, or the data by --config or --data.root"


def _scores(
    task: TaskSpec, config: Config, dataset: Dataset, classes: Any, tell: Teller
) -> Callable[[Any], Mapping[str, float | None]]:
    """What a model scores on the images of the certificate, by the score that chose it."""
    name = monitor(task, config, classes).name

    def scores(model: Any) -> dict[str, float | None]:
        found, *_ = score_model(
            task,
            config,
            model,
            dataset=dataset,
            classes=classes,
            hardware=Hardware.of(config),
            tell=tell,
            observe=False,
            strict=True,
        )
        return {name: found[name]}

    return scores


def _calibration(task: TaskSpec, config: Config, extras: Extras, model: Model, classes: Any) -> list[Any]:
    """Training images, from which the ranges of whole numbers are taken; none of the certificate's."""
    dataset = splits.open_dataset(config, task, "train", data_classes(task, config, extras, model, classes))
    return [dataset[row].image for row in spread(len(dataset), CALIBRATION).tolist()]
