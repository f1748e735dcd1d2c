"""Where a run is logged beside its folder: TensorBoard, CSV, W&B and MLflow, by Lightning's loggers.

A logger that is not installed is refused before the run. One that fails as it starts or writes is told in a line and left out from
there: no training ends because of it. W&B and MLflow continue the same run there when a run is continued here
(``loggers.json`` keeps its name); without a network ``WANDB_MODE=offline`` keeps all in the run folder, as MLflow does by itself.
"""

import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from effbackbones.errors import UserError, nearest
from effbackbones.weights.tensorfile import write_atomically
from tasks.data.batch import KeyedDataset
from tasks.data.sampling import spread
from tasks.report.metricsfile import flatten
from tasks.settings.sections import Config
from tasks.settings.tree import to_mapping
from tasks.spec import TaskSpec

NAMES = ("tensorboard", "csv", "wandb", "mlflow")
PROJECT = "effbackbones"
"""Of W&B and experiment of MLflow, unless WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME name others."""
SAMPLES = 12
"""Training samples on a picture."""
_KEPT = "loggers.json"


def check_loggers(names: Sequence[str]) -> None:
    """Refuse names of loggers that are unknown or not installed by a :class:`UserError`."""
    for name in names:
        if name not in NAMES:
            raise UserError("run.loggers", f"there is no logger {name!r}", nearest(name, NAMES))
        if not _installed(name):
            remedy = f"pip install {name}, or leave it out of run.loggers"
            raise UserError("run.loggers", f"{name} is not installed", remedy)


def _installed(name: str) -> bool:
    return name == "csv" or importlib.util.find_spec(name) is not None


def open_loggers(
    task: TaskSpec, config: Config, folder: Path, tell: Callable[[str], None], samples: KeyedDataset, step: int
) -> "Loggers":
    """The loggers that a config names, and TensorBoard where that is installed; they get the config, and those that were named some
    training ``samples`` as they go into the network."""
    run = config.run
    names = [*(("tensorboard",) if run.tensorboard and _installed("tensorboard") else ()), *run.loggers]
    loggers = Loggers(folder, names, dict(flatten(to_mapping(config))), tell)
    if run.loggers and loggers.show_pictures:
        rows = spread(len(samples), SAMPLES).tolist()
        sheet = task.sheet([samples[0, row] for row in rows], task.classes(config, samples.dataset))
        if sheet is not None:
            loggers.picture(step, "training_samples", sheet)
    return loggers


class Loggers:
    """The loggers ``names`` of the run in ``folder``; ``config`` (``section.key`` to value) is logged at once."""

    def __init__(
        self, folder: Path, names: Sequence[str], config: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        self.folder, self.tell = folder, tell
        self._open: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            self._try(name, lambda name=name: self._start(name, config))  # type: ignore[misc]  # mypy knows no defaults of lambdas

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """The numbers among ``figures``, at ``step``."""
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
        for name, logger in [*self._open.items()]:
            shown = {re.sub(r"[^\w\-./ ]", "_", key): value for key, value in numbers.items()}  # all that MLflow takes
            self._try(name, lambda logger=logger, shown=shown: logger.log_metrics(shown, step))  # type: ignore[misc]

    @property
    def show_pictures(self) -> bool:
        """Whether any of them takes pictures."""
        return any(name != "csv" for name in self._open)

    def picture(self, step: int, title: str, pixels: NDArray[np.uint8]) -> None:
        """A picture [H, W, 3]."""
        for name, logger in [*self._open.items()]:
            self._try(name, lambda name=name, logger=logger: _picture(name, logger, step, title, pixels))  # type: ignore[misc]

    def close(self) -> None:
        """Write what is left."""
        for name, logger in [*self._open.items()]:
            self._try(name, lambda name=name, logger=logger: _close(name, logger))  # type: ignore[misc]
        self._open = {}

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # a library's and its server's; none is worth a training
            self._open.pop(name, None)
            text = " ".join(str(error).split())[:200] or type(error).__name__
            self.tell(f"warning: logger {name} fails and is left out from here: {text}")

    def _start(self, name: str, config: Mapping[str, Any]) -> None:
        logger = self._made(name)
        if name == "tensorboard":  # whose table of hyperparameters is for comparing runs by a final score
            text = "\n".join(f"    {key}: {value}" for key, value in config.items())
            logger.experiment.add_text("config", text)
        elif name != "csv":  # beside it lies config.yaml
            logger.log_hyperparams(dict(config))
        self._open[name] = logger
        if name == "mlflow":
            self._keep(name, logger.run_id)

    def _made(self, name: str) -> Any:
        """Lightning's logger of that name. Those of W&B and MLflow belong to a package that takes seconds to import."""
        folder = str(self.folder)
        if name == "tensorboard":
            from lightning.fabric.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        if name == "csv":
            from lightning.fabric.loggers.csv_logs import CSVLogger

            return CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)  # each start writes a version of its own
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            project = os.environ.get("WANDB_PROJECT", PROJECT)
            word = self._kept().get(name) or uuid4().hex[:8]
            self._keep(name, word)
            return WandbLogger(name=self.folder.name, save_dir=folder, project=project, id=word, resume="allow")
        from lightning.pytorch.loggers import MLFlowLogger

        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # newer ones ask for it; a database needs the whole package
        return MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=self.folder.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
            save_dir=str(self.folder / "mlruns"),
            run_id=self._kept().get(name),
        )

    def _kept(self) -> dict[str, str]:
        """By what name W&B and MLflow know this run."""
        try:
            kept = json.loads((self.folder / _KEPT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _keep(self, name: str, word: str | None) -> None:
        write_atomically(self.folder / _KEPT, json.dumps({**self._kept(), name: word}).encode())


def _picture(name: str, logger: Any, step: int, title: str, pixels: NDArray[np.uint8]) -> None:
    if name == "tensorboard":
        logger.experiment.add_image(title, pixels, step, dataformats="HWC")
    elif name == "wandb":
        logger.log_image(title, [pixels], step)
    elif name == "mlflow":
        logger.experiment.log_image(logger.run_id, pixels, artifact_file=f"{title}-{step}.png")


def _close(name: str, logger: Any) -> None:
    logger.finalize("success")
    if name == "wandb":
        logger.experiment.finish()
