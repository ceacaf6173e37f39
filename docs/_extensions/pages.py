"""What the pages need to be good Markdown on the site and in the repository at once."""

import pathlib
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

ROOT = pathlib.Path(__file__).parents[2]
LINK = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")
PICTURE = re.compile(
    r"<picture>\s*<source media=\"\(prefers-color-scheme: dark\)\" srcset=\"(?P<dark>[^\"]+)\">\s*"
    r"<img src=\"(?P<light>[^\"]+)\"(?: width=\"(?P<width>\d+)\")? alt=\"(?P<alt>[^\"]+)\">\s*</picture>"
)
NOTEBOOKS = "notebooks"
LONG = 40
"""Letters: a cell of a table with more has room for some of them in a line."""


def _copy_notebooks(app: Sphinx, config: Config) -> None:
    """Only what is inside of docs/ can be a page, and links do not follow links of the file system."""
    del config
    inside = pathlib.Path(app.srcdir, NOTEBOOKS)
    inside.mkdir(exist_ok=True)
    for notebook in (ROOT / NOTEBOOKS).glob("*.ipynb"):
        copy = inside / notebook.name
        if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
            copy.write_bytes(notebook.read_bytes())


def _outward_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files outside of docs/ go to the repository, those to notebooks to their page; pictures are copied."""

    def replaced(link: re.Match) -> str:
        up, path, anchor = link[1], link[2], link[3] or ""
        outside = up.count("/") == page.count("/") + 1
        if not outside:
            return link[0]
        if not (ROOT / path).exists():
            logging.getLogger(__name__).warning("link to %s, which is not there", path, location=page)
        if path.startswith(f"{NOTEBOOKS}/"):
            return f"]({up[3:]}{path}{anchor})"
        if path.endswith(".png"):
            return link[0]
        return f"]({app.config.html_theme_options['source_repository']}/blob/main/{path}{anchor})"

    source[0] = LINK.sub(replaced, source[0])


def _pictures(app: Sphinx, page: str, source: list[str]) -> None:
    """A picture of two themes follows the theme that the reader chose on the site, not the system's alone."""
    del app

    def replaced(picture: re.Match) -> str:
        width = f":width: {picture['width']}px\n" if picture["width"] else ""
        return "\n".join(
            f":::{{image}} {picture[theme]}\n:alt: {picture['alt']}\n{width}:class: only-{theme}\n:::"
            for theme in ("light", "dark")
        )

    source[0] = PICTURE.sub(replaced, source[0])
    if "<picture>" in source[0]:
        logging.getLogger(__name__).warning("a <picture> that is not as PICTURE has it", location=page)


def _classes_of_tables(app: Sphinx, page: nodes.document, name: str) -> None:
    """Marks what a telephone shows in another way: cells of much text, and tables whose first column names numbers."""
    del app, name
    for entry in page.findall(nodes.entry):
        if len(entry.astext()) > LONG:
            entry["classes"].append("long")
    for table in page.findall(nodes.table):
        rows = [row for body in table.findall(nodes.tbody) for row in body.findall(nodes.row)]
        aligned = [{"text-right", "text-center"} & set(row[-1]["classes"]) for row in rows]
        if len(rows[0]) > 2 and all(aligned):
            table["classes"].append("numbers")


def _language(app: Sphinx, page: str, template: str, context: dict, tree: object) -> None:
    """Korean pages say so: browsers choose fonts, break lines and read aloud by it."""
    del app, template, tree
    if page.startswith("ko/"):
        context["language"] = "ko"


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", _copy_notebooks)
    app.connect("source-read", _outward_links)
    app.connect("source-read", _pictures)
    app.connect("doctree-resolved", _classes_of_tables)
    app.connect("html-page-context", _language)
    return {"parallel_read_safe": True}
