"""The options of the command line's verbs: what one is, those that verbs share, and the keys of a config that a trained model is used
without. Imports no verb."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effbackbones.errors import UserError, nearest
from effbackbones.numbers import plain_number, plain_whole


@dataclass(frozen=True)
class Option:
    """An option of verbs, by the name of its field in ``Extras`` (with dashes): its help, the ``values`` allowed (empty: any), and
    whether it is a ``flag``, which takes none, or names a ``path``. Of a verb's ``own`` (:class:`Verb`) also the ``type`` that its text is
    turned into (str, int or float), and the value that stands where it is not given."""

    help: str
    values: tuple[str, ...] = ()
    flag: bool = False
    path: bool = False
    type: type = str
    default: Any = None

    def value(self, text: str, where: str) -> Any:
        """What ``text`` says; what is no value of its type raises :class:`UserError` naming ``where``."""
        if self.values and text not in self.values:
            raise UserError(where, f"unknown {where.lstrip('-')} {text!r}", nearest(text, self.values))
        try:
            value = _READERS[self.type](text)
            if self.type is float and not math.isfinite(value):
                raise ValueError(text)
        except ValueError:
            raise UserError(where, f"expected {TYPES[self.type]}, got {text!r}", "correct it") from None
        return value

    @property
    def limits(self) -> str:
        """What its help says besides, as an option that one verb has alone."""
        kind = " or ".join(self.values) or ("" if self.type is str else TYPES[self.type])
        default = "" if self.default is None or self.flag else f"default {self.default}"
        said = "; ".join(filter(None, (kind, default)))
        return f" ({said})" if said else ""


_READERS: Mapping[type, Callable[[str], Any]] = {str: str, int: plain_whole, float: plain_number}
TYPES: Mapping[type, str] = {str: "a text", int: "a whole number", float: "a number"}
"""The types that the text of an option is turned into, in words."""

MODEL = "run folder, model file or exported graph, or hf-hub:USER/NAME"
"""What may stand for a trained model."""
OPTIONS = {
    "config": Option("YAML file, or the name of a bundled config", path=True),
    "checkpoint": Option(
        f"{MODEL}; without --config the run's own config holds",
        path=True,
    ),
    "split": Option("train, val or test (default val)", ("train", "val", "test")),
    "out": Option("folder for the results", path=True),
    "predictions": Option("file of predictions to score in place of a model", path=True),
    "threshold": Option(
        "from which score on boxes, labels and classes that overlap count; a pixel less sure has no class, of two classes the second is "
        "where it is surer (default: what gave the best F1 in training, else 0.3 for boxes and 0.5; JSON then has boxes below it too)"
    ),
    "top-k": Option(
        "at most so many classes, or boxes, of an image (default: all boxes, all classes up to 100, else 5)"
    ),
    "tta": Option(
        "other looks at each image, whose answers are averaged: flip, factors of the size, or both (flip,0.8,1.25)"
    ),
    "slices": Option(
        "of detectors: large images in pieces of so many pixels, that overlap by so many (default: a quarter), and with a look at all of "
        "it for objects that fit in no piece: 640 or 640,128 or 640,128,whole"
    ),
    "backend": Option(
        "what answers, compared with the model on the first images: eager (folded, fused), compile, onnxruntime, openvino; auto takes the "
        "quickest that is installed (default: the model as it is)",
        ("auto", "eager", "compile", "onnxruntime", "openvino"),
    ),
    "dtype": Option(
        "of the arithmetic with a backend (auto where none is named); bfloat16 if the processor has it, float16 on a GPU",
        ("float32", "bfloat16", "float16"),
    ),
    "write": Option(
        "forms of the results, with commas between them: of classes json, of boxes coco, yolo, yolo_scores, of pixels masks; of each "
        "pictures, csv, parquet, and default for what is written without this option"
    ),
    "every": Option("of videos and streams take one frame in so many"),
    "format": Option(
        "onnx, torch_export or openvino (default: by the name of --out); for TensorRT run trtexec --onnx=FILE.onnx"
        " --saveEngine=FILE.engine, for CoreML coremltools.convert(torch.export.load('FILE.pt2'))",
        ("onnx", "torch_export", "openvino"),
    ),
    "preprocess": Option(
        "part of the graph: none (normalised floats in), normalize (default: bytes of the model's size in), resize (bytes of any size in)",
        ("none", "normalize", "resize"),
    ),
    "postprocess": Option(
        "part of the graph: none (raw output), predict (default: probabilities, boxes after suppression), answer (top 5, a label"
        " for each pixel)",
        ("none", "predict", "answer"),
    ),
    "precision": Option("fp32 (default), fp16, or int8: static, calibrated on 128 training images, or on those named"),
    "certify": Option("number of images that file and model are compared on (default 32)"),
    "bound": Option(
        "AGREEMENT,CHANGE: the least share that must agree, and the most that a score may change: 0.995,0.001"
    ),
    "fixed": Option("one image size, for runtimes that want it so", flag=True),
    "nearest": Option("for each image so many others whose features are most like its own, as CSV beside --out"),
    "deep": Option(
        "look at what takes minutes too: targets, scores of the ground truth, images learnt by heart", flag=True
    ),
    "print-config": Option("show each value of the config and where it comes from, and do nothing", flag=True),
}
OF_CONFIGS = ("config", "print-config")
"""Options of every verb that works on a config."""
OF_TRAINING = (
    "optim",
    *(
        f"data.{name}"
        for name in (
            *("scale", "ratio", "augment", "flip", "randaugment", "color_jitter", "erasing", "mixup", "cutmix"),
            *("vertical_flip", "scale_jitter", "mosaic", "close_mosaic", "crop_size", "min_box"),
            *("repeat_threshold", "balance"),
        )
    ),
    *(
        f"run.{name}"
        for name in (
            *("out", "resume", "eval_every", "patience", "save_minutes", "log_every"),
            *("tensorboard", "loggers", "join_timeout"),
        )
    ),
)
"""What a trained model is evaluated without."""
OF_DATA = tuple(
    f"data.{name}"
    for name in (
        *("name", "root", "train", "val", "test", "split_by", "split_group", "division", "labels", "multilabel"),
        *("on_error", "keep_empty", "allow_bad_boxes", "crowd", "limit_train", "limit_val"),
    )
)
"""What images without labels are predicted without."""
