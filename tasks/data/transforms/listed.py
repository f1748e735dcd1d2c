"""The list ``data.augment``: transforms of albumentations and registered ones, by name with their arguments.

Each is made once before a run, by the checks of its own library, so that a mistake is one line with the field, such as
``data.augment[2].limit``. ``OneOf``, ``SomeOf``, ``RandomOrder`` and ``Sequential`` hold lists of albumentations' transforms.
"""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from effbackbones.errors import UserError, nearest
from effbackbones.registry import Registry
from tasks.data.sample import IGNORE, Sample, Transform
from tasks.data.transforms.library import Composed, library

T = TypeVar("T")
Step = str | Mapping[str, Any]
OF_SOUND = ("Equalizer", "Gain", "Polarity", "Speed", "TimeShift", "WhiteNoise", "BackgroundNoise")
"""Our own, of recordings."""
_OWN = {name: f"tasks.data.transforms.sounds:{name}" for name in OF_SOUND}
TRANSFORMS = Registry("transform", {"DrawLine": "tasks.data.transforms.lines:DrawLine", **_OWN})
CONTAINERS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")
FIELD = "data.augment"
_REFUSED = {
    "Normalize": "the model does that by itself",
    "ToFloat": "the model does that by itself",
    "FromFloat": "the model does that by itself",
    "Lambda": "its functions cannot stand in a config: write a transform of your own under @register_transform",
}


def register_transform(name: str) -> Callable[[T], T]:
    """Register a transform under ``name``, for the list ``data.augment``: a class or function that is called with the arguments
    of the list and gives a :class:`tasks.data.sample.Transform`, or a transform of albumentations."""
    return TRANSFORMS.register(name)


class Listed:
    """The transforms of a list, one after the other, as one. Picklable: they are made anew where it arrives. ``known``: arguments for
    those registered ones that have them, and are not given them in the list."""

    def __init__(self, steps: Sequence[Step], **known: Any) -> None:
        self.steps, self.known = tuple(steps), known
        self._made: list[Transform] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample after all of them."""
        if self._made is None:
            self._made = _rows(
                [_made(step, f"{FIELD}[{number}]", self.known) for number, step in enumerate(self.steps)]
            )
        for transform in self._made:
            sample = transform(sample, rng)
        return sample


def check_listed(steps: Sequence[Step], labels: Sequence[str], *, sets: bool = False) -> None:
    """Refuse a list of which a name or an argument is wrong, or a transform cannot move the ``labels`` (``boxes``, ``mask``; with
    ``sets`` one of sets of classes), by a :class:`UserError` that names the field."""
    for number, step in enumerate(steps):
        made = _made(step, where := f"{FIELD}[{number}]")
        for one in _inside(made):
            _refuse_unmoved(one, labels, where)
            if sets and getattr(one, "fill_mask", None) not in (None, 0, IGNORE):
                what = f"is {one.fill_mask}, and with data.multilabel masks have no numbers of classes"
                raise UserError(f"{where}.fill_mask", what, f"0 (no class), or {IGNORE} (ignored)")


def names_in(steps: Sequence[Step]) -> Iterator[str]:
    """The names in a list, also of what its containers hold. What is not a list of steps has none."""
    for step in steps:
        entries = {step: None} if isinstance(step, str) else step
        for name, arguments in entries.items() if isinstance(entries, Mapping) else ():
            yield name
            inner = arguments.get("transforms") if isinstance(arguments, Mapping) else arguments
            if isinstance(inner, list | tuple):
                yield from names_in(inner)


def _rows(made: Sequence[Any]) -> list[Transform]:
    """Made transforms as ours: those of albumentations that follow each other share a row."""
    result: list[Transform] = []
    row: list[Any] = []
    for number, one in enumerate([*made, None]):
        if one is not None and _of_library(one):
            row.append(one)
            continue
        if row:
            first, last = number - len(row), number - 1
            where = f"{FIELD}[{first}]" if first == last else f"{FIELD}[{first}..{last}]"
            result.append(Composed(row, f"{where} ({', '.join(type(each).__name__ for each in row)})"))
            row = []
        if one is not None:
            result.append(one)
    return result


def _made(step: Any, where: str, known: Mapping[str, Any] | None = None) -> Any:
    """The transform that a step says: one of albumentations, or a registered one."""
    name, arguments = _parts(step, where)
    if name in TRANSFORMS.names():
        maker = TRANSFORMS.get(name)
        arguments = {**{key: value for key, value in (known or {}).items() if key in _parameters(maker)}, **arguments}
        _check_names(name, maker, arguments, where)
        try:
            return maker(**arguments)
        except (TypeError, ValueError) as error:
            raise UserError(where, f"{name}: {error}", "correct its arguments") from error
    module = library()
    kind = _kind(module, name, where)
    if name in CONTAINERS:
        arguments = {**arguments, "transforms": _children(name, arguments.get("transforms"), f"{where}.transforms")}
        _check_names(name, kind, arguments, where)
        p = arguments.get("p", 1)
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:  # which the library lets pass
            raise UserError(f"{where}.p", f"expected a number in [0, 1], got {p!r}", "correct it")
        return _constructed(kind, arguments, where)
    _check_names(name, kind, arguments, where)
    given = {key: _constant(value) for key, value in arguments.items()}
    if given.get("mask_interpolation") not in (None, 0):
        what = "would mix the numbers of classes"
        raise UserError(f"{where}.mask_interpolation", what, "remove it: masks take the nearest pixel")
    parameters = _parameters(kind)
    if "fill_mask" in parameters and parameters["fill_mask"].default is not None:  # None: the mask stays as it is
        given.setdefault("fill_mask", IGNORE)
    if name == "CropNonEmptyMaskIfExists":
        given.setdefault("ignore_values", [IGNORE])
    _validate(kind, given, where)
    return _constructed(kind, given, where)


def _parts(step: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a step."""
    if isinstance(step, str):
        return step, {}
    if not isinstance(step, Mapping) or len(step) != 1:
        got = f"the names {', '.join(map(str, step))}" if isinstance(step, Mapping) and step else repr(step)[:60]
        what = f"expected one transform, its name or the name with its arguments, got {got}"
        raise UserError(where, what, "write - HorizontalFlip: {p: 0.5}")
    name, arguments = next(iter(step.items()))
    if name in CONTAINERS and isinstance(arguments, list | tuple):
        return name, {"transforms": list(arguments)}
    if not isinstance(arguments, Mapping | None):
        what = f"expected the arguments of {name} by name, got {arguments!r:.60}"
        raise UserError(where, what, f"write - {name}: {{p: 0.5}}")
    return name, dict(arguments or {})


