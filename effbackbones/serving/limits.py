"""What a service takes at most, and how it says no."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from effbackbones.errors import UserError

BODIES_AT_ONCE = 8
"""So many bodies of the largest size may be in memory at once; of smaller ones more."""


class RefusedError(Exception):
    """A request that is not served: the HTTP ``status``, and the ``reason`` in one line that its sender may read. ``after``: seconds
    until it may be tried again, where that may help."""

    def __init__(self, status: int, reason: str, after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.after = status, " ".join(reason.split()), after


@dataclass(frozen=True)
class Limits:
    """Of a request: ``max_bytes`` of its body, ``max_files`` in it, ``body_seconds`` that its body may take to come. Of all requests
    together: ``queue``, images that are taken and not yet answered. Numbers below 1 raise :class:`UserError`."""

    max_bytes: int = 20_000_000
    max_files: int = 16
    queue: int = 64
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if (value := getattr(self, one.name)) < (0.001 if one.name == "body_seconds" else 1):
                raise UserError(one.name, f"expected at least 1, got {value}", "correct it")


class Room:
    """How many images, and bytes of bodies, are in the service now. For one thread: that of the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._most_images, self._most_bytes = limits.queue, limits.max_bytes * BODIES_AT_ONCE
        self.images = self.bytes = 0

    @contextmanager
    def held(self) -> Iterator["Share"]:
        """What one request takes inside, and gives back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.images -= share.images
            self.bytes -= share.bytes

    def has(self, images: int, size: int) -> bool:
        """Whether there is room for so many more."""
        return self.images + images <= self._most_images and self.bytes + size <= self._most_bytes


class Share:
    """What one request holds of a :class:`Room`."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.images = self.bytes = 0

    def require(self, images: int = 0, size: int = 0) -> None:
        """Raise a :class:`RefusedError` of status 503 where there is no room for so many more."""
        if not self._room.has(images, size):
            raise RefusedError(503, "busy: as many images are waiting as the service takes; try again later", after=1)

    def take(self, images: int = 0, size: int = 0) -> None:
        """Take more, where there is room for it (:meth:`require`)."""
        self.require(images, size)
        self.images += images
        self.bytes += size
        self._room.images += images
        self._room.bytes += size
