"""The options of a data set (``data.options``), read one by one: each is of the kind asked for, or refused by its name."""

from collections.abc import Mapping, Sequence

from effbackbones.errors import UserError, nearest
from tasks.settings.checks import Option, choice


class DataOptions:
    """``given`` to the data set ``owner``, which has the options ``known``; any other raises :class:`UserError`."""

    def __init__(self, owner: str, given: Mapping[str, Option], known: Sequence[str]) -> None:
        self.given = given
        for name in given:
            if name not in known:
                raise UserError(f"data.options.{name}", f"data set {owner!r} has no such option", nearest(name, known))

    def word(self, name: str, choices: Sequence[str]) -> str:
        """One of a few words, by default the first of ``choices``."""
        word = str(self.given.get(name, choices[0]))
        choice(f"data.options.{name}", word, choices)
        return word

    def text(self, name: str) -> str | None:
        """A text that is not empty."""
        text = self.given.get(name)
        if text is not None and not (isinstance(text, str) and text):
            raise UserError(f"data.options.{name}", f"expected a text, got {str(text)[:60]!r}", "correct it")
        return text

    def truth(self, name: str) -> bool:
        """true or false; false where nothing is said."""
        value = self.given.get(name, False)
        if not isinstance(value, bool):
            raise UserError(f"data.options.{name}", f"expected true or false, got {str(value)[:60]!r}", "correct it")
        return value

    def whole(self, name: str, default: int, least: int) -> int:
        """A whole number."""
        value = self.given.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            what = f"expected a whole number of at least {least}, got {value!r}"
            raise UserError(f"data.options.{name}", what, "correct it")
        return value

    def listed(self, name: str) -> list[object] | None:
        """A list of whatever."""
        listed = self.given.get(name)
        if listed is not None and not isinstance(listed, list):
            what = f"expected a list, got {str(listed)[:60]!r}"
            raise UserError(f"data.options.{name}", what, "write [one, two, ...]")
        return listed

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """A list of different values of 16 bits."""
        listed = self.listed(name)
        for value in listed or ():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
                what = f"expected whole numbers in 0..65535, got {str(value)[:40]!r}"
                raise UserError(f"data.options.{name}", what, "correct it")
        if listed is not None and len(set(listed)) < len(listed):
            raise UserError(f"data.options.{name}", "a value stands there twice", "remove one of the two")
        return None if listed is None else tuple(value for value in listed if isinstance(value, int))

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of different names, at least one."""
        listed = self.given.get(name)
        if listed is None:
            return None
        found = as_names(listed)
        if not found or "" in found:
            what = f"expected a list of names, got {str(listed)[:60]}"
            raise UserError(
                f"data.options.{name}", what, "write names; in quotes, where they are no, off, 1.5 and the like"
            )
        if len(set(found)) < len(found):
            raise UserError(f"data.options.{name}", "a name stands there twice", "remove one of the two")
        return found

    def renames(self, name: str = "rename") -> dict[str, str]:
        """A list of ``old=new``, by the old name; several may become one."""
        pairs: dict[str, str] = {}
        for text in self.names(name) or ():
            old, equals, new = (part.strip() for part in text.partition("="))
            if not (old and equals and new):
                raise UserError(f"data.options.{name}", f"expected old=new, got {text!r}", "correct it")
            if pairs.setdefault(old, new) != new:
                raise UserError(f"data.options.{name}", f"{old!r} is renamed twice", "remove one of the two")
        return pairs


def as_names(listed: object) -> tuple[str, ...] | None:
    """A list of names, of which YAML takes some for whole numbers; None for anything else."""
    if not isinstance(listed, list) or not all(isinstance(one, str) or type(one) is int for one in listed):
        return None
    return tuple(str(one) for one in listed)
