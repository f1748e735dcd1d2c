"""Our backbones under Transformers' models (DETR, Deformable DETR, RT-DETR, UperNet, Mask2Former, ...), through its backbone API."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from effbackbones import UserError, create_backbone

_LEVELS = ("C1", "C2", "C3", "C4", "C5")


class EffBackbonesConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]  # not typed for subclasses
    """What a model of Transformers is told of its backbone::

        config = DetrConfig(backbone_config=EffBackbonesConfig("b3", weights="imagenet"), use_timm_backbone=False)
        config = UperNetConfig(backbone_config=EffBackbonesConfig("b3", out_features=["C2", "C3", "C4", "C5"]))

    Mask2Former and MaskFormer take C2-C5 as UperNet does; RT-DETR and D-FINE take C3-C5, and want their channels in
    ``encoder_in_channels`` (``create_backbone("b3", levels=("C3", "C4", "C5")).feature_spec.channels``).

    ``backbone`` is a name of ``create_backbone``, ``weights`` what the network begins with when it is built from a config (None:
    random). ``out_features``: of C1-C5 (default C5). ``freeze_batch_norm``: the running statistics hold, and weight and bias are not
    trained. ``backbone_options`` are those of ``create_backbone``, as JSON has them.
    """

    model_type = "effbackbones"
    backbone: str = "b0"
    weights: str | None = None
    num_channels: int = 3
    freeze_batch_norm: bool = False
    backbone_options: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = list(_LEVELS)
        chosen = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            None if chosen[0] is None else list(chosen[0]), None if chosen[1] is None else list(chosen[1])
        )
        super().__post_init__(**kwargs)


class EffBackbonesBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]  # as above
    """One of our backbones (``network``) as Transformers' models call theirs: normalised ``pixel_values`` [B, C, H, W] to a
    ``BackboneOutput`` whose ``feature_maps`` are one [B, channels, h, w] for each of ``out_features``."""

    config_class = EffBackbonesConfig
    config: EffBackbonesConfig
    base_model_prefix = "effbackbones"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    supports_gradient_checkpointing = False

    def __init__(self, config: EffBackbonesConfig, **kwargs: Any) -> None:
        super().__init__(config)
        options = {"in_channels": config.num_channels, **(config.backbone_options or {})}
        with torch.device("meta"):
            whole = create_backbone(config.backbone, **options).feature_spec
        if missing := [name for name in config.out_features if name not in whole.names]:
            what = f"backbone {config.backbone} gives {', '.join(whole.names)}"
            raise UserError(f"out_features {', '.join(missing)}", what, "choose among them")
        channels = dict(zip(whole.names, whole.channels, strict=True))
        self.num_features = [channels.get(name, 0) for name in self.stage_names]
        self.network = create_backbone(
            config.backbone, weights=config.weights, levels=tuple(config.out_features), **options
        )
        if config.freeze_batch_norm:
            _freeze_batch_norm(self.network)
        self._norms = _norms(self.network)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The network has been initialised, or has read its weights, when it was built."""

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if output_attentions or output_hidden_states:
            raise UserError("EffBackbonesBackbone", "has neither attentions nor hidden states", "read feature_maps")
        self._check_norms()
        maps = tuple(self.network(pixel_values))
        chosen = self.config.return_dict if return_dict is None else return_dict
        return BackboneOutput(feature_maps=maps) if chosen else (maps,)

    def _check_norms(self) -> None:
        """DETR and its kin put frozen batch norms of eps 1e-5 in the place of ours, whatever ours was."""
        now = _norms(self.network)
        if now is self._norms or now == self._norms:
            return
        wrong = {eps for eps in self._norms.values() if eps != _FROZEN_EPS}
        if wrong and not self.config.freeze_batch_norm:
            what = f"its batch norms, of eps {min(wrong):g}, were replaced by ones of {_FROZEN_EPS:g}"
            raise UserError(
                "EffBackbonesBackbone",
                what,
                "give EffBackbonesConfig freeze_batch_norm=True, which freezes them as they are",
            )


_FROZEN_EPS = 1e-5
"""Of ``DetrFrozenBatchNorm2d`` (``models/detr/modeling_detr.py``) and its copies."""


def _norms(network: nn.Module) -> dict[str, float]:
    return {name: part.eps for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}


class FrozenBatchNorm(nn.Module):
    """What ``norm`` does in eval mode, in training too, and nothing of it is a parameter."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def _freeze_batch_norm(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(part))
        else:
            _freeze_batch_norm(part)


AutoConfig.register(EffBackbonesConfig.model_type, EffBackbonesConfig, exist_ok=True)
AutoBackbone.register(EffBackbonesConfig, EffBackbonesBackbone, exist_ok=True)
