"""Every promise of a head and of a backbone, by the checks that effbackbones brings: ``python -m pytest`` in this folder."""

import numpy as np
from effbackbones_sample.backbone import Tiny
from effbackbones_sample.data import Darken, greys
from effbackbones_sample.head import TwoScales

from effbackbones.conformance import check_backbone, check_head, enforce
from tasks.data.check import check_dataset


def test_the_head_keeps_its_promises():
    enforce(check_head(TwoScales, num_classes=3, options={"width": 16}))


def test_the_backbone_keeps_its_promises():
    enforce(check_backbone(Tiny))


def test_the_data_set_keeps_its_promises():
    check_dataset(greys(None, "train", None))


def test_the_transform_darkens():
    sample = greys(None, "train", None)[1]
    seen = {int(Darken(by=2)(sample, np.random.default_rng(seed)).image[0, 0, 0]) for seed in range(20)}
    assert seen == {180, 90}
