"""What the command line knows of its verbs: a row for each. Imports none of them.

A new verb is a file with a function of its name, and a row here. One that works on a config is called with the task, the config
and the :class:`tasks.settings.commandline.Extras`; one whose row says ``config="none"`` with the extras alone, and neither a
task nor torch is loaded for it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from effbackbones.errors import UserError, nearest
from tasks.settings.verboptions import MODEL, OF_CONFIGS, OF_DATA, OF_TRAINING, OPTIONS, TYPES, Option


@dataclass(frozen=True)
class Verb:
    """A row: the function ``name`` in ``module``, what it does in a line, the names of its ``options``, whether it takes ``inputs``
    (words without dashes, which help calls ``words``), whether it works on a ``config``: one that must be named, or one that may be,
    and the sections and keys of it that are ``unread`` where a trained model is given: what a command line says there is told to
    change nothing. ``assumes``: by command, the bundled config that is meant where none is named. ``own``: options that no other verb
    has, whose values are in ``Extras.own`` by their names with underscores. ``says``: what a shared option means to this verb, in
    place of the help that it has for all."""

    name: str
    module: str
    help: str
    options: tuple[str, ...] = ()
    config: Literal["needed", "optional", "none"] = "optional"
    inputs: bool = False
    unread: tuple[str, ...] = ()
    own: Mapping[str, Option] = field(default_factory=dict)
    words: str = "INPUT ..."
    assumes: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> dict[str, tuple[Option, str]]:
        """The options that go with it and what each says, the shared ones first."""
        shared = {
            name: (option, self.says.get(name, option.help)) for name, option in OPTIONS.items() if self.takes(name)
        }
        return shared | {name: (option, option.help + option.limits) for name, option in self.own.items()}

    def reads(self, key: str, *, split: bool = False) -> bool:
        """Whether it makes something of a dotted key of the config where a trained model is given, and perhaps a ``split`` of data."""
        if split and key in OF_DATA:
            return True
        return not any(key == name or key.startswith(f"{name}.") for name in self.unread)

    def takes(self, option: str) -> bool:
        """Whether the option goes with it."""
        return option in self.options or option in self.own or (option in OF_CONFIGS and self.config != "none")

    @property
    def defaults(self) -> dict[str, Any]:
        """``Extras.own`` where the line says nothing of it."""
        return {name.replace("-", "_"): False if option.flag else option.default for name, option in self.own.items()}


_SERVING = {
    "host": Option("address to listen at; 0.0.0.0 is every address of this machine", default="127.0.0.1"),
    "port": Option("port to listen at; 0 takes a free one", type=int, default=8000),
    "device": Option("cpu, cuda, cuda:1; auto takes a GPU where there is one", default="auto"),
    "batch-size": Option("most images that the model gets at once", type=int, default=8),
    "wait-ms": Option("milliseconds that the first image of a batch waits for others", type=float, default=5.0),
    "queue": Option("images that may wait; a request beyond them is answered with 503", type=int, default=64),
    "max-bytes": Option("most bytes of a request, else 413", type=int, default=20_000_000),
    "max-pixels": Option("most pixels of an image, as its header says, else 422", type=int, default=64_000_000),
    "max-files": Option("most files in a form, else 413", type=int, default=16),
}
"""Options of verbs that answer over HTTP."""
VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "train",
            "tasks.verbs.train",
            "train, then evaluate the best weights",
            config="needed",
            own={
                "seeds": Option(
                    "so many runs, with run.seed and the numbers after it, and how far they spread", type=int
                ),
                "grid": Option("a run for each combination of values of keys: '{optim.lr: [0.001, 0.003]}'"),
            },
        ),
        Verb(
            "evaluate",
            "tasks.verbs.evaluate",
            "score a model, or a file of predictions, on a split",
            ("checkpoint", "split", "out", "predictions", "tta", "slices", "backend", "dtype"),
            unread=OF_TRAINING,
            says={"out": "folder for the results (default: evaluate-SPLIT in the run's folder)"},
        ),
        Verb(
            "predict",
            "tasks.verbs.predict",
            "predict images that have no labels, videos and streams",
            ("checkpoint", "split", "out", "threshold", "top-k", "tta", "slices", "every", "write", "backend", "dtype"),
            inputs=True,
            unread=(*OF_TRAINING, *OF_DATA, "run.monitor", "run.metrics"),
            says={
                "out": "folder for the results (default: predictions)",
                "split": "instead of INPUT: the images of train, val or test, by their ids in its files",
            },
        ),
        Verb(
            "check",
            "tasks.verbs.check",
            "look at data and model before a long run",
            ("checkpoint", "out", "deep"),
            config="needed",
            says={
                "checkpoint": "run whose config is looked at, in place of --config",
                "out": "folder for pictures of samples (default: runs/TASK/check-CONFIG)",
            },
        ),
        Verb(
            "export",
            "tasks.verbs.export",
            "write a trained model as a graph for other runtimes, compared with it on real images",
            (
                "checkpoint",
                "out",
                "split",
                "format",
                "preprocess",
                "postprocess",
                "precision",
                "certify",
                "bound",
                "fixed",
            ),
            inputs=True,
            unread=OF_TRAINING,
            says={
                "out": "the file to write: .onnx, .pt2 or .xml",
                "split": "without INPUT: train, val or test, whose images file and model are compared on (default val)",
            },
        ),
        Verb(
            "prune",
            "tasks.verbs.prune",
            "take the channels out of a trained model that matter least; the file it writes is an ordinary one",
            ("checkpoint", "out", "split"),
            says={
                "out": "the file to write: .safetensors",
                "split": "train, val or test, which the models are scored on (default val)",
            },
            unread=tuple(key for key in OF_TRAINING if not key.startswith("data.")),
            own={
                "target": Option("multiply-adds of an image that may stay: a share (0.5x) or a number (200M, 0.2G)"),
                "by": Option(
                    "how channels are ranked: by how much the loss on training images changes without them (taylor), on which batch norms "
                    "are then taken anew, or by the size of their weights, which needs no data (magnitude)",
                    values=("taylor", "magnitude"),
                    default="taylor",
                ),
                "batches": Option("batches of training images that taylor looks at", type=int, default=10),
                "multiple": Option("the channels that stay are a multiple of this number", type=int, default=8),
                "unscored": Option("leave out the scores before and after", flag=True),
            },
        ),
        Verb(
            "bench",
            "tasks.verbs.bench",
            "size, speed and memory of a model, here",
            ("checkpoint", "backend", "dtype"),
            unread=(*OF_TRAINING, *OF_DATA),
        ),
        Verb(
            "plan",
            "tasks.verbs.plan",
            "which backbone, image size and batch fit into this machine: memory, time and latency, foreseen and tried",
            ("out",),
            says={"out": "YAML file for the config that trains what is chosen"},
            assumes={"classify": "imagenet", "detect": "coco", "segment": "coco", "joint": "coco"},
            own={
                "memory": Option("memory that a process may take: 12G, 800M (default: what is free here)"),
                "latency": Option("time that one image may take: 15ms, 0.5s (default: any)"),
                "device": Option("as run.device: auto, cpu, cuda:1"),
                "backbone": Option(
                    "backbones to choose from, with commas between them (default: the family of the config's)"
                ),
                "head": Option("as model.head"),
                "batch": Option(
                    "as data.batch_size: images of each step, into however many pieces it is split", type=int
                ),
                "for": Option("what must fit: training or prediction", values=("train", "predict"), default="train"),
                "images": Option(
                    "training images, from which hours are told (default: those of the config's data)", type=int
                ),
                "no-verify": Option("leave out the trial of what is chosen at its full size", flag=True),
            },
        ),
        Verb(
            "embed",
            "tasks.verbs.embed",
            "write pooled features of images, and which are nearest to which",
            ("checkpoint", "out", "nearest"),
            says={"out": "the file to write: .npy or .parquet (default: embeddings.npy)"},
            inputs=True,
            unread=(*OF_TRAINING, *OF_DATA, "run.monitor", "run.metrics"),
        ),
        Verb(
            "serve",
            "tasks.verbs.serve",
            "answer requests for predictions over HTTP",
            ("checkpoint", "threshold", "top-k", "tta", "slices", "backend", "dtype"),
            config="none",
            says={"checkpoint": MODEL},
            own=_SERVING,
        ),
        Verb(
            "demo",
            "tasks.verbs.demo",
            "try a model in a browser: the service, with a page at /demo",
            ("checkpoint", "threshold", "top-k", "tta", "slices", "backend", "dtype"),
            config="none",
            says={"checkpoint": MODEL},
            own={
                "open": Option("open the page in a browser", flag=True),
                **_SERVING,
            },
        ),
        Verb(
            "compare",
            "tasks.verbs.compare",
            "say whether runs differ: RUN_A RUN_B [...], the first against each other, on the same images",
            ("out", "split"),
            says={
                "out": "folder for compare.html and compare.json (default: neither is written)",
                "split": "train, val or test (default: of those that all were scored on the one that says most)",
            },
            config="none",
            inputs=True,
            words="RUN_A RUN_B ...",
        ),
        Verb(
            "push",
            "tasks.verbs.push",
            "put a trained model on the Hugging Face Hub as USER/NAME, with a card of what was measured",
            ("checkpoint",),
            config="none",
            says={"checkpoint": "run folder or model file"},
            inputs=True,
            words="USER/NAME",
            own={
                "licence": Option("licence of the model, as the Hub abbreviates it: apache-2.0"),
                "message": Option("message of the commit", default="Upload model"),
                "private": Option("if the repository is new, let nobody but you see it", flag=True),
            },
        ),
        Verb(
            "list",
            "tasks.verbs.list",
            "what there is: backbones, heads, weights, configs, datasets, tasks; those of plug-ins too",
            config="none",
            inputs=True,
            words="KIND [NAME ...]",
            own={
                "json": Option("all that is known, as JSON", flag=True),
                "on": Option("of heads: a backbone to build each on, whose parameters and multiply-adds are counted"),
            },
        ),
        Verb(
            "weights",
            "tasks.verbs.weights",
            "what a file of weights is, and what it would load into; weights fetch NAME: published ones, into the cache",
            config="none",
            inputs=True,
            words="FILE|RUN ...",
            own={
                "json": Option("all that is known, as JSON", flag=True),
                "backbone": Option("of fetch: which backbone, where several share a name of weights"),
                "cache": Option("of fetch: the folder to fetch into", path=True),
            },
        ),
        Verb(
            "completion",
            "tasks.verbs.completion",
            "the script by which a shell completes this command: bash, zsh or fish; its first line says where it goes",
            config="none",
            inputs=True,
            words="SHELL",
        ),
    )
}
DEFAULT = "train"
"""The verb of a command line that names none."""
F = TypeVar("F", bound=Callable[..., int])


def register_verb(
    help: str,
    *,
    options: tuple[str, ...] = (),
    own: Mapping[str, Option] = {},
    config: Literal["needed", "optional", "none"] = "optional",
    inputs: bool = False,
) -> Callable[[F], F]:
    """Register a function of a plug-in as the verb of its name; ``--plugins`` on the command line brings it in. Called with
    (task, config, extras), or with the extras alone where ``config`` is ``none``; returns an exit code. The fields are those of
    :class:`Verb`: ``options`` names some of :data:`tasks.settings.verboptions.OPTIONS`, ``own`` are its own, as in
    ``own={"least-depth": Option("...", type=int, default=3)}``, which the function finds in ``extras.own["least_depth"]``. Names that are
    taken, by another file, and unknown options raise :class:`UserError`."""

    def register(function: F) -> F:
        name, module = function.__name__, function.__module__
        if name in VERBS and VERBS[name].module != module:
            raise UserError(f"verb {name!r}", f"is that of {VERBS[name].module}", "give the function another name")
        for option in options:
            if option not in OPTIONS:
                raise UserError(f"verb {name!r}", f"there is no option {option!r}", nearest(option, OPTIONS))
        _check_own(name, own)
        VERBS[name] = Verb(name, module, help, options, config, inputs, own=dict(own))
        return function

    return register


def _check_own(verb: str, own: Mapping[str, Option]) -> None:
    """Refuse options that the command line could not tell from others, or read."""
    for name, option in own.items():
        where = f"verb {verb!r}, option {name!r}"
        if name in OPTIONS or name in ("help", "plugins", "version"):
            raise UserError(where, "is one that verbs share", "name it among its options, or call yours something else")
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise UserError(where, "expected small letters, digits and single dashes", "rename it")
        if option.type not in TYPES:
            what = f"expected one of {', '.join(kind.__name__ for kind in TYPES)} as its type, got {option.type!r}"
            raise UserError(where, what, "turn its text into more in the verb")
        if option.flag and option.default not in (None, False):
            raise UserError(where, "is a flag, which is false where it is not given", "leave out its default")
