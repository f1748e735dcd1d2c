"""Whether every link of the built site leads somewhere in it: ``python docs/links.py build/docs``. Nothing is asked of the network.

MkDocs checks links between pages as they are written; this reads what came out: links, pictures, scripts and anchors, also those of tables
and docstrings.
"""

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The targets of a page, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = {"", "top"}  # of the page itself

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value for name, value in attrs if value is not None}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        self.targets |= {named[name] for name in ("href", "src") if name in named}


@cache
def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(site: Path) -> Iterator[str]:
    """A line for each target that is not there."""
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":  # its links are those of the place where it will stand
            continue
        for target in sorted(_read(path).targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if place.is_dir():
                place /= "index.html"
            if not place.is_file():
                yield f"{path.relative_to(site)}: {target} is not there"
            elif place.suffix == ".html" and unquote(parts.fragment) not in _read(place).anchors:
                yield f"{path.relative_to(site)}: {target} has no such anchor"


def main(site: str) -> int:
    """Print what is broken; 1 where something is."""
    found = [*broken(Path(site).resolve())]
    print("\n".join(found) or f"every link of {len([*Path(site).rglob('*.html')])} pages leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
