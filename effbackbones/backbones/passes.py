"""A convolution and what follows it, with few passes over memory and little of it: which way to take for a call.

A tensor of a map's size that is made anew costs a processor ten times what it takes to fill it. So in eval mode a batch norm becomes
part of its convolution, for one call or overwrites what that gave; in training :mod:`effbackbones.backbones.recomputing` keeps less.
Results are those of the layers one by one, but for the last digit. Layer by layer it goes where a graph is made (the compiler knows
better), where somebody watches a layer by a hook, and for layers that are not known here.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks_of_all

from effbackbones.backbones.convolving import Convolve, Geometry
from effbackbones.backbones.padding import Conv2dFixed, Conv2dSame
from effbackbones.backbones.recomputing import ACTS, Norm, NormActConv

ENABLED = os.environ.get("EFFBACKBONES_FUSED") != "0"
"""Set to 0 in the environment, everything goes layer by layer."""
EVERYWHERE = os.environ.get("EFFBACKBONES_FUSED") == "1"
"""Set to 1, it is done on a GPU too, where neither its time nor its memory has been measured."""


_OF_ALL = (
    hooks_of_all._global_forward_hooks,
    hooks_of_all._global_forward_pre_hooks,
    hooks_of_all._global_backward_hooks,
    hooks_of_all._global_backward_pre_hooks,
)
"""Hooks that wait for calls of any module."""


def watched(*modules: nn.Module) -> bool:
    """Whether hooks wait for calls of these modules, or of any, or one of them has a ``forward`` of its own put on it."""
    for hooks in _OF_ALL:
        if hooks:
            return True
    for module in modules:
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            return True
        if "forward" in own:
            return True
    return False


def eager(x: Tensor) -> bool:
    """Whether ``x`` is computed with in passes of our own: on a processor, and :func:`alone`."""
    return ENABLED and (x.device.type == "cpu" or EVERYWHERE) and alone(x)


def alone(x: Tensor) -> bool:
    """Whether ``x`` is computed with here and now: in no graph that is made, under no transform, and nobody changes functions."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    traced = torch._C._get_tracing_state() is not None or torch._C._len_torch_function_stack() > 0
    return not (traced or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def known(norm: Any, act: Any) -> bool:
    """Whether this is a batch norm with all that it can have, and an activation that has a row here."""
    plain = type(norm) is nn.BatchNorm2d and norm.affine and norm.running_mean is not None
    return plain and (type(act) in ACTS or type(act) is nn.Identity)


def wants_gradient(x: Tensor, *modules: nn.Module) -> bool:
    """Whether a gradient will be asked of ``x`` or of a parameter of the modules."""
    return torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for module in modules for p in module.parameters())
    )


def _plain(conv: Any) -> bool:
    """Whether this convolution is no more than its numbers say."""
    return (
        type(conv) in (nn.Conv2d, Conv2dSame, Conv2dFixed)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def convolve(x: Tensor, conv: Any) -> Tensor:
    """``conv(x)``, in the quickest way."""
    usual = eager(x) and x.ndim == 4 and type(conv.weight) is nn.Parameter
    if not (usual and _plain(conv) and wants_gradient(x, conv) and not watched(conv)):
        out: Tensor = conv(x)
        return out
    made: Tensor = Convolve.apply(Geometry.of(conv, x), x, conv.weight, conv.bias)
    return made


def conv_norm_act(x: Tensor, conv: Any, norm: Any, act: Any) -> Tensor:
    """``act(norm(conv(x)))`` with less memory."""
    if eager(x) and known(norm, act) and _plain(conv) and not watched(conv, norm, act):
        if wants_gradient(x, conv, norm):
            return norm_act(convolve(x, conv), norm, act)
        if folds(x, norm):
            return _inferred(x, conv, norm, act)
    return _one_by_one(conv(x), norm, act)


def _one_by_one(x: Tensor, norm: Any, act: Any) -> Tensor:
    """``act(norm(x))`` as two calls. An activation that overwrites its input does not so where somebody was shown that, or waits for its
    gradient, which autograd refuses."""
    if torch.compiler.is_compiling() or not getattr(act, "inplace", False) or not watched(norm, act):
        out: Tensor = act(norm(x))
        return out
    act.inplace = False
    try:
        out = act(norm(x))
    finally:
        act.inplace = True
    return out


def norm_act(x: Tensor, norm: Any, act: Any) -> Tensor:
    """``act(norm(x))``. Other activations than SiLU keep what they give, which the next layer keeps anyway."""
    if not (eager(x) and type(act) is nn.SiLU and known(norm, act)) or watched(norm, act):
        return _one_by_one(x, norm, act)
    made: Tensor = NormActConv.apply(Norm.of(norm), type(act), None, x, norm.weight, norm.bias, None, None)
    return made


def norm_act_conv(x: Tensor, norm: Any, act: Any, conv: Any, gate: Any = None) -> Tensor:
    """``conv(gate(act(norm(x))))`` in training, with less memory: nothing between ``x`` and the result is kept."""
    layers = () if gate is None else (gate.reduce, gate.expand)
    plain = (
        known(norm, act) and type(act) in ACTS and _plain(conv) and all(type(layer) is nn.Linear for layer in layers)
    )
    if not (plain and eager(x) and not watched(norm, act, conv, *layers, *(() if gate is None else (gate,)))):
        made = _one_by_one(x, norm, act)
        out: Tensor = conv(made if gate is None else gate(made))
        return out
    gated = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    kept_little: Tensor = NormActConv.apply(
        Norm.of(norm), type(act), Geometry.of(conv, x), x, norm.weight, norm.bias, conv.weight, conv.bias, *gated
    )
    return kept_little


def mean(x: Tensor) -> Tensor:
    """Mean over the pixels of [B, C, H, W]. torch's own makes, on the way back, a map of one number a channel, and not channels last."""
    if not (eager(x) and x.requires_grad):
        return x.mean((2, 3))
    total = x.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype)


def folds(x: Tensor, norm: Any) -> bool:
    """Whether a batch norm may become part of its convolution for this call: on a processor, in full precision."""
    exact = x.dtype == norm.weight.dtype and x.dtype in (torch.float32, torch.float64)
    return not norm.training and x.device.type == "cpu" and exact and not torch.is_autocast_enabled("cpu")


def scale_and_shift(norm: Any, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a batch norm does in eval mode to each channel of a map, behind a convolution with this ``bias``: factors and summands [C]."""
    scale = (norm.running_var + norm.eps).rsqrt_().mul_(norm.weight)
    shift = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
    return scale, shift if bias is None else shift.addcmul_(bias, scale)


def _inferred(x: Tensor, conv: Any, norm: Any, act: Any) -> Tensor:
    """In eval mode. A pass over the weights replaces one over the maps where these are more; else that one overwrites them."""
    count = x.numel() // conv.in_channels * conv.out_channels // (conv.stride[0] * conv.stride[1])
    if count > conv.weight.numel():
        scale, shift = scale_and_shift(norm, conv.bias)
        out = Geometry.of(conv, x)(x, conv.weight * scale.view(-1, 1, 1, 1), shift)
    else:
        scale, shift = scale_and_shift(norm)
        out = Geometry.of(conv, x)(x, conv.weight, conv.bias)
        torch.addcmul(shift[:, None, None], out, scale[:, None, None], out=out)
    made: Tensor = out if type(act) is nn.Identity else ACTS[type(act)].apply(out)
    return made
