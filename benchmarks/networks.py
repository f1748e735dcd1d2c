"""Networks of ours and of others that hold the same weights, so that their answers can be compared before their times are."""

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effbackbones import BoxTargets, Detections, build_model
from effbackbones.backbones.blocks import MBConv
from effbackbones.contracts import IMAGENET_MEAN, IMAGENET_STD
from effbackbones.errors import UserError
from effbackbones.model import Model

DROP = 0.2
"""Stochastic depth and dropout of both sides in training, as published for B0."""
BOXES = 12
VARIED = 0.1  # of the mean variance a channel has at least: one that hardly varies would magnify rounding errors
PROJECTIONS = ("bn3.weight", "_bn2.weight")  # of the last norm in a block, by timm and by smp
BRANCH = 0.3  # what a block adds: as in trained networks a part, so that rounding in bfloat16 does not grow from block to block
SPREAD = 1.0  # standard deviation to bring class logits near: at the prior of a detector all scores tie
CLOSE = {torch.float32: 2e-3, torch.bfloat16: 0.2}
"""How far apart answers may lie, in shares of the largest: of probabilities in bfloat16 what the twentieth of the largest logit makes
that :meth:`Model.for_inference` allows."""

Answer = Callable[[Tensor], Any]


@dataclass
class Pair:
    """Ours and ``peer`` with the same weights. ``answer`` gives of the peer, on normalised images, what ``Model.predict`` does; ``loss``
    what its training step starts from. ``targets``: of so many images."""

    ours: Model
    peer: nn.Module
    answer: Callable[[nn.Module], Answer]
    loss: Callable[[nn.Module, Any], Answer]
    targets: Callable[[int, int], Any]
    package: str
    pixels: Tensor

    def pictures(self, batch: int) -> Tensor:
        """Images [B, 3, side, side], uint8, on the device of the networks: those that these know, again and again."""
        return self.pixels.repeat(-(-batch // len(self.pixels)), 1, 1, 1)[:batch].to(
            next(self.peer.parameters()).device
        )


def classifier(backbone: str, device: str = "cpu", classes: int = 1000, side: int = 224) -> Pair:
    """timm's, whose numerics are those of our default."""
    import timm

    network: Any = timm.create_model(
        f"efficientnet_{backbone}", num_classes=classes, drop_rate=DROP, drop_path_rate=DROP
    )
    options = {"backbone_options": {"numerics": "torch", "drop_path": DROP}, "head_options": {"dropout": DROP}}
    pixels = settle(network, [network.classifier], side)
    ours = _transplanted(network, "cls", backbone, classes, **options)

    def answer(peer: nn.Module) -> Answer:
        return lambda images: peer(images).softmax(1)

    def loss(peer: nn.Module, targets: Tensor) -> Answer:
        return lambda images: F.cross_entropy(peer(images), targets)

    def targets(batch: int, side: int) -> Tensor:
        return torch.randint(classes, (batch,), device=device)

    return Pair(ours.to(device), network.to(device), answer, loss, targets, "timm", pixels)


def detector(variant: str, device: str = "cpu", classes: int = 90, side: int = 512) -> Pair:
    """effdet's, with its benches for training and prediction; of another head ("retinanet-b0") torchvision's."""
    if "-" in variant:
        from benchmarks.detectors import torchvision_detector  # which imports this file

        return torchvision_detector(variant, device, side=side)
    import effdet
    from effdet.bench import DetBenchPredict, DetBenchTrain

    config = effdet.get_efficientdet_config(f"tf_efficientdet_{variant}")
    config.update({"num_classes": classes, "image_size": (side, side)})
    network = effdet.EfficientDet(config, pretrained_backbone=False)
    backbone = config.backbone_name.removeprefix("tf_efficientnet_")
    options = {"backbone_options": {"numerics": "tf"}, "head_options": {"variant": variant}}
    pixels = settle(network, [network.class_net.predict.conv_pw], side)
    ours = _transplanted(network, "det", backbone, classes, **options)

    def answer(peer: nn.Module) -> Answer:
        bench = DetBenchPredict(peer).eval().to(device)

        def run(images: Tensor) -> Detections:
            whole = {"img_scale": torch.ones(len(images), device=device)}
            whole["img_size"] = torch.tensor([images.shape[:1:-1]] * len(images), device=device)
            found = bench(images, whole)  # clipped to the image, as ours are
            boxes, scores, labels = found[..., :4], found[..., 4], found[..., 5].long() - 1
            return Detections(boxes, scores, labels, (scores > 0).sum(1))

        return run

    def loss(peer: nn.Module, targets: BoxTargets) -> Answer:
        bench = DetBenchTrain(peer).train().to(device)
        target = {"bbox": targets.boxes[..., [1, 0, 3, 2]], "cls": targets.labels + 1.0}
        return lambda images: bench(images, target)["loss"]

    def targets(batch: int, side: int) -> BoxTargets:
        return boxes(batch, side, classes, BOXES, device)

    return Pair(ours.to(device), network.to(device), answer, loss, targets, "effdet", pixels)


def segmenter(backbone: str, device: str = "cpu", classes: int = 11, side: int = 256) -> Pair:
    """The U-Net of segmentation-models-pytorch."""
    import segmentation_models_pytorch as smp

    network = smp.Unet(f"efficientnet-{backbone}", encoder_weights=None, classes=classes)
    pixels = settle(network, [network.segmentation_head[0]], side)
    ours = _transplanted(network, "seg", backbone, classes)

    def answer(peer: nn.Module) -> Answer:
        return lambda images: peer(images).softmax(1)

    def loss(peer: nn.Module, targets: Tensor) -> Answer:
        return lambda images: F.cross_entropy(peer(images), targets)

    def targets(batch: int, side: int) -> Tensor:
        return torch.randint(classes, (batch, side, side), device=device)

    return Pair(ours.to(device), network.to(device), answer, loss, targets, "smp", pixels)


PAIRS: Mapping[str, Callable[..., Pair]] = {"cls": classifier, "det": detector, "seg": segmenter}


def boxes(batch: int, side: int, classes: int, count: int, device: str = "cpu") -> BoxTargets:
    """Random boxes, ``count`` in each image."""
    corner = torch.rand(batch, count, 2, device=device) * 0.6
    extent = 0.05 + 0.35 * torch.rand(batch, count, 2, device=device)
    labels = torch.randint(classes, (batch, count), device=device)
    corners = torch.cat([corner, corner + extent], 2) * side
    return BoxTargets(corners, labels, torch.zeros_like(labels, dtype=torch.bool))


def pictures(batch: int, side: int, device: str = "cpu") -> Tensor:
    """Images [B, 3, side, side], uint8, as decoders and loaders give them: coarse shapes and some noise, for pure noise looks the same
    everywhere to a deep layer."""
    coarse = F.interpolate(torch.rand(batch, 3, 9, 9, device=device), (side, side), mode="bicubic", align_corners=False)
    noise = torch.randn(batch, 3, side, side, device=device)
    return (255 * (0.9 * coarse + 0.08 * noise).clamp(0, 1)).to(torch.uint8)


def our_loss(model: Model, targets: Any) -> Answer:
    """The objective, from uint8 images."""
    return lambda images: torch.stack(list(model.loss(images, targets).values())).sum()


def settle(network: Any, lasts: Sequence[Any], side: int) -> Tensor:
    """Give batch norms the statistics of some images, which are returned, and the logits that ``lasts`` make a spread of :data:`SPREAD`: a
    network as it was initialised answers all images alike, and on images of other statistics its numbers explode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    noise = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)  # what for_inference compares itself on
    pixels, logits = torch.cat([pictures(4, side), noise]), list[Tensor]()
    images = (pixels / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    hooks = [last.register_forward_hook(lambda module, inputs, out: logits.append(out.flatten())) for last in lasts]
    with torch.no_grad(), without_chance(network):
        for name, parameter in network.named_parameters():
            if name.endswith(PROJECTIONS):
                parameter.mul_(BRANCH)
        for norm in norms:
            norm.momentum = 1.0
        network.train()(images)
        for last in lasts:
            last.weight.mul_(SPREAD / torch.cat(logits).std())
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        variance: Any = norm.running_var
        variance.clamp_(min=VARIED * float(variance.mean()))
    network.eval()
    return pixels


def _transplanted(network: nn.Module, task: str, backbone: str, classes: int, **options: Any) -> Model:
    """Ours from the file of a peer's weights, as a user loads it."""
    log = logging.getLogger("effbackbones")
    level = log.level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.pth"
        torch.save(network.state_dict(), path)
        log.setLevel(logging.ERROR)  # what a file does not say is known here
        try:
            return build_model(task, backbone, num_classes=classes, weights=path, **options)
        finally:
            log.setLevel(level)


@contextmanager
def without_chance(*networks: nn.Module) -> Iterator[None]:
    """Nothing is dropped meanwhile, whose losses can then be compared; modes and rates come back."""
    changed: list[tuple[nn.Module, str, Any]] = []
    for module in (module for network in networks for module in network.modules()):
        for name in ("drop_probability", "_drop_connect_rate", "drop_rate", "drop_prob", "p"):
            chance = isinstance(module, MBConv | nn.Dropout) or "drop" in name
            if chance and isinstance(getattr(module, name, None), float):
                changed.append((module, name, getattr(module, name)))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def same_answers(ours: Any, theirs: Any, what: str, dtype: torch.dtype = torch.float32) -> str:
    """How near two answers are. Raises :class:`UserError` where they are not those of the same network."""
    if isinstance(ours, Detections):
        return _same_boxes(ours, theirs, what, dtype)
    ours, theirs = ours.float(), theirs.float()
    distance = float((ours - theirs).abs().max() / (theirs - theirs.mean()).abs().max())
    return _near(distance, what, dtype)


def _same_boxes(ours: Detections, theirs: Detections, what: str, dtype: torch.dtype) -> str:
    """By falling scores on average, and by whether each box is among ours. Suppression may choose another box of two that are nearly
    alike, so that a tenth may differ, and in bfloat16 half."""
    count = min(int(ours.count.min()), int(theirs.count.min()), 50)
    if count < 5:
        raise UserError(what, f"{count} boxes are too few to compare", "give the network other weights")
    mine, other = ours.scores[:, :count].float(), theirs.scores[:, :count].float()
    best = theirs.boxes[:, :count].float()
    real = (best[..., 2:] > best[..., :2]).all(2)  # ours leaves out those that lie outside
    apart = torch.cdist(best, ours.boxes.float(), p=torch.inf).amin(2)[real]
    lost = float((apart > 1.0).float().mean())
    if lost > (0.1 if dtype == torch.float32 else 0.5):
        text = f"{lost:.0%} of the peer's {count} best boxes are not among ours"
        raise UserError(what, text, "the sides do not do the same work; nothing was timed")
    return _near(float((mine - other).abs().mean() / other.max()), what, dtype)


def same_losses(pair: Pair, pixels: Tensor, targets: Any, theirs: Answer, images: Tensor) -> str:
    """How near the losses of two training steps are, without what is drawn by chance; statistics of batches as in training."""
    with without_chance(pair.ours, pair.peer), torch.no_grad(), _statistics_kept(pair.ours, pair.peer):
        mine, other = float(our_loss(pair.ours, targets)(pixels)), float(theirs(images))
    return _near(abs(mine - other) / abs(other), "loss", torch.float32)


@contextmanager
def _statistics_kept(*networks: nn.Module) -> Iterator[None]:
    kept = [copy.deepcopy(dict(network.named_buffers())) for network in networks]
    yield
    for network, before in zip(networks, kept, strict=True):
        for name, buffer in network.named_buffers():
            buffer.copy_(before[name])


def _near(distance: float, what: str, dtype: torch.dtype) -> str:
    if not distance <= CLOSE[dtype]:
        text = f"ours and the peer's differ by {distance:.2g} of the largest, more than {CLOSE[dtype]:g}"
        raise UserError(what, text, "the sides do not do the same work; nothing was timed")
    return f"{what} equal to {distance:.0e}" if distance else f"{what} equal to the last bit"
