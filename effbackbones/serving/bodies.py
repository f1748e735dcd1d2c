"""From the body of a request to the files in it, which stay in memory: nothing that comes is written to a disk."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from effbackbones.images.opening import Encoded
from effbackbones.serving.limits import Limits, RefusedError, Share

_TAKEN = "send Content-Type: image/*, audio/* or application/octet-stream with one file as body, or multipart/form-data with files"
_DISCARDED, _DISCARD_SECONDS = 4, 5.0
"""Of a body that is too large so many times the largest is read all the same, for so long: who still sends does not hear why."""
_NAME = 100
"""Letters of a file's name that are kept."""


def check_headers(headers: Mapping[str, str], limits: Limits) -> None:
    """Refuse by its headers (names in lower case) what need not be read."""
    kind = _kind(headers)
    if not kind:
        raise RefusedError(415, f"Content-Type is missing: {_TAKEN}")
    if not kind.startswith(("image/", "audio/")) and kind not in ("application/octet-stream", "multipart/form-data"):
        raise RefusedError(415, f"Content-Type {kind[:_NAME]!r} is not taken: {_TAKEN}")
    packed = headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise RefusedError(415, f"Content-Encoding {packed[:_NAME]!r} is not taken: send the body as it is")
    told = headers.get("content-length", "")
    if told.isascii() and told.isdecimal() and int(told) > limits.max_bytes:
        raise too_large(limits, int(told))


def too_large(limits: Limits, told: int | None = None) -> RefusedError:
    """The refusal of a body that is too large."""
    found = f"the body has {told:,} bytes" if told else "the body is larger"
    return RefusedError(413, f"{found}; allowed are {limits.max_bytes:,} bytes: send a smaller image, or fewer at once")


async def read_body(chunks: AsyncIterator[bytes], limits: Limits, share: Share) -> bytes:
    """All of a body, counted against its ``share`` while it comes; its length need not have been told."""
    content = bytearray()

    async def read() -> None:
        async for chunk in chunks:
            if len(content) + len(chunk) > limits.max_bytes:
                raise too_large(limits)
            share.take(size=len(chunk))
            content.extend(chunk)

    try:
        await asyncio.wait_for(read(), limits.body_seconds)
    except TimeoutError:
        what = f"the body did not come whole within {limits.body_seconds:g} s ({len(content):,} bytes did)"
        raise RefusedError(408, f"{what}: send it faster") from None
    return bytes(content)


async def discard(chunks: AsyncIterator[bytes], limits: Limits) -> None:
    """Read on, within reason, what is sent in vain: otherwise its sender would see a broken connection in the place of the reason."""
    left, end = _DISCARDED * limits.max_bytes, time.monotonic() + _DISCARD_SECONDS

    async def read() -> None:
        nonlocal left
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0 or time.monotonic() > end:
                return

    with suppress(TimeoutError):
        await asyncio.wait_for(read(), _DISCARD_SECONDS)


def files_of(body: bytes, headers: Mapping[str, str], limits: Limits) -> tuple[list[Encoded], bool]:
    """The files of a body, and whether they came as a form, of which there may be several."""
    if _kind(headers) != "multipart/form-data":
        return [Encoded("image", body)], False
    files = _files_of_form(body, headers["content-type"])
    if not files:
        raise RefusedError(
            400, "the form holds no file: send at least one part with a file name, as curl -F image=@FILE does"
        )
    most = min(limits.max_files, limits.queue)
    if len(files) > most:
        raise RefusedError(413, f"the form holds {len(files)} files; allowed are {most}: send several requests")
    return [Encoded(clean_name(name, number), content) for number, (name, content) in enumerate(files)], True


def clean_name(name: str, number: int) -> str:
    """A file's name without folders and letters that show nothing; ``image NUMBER`` where nothing is left."""
    last = re.split(r"[\\/]", name)[-1]
    kept = "".join(letter for letter in last if letter.isprintable()).strip()[-_NAME:]
    return kept if kept.strip(". ") else f"image {number}"


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _files_of_form(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Names and contents of the parts of a form that are files; other parts are refused: nothing would be made of them."""
    from python_multipart.exceptions import ParseError  # optional: extra `serve`
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise RefusedError(400, "Content-Type multipart/form-data without a boundary: let the client library write it")
    parts, ended = _Parts(), False

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        callbacks: Any = {**parts.callbacks(), "on_end": end}
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except (ParseError, ValueError) as error:
        raise RefusedError(400, f"the form cannot be read: {str(error)[:160]}") from None
    if not ended:
        raise RefusedError(400, "the form breaks off: its last boundary is missing")
    found = []
    for head, content in parts.found:
        kind, options = parse_options_header(head.get(b"content-disposition", b""))
        name = options.get(b"filename")
        if kind != b"form-data" or name is None:
            field = options.get(b"name", b"").decode("utf-8", "replace")[:_NAME]
            raise RefusedError(
                400, f"the form's part {field!r} is no file: options go into the address, as in /predict?threshold=0.5"
            )
        found.append((name.decode("utf-8", "replace"), bytes(content)))
    return found


class _Parts:
    """Collects headers and content of each part, as a parser finds them."""

    def __init__(self) -> None:
        self.found: list[tuple[dict[bytes, bytes], bytearray]] = []
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": lambda: self.found.append(({}, bytearray())),
            "on_part_data": lambda data, start, end: self.found[-1][1].extend(memoryview(data)[start:end]),
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
        }

    def _header(self) -> None:
        self.found[-1][0][bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()