def _kind(module: Any, name: str, where: str) -> Any:
    """albumentations' class of that name."""
    if name in _REFUSED:
        raise UserError(where, f"{name} has no place here: {_REFUSED[name]}", "remove it")
    kind = getattr(module, name, None)
    if name in CONTAINERS or _usable(module, kind):
        return kind
    if isinstance(kind, type) and issubclass(kind, module.BasicTransform | module.BaseCompose):
        raise UserError(where, f"{name} works on more than one image with its boxes and mask", "remove it")
    known = [word for word in dir(module) if word not in _REFUSED and _usable(module, getattr(module, word))]
    what = f"albumentations {module.__version__} has no transform {name!r}, and none is registered under it"
    close = difflib.get_close_matches(name, [*known, *CONTAINERS, *TRANSFORMS.names()], n=3, cutoff=0.5)
    raise UserError(where, what, f"did you mean {' or '.join(close)}?" if close else "its documentation lists them")


def _usable(module: Any, kind: Any) -> bool:
    """Whether it changes a single image, given that, its boxes and its mask."""
    if not isinstance(kind, type) or not issubclass(kind, module.ImageOnlyTransform | module.DualTransform):
        return False
    if kind in (module.ImageOnlyTransform, module.DualTransform) or issubclass(kind, module.Transform3D):
        return False
    return not any(
        word.endswith("metadata_key") or word in ("font_path", "cropping_bbox_key") for word in _parameters(kind)
    )


def _children(name: str, steps: Any, where: str) -> list[Any]:
    """What a container holds."""
    if not isinstance(steps, list | tuple) or not steps:
        raise UserError(where, f"{name} needs a list of transforms", f"write - {name}: [HorizontalFlip, VerticalFlip]")
    made = [_made(step, f"{where}[{number}]") for number, step in enumerate(steps)]
    for number, one in enumerate(made):
        if not _of_library(one):
            what = f"{name} of albumentations holds that library's own transforms alone"
            raise UserError(f"{where}[{number}]", what, "put it into the list itself")
    return made


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters


