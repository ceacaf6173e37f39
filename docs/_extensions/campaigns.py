"""The directives `campaigns`, `mended` and `mutants`: tables of docs/trust.md, made as the site is built.

```{campaigns} trust_cpu
```
"""

import pathlib
import sys

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(pathlib.Path(__file__).parents[2]))
from trust import tables


class Table(SphinxDirective):
    """A table of a file, which is named by its argument but for that of `mended`."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        path, lines = tables.table(self.name, self.arguments)
        self.env.note_dependency(str(path))
        box = nodes.container(classes=["measurements"])
        self.state.nested_parse(StringList(lines, source=str(path)), 0, box)
        return [box]


def setup(app: Sphinx) -> dict:
    for name in ("campaigns", "mended", "mutants"):
        app.add_directive(name, Table)
    return {"parallel_read_safe": True}
