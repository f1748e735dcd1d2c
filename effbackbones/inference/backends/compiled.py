"""The network by ``torch.compile``: on a CPU with its weights as constants, on a GPU replayed as CUDA graphs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from effbackbones.contracts import ImageSizes
from effbackbones.inference.backends.plan import Plan
from effbackbones.model import Model


class _Network(nn.Module):
    """Images and how much of each is content, to the tensors of the raw output."""

    def __init__(self, model: Model, normalized: bool) -> None:
        super().__init__()
        self.model, self.normalized = model, normalized

    def forward(self, images: Tensor, valid: Tensor) -> list[Tensor]:
        sizes = ImageSizes((images.shape[-2], images.shape[-1]), valid)
        leaves: list[Tensor] = pytree.tree_leaves(self.model.plainly(images, sizes, self.normalized))
        return leaves


class CompiledRun:
    """Compiled on its first call, for the shapes of that. On a GPU ``latency`` replays CUDA graphs (``reduce-overhead``), ``throughput``
    looks for the best kernels (``max-autotune-no-cudagraphs``)."""

    def __init__(self, model: Model, plan: Plan, normalized: bool) -> None:
        import torch._inductor.config as inductor  # loads the compiler, which takes a second

        gpu = {"latency": "reduce-overhead", "throughput": "max-autotune-no-cudagraphs"}
        self._replays = plan.device == "cuda" and plan.mode == "latency"
        mode = gpu[plan.mode] if plan.device == "cuda" else None
        self._call: Any = torch.compile(_Network(model, normalized).eval(), fullgraph=True, dynamic=False, mode=mode)
        # Only as a global setting it does anything; read when code is made, on the first call.
        self._making: Any = inductor.patch(freezing=plan.device == "cpu")

    def __call__(self, model: Model, images: Tensor, sizes: ImageSizes, normalized: bool) -> list[Tensor]:
        """The tensors."""
        with torch.inference_mode(False), torch.no_grad():  # else it is compiled for each of the two
            if self._replays:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # untyped in torch
            if self._making is not None:
                with self._making:
                    found = self._call(images, sizes.valid)
                self._making = None
            else:
                found = self._call(images, sizes.valid)
            return [one.clone() for one in found] if self._replays else list(found)  # the next replay writes there
