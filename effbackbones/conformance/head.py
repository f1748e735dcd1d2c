"""The promises of a head, one function each: it yields a sentence for everything that breaks the promise."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from effbackbones.conformance.case import HeadCase
from effbackbones.conformance.comparing import (
    changed,
    compile_holds,
    difference,
    export_holds,
    listed,
    not_finite,
    snapshot,
    tensors,
    unreached,
)
from effbackbones.conformance.predict import fixed_shapes, predict_pure, valid_extent
from effbackbones.contracts import LEVELS, BackboneNeeds, Head, ImageSizes
from effbackbones.errors import UserError

_NOTHING = 1e-5  # of a loss against itself, whose parts cancel but for rounding
_RANDOM = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)


def options_refused(case: HeadCase) -> Iterator[str]:
    """What a head cannot use it refuses: unknown options, no classes."""
    for what, classes, options in (
        ("an unknown option", case.num_classes, {"no_such_option": 1}),
        ("num_classes=0", 0, {}),
    ):
        try:
            case.head_class(case.spec, classes, **{**case.options, **options})
        except UserError:
            continue
        except Exception as error:
            yield f"{what} raises {type(error).__name__}, not UserError"
        else:
            yield f"{what} is accepted"


def declared(case: HeadCase) -> Iterator[str]:
    """``task``, ``requires``, ``size_divisor`` and ``min_size`` say what they should."""
    head, needs = case.build(), case.head_class.requires(**case.options)
    if not isinstance(head.task, str) or not head.task:
        yield f"task must be a word, got {head.task!r}"
    if not isinstance(needs, BackboneNeeds) or not needs.levels or not set(needs.levels) <= set(LEVELS):
        yield f"requires() must be a BackboneNeeds of known levels, got {needs}"
    if head.spec != case.spec or head.num_classes != case.num_classes:
        yield "spec and num_classes must be kept as given: call super().__init__(spec, num_classes, **options)"
    if head.size_divisor < 1 or head.min_size < 1:
        yield f"size_divisor and min_size must be positive, got {head.size_divisor} and {head.min_size}"


def raw_output(case: HeadCase) -> Iterator[str]:
    """The raw output is a tensor, or a tuple or dict of tensors."""
    head = case.build()
    raw = head(*case.inputs(head))
    if odd := [type(leaf).__name__ for leaf in pytree.tree_leaves(raw) if not isinstance(leaf, Tensor)]:
        yield f"it holds {listed(odd)}"


def mode_independent(case: HeadCase) -> Iterator[str]:
    """Train and eval mode differ by dropout and batch norm alone; loss and predict do not look at the mode."""
    head = case.build().eval()
    features, sizes = case.inputs(head)
    targets = case.make_targets(sizes, case.num_classes, False)
    raw, before = head(features, sizes), snapshot(head)
    with torch.no_grad():
        losses, predictions = head.loss(raw, targets, sizes), head.predict(raw, sizes)
        head.train()
        for module in head.modules():
            if isinstance(module, _RANDOM) or "drop" in type(module).__name__.lower():
                module.eval()
        for what, got, expected in (
            ("forward", head(features, sizes), raw),
            ("loss", head.loss(raw, targets, sizes), losses),
            ("predict", head.predict(raw, sizes), predictions),
        ):
            if said := difference(got, expected):
                yield f"{what} depends on the mode: {said}"
    if names := changed(before, head):
        yield f"running without dropout and batch norm changed {listed(names)}"


def batch_independent(case: HeadCase) -> Iterator[str]:
    """In eval mode an image's raw output does not depend on its neighbours."""
    head = case.build().eval()
    features, sizes = case.inputs(head)
    with torch.no_grad():
        together = tensors(head(features, sizes))
        alone = tensors(head([f[:1] for f in features], ImageSizes(sizes.batch, sizes.valid[:1])))
    for one, many in zip(alone, together, strict=True):
        if one.shape != many.shape and (said := difference(one, many[:1])):
            yield said


