"""The settings of a run: frozen dataclasses, one per section, whose field docstrings are the help text.

Only plain types occur (numbers, text, truth values, tuples, dictionaries of options), so that no config can name code.
Every instance checks its own values: a number outside of its interval, not finite, or a word that is not a choice raises
:class:`UserError` naming ``section.field``. Imports nothing heavy, for ``--help`` reads this file.
"""

import math
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from effbackbones.errors import UserError, nearest
from tasks.settings.checks import Options, Section
from tasks.settings.data import DataConfig
from tasks.settings.distill import DistillConfig

_DEVICES = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network and what it starts from."""

    SECTION: ClassVar = "model"
    LIMITS: ClassVar = {
        "num_classes": "[1, 1000000]",
        "unfreeze_epoch": "[1, inf)",
        "mean": "[0, 1]",
        "std": "(0, 10]",
        "crop_fraction": "(0, 1]",
    }
    MEANT_FOR: ClassVar = {"crop_mode": ("cls",), "crop_fraction": ("cls",)}  # all others letterbox

    task: str | tuple[str, ...] = "cls"
    """Task, set by the command; of the command joint a list of them, such as [det, seg, cls]."""
    backbone: str = "b0"
    """b0..b7, lite0..lite4, timm:NAME, or a registered one; of recordings sound: and one of these."""
    head: str | None = None
    """Head; null: the task's default."""
    num_classes: int | None = None
    """Number of classes; null: counted in the training data."""
    weights: str | None = None
    """Pretrained weights: null, imagenet, a named source, or a file."""
    init_from: str | None = None
    """Checkpoint to start from; loads what fits and reports."""
    numerics: str | None = None
    """Padding and batch norm constants: torch, torch_tf, tf or same_static; null: what the weights were trained with."""
    backbone_options: Options = field(default_factory=dict)
    """Options of the backbone, such as {stem_stride: 1, drop_path: 0.1}."""
    head_options: Options = field(default_factory=dict)
    """Options of the head, such as {dropout: 0.3}."""
    norm: Literal["batch", "sync"] = "batch"
    """Batch norm over the images of each process (batch), or of all processes together (sync)."""
    freeze: str | None = None
    """Freeze the backbone from the stem through this level (stem, C1, ...), or all of it (all)."""
    unfreeze_epoch: int | None = None
    """Epoch (counted from 0) at whose start everything frozen becomes trainable; null: never."""
    mean: tuple[float, ...] | None = None
    """Mean per channel of images in 0..1; null: the weights' own."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel of images in 0..1; null: the weights' own."""
    normalization: Literal["weights", "data"] = "weights"
    """Mean and deviation of images: those of the weights (or mean and std), or measured on the training images (data)."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized; null: as the weights were trained."""
    crop_fraction: float | None = None
    """Share of the shorter side that the centre crop of evaluation keeps; null: the weights' own."""
    crop_mode: Literal["center", "squash", "letterbox", "window", "loop"] | None = None
    """Evaluation takes a centre crop (center) or the whole image, squashed or letterboxed; null: the weights' own, or the head's.
    Recordings are seen through windows, shorter ones padded with silence (window) or repeated (loop)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unfreeze_epoch is not None and self.freeze is None:
            raise UserError("model.unfreeze_epoch", "nothing is frozen", "set model.freeze too, or remove it")
        if self.weights is not None and self.init_from is not None:
            raise UserError("model.init_from", "contradicts model.weights", "keep one of the two")
        if self.normalization == "data" and (self.mean is not None or self.std is not None):
            what = "is data, and model.mean or model.std says something else"
            raise UserError("model.normalization", what, "keep one of the two")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UserError(
                "model.std", f"model.mean has {len(self.mean)} values, this {len(self.std)}", "give one per channel"
            )


@dataclass(frozen=True)
class HeadConfig(Section):
    """One head of several on a backbone, by its task (command joint)."""

    SECTION: ClassVar = "heads"
    LIMITS: ClassVar = {"weight": "[0, 1000]"}

    name: str | None = None
    """Head; null: the task's default."""
    options: Options = field(default_factory=dict)
    """Options of the head, such as {dropout: 0.3}."""
    weight: float = 1.0
    """Factor on the losses of this task."""


