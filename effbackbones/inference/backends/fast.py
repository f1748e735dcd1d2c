"""Copies of models that only answer: what :meth:`effbackbones.Model.for_inference` makes."""

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effbackbones.backbones import passes
from effbackbones.backbones.folding import hasten, shed
from effbackbones.contracts import ImageSizes
from effbackbones.errors import UserError
from effbackbones.images.pixels import require_batch, require_unit
from effbackbones.images.spec import ImageSpec
from effbackbones.inference.backends.checking import are_finite, bound_of, difference, drawn_like
from effbackbones.inference.backends.fused import fuse
from effbackbones.inference.backends.fusedblocks import fuse_blocks
from effbackbones.inference.backends.plan import GRAPHS, Plan
from effbackbones.model import Model

MOST_SIZES = 8
"""For so many image sizes a copy makes graphs or compiled code, one after the other; eager mode answers for the rest."""
LOG = logging.getLogger("effbackbones")
Run = Callable[[Model, Tensor, ImageSizes, bool], list[Tensor]]
_NARROWED = (nn.modules.conv._ConvNd, nn.Linear)


@torch.inference_mode(False)  # whose tensors no packed weight could be kept by: they do not say when they change
def for_inference(
    model: Model, *, backend: str, dtype: torch.dtype | str | None, threads: int | None, mode: str
) -> Model:
    """As :meth:`Model.for_inference`."""
    if model.runner is not None:
        raise UserError("for_inference", "the model is a copy for inference already", "take the one it was made from")
    weight = next(model.parameters())
    plan, told = Plan.of(backend, dtype, threads, mode, weight.device, weight.dtype)
    for line in told:
        tell(line)
    original = copy.deepcopy(model).eval().requires_grad_(False)
    shed(original)
    fast = model.folded_copy().to(memory_format=torch.channels_last)
    if plan.device == "cpu":
        hasten(fast)
    if plan.dtype is not None and plan.narrow and not set(plan.backends) & set(GRAPHS):
        narrow(fast, plan.dtype)
    if plan.device == "cpu":
        fuse(fast)
    elif passes.ENABLED:
        fuse_blocks(fast)
    fast.runner = Fast(plan, original)
    return fast.eval()  # layers that took the place of others too


def narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions and matrix products in ``dtype``, in place; not those of a module that says ``exact``, nor buffers such as anchors."""
    for child in module.children():
        if isinstance(child, _NARROWED):
            child.to(dtype)
        elif not getattr(child, "exact", False):
            narrow(child, dtype)


class _Key(NamedTuple):
    """What one way of answering is made for."""

    shape: tuple[int, ...]
    """C, H, W; before them B of compiled code, which is for one."""
    kind: torch.dtype
    normalized: bool
    spec: ImageSpec


class Fast:
    """Answers in place of a model's own forward pass, in the way that its plan says and that agrees with ``original``, which is kept until
    the first call has shown it. May be called from several threads, copied and pickled; a copy makes its graphs again, from the disk."""

    def __init__(self, plan: Plan, original: Model | None) -> None:
        self.__setstate__({"plan": plan, "original": original})

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "original": self.original}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.plan: Plan = state["plan"]
        self.original: Model | None = state["original"]
        self._lock = threading.RLock()
        self._tree: Any = None
        self._usual: dict[_Key, int] = {}
        self._runs: dict[tuple[_Key, int], tuple[str, Run]] = {}
        self._said: set[str] = set()

    @property
    def used(self) -> tuple[str, ...]:
        """The backends that answer, in the order in which image sizes were met."""
        return tuple(dict.fromkeys(name for name, _ in self._runs.values()))

    def __call__(self, model: Model, images: Tensor, sizes: ImageSizes | None, normalized: bool) -> Any:
        """As ``Model.forward``."""
        require_batch(images)
        if torch.is_grad_enabled() and images.requires_grad:
            return model.plainly(images, sizes, normalized)
        if not normalized:
            require_unit(images)
        sizes = sizes or ImageSizes.of(images)
        shape = images.shape if self.plan.backends[0] == "compile" else images.shape[1:]
        key = _Key(tuple(shape), images.dtype, normalized, model.image_spec)
        run = self._runs.get((key, self._slot(key, len(images))))
        if run is None:
            with self._lock:
                run = self._found(key, model, images, sizes)
        return pytree.tree_unflatten(run[1](model, images, sizes, normalized), self._tree)

    def _slot(self, key: _Key, batch: int) -> int:
        """The size of batch that a graph is made for, 0 for any: a graph for one is quicker, and the first is most likely the usual one."""
        return batch if self._usual.get(key) == batch else 0

    def _found(self, key: _Key, model: Model, images: Tensor, sizes: ImageSizes) -> tuple[str, Run]:
        """The way for images like these: made, and compared with what the model says."""
        if key not in self._usual and len(self._usual) < MOST_SIZES:
            self._usual[key] = len(images) if self.plan.backends[0] == "openvino" else 0
        slot = key, self._slot(key, len(images))
        if slot in self._runs:  # another thread was quicker
            return self._runs[slot]
        looks = self._looks(model, images, sizes, normalized=key.normalized)
        eager = self._eager if self.original is None else self._checked(model, looks, key)
        names = self.plan.backends[:-1]
        if names and images.device.type != self.plan.device:
            names = self._not(f"the copy was made on {self.plan.device}, not on {images.device.type}")
        if names and key not in self._usual:
            names = self._not(f"graphs are made for {MOST_SIZES} image sizes, no more")
        found = "eager", eager
        for place, name in enumerate(names):
            run, why = self._tried(name, model, looks, slot)
            if run is not None:
                found = name, run
                break
            instead = f"{names[place + 1]} is tried" if place + 1 < len(names) else "eager mode answers"
            tell(f"{name} is not used for images of {key.shape[-2]} x {key.shape[-1]}: {why}; {instead}")
        if key in self._usual or not names:
            self._runs[slot] = found
        return found

    def _not(self, why: str) -> tuple[str, ...]:
        """No backend but eager mode, which is told once."""
        if why not in self._said:
            self._said.add(why)
            tell(f"{why}: eager mode answers for others")
        return ()

    def _looks(self, model: Model, images: Tensor, sizes: ImageSizes, *, normalized: bool) -> list["_Look"]:
        """These images, and some noise, with what the model says of them."""
        looks = []
        for drawn in (False, True):
            shown = drawn_like(images) if drawn else images
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                raw = (self.original or model).plainly(shown, sizes, normalized)
            leaves, self._tree = pytree.tree_flatten(raw)
            if all(isinstance(leaf, Tensor) for leaf in leaves) and are_finite(leaves):
                looks.append(_Look(shown, sizes, leaves))
        return looks

    def _checked(self, model: Model, looks: list["_Look"], key: _Key) -> Run:
        """Eager mode, where it agrees with the model that this is a copy of; then that is kept no longer, else it answers."""
        why = self._disagrees(self._eager, model, looks, normalized=key.normalized)
        if why is None:
            self.original = None
            return self._eager
        tell(f"the fused copy is not used: {why}; the model answers as it was")
        return self._as_it_was

    def _tried(self, name: str, model: Model, looks: list["_Look"], slot: tuple[_Key, int]) -> tuple[Run | None, str]:
        """A way that agrees with the model, or None and why there is none."""
        if not looks:
            return None, "the model's own answer is not finite, so that nothing can be compared"
        key, batch = slot
        why: str | None = ""
        for anew in (False, True):
            try:
                run, made = self._make(name, model, looks[0].images, batch, normalized=key.normalized, anew=anew)
                why = self._disagrees(run, model, looks, normalized=key.normalized)
            except Exception as error:  # of exporters, compilers and runtimes: whatever it is, another way answers
                return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if why is None:
                return run, ""
            if made:  # one that was found may be of code that is no more
                break
        return None, str(why)

    def _disagrees(self, run: Run, model: Model, looks: list["_Look"], *, normalized: bool) -> str | None:
        narrow = self.plan.narrow or torch.is_autocast_enabled(self.plan.device)
        bound = bound_of(self.plan.device, narrow=narrow)
        for look in looks:
            with torch.no_grad():
                leaves = run(model, look.images, look.sizes, normalized)
            if (why := difference(look.leaves, leaves, len(look.images), bound)) is not None:
                return why
        return None

    def _make(
        self, name: str, model: Model, images: Tensor, batch: int, *, normalized: bool, anew: bool
    ) -> tuple[Run, bool]:
        """The way ``name``, and whether it was made just now."""
        if name == "compile":
            from effbackbones.inference.backends.compiled import CompiledRun  # loads the compiler

            return CompiledRun(model, self.plan, normalized), True
        from effbackbones.inference.backends.graphs import graph_run, takes_bytes  # loads the exporter

        own, fixed = takes_bytes(model, images, normalized=normalized), batch > 0 and name == "openvino"
        return graph_run(model, name, self.plan, images.shape, bytes=own, fixed_batch=fixed, anew=anew, tell=tell)

    def _eager(self, model: Model, images: Tensor, sizes: ImageSizes, normalized: bool) -> list[Tensor]:
        leaves = pytree.tree_leaves(model.plainly(images, sizes, normalized))
        return [widened(leaf) for leaf in leaves] if self.plan.narrow else leaves

    def _as_it_was(self, model: Model, images: Tensor, sizes: ImageSizes, normalized: bool) -> list[Tensor]:
        return pytree.tree_leaves((self.original or model).plainly(images, sizes, normalized))


class _Look(NamedTuple):
    """Images, and what the model says of them."""

    images: Tensor
    sizes: ImageSizes
    leaves: list[Tensor]


def widened(leaf: Any) -> Any:
    """Floating-point tensors of 16 bits in float32, as predictions are made of them."""
    small = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype.itemsize == 2
    return leaf.float() if small else leaf


def tell(line: str) -> None:
    LOG.warning("inference: %s", line)
