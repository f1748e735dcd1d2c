"""Limits that a command line says: shares and counts, from the text of an option."""

from effbackbones.errors import UserError
from effbackbones.numbers import plain_number


def share_of(option: str, text: str | None) -> float | None:
    """The number in 0..1 that an ``option`` says, None where it says nothing."""
    if text is None:
        return None
    try:
        share = plain_number(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(option, f"expected 0 to 1, got {text!r}", "correct it")
    return share


def count_of(option: str, text: str | None) -> int | None:
    """The count that an ``option`` says, None where it says nothing."""
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UserError(option, f"expected a count of at least 1, got {text!r}", "correct it")
    return int(text)
