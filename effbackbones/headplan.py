"""The heads of a model: planned before their backbone exists, built on it, and given what a weight file holds for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from effbackbones.contracts import BackboneNeeds, FeatureSpec, Head, head_option_types
from effbackbones.errors import UserError, nearest
from effbackbones.multihead import LossWeights, MultiHead
from effbackbones.optiontypes import checked, takes_null
from effbackbones.registry import DEFAULT_CLASSES, DEFAULT_HEADS, HEADS, TASKS
from effbackbones.weights.loading import LoadReport
from effbackbones.weights.pretrained import Adopted, Decided, Pretrained

NEEDS = ("output_stride", "tap")
"""What of a head's needs is an option of the backbone by the same name, besides the levels."""


@dataclass(frozen=True)
class HeadPlan:
    """One head before its backbone exists: class, classes, options, and what it needs (``own_levels``: the user chose the
    levels)."""

    name: str
    head: type[Head]
    num_classes: int
    options: Mapping[str, Any]
    needs: BackboneNeeds
    own_levels: bool

    def build(self, spec: FeatureSpec, weights: Pretrained | None) -> tuple[Head, Decided]:
        """The head on the maps of ``spec`` that it needs, and its options: those given and those that ``weights`` decide."""
        names = tuple(name for name in spec.names if name in self.needs.levels)
        if self.own_levels and len(names) < len(self.needs.levels):
            names = spec.names  # the user's choice; the head checks its spec
        if not names:
            what = f"{self.head.__name__} needs {', '.join(self.needs.levels)}, got {', '.join(spec.names)}"
            raise UserError(
                f"backbone {spec.backbone!r}",
                what,
                "choose another head, or name the levels by their strides (C5 is 32)",
            )
        spec, decided = spec.select(names), Decided(dict(self.options))
        if weights:
            decided = self.head.options_with(weights, self.options, spec, self.num_classes)
        return self.head(spec, self.num_classes, **decided.options), decided


def plan_head(
    task: str,
    head: str | None,
    num_classes: int | None,
    options: Mapping[str, Any] | None,
    backbone_options: Mapping[str, Any],
) -> HeadPlan:
    """The head for ``task``; None stands for the defaults. What the user said of the backbone wins over what the head asks for,
    also where two heads disagree. What does not go together raises :class:`UserError`."""
    if head is None and task not in DEFAULT_HEADS:
        remedy = f"{nearest(task, DEFAULT_HEADS)}; or name a registered head"
        raise UserError(f"task {task!r}", "no head is built in for it", remedy)
    name = HEADS.canonical(head or DEFAULT_HEADS[task])
    kind: type[Head] = HEADS.get(name)
    if not isinstance(getattr(kind, "task", None), str):
        raise UserError(
            f"head {name!r}", f"{kind.__name__} does not say its task", f"write task = {task!r} in the class"
        )
    if TASKS.canonical(kind.task) != task:
        raise UserError(f"head {name!r}", f"is for task {kind.task!r}, not {task!r}", "choose another head or task")
    if num_classes is None and task not in DEFAULT_CLASSES:
        raise UserError("num_classes", f"task {task!r} has no default", "give it")
    explicit = {key: backbone_options[key] for key in NEEDS if backbone_options.get(key) is not None}
    options = _typed(kind, options or {})
    return HeadPlan(
        name,
        kind,
        DEFAULT_CLASSES[task] if num_classes is None else checked("num_classes", num_classes, int),
        options,
        replace(kind.requires(**options), **explicit),
        backbone_options.get("levels") is not None,
    )


def _typed(head: type[Head], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` without those that are null where the head takes no null: they stand for the default. One of another type than
    the head's signature says raises :class:`UserError`; unknown ones the head refuses itself."""
    types, found = head_option_types(head), {}
    for name, value in options.items():
        hint = types.get(name, Any)
        if value is not None or name not in types or takes_null(hint):
            found[name] = checked(f"head_options.{name}", value, hint) if name in types else value
    return found


def by_task(name: str, value: Any, tasks: Sequence[str], several: bool) -> dict[str, Any]:
    """An argument of ``build_model`` by task: with several, a dict whose keys are theirs."""
    if not several:
        return {tasks[0]: value}
    if value is not None and not isinstance(value, Mapping):
        raise UserError(name, f"expected a dict by task, got {value!r}", f"write {{{tasks[0]!r}: ...}}")
    found = {TASKS.canonical(key): item for key, item in (value or {}).items()}
    for key in found:
        if key not in tasks:
            raise UserError(f"{name}[{key!r}]", "is not among the tasks", nearest(key, tasks))
    return {task: found.get(task) for task in tasks}


@contextmanager
def task_named(task: str, several: bool) -> Iterator[None]:
    """Inside, what is wrong with an option of a head names the task too, where there are several."""
    try:
        yield
    except UserError as error:
        if several and str(error).startswith("head_options."):
            raise UserError(str(error).replace("head_options", f"head_options[{task!r}]", 1)) from None
        raise


class BuiltHeads(NamedTuple):
    """The head of a model (of several tasks, a :class:`MultiHead`), the options that the heads were built with, by task, and what
    they took of the weights (None: nothing was there for them). ``untrained``: some head got nothing, or not all."""

    head: Head
    options: Mapping[str, dict[str, Any]]
    remarks: tuple[str, ...] = ()
    adopted: Adopted | None = None
    untrained: bool = False


def build_heads(
    plans: Mapping[str, HeadPlan],
    spec: FeatureSpec,
    weights: Pretrained | None,
    *,
    several: bool,
    loss_weights: LossWeights = None,
) -> BuiltHeads:
    """The heads of ``plans`` (by task) on a backbone of ``spec``. Of the weights takes over the head that knows most of their
    entries by name."""
    built = {}
    for task, plan in plans.items():
        with task_named(task, several):
            built[task] = plan.build(spec, weights)
    heads = {task: head for task, (head, _) in built.items()}
    options = {task: decided.options for task, (_, decided) in built.items()}
    top = MultiHead(spec, heads, loss_weights) if several else next(iter(heads.values()))
    if weights is None:
        return BuiltHeads(top, options)
    remarks = tuple(remark for _, decided in built.values() for remark in decided.remarks)
    offered = weights.for_heads
    candidates = [top, *heads.values()] if several else [top]
    head = max(candidates, key=lambda head: len(offered.keys() & head.state_dict().keys()))
    if not offered.keys() & head.state_dict().keys():
        left = tuple(name for name in offered if name not in weights.tail)
        started = tuple(name for name in head.state_dict() if not name.endswith("num_batches_tracked"))
        report = LoadReport(f"head from {weights.origin}", (), started, left, tuple(weights.tail))
        return BuiltHeads(top, options, remarks, Adopted(report) if offered else None, untrained=True)
    adopted = head.adopt(weights)
    if head is not top:  # one of several: the classes of the others are not known
        adopted = replace(adopted, classes=None)
    return BuiltHeads(top, options, remarks, adopted, head is not top or bool(adopted.report.reinitialised))