def loss_scalar(case: HeadCase) -> Iterator[str]:
    """``loss`` is a dict of named scalars that carry a gradient."""
    losses = case.losses(case.build().train())
    if not isinstance(losses, dict) or not losses or not all(isinstance(name, str) for name in losses):
        yield f"expected a dict of named losses, got {losses!r}"[:200]
        return
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim:
            yield f"{name!r} is {type(value).__name__} of shape {list(getattr(value, 'shape', []))}, not a scalar tensor"
    if not any(isinstance(value, Tensor) and value.requires_grad for value in losses.values()):
        yield "no loss carries a gradient"


def loss_finite(case: HeadCase) -> Iterator[str]:
    """Losses and gradients are finite, also for a batch without any object or labelled pixel."""
    for empty in (False, True):
        head = case.build().train()
        losses = case.losses(head, empty)
        where = "without any object or label" if empty else "on random targets"
        if names := [name for name, value in losses.items() if not bool(value.isfinite().all())]:
            yield f"{listed(names)} not finite {where}"
        _back(losses)
        if names := not_finite(head):
            yield f"gradients not finite {where}: {listed(names)}"


def loss_pure(case: HeadCase) -> Iterator[str]:
    """``loss`` gives the same value twice, changes no state, and leaves raw output and targets as they are."""
    head = case.build().train()
    features, sizes = case.inputs(head)
    raw, targets = head(features, sizes), case.make_targets(sizes, case.num_classes, False)
    given, before = [t.detach().clone() for t in tensors((raw, targets))], snapshot(head)
    first, second = head.loss(raw, targets, sizes), head.loss(raw, targets, sizes)
    if said := difference(second, first, 0.0):
        yield f"a second call differs: {said}"
    if names := changed(before, head):
        yield f"it changed {listed(names)}"
    if said := difference(tensors((raw, targets)), given, 0.0):
        yield f"it changed its arguments: {said}"


