"""Published weights on this machine: cache folder, download, verification, and the command ``effbackbones-weights``.

Environment: ``EFFBACKBONES_CACHE`` (default ``~/.cache/effbackbones``); ``EFFBACKBONES_MIRROR``, a base URL that stands in for
the scheme and host of every source. Nothing here imports torch before it is needed.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, TYPE_CHECKING

from effbackbones.errors import UserError, nearest

if TYPE_CHECKING:
    from effbackbones.weights.source import WeightSource

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte after which a download is given up."""
_ORPHAN_AGE = 24 * 3600.0


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder of downloaded weights: ``cache``, or ``EFFBACKBONES_CACHE``, or ``~/.cache/effbackbones``."""
    return Path(cache or os.environ.get("EFFBACKBONES_CACHE") or "~/.cache/effbackbones").expanduser()


def fetch(source: "WeightSource", cache: str | Path | None = None) -> Path:
    """The verified file of ``source``: from its installed package, from the cache, or downloaded into the cache.

    A file put into the cache by hand under the source's file name is as good as a download. Raises :class:`UserError` when
    there is no connection (saying which file to put where), on a wrong hash, and when the package is not installed.
    """
    if source.package:
        return _packaged(source)
    path = cache_folder(cache) / source.file
    if path.is_file():
        verify(path, source)
    else:
        _download(source, path)
    return path


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Pins: two publishers state no hash beforehand (hugging face tells one at download, zylo117 none at all). What was first fetched
# is therefore written down beside the file, so that a file that changes later, on the disk or at its source, is refused, and so
# that a cached file that is given by its path is still known for what it is. No hub client offers both for all our publishers.
def pinned(path: Path) -> dict[str, str]:
    """What the cache knows of ``path`` since its first fetch: ``sha256``, ``source``, ``backbone``; empty if nothing."""
    try:
        record = json.loads(_pin_of(path).read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in record.items()} if isinstance(record, dict) else {}


def verify(path: Path, source: "WeightSource") -> None:
    """Check a cached file against its pinned hash, else against the source's, and pin it."""
    found, known = file_sha256(path), pinned(path).get("sha256")
    if known or source.hash_prefix:
        _compare(found, known or source.hash_prefix or "", str(path), f"delete {path} and fetch it again")
    if not known:
        _pin(path, source, found)


def _compare(found: str, expected: str, where: str, remedy: str) -> None:
    if not found.startswith(expected):
        raise UserError(
            where, f"sha256 expected {expected}{'...' if len(expected) < 64 else ''}, found {found}", remedy
        )


def _pin_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _pin(path: Path, source: "WeightSource", sha256: str) -> None:
    record = {"sha256": sha256, "source": source.name, "backbone": source.backbone, "url": source.url}
    with contextlib.suppress(OSError):  # a read-only cache that somebody else filled: verified, only not pinned
        _pin_of(path).write_text(json.dumps(record, indent=1) + "\n")