@dataclass(frozen=True)
class OptimConfig(Section):
    """How long and how the parameters are trained."""

    SECTION: ClassVar = "optim"
    LIMITS: ClassVar = {
        "lr": "[0, 1000]",
        "base_batch": "[1, inf)",
        "weight_decay": "[0, 10]",
        "momentum": "[0, 1)",
        "alpha": "[0, 1)",
        "betas": "[0, 1)",
        "eps": "(0, 1]",
        "layer_decay": "(0, 1]",
        "backbone_lr": "[0, 100]",
        "warmup_epochs": "[0, inf)",
        "warmup_steps": "[1, inf)",
        "warmup_start": "[0, 1]",
        "step_epochs": "(0, inf)",
        "step_gamma": "(0, 1]",
        "min_lr_fraction": "[0, 1]",
        "epochs": "(0, 100000]",
        "max_steps": "[1, inf)",
        "accumulate": "[1, 100000]",
        "clip_norm": "(0, inf)",
        "label_smoothing": "[0, 1)",
        "ema": "(0, 1)",
    }
    MEANT_FOR: ClassVar = {"class_weights": ("cls", "seg", "multi"), "task_weighting": ("multi",)}

    name: Literal["sgd", "adamw", "rmsprop_tf", "muon"] = "adamw"
    """Optimiser; muon: for kernels and matrices, with AdamW for depthwise kernels, norms and biases, at a learning rate of AdamW."""
    lr: float = 1e-3
    """Peak learning rate, stated at base_batch."""
    base_batch: int = 256
    """Global batch that lr is stated for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How lr follows the global batch."""
    weight_decay: float = 0.05
    """Weight decay: decoupled for adamw and muon, added to the gradient for sgd and rmsprop_tf."""
    decay_norm_and_bias: bool = False
    """Whether biases and batch norm parameters decay too."""
    momentum: float = 0.9
    """Momentum of sgd, rmsprop_tf and muon."""
    nesterov: bool = False
    """Nesterov momentum (sgd, muon)."""
    alpha: float = 0.9
    """Decay of the mean square gradient (rmsprop_tf)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment (adamw, muon)."""
    eps: float | None = None
    """Added for stability; null: 1e-8 for adamw and muon, 1e-3 for rmsprop_tf."""
    layer_decay: float | None = None
    """Factor on lr for each level further from the head; null: none."""
    backbone_lr: float = 1.0
    """Factor on lr for the whole backbone, beside layer_decay; the head has lr itself."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_epochs: float = 0.0
    """Linear warm-up, in epochs."""
    warmup_steps: int | None = None
    """Linear warm-up, in steps, in place of warmup_epochs."""
    warmup_start: float = 0.0
    """Where the warm-up starts, as a share of the peak."""
    step_epochs: float = 2.4
    """Epochs between two drops of the step schedule."""
    step_gamma: float = 0.97
    """Factor of each drop of the step schedule."""
    min_lr_fraction: float = 0.0
    """Where the cosine schedule ends (and the step schedule stops falling), as a share of the peak."""
    epochs: float = 10.0
    """Passes over the training data; a fraction ends within a pass."""
    max_steps: int | None = None
    """Optimiser steps, in place of epochs."""
    accumulate: int = 1
    """Pieces that a batch is split into when it does not fit in memory; batch norm then sees one piece at a time, and losses that no
    count adds up (dice, jaccard, tversky, lovasz) are of each piece by itself and averaged."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; null: not clipped."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    task_weighting: Literal["fixed", "uncertainty"] = "fixed"
    """How the losses of several tasks are added up (command joint): by heads.TASK.weight, or by learned variances."""
    class_weights: Literal["median_frequency", "balanced"] | None = None
    """Weights of the classes in the loss, from the training labels or masks (balanced: by inverse frequency; with several labels the
    weight of positives); null: none."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is then what is kept as best; null: none."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """What is learned from a teacher."""
    ema_start: Literal["first", "warmup"] = "first"
    """Where the moving average begins: at the first step, or after the warm-up (warmup), so that nothing of before is in it."""

    quantise: Literal["int8"] | None = None
    """What the weights are trained to be exported in: int8 rounds weights and maps as export --precision int8 does; null: nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.name not in ("sgd", "muon") or self.momentum == 0):
            raise UserError("optim.nesterov", "needs optim.name sgd or muon, with momentum", "remove it")

    def scaled_lr(self, batch: int) -> float:
        """Peak learning rate for a global ``batch``."""
        ratio = batch / self.base_batch
        return self.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[self.lr_scaling]


