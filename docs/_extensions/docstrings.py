"""Docstrings are Markdown with formulas between dollars: says the same in the markup that autodoc reads."""

import re
import textwrap

from sphinx.application import Sphinx

import jaxloss

INLINE = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<formula>[^$]+?)\$|`(?P<code>[^`]+)`", re.DOTALL)
BEFORE, AFTER = " \n([{<-/:'\"", " \n.,:;!?)]}>-/'\""  # what may stand beside a role
MODULES = {module.__name__: module for module in (jaxloss, jaxloss.optax, jaxloss.formulas, jaxloss.objectives)}
NO_LINKS = "formulas", "objectives", *jaxloss.CrossEntropyStats._fields  # modules; names of functions too
TYPE = re.compile(r"<class 'jax\.numpy\.(\w+)'>")
RETURNS = re.compile(r"^( *)Returns:\n", re.MULTILINE)


def markup(text: str, scope: str) -> str:
    """A docstring of an object in the module `scope`; examples stay as they are."""
    text = RETURNS.sub(r"\1:returns:\n", text)  # else what is before a colon in it is taken for a type
    return "\n\n".join(
        paragraph if paragraph.lstrip().startswith(">>>") else _paragraph(paragraph, scope)
        for paragraph in text.split("\n\n")
    )


def _paragraph(paragraph: str, scope: str) -> str:
    indent = re.match(" *", paragraph)[0]

    def replaced(match: re.Match) -> str:
        if match["display"]:
            formula = textwrap.indent(" ".join(match["display"].split()), f"{indent}    ")
            return f"\n\n{indent}.. math::\n\n{formula}\n\n{indent}"
        if match["formula"]:
            role = f":math:`{' '.join(match['formula'].split())}`"
        else:
            role = _code(" ".join(match["code"].split()), scope)
        before, after = paragraph[: match.start()][-1:], paragraph[match.end() :][:1]
        return ("" if before in BEFORE else "\\ ") + role + ("" if after in AFTER else "\\ ")

    return INLINE.sub(replaced, paragraph)


def _code(code: str, scope: str) -> str:
    """A link, if that is what a public function or class is called, in the module `scope` or in jaxloss itself."""
    for name in (code,) if code.startswith("jaxloss.") else (f"{scope}.{code}", f"jaxloss.{code}"):
        module, _, last = name.rpartition(".")
        if module in MODULES and last in MODULES[module].__all__ and last not in NO_LINKS:
            return f":py:obj:`{code} <{name}>`"
    return f"``{code}``"


def _process(app: Sphinx, what: str, name: str, thing: object, options: dict, lines: list[str]) -> None:
    del app, options, thing
    scope = name if what == "module" else name.rpartition(".")[0]
    lines[:] = markup("\n".join(lines), scope).split("\n")


def _defaults(
    app: Sphinx, what: str, name: str, thing: object, options: dict, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Types among the defaults are written as one writes them in a call."""
    del app, what, name, thing, options
    return signature and TYPE.sub(r"jnp.\1", signature), returns


def _is_field(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: dict) -> bool | None:
    """Leaves out what Python says of a named tuple's fields: the description of the class says what they are."""
    del app, what, name, skip, options
    return True if str(thing.__doc__).startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-skip-member", _is_field)
    app.connect("autodoc-process-signature", _defaults)
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon's, which is 500
    return {"parallel_read_safe": True}
