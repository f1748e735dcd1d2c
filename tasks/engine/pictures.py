"""Predictions of a run as it goes: a few validation images with what is found in them, for loggers that take pictures."""

from collections.abc import Callable

import numpy as np
import torch

from effbackbones.drawing.boxes import Picture, grid
from effbackbones.errors import UserError
from effbackbones.inference.predictor import Predictor
from effbackbones.inference.results import Failed, Values
from effbackbones.model import Model
from tasks.data.dataset import Dataset
from tasks.data.sampling import spread
from tasks.data.transforms.alone import fit_of
from tasks.engine import hardware
from tasks.engine.loggers import Loggers
from tasks.engine.state import RunState
from tasks.settings.sections import Config
from tasks.spec import TaskSpec

SHOWN, COLUMNS = 8, 4
"""Images on a sheet, and in a row of it."""
SIDE = 400
"""Pixels of the longest side of each."""


def show_predictions(
    task: TaskSpec,
    config: Config,
    state: RunState,
    weights: str,
    dataset: Dataset,
    loggers: Loggers,
    tell: Callable[[str], None],
) -> None:
    """Give the loggers that a config names a sheet of predictions by the weights called so. No training ends because that fails.

    A compiled network is not asked: it would be compiled anew for another batch."""
    if not config.run.loggers or not loggers.show_pictures or config.run.compile:
        return
    try:
        with state.weights(weights):
            sheets = drawn_predictions(task, config, state.model, dataset, hardware.run_device(config))
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        tell(f"warning: predictions cannot be drawn for the loggers: {text}")
        return
    for title, sheet in sheets.items():
        loggers.picture(state.step, title, sheet)


def drawn_predictions(
    task: TaskSpec, config: Config, model: Model, dataset: Dataset, device: torch.device
) -> dict[str, Picture]:
    """Images spread over a data set with what ``model`` finds in them, on a sheet [H, W, 3] by title, one for each task; none of what
    cannot be drawn. The model's mode is as before."""
    images = []
    for index in spread(len(dataset), SHOWN).tolist():
        try:
            images.append(dataset[index].image)
        except UserError:  # the evaluation has told of it
            continue
    training = model.training
    try:
        fit, precision = fit_of(task.transform(config, model, train=False)), hardware.precision(config, device)
        results = Predictor(model, device=device, batch_size=SHOWN, on_error="return", precision=precision, fit=fit)(
            images
        )
    finally:
        model.train(training)
    found: dict[str, list[Picture]] = {}
    for result in results:
        parts = (
            {f"predictions_{word}": one for word, one in result.items()}
            if isinstance(result, dict)
            else {"predictions": result}
        )
        for title, one in parts.items():
            if not isinstance(one, Failed | Values):
                found.setdefault(title, []).append(np.asarray(one.draw(SIDE)))
    return {title: grid(drawn, COLUMNS) for title, drawn in found.items()}