def no_sync(case: HeadCase) -> Iterator[str]:
    """``loss``, ``count``, ``distill`` and ``select`` never ask for a value or shape that only the data knows: a GPU's queue would stop."""
    head = case.build().train()
    features, sizes = case.inputs(head)
    given = (head(features, sizes), case.make_targets(sizes, case.num_classes, False), sizes, torch.tensor([1]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        raw, targets, sizes, rows = (
            pytree.tree_map_only(Tensor, lambda t: mode.from_tensor(t.detach()), tree) for tree in given
        )
        head.loss(raw, targets, sizes)
        head.count(targets, sizes)
        head.select(raw, rows)
        if type(head).distill is not Head.distill:
            head.distill(raw, raw, head.prepare(raw, targets, sizes), sizes)
    return iter(())


def select(case: HeadCase) -> Iterator[str]:
    """The loss on images chosen by ``select`` is that of a batch of these images alone."""
    head, rows = case.build().eval(), torch.tensor([2, 0])
    features, sizes = case.inputs(head, 3)
    few = sizes.select(rows)
    targets = case.make_targets(few, case.num_classes, False)
    with torch.no_grad():
        chosen, alone = head.select(head(features, sizes), rows), head([f[rows] for f in features], few)
        if said := difference(head.loss(chosen, targets, few), head.loss(alone, targets, few)):
            yield f"images {rows.tolist()} of 3: {said}"


def count(case: HeadCase) -> Iterator[str]:
    """Each loss in ``counted``, divided by the ``count`` of a whole batch, is the sum of its parts over the parts of that batch."""
    head = case.build().eval()
    if head.counted:
        features, sizes = case.inputs(head, 3)
        with torch.no_grad():
            raw = head(features, sizes)
        yield from _adds_up(case, head, sizes, head.counted, lambda rows, *given: head.loss(rows(raw), *given))


def distill(case: HeadCase) -> Iterator[str]:
    """A head that learns from a teacher loses nothing against itself; against another a gradient reaches its own output alone, and each
    loss in ``distilled`` is divided by its ``count``. What it and ``loss`` say is the same of the targets that ``prepare`` made."""
    head, other = case.build().eval(), case.build().eval()
    if type(head).distill is Head.distill:
        return
    head.check_teacher(other)
    features, sizes = case.inputs(head, 3)
    targets = case.make_targets(sizes, case.num_classes, False)
    raw = head(features, sizes)
    if lost := [name for name, value in head.distill(raw, raw, targets, sizes).items() if abs(value.item()) > _NOTHING]:
        yield f"{listed(lost)} not 0 against itself"
    theirs = other([feature.detach() for feature in features], sizes)
    losses = head.distill(raw, theirs, targets, sizes)
    prepared = head.prepare(raw, targets, sizes)
    both = head.distill(raw, theirs, prepared, sizes), head.loss(raw, prepared, sizes)
    if said := difference(both, (losses, head.loss(raw, targets, sizes)), 0.0):
        yield f"of prepared targets another loss: {said}"
    if odd := [name for name in losses if not name.rpartition("/")[2].startswith("distill")]:
        yield f"{listed(odd)} should begin with distill"
    _back(losses)
    if any(p.grad is not None for p in other.parameters()):
        yield "a gradient reaches the teacher"
    reached = [*features, *head.parameters()]  # of nets on detached maps the parameters alone
    if not any(t.grad is not None and bool(t.grad.any()) for t in reached) or not_finite(head):
        yield "no gradient, or one that is not finite, reaches the student"

    def lost_by(rows: Any, *given: Any) -> Mapping[str, Tensor]:
        return head.distill(rows(raw), rows(theirs), *given)

    with torch.no_grad():
        yield from _adds_up(case, head, sizes, head.distilled, lost_by)


def _adds_up(
    case: HeadCase,
    head: Head,
    sizes: ImageSizes,
    names: Collection[str],
    losses_of: Callable[..., Mapping[str, Tensor]],
) -> Iterator[str]:
    """Whether the losses ``names`` of three images are, by their counts, the sums of those of one and of two of them. ``losses_of`` gets
    what chooses rows of a raw output, targets and sizes."""
    targets = case.make_targets(sizes, case.num_classes, False)
    with torch.no_grad():
        losses, whole = losses_of(lambda raw: raw, targets, sizes), head.count(targets, sizes)
        own = {name for name in names if "/" not in name}  # of several heads some losses are there now and then
        if set(whole) != {*head.counted, *head.distilled} or not own <= set(losses):
            yield f"counted are {tuple(names)}, counts are {tuple(whole)}, the losses are {tuple(losses)}"
            return
        whole = {name: whole[name] for name in names if name in losses}
        sums, counts = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0.0)
        for rows in (torch.tensor([2]), torch.tensor([0, 1])):
            few, labels = sizes.select(rows), _chosen(targets, rows)
            parts, pieces = losses_of(partial(head.select, rows=rows), labels, few), head.count(labels, few)
            for name, total in whole.items():
                share = head.divisor(name, pieces[name]) / head.divisor(name, total)
                sums[name] += float(parts[name] * share)
                counts[name] += float(pieces[name])
    for name, total in whole.items():
        if said := difference(torch.tensor(counts[name]), total):
            yield f"{name}: the counts of the parts do not add up: {said}"
        elif said := difference(torch.tensor(sums[name]), losses[name]):
            yield f"{name} is not divided by its count: {said}"


def gradient_reach(case: HeadCase) -> Iterator[str]:
    """Every parameter and every map asked for takes part in the loss."""
    head = case.build().train()
    features, sizes = case.inputs(head)
    _back(head.loss(head(features, sizes), case.make_targets(sizes, case.num_classes, False), sizes))
    if names := unreached(head):
        yield f"no gradient reaches {listed(names)}"
    if ignored := [
        name for name, f in zip(case.spec.names, features, strict=True) if f.grad is None or not bool(f.grad.any())
    ]:
        yield f"the loss does not depend on {listed(ignored)}: leave it out of requires()"


def amp(case: HeadCase) -> Iterator[str]:
    """Losses and gradients are finite under bfloat16 autocast."""
    head = case.build().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = case.losses(head)
    if names := [name for name, value in losses.items() if not bool(value.isfinite().all())]:
        yield f"{listed(names)} not finite"
    _back(losses)
    if names := not_finite(head):
        yield f"gradients not finite: {listed(names)}"


def freeze(case: HeadCase) -> Iterator[str]:
    """Frozen (no gradients, eval mode) a head stays bit-equal and lets the gradient through to the features."""
    head = case.build().eval()
    features, sizes = case.inputs(head)
    targets = case.make_targets(sizes, case.num_classes, False)
    expected = head(features, sizes)
    head.requires_grad_(False)
    before = snapshot(head)
    raw = head(features, sizes)
    if said := difference(raw, expected):
        yield f"freezing changes the output: {said}"
    _back(head.loss(raw, targets, sizes))
    if names := [name for name, p in head.named_parameters() if p.requires_grad or p.grad is not None]:
        yield f"{listed(names)} thawed by itself"
    if names := changed(before, head):
        yield f"{listed(names)} changed while frozen"
    if all(f.grad is None for f in features):
        yield "no gradient passes through to the features"


def state_dict(case: HeadCase) -> Iterator[str]:
    """The state dict holds all that training changes: loaded into a fresh head it gives the same output and predictions."""
    trained = case.build().train()
    _back(case.losses(trained))
    torch.optim.SGD(trained.parameters(), lr=0.01).step()
    torch.manual_seed(1)
    fresh = case.build().eval()
    fresh.load_state_dict(trained.eval().state_dict())
    with torch.no_grad():
        features, sizes = case.inputs(trained)
        raw, expected = fresh(features, sizes), trained(features, sizes)
        if said := difference(raw, expected):
            yield f"after loading: {said}"
        if said := difference(fresh.predict(expected, sizes), trained.predict(expected, sizes)):
            yield f"predictions after loading: {said}"


def export(case: HeadCase) -> Iterator[str]:
    """``torch.export`` of a model with this head, with free batch, height and width, at sizes with and without padding."""
    model = case.model().eval()
    (height, width), (taller, wider) = case.size(model.head), case.size(model.head, 2)
    others = [(1, height, wider), (3, taller - 1, width + 5)]
    with torch.no_grad():
        yield from export_holds(model, torch.rand(2, 3, taller, wider), [torch.rand(b, 3, h, w) for b, h, w in others])


def compile(case: HeadCase) -> Iterator[str]:
    """``torch.compile`` of a model with this head, as one graph."""
    model = case.model().eval()
    with torch.no_grad():
        yield from compile_holds(model, [torch.rand(2, 3, *case.size(model.head, larger)) for larger in (0, 1)])


HEAD_PROMISES: dict[str, Callable[[HeadCase], Iterator[str]]] = {
    "options_refused": options_refused,
    "declared": declared,
    "raw_output": raw_output,
    "mode_independent": mode_independent,
    "batch_independent": batch_independent,
    "loss_scalar": loss_scalar,
    "loss_finite": loss_finite,
    "loss_pure": loss_pure,
    "no_sync": no_sync,
    "select": select,
    "count": count,
    "distill": distill,
    "gradient_reach": gradient_reach,
    "predict_pure": predict_pure,
    "fixed_shapes": fixed_shapes,
    "valid_extent": valid_extent,
    "amp": amp,
    "freeze": freeze,
    "state_dict": state_dict,
    "export": export,
    "compile": compile,
}


def _back(losses: Mapping[str, Tensor]) -> None:
    """Gradients of the objective, the sum of the losses."""
    torch.autograd.backward(torch.stack([value.float().sum() for value in losses.values()]).sum())


def _chosen(targets: Any, rows: Tensor) -> Any:
    """The targets of some images; the first dimension of every tensor is the batch."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[rows], targets)
