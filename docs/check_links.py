"""Check the built site: ``python docs/check_links.py FOLDER``. Every local link, picture and anchor has to exist.

Links to other sites are listed with ``--external``, and not fetched.
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.targets.append(value)
            elif value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


def check(site: Path) -> tuple[list[str], dict[str, int]]:
    """The broken local links, and the addresses elsewhere with the number of links to each."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken: list[str] = []
    external: dict[str, int] = {}
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if parts.scheme in ("http", "https"):
                    external[target] = external.get(target, 0) + 1
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(file)
            lost = not file.is_file() or (
                known is not None and parts.fragment and unquote(parts.fragment) not in known.anchors
            )
            if lost:
                broken.append(f"{path.relative_to(site.resolve())}: {target}")
    return broken, external


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--external", action="store_true", help="list links to other sites")
    given = parser.parse_args()
    broken, external = check(given.folder)
    if given.external:
        print("\n".join(sorted(external)))
    print("\n".join(broken) or f"{given.folder}: all local links lead somewhere; {len(external)} links to other sites")
    sys.exit(bool(broken))
