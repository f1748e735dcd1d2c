"""Options are held against the signatures that take them: built-in heads and backbones, and those from outside."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from tests_support import one_line

from effbackbones import build_model, create_backbone
from effbackbones.backbones.efficientnet import EfficientNet
from effbackbones.contracts import Head, head_option_types, head_options
from effbackbones.errors import UserError
from effbackbones.optiontypes import checked
from effbackbones.registry import BACKBONES, HEADS

TINY = {"width": 0.1, "depth": 0.1}


@pytest.mark.parametrize(
    ("task", "where", "options", "expected"),
    [
        ("cls", "backbone", {"checkpointing": "no"}, "expected true or false, got 'no'"),
        ("cls", "backbone", {"drop_path": "0.3"}, "got '0.3'"),
        ("cls", "backbone", {"in_channels": 3.5}, "expected a whole number"),
        ("cls", "backbone", {"levels": "C5"}, "expected a list of values, each text"),
        ("cls", "backbone", {"nonsense": None}, "no such option"),
        ("cls", "head", {"dropout": "0.3"}, "expected a number, got '0.3'"),
        ("cls", "head", {"multilabel": "no"}, "write true or false, without quotes"),
        ("cls", "head", {"multilabel": 1}, "expected true or false, got 1"),
        ("cls", "head", {"nonsense": None}, "no such option"),
        ("det", "head", {"max_detections": "300"}, "expected a whole number"),
        ("det", "head", {"crowd_ignore": "off"}, "write true or false"),
        ("seg", "head", {"channels": "64"}, "expected a list of values, each a whole number"),
        ("seg", "head", {"label_smoothing": True}, "expected a number"),
    ],
)
def test_options_of_another_type_are_one_line(task, where, options, expected):
    name = next(iter(options))
    with pytest.raises(UserError) as error:
        build_model(task, "lite0", num_classes=3, **{f"{where}_options": options})
    one_line(error, f"{where}_options.{name}", expected)


def test_null_is_the_default_and_numbers_of_numpy_are_numbers():
    model = build_model(
        "cls",
        "lite0",
        num_classes=3,
        backbone_options={**TINY, "checkpointing": None, "drop_path": np.float32(0.1)},
        head_options={"dropout": None, "multilabel": None, "channels": np.int64(8), "label_smoothing": 0},
    )
    assert model.head.multilabel is False


class Outside(Head):
    """A head from outside, partly without annotations."""

    task = "other"

    def __init__(self, spec, num_classes, *, deep=False, gain=1, mode: Literal["a", "b"] = "a", **options):
        super().__init__(spec, num_classes, **options)

    forward = loss = predict = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"deep": "yes"}, "expected true or false"),
        ({"gain": "2"}, "expected a number"),
        ({"mode": "c"}, "expected one of a, b"),
    ],
)
def test_heads_from_outside_are_held_to_their_signatures(options, expected):
    with HEADS.temporary({"outside": Outside}), pytest.raises(UserError, match=expected):
        build_model("other", "lite0", head="outside", num_classes=2, head_options=options, backbone_options=TINY)
    with HEADS.temporary({"outside": Outside}):
        build_model("other", "lite0", head="outside", num_classes=2, head_options={"gain": 2.5}, backbone_options=TINY)


def test_backbones_from_outside_are_held_to_their_signatures():
    def factory(*, levels=None, wide: bool = False) -> EfficientNet:
        return EfficientNet("lite0", levels=levels, width=0.2 if wide else 0.1, depth=0.1)

    with BACKBONES.temporary({"outside": factory}):
        build_model("cls", "outside", num_classes=2, backbone_options={"wide": True})
        with pytest.raises(UserError, match=r"backbone_options.wide: expected true or false, got 'no'"):
            build_model("cls", "outside", num_classes=2, backbone_options={"wide": "no"})
        with pytest.raises(UserError, match="no such option"):
            create_backbone("outside", checkpointing=True)


def test_the_defaults_of_every_head_are_of_their_types():
    for name in HEADS.names():
        head = HEADS.get(name)
        types = head_option_types(head)
        for option, default in head_options(head).items():
            assert option in types, f"{name}.{option}"
            checked(f"{name}.{option}", default, types[option])


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (float, [1, 0.5, np.float64(2)], ["1", True, None, [1]]),
        (int | None, [1, None, np.int32(2)], [1.5, True, "1"]),
        (Sequence[float], [[1, 2.0], (1,), np.ones(2)], ["12", 1, ["1"], {"a": 1}]),
        (tuple[int, int], [(1, 2), [3, 4]], [(1,), (1, 2, 3), (1, "2")]),
        (str | Sequence[str] | Mapping[str, float], ["x", ["x"], {"x": 1}], [1, [1], None]),
        (Any, [1, "x", None, object()], []),
    ],
)
def test_types_are_strict_where_they_are_plain(hint, right, wrong):
    for value in right:
        assert checked("x", value, hint) is value
    for value in wrong:
        with pytest.raises(UserError, match="x: expected"):
            checked("x", value, hint)
