"""Numbers in text files."""


def plain_number(text: str) -> float:
    """A number as files write it, perhaps infinite or NaN. ValueError for anything else, also for what Python alone takes for a number:
    ``1_0``, digits of other scripts."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)
