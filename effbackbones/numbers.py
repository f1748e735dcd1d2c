"""Numbers in text, as files and command lines write them."""


def plain_number(text: str) -> float:
    """A number as files write it, perhaps infinite or NaN. ValueError for anything else, also for what Python alone takes for a number:
    ``1_0``, digits of other scripts."""
    return float(_plain(text))


def plain_whole(text: str) -> int:
    """A whole number in the same way; ValueError for anything else."""
    return int(_plain(text))


def _plain(text: str) -> str:
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return text
