"""The promises of a backbone, one function each: it yields a sentence for everything that breaks the promise."""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from effbackbones.conformance.comparing import (
    changed,
    compile_holds,
    difference,
    export_holds,
    images,
    listed,
    not_finite,
    snapshot,
    unreached,
)
from effbackbones.contracts import Backbone, FeatureSpec, ImageSpec


class BackboneCase(NamedTuple):
    """A backbone to check, and the image sizes (H, W) to check it at."""

    source: Callable[[], Backbone] | Backbone
    sizes: tuple[tuple[int, int], ...]

    def build(self) -> Backbone:
        """A backbone that no other check has touched."""
        return copy.deepcopy(self.source) if isinstance(self.source, Backbone) else self.source()

    def sizes_of(self, backbone: Backbone) -> tuple[tuple[int, int], ...]:
        """The sizes to check it at: of a backbone for recordings one row, of so many steps of its finest map as half the width."""
        spec = backbone.feature_spec
        if spec.rows is None:
            return self.sizes
        return tuple((spec.rows, width * spec.strides[0] // 2 - height % 2) for height, width in self.sizes)

    def images(self, backbone: Backbone, size: int = 0, batch: int = 2) -> Tensor:
        """A batch at the size of that index."""
        sizes = self.sizes_of(backbone)
        return images(batch, len(backbone.image_spec.mean), sizes[size % len(sizes)])


def spec(case: BackboneCase) -> Iterator[str]:
    """``name``, ``feature_spec`` and ``image_spec`` are set and agree; maps are listed finest first."""
    backbone = case.build()
    features = backbone.feature_spec
    if not isinstance(features, FeatureSpec) or not isinstance(backbone.image_spec, ImageSpec):
        yield "feature_spec must be a FeatureSpec and image_spec an ImageSpec"
    if features.backbone != backbone.name:
        yield f"the backbone is called {backbone.name!r}, its feature_spec says {features.backbone!r}"
    if list(features.strides) != sorted(features.strides):
        yield f"maps must come finest first, strides are {features.strides}"


def maps(case: BackboneCase) -> Iterator[str]:
    """One map [B, channels, ceil(H / stride), ceil(W / stride)] per level of ``feature_spec``; of recordings H is the backbone's own."""
    backbone = case.build().eval()
    features = backbone.feature_spec
    for height, width in case.sizes_of(backbone):
        given = images(2, len(backbone.image_spec.mean), (height, width))
        with torch.no_grad():
            got = backbone(given)
        expected = [
            (2, c, -(-height // s), -(-width // s)) for c, s in zip(features.channels, features.strides, strict=True)
        ]
        seen = [tuple(m.shape) for m in got]
        if features.rows is not None:
            expected = [(*shape[:2], own[2], shape[3]) for shape, own in zip(expected, seen, strict=True)]
        if not isinstance(got, list) or seen != expected:
            yield f"at {height} x {width} expected a list of {expected}, got {type(got).__name__} of {seen}"


def repeatable(case: BackboneCase) -> Iterator[str]:
    """In eval mode an image's maps depend on nothing but that image, and running changes no state."""
    backbone = case.build().eval()
    given, before = case.images(backbone), snapshot(backbone)
    with torch.no_grad():
        together, again, alone = backbone(given), backbone(given), backbone(given[:1])
    if said := difference(again, together):
        yield f"a second run differs: {said}"
    if said := difference(alone, [m[:1] for m in together]):
        yield f"an image alone and in a batch differ: {said}"
    if names := changed(before, backbone):
        yield f"running in eval mode changed {listed(names)}"


def channels_last(case: BackboneCase) -> Iterator[str]:
    """The memory layout does not change the values."""
    backbone = case.build().eval()
    given = case.images(backbone)
    with torch.no_grad():
        expected = backbone(given)
        backbone.to(memory_format=torch.channels_last)
        if said := difference(backbone(given.to(memory_format=torch.channels_last)), expected):
            yield said


def gradient_reach(case: BackboneCase) -> Iterator[str]:
    """Every trainable parameter gets a gradient: none is dead weight."""
    backbone = case.build().train()
    _step_back(backbone, case.images(backbone))
    if names := unreached(backbone):
        yield f"no gradient reaches {listed(names)}"


def amp(case: BackboneCase) -> Iterator[str]:
    """Maps and gradients are finite under bfloat16 autocast."""
    backbone = case.build().train()
    with torch.autocast("cpu", torch.bfloat16):
        got = backbone(case.images(backbone))
    if not all(bool(m.isfinite().all()) for m in got):
        yield "maps are not finite"
    torch.autograd.backward([m.float().square().mean() for m in got])
    if names := not_finite(backbone):
        yield f"gradients are not finite in {listed(names)}"


def level_modules(case: BackboneCase) -> Iterator[str]:
    """``level_modules`` covers every parameter and every buffer once."""
    backbone = case.build()
    pieces = [module for modules in backbone.level_modules().values() for module in modules]
    ids = [id(t) for module in pieces for t in (*module.parameters(), *module.buffers())]
    if missing := [name for name, t in (*backbone.named_parameters(), *backbone.named_buffers()) if id(t) not in ids]:
        yield f"no level owns {listed(missing)}"
    if len(ids) != len(set(ids)):
        yield "some parameters belong to two levels"


def freeze(case: BackboneCase) -> Iterator[str]:
    """Frozen levels, batch-norm statistics included, stay bit-equal through ``.train()`` and steps; the rest learns."""
    names = list(case.build().level_modules())
    for upto in dict.fromkeys((names[0], names[len(names) // 2], None)):
        backbone = case.build().freeze(upto).train()
        owners = backbone.level_modules()
        frozen = names if upto is None else names[: names.index(upto) + 1]
        inside = {f"{level}.{i}": module for level in frozen for i, module in enumerate(owners[level])}
        before = {key: snapshot(module) for key, module in inside.items()}
        free = [p for p in backbone.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in free]
        for _ in range(2):
            _step_back(backbone, case.images(backbone))
            if free:
                torch.optim.SGD(free, lr=0.1, momentum=0.9).step()
        if moved := [f"{key}.{name}" for key, module in inside.items() for name in changed(before[key], module)]:
            yield f"freeze({upto!r}) does not hold {listed(moved)}"
        if free and all(torch.equal(a, b) for a, b in zip(start, free, strict=True)):
            yield f"freeze({upto!r}) stops what lies behind it as well"
        if upto is None and free:
            yield f"freeze() leaves {len(free)} parameters trainable"
    if not any(p.requires_grad for p in case.build().freeze().unfreeze().parameters()):
        yield "unfreeze() leaves everything frozen"


def state_dict(case: BackboneCase) -> Iterator[str]:
    """The state dict holds all that training changes: loaded into a fresh backbone it gives the same maps."""
    trained = case.build().train()
    given = case.images(trained)
    _step_back(trained, given)
    torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.01).step()
    torch.manual_seed(1)
    fresh = case.build()
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        if said := difference(fresh.eval()(given), trained.eval()(given)):
            yield f"after loading: {said}"


def export(case: BackboneCase) -> Iterator[str]:
    """``torch.export`` with free batch, height (unless of one row) and width."""
    backbone = case.build().eval()
    with torch.no_grad():
        others = [case.images(backbone, i, 3) for i in range(len(case.sizes))]
        yield from export_holds(backbone, case.images(backbone), others, rows=backbone.feature_spec.rows)


def compile(case: BackboneCase) -> Iterator[str]:
    """``torch.compile`` as one graph."""
    backbone = case.build().eval()
    with torch.no_grad():
        yield from compile_holds(backbone, [case.images(backbone, i) for i in range(len(case.sizes))])


BACKBONE_PROMISES: dict[str, Callable[[BackboneCase], Iterator[str]]] = {
    "spec": spec,
    "shapes": maps,
    "repeatable": repeatable,
    "channels_last": channels_last,
    "gradient_reach": gradient_reach,
    "amp": amp,
    "level_modules": level_modules,
    "freeze": freeze,
    "state_dict": state_dict,
    "export": export,
    "compile": compile,
}


def _step_back(backbone: Backbone, given: Tensor) -> None:
    """Gradients of an objective that every map enters."""
    backbone.zero_grad()
    objective = torch.stack([m.float().square().mean() for m in backbone(given)]).sum()
    if objective.requires_grad:
        torch.autograd.backward(objective)