def _check_names(name: str, maker: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that ``maker`` does not take, and missing ones."""
    parameters = _parameters(maker)
    named = [key for key, one in parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    open_ = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for key in arguments:
        if key not in named and not open_:
            raise UserError(f"{where}.{key}", f"{name} has no such argument", nearest(key, named))
    missing = [key for key in named if parameters[key].default is inspect.Parameter.empty and key not in arguments]
    if missing:
        raise UserError(
            where,
            f"{name} needs {' and '.join(missing)}",
            f"write - {name}: {{{', '.join(f'{key}: ...' for key in missing)}}}",
        )


def _constant(value: Any) -> Any:
    """A value of YAML as Python's; OpenCV's constants by their names, such as ``INTER_CUBIC`` and ``cv2.BORDER_REFLECT``."""
    if isinstance(value, list):
        return tuple(_constant(item) for item in value)
    if isinstance(value, str) and value.removeprefix("cv2.").startswith(("INTER_", "BORDER_")):
        import cv2  # loaded with albumentations by now

        return getattr(cv2, value.removeprefix("cv2."), value)
    return value


def _validate(kind: Any, given: Mapping[str, Any], where: str) -> None:
    """albumentations' own checks of the arguments, as one line. Its constructor lets some failures pass with a warning."""
    schema, parameters = getattr(kind, "InitSchema", None), _parameters(kind)
    defaults = {key: one.default for key, one in parameters.items() if one.default is not inspect.Parameter.empty}
    for key, value in given.items():  # which the schema would take for 1 and 0
        if isinstance(value, bool) and "bool" not in str(parameters[key].annotation):
            raise UserError(
                f"{where}.{key}", f"expected {parameters[key].annotation}, got {str(value).lower()}", "correct it"
            )
    if schema is None:
        return
    try:
        schema(**{**defaults, **given, "strict": False})
    except ValueError as error:  # that of pydantic is one
        found = error.errors() if hasattr(error, "errors") else []
        raise _refusal(found, str(error), given, defaults, where) from None


def _refusal(
    found: Sequence[Mapping[str, Any]], text: str, given: Mapping[str, Any], defaults: Mapping[str, Any], where: str
) -> UserError:
    """What a schema says of the first argument that it refuses, as one line."""
    field = next((str(one["loc"][0]) for one in found if one["loc"]), "")
    told = [str(one["msg"]) for one in found if not field or (one["loc"] and one["loc"][0] == field)]
    told = [one.removeprefix("Value error, ") for one in told] or [" ".join(text.split())]
    said = " or ".join(dict.fromkeys(one[:1].lower() + one[1:] for one in told))
    remedy = f"its default is {defaults[field]!r}" if field in defaults else "correct it"
    if not field:
        return UserError(where, said, "correct its arguments")
    return UserError(f"{where}.{field}", f"{said}, got {given.get(field)!r}", remedy)


def _constructed(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hints at other transforms; what it refuses was asked for before
            return kind(**given)
    except (TypeError, ValueError) as error:
        raise UserError(where, " ".join(str(error).split())[:200], "correct its arguments") from None


def _of_library(made: Any) -> bool:
    """Whether it is a transform of albumentations; asking does not import that."""
    return any(each.__module__.partition(".")[0] == "albumentations" for each in type(made).__mro__)


def _inside(made: Any) -> list[Any]:
    """It, or what it holds."""
    return [one for child in made.transforms for one in _inside(child)] if hasattr(made, "transforms") else [made]


def _refuse_unmoved(made: Any, labels: Sequence[str], where: str) -> None:
    """Refuse a transform that moves pixels and not the labels on them."""
    if not _of_library(made) or not isinstance(made, library().DualTransform):
        return
    moved = {target.name for target in np.atleast_1d(np.array(made._targets, object))}
    for label, target in (("boxes", "BBOXES"), ("mask", "MASK")):
        if label in labels and target not in moved:
            raise UserError(where, f"{type(made).__name__} moves pixels and cannot move {label}", "remove it")