def _packaged(source: "WeightSource") -> Path:
    """The file inside the installed package, found without running the package's code."""
    spec = importlib.util.find_spec(source.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / source.file
        if path.is_file():
            _compare(file_sha256(path), source.hash_prefix or "", str(path), "install the package again")
            return path
    raise UserError(
        f"weights {source.name}", f"package {source.package} is not installed", 'install "effbackbones[lite]"'
    )


class _HubHash(urllib.request.HTTPRedirectHandler):
    """Notes the sha256 that a hub states, also where it redirects to its storage (whose own ETag means something else)."""

    def __init__(self) -> None:
        self.sha256 = ""

    def note(self, headers: HTTPMessage, *names: str) -> None:
        """Keep the first of these headers that is a sha256."""
        for name in names:
            tag = (headers.get(name) or "").removeprefix("W/").strip('"').lower()
            if not self.sha256 and len(tag) == 64 and not set(tag) - set("0123456789abcdef"):
                self.sha256 = tag

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        self.note(headers, "X-Linked-Etag")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(source: "WeightSource", path: Path) -> None:
    """Download into a temporary file beside ``path``, verify, pin, and only then give it its name."""
    url = _mirrored(source.url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UserError(
            str(path.parent), f"cannot write there ({error.strerror})", "set EFFBACKBONES_CACHE to another folder"
        ) from error
    part = Path(name)
    try:
        with open(handle, "wb") as file:
            sha256, stated = _receive(source, url, file, path)
        for expected in (source.hash_prefix, stated):
            _compare(
                sha256, expected or "", url, "nothing was kept; try again, or check EFFBACKBONES_MIRROR and any proxy"
            )
        changed = f"it is not what was fetched before; if that is right, delete {_pin_of(path)}"
        _compare(sha256, pinned(path).get("sha256", ""), url, changed)
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
        _pin(path, source, sha256)
    finally:
        part.unlink(missing_ok=True)


def _receive(source: "WeightSource", url: str, file: IO[bytes], path: Path) -> tuple[str, str]:
    """Copy the body of ``url`` into ``file``; its sha256, and the one that the hub stated (or "")."""
    from tqdm import tqdm

    hub, digest = _HubHash(), hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "effbackbones", "Accept-Encoding": "identity"})
    try:
        with urllib.request.build_opener(hub).open(request, timeout=TIMEOUT) as response:
            if response.url == url:
                hub.note(response.headers, "X-Linked-Etag", "ETag")
            total = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, desc=source.file, unit="B", unit_scale=True, file=sys.stderr) as bar:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            if total and bar.n != total:
                raise ConnectionError(f"ended after {bar.n:,} of {total:,} bytes")
        file.flush()
        os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        raise _unreachable(source, url, path, f"the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _unreachable(source, url, path, f"no connection ({error.reason})") from None
    except (HTTPException, ConnectionError, TimeoutError) as error:
        raise _unreachable(source, url, path, f"the connection broke ({error or type(error).__name__})") from None
    except OSError as error:
        raise UserError(
            str(path.parent), f"cannot write there ({error.strerror})", "free space, or set EFFBACKBONES_CACHE"
        ) from error
    return digest.hexdigest(), hub.sha256


def _unreachable(source: "WeightSource", url: str, path: Path, why: str) -> UserError:
    remedy = f"get {source.url} elsewhere and put it as {path}, or set EFFBACKBONES_MIRROR, or do without: weights=None (null in a config)"
    return UserError(f"weights {source}", f"cannot download {url}: {why}", remedy)


def _mirrored(url: str) -> str:
    """``url`` with its scheme and host replaced by ``EFFBACKBONES_MIRROR``, if that is set."""
    mirror = os.environ.get("EFFBACKBONES_MIRROR")
    return mirror.rstrip("/") + urllib.parse.urlsplit(url).path if mirror else url


def _remove_orphans(path: Path) -> None:
    """Delete what killed downloads of this file left; young ones may belong to another process."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        if time.time() - part.stat().st_mtime > _ORPHAN_AGE:
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def main(argv: Sequence[str] | None = None) -> int:
    """``effbackbones-weights``: list the published weights, or fetch some into the cache. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about = "Published weights of EfficientNets and EfficientDets: list them, or fetch some into the cache."
    parser = argparse.ArgumentParser("effbackbones-weights", description=about, epilog=f"Cache: {cache_folder()}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="show the known weights")
    listing.add_argument("backbone", nargs="?", help="b0 ... b7, lite0 ... lite4; default: all")
    listing.set_defaults(run=_list)
    fetching = verbs.add_parser("fetch", help="download and verify")
    fetching.add_argument(
        "names", nargs="+", metavar="NAME", help="a backbone (its default weights) or a name from `list`"
    )
    fetching.add_argument(
        "--backbone", help="for names that several backbones share, such as torchvision:IMAGENET1K_V1"
    )
    fetching.add_argument("--cache", help="folder to fetch into")
    fetching.set_defaults(run=_fetch)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    from effbackbones.weights.classifiers import SOURCES, sources_for

    chosen = sources_for(arguments.backbone) if arguments.backbone else SOURCES
    if not chosen:
        known = {source.backbone for source in SOURCES}
        raise UserError(
            f"backbone {arguments.backbone!r}", "has no published weights", nearest(arguments.backbone, known)
        )
    for source in chosen:
        kind, value = ("top-1", source.top1) if source.ap is None else ("AP   ", source.ap)
        score = "  -   " if value is None else f"{value:6.3f}"
        size = "x".join(map(str, source.image_spec.size))
        print(f"{source.backbone:6} {source.name:45} {kind} {score}  {size:9} {source.numerics:11} {source.licence}")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    for name in arguments.names:
        print(fetch(_named(name, arguments.backbone), arguments.cache))
    return 0


def _named(name: str, backbone: str | None) -> "WeightSource":
    """The source that the command line means by ``name``."""
    from effbackbones.weights.classifiers import SOURCES, find_source

    owners = sorted({source.backbone for source in SOURCES if source.name == name})
    if name in {source.backbone for source in SOURCES}:
        if backbone not in (None, name):
            raise UserError("--backbone", f"is {backbone}, and {name} is a backbone itself", "leave one out")
        return find_source("imagenet", name)
    if backbone or len(owners) == 1:
        return find_source(name, backbone or owners[0])
    if owners:
        raise UserError(f"weights {name}", f"exist for {', '.join(owners)}", "say --backbone")
    raise UserError(f"weights {name}", "unknown", nearest(name, {source.name for source in SOURCES}))
