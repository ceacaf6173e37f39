"""Checks a built site: links within it lead somewhere, nothing is loaded from elsewhere, no formula is left as text.

python tools/check_site.py build/site
"""

import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}  # and <link>, by what it is to the page
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload"}
CODE = {"code", "pre", "script", "style"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Page(HTMLParser):
    """What a page links to, what it loads, which anchors it has, and what is left of formulas in its text."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.raw_formulas: list[str] = []
        self._open: list[tuple[str, bool]] = []  # the elements around, and whether dollars are their own there
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given:
            self.loads.append(given[LOADED[tag]])
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        if tag not in VOID:
            exempt = tag in CODE or "math" in given.get("class", "").split()
            self._open.append((tag, exempt))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if ("$" in data or "\\" in data) and not any(exempt for _, exempt in self._open):
            self.raw_formulas.append(" ".join(data.split()))


def problems(site: Path) -> list[str]:
    """A line for everything that is wrong."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: loads {load}" for load in page.loads if urllib.parse.urlsplit(load).netloc]
        found += [f"{name}: TeX as text: {text[:80]}" for text in page.raw_formulas]
        for link in [*page.links, *page.loads]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchor = urllib.parse.unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{name}: {link} is not there")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{name}: {link} has no such anchor")
    return found if pages else [f"{site} holds no pages"]


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines) or "every link within the site leads somewhere, and nothing is loaded from elsewhere")
    sys.exit(bool(lines))
