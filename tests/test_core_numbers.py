"""Numbers as files and command lines write them, and nothing that Python alone takes for one."""

import math

import pytest

from effbackbones.errors import UserError
from effbackbones.numbers import plain_number, plain_whole
from tasks.verbs.limits import count_of, share_of


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), (" 1e-3 ", 1e-3), ("-2", -2.0), ("inf", math.inf), ("+.5", 0.5)]
)
def test_numbers(text: str, value: float) -> None:
    assert plain_number(text) == value


@pytest.mark.parametrize("text", ["0_5", "1_0.5", "\u0661", "", "x", "0x10", "1,5"])
def test_what_is_no_number_in_a_file(text: str) -> None:
    for read in (plain_number, plain_whole):
        with pytest.raises(ValueError):
            read(text)
    with pytest.raises(UserError, match="--threshold: expected 0 to 1"):
        share_of("--threshold", text)
    with pytest.raises(UserError, match="--certify: expected a count"):
        count_of("--certify", text)