@dataclass(frozen=True)
class RunConfig(Section):
    """Where, on what and how the run goes; of this the seed and the precision are compared when a run is resumed."""

    SECTION: ClassVar = "run"
    LIMITS: ClassVar = {
        "seed": "[0, 4294967295]",
        "devices": "[0, 1024]",
        "nodes": "[1, 10000]",
        "save_minutes": "(0, inf)",
        "join_timeout": "(0, inf)",
        "eval_every": "[1, inf)",
        "patience": "[1, inf)",
        "log_every": "[1, inf)",
    }
    MEANT_FOR: ClassVar = {"probabilities": ("cls", "seg", "multi")}

    out: str | None = None
    """Run folder; null: runs/TASK/CONFIG, numbered when that is taken."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Where to run: auto (a GPU if there is one), cpu, gpu, cuda:N (the GPU of that number) or mps."""
    devices: int | tuple[int, ...] = 1
    """GPUs (or CPU processes) per node: how many, or a list of the GPUs' numbers, such as [0, 2]."""
    nodes: int = 1
    """Machines."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic; auto: bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Whether to compile the network."""
    deterministic: bool = False
    """Whether to allow only deterministic operations on GPUs, which is slower."""
    resume: str = "auto"
    """auto: continue the newest unfinished run of the same config; never; or a run folder to continue."""
    join_timeout: float = 180.0
    """Seconds within which all processes of a run must have come together."""
    save_minutes: float = 10.0
    """Minutes between two saves within an epoch."""
    progress: bool = True
    """Whether to show progress bars; false for log files."""
    eval_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    patience: int | None = None
    """Stop after so many evaluations without a better score; null: never."""
    log_every: int = 50
    """Steps between two log lines."""
    tensorboard: bool = True
    """Whether to write TensorBoard events, when that is installed."""
    loggers: tuple[str, ...] = ()
    """What else gets config, curves and pictures: tensorboard (must be installed then), csv, wandb, mlflow."""
    monitor: str | None = None
    """The score that chooses the best weights, such as macro_f1 or ece (lower is better); null: the task's own."""
    metrics: tuple[str, ...] = ()
    """Registered metrics (plugins) that are scored beside the task's own."""
    probabilities: bool = False
    """Whether predict writes the probability of every class (classification: of all, however many; segmentation: of each pixel)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device not in _DEVICES and not re.fullmatch("cuda:[0-9]{1,4}", self.device):
            raise UserError(
                "run.device", f"unknown value {self.device[:60]!r}", nearest(self.device, [*_DEVICES, "cuda:0"])
            )
        if isinstance(self.devices, int):
            if self.devices < 1:
                raise UserError("run.devices", "expected a number in [1, 1024], got 0", "correct it")
        elif not self.devices or min(self.devices) < 0 or len(set(self.devices)) < len(self.devices):
            what = f"expected different numbers of GPUs, counted from 0, got {list(self.devices)}"
            raise UserError("run.devices", what, "correct it")
        elif self.device not in ("auto", "gpu", "cuda"):
            what = f"names GPUs {list(self.devices)}, and run.device is {self.device}"
            raise UserError("run.devices", what, "remove one of the two, or give a count")
        if ":" in self.device and self.processes > 1:
            what = f"is {self.devices}, and run.device {self.device} is one GPU"
            raise UserError("run.devices", what, f"list them: [{self.device[5:]}, ...]")
        if self.device == "mps" and self.processes * self.nodes > 1:
            raise UserError("run.devices", f"is {self.devices}, and mps is one device", "set it to 1")

    @property
    def processes(self) -> int:
        """How many of this run's processes each machine has."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)


@dataclass(frozen=True)
class Config:
    """All settings of a run. ``plugins``: modules or Python files that are imported first; they run code."""

    model: ModelConfig = field(default_factory=ModelConfig)
    heads: dict[str, HeadConfig] = field(default_factory=dict)
    """A section for each task of the command joint; those of tasks that model.task does not list rest."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    recipe: str | None = None
    """A bundle of values for the task, quick or best, over those of bundled configs and below your own; null: none."""
    plugins: tuple[str, ...] = ()
    """Modules or Python files to import first. They run code: name only what you trust."""
