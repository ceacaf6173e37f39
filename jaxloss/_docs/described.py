"""Docstrings that are completed from tables, so that what a parameter means is written once.

A table is written as the arguments of a docstring are: `name: text`, further lines indented. The name is that of a
parameter, `Returns`, an error, or a phrase that other texts hold as `<name>`. A text that holds its own name extends
the one it replaces: `clip: <clip> Statistics are never clipped.` Of the signature are the phrases `<operand>`, its
first parameter; `<operands>`, its first two; and `<differentiable>`, all but those that `not differentiable` lists.

The docstring in the source says what is special about a function: what it computes, parameters of its own, an example,
where it is from. The sections Args, Returns and Raises hold what differs from the tables and may be missing. Imported,
the docstring has all of them, and in Args every parameter, in the order of the signature.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar, cast

Table = Mapping[str, str]
Function = TypeVar("Function", bound=Callable[..., Any])

_ENTRY = re.compile(r"^    (\w[\w ]*):\s", re.MULTILINE)
_PHRASE = re.compile(r"<([a-z][\w ]*)>")
_SECTION = re.compile(r"(Args|Returns|Raises):\n")
_LINE = re.compile(r"(\S.{0,107}|\S+)(?: |$)")

# Of a function that was described, all that it was described by.
_known: dict[Callable[..., Any], Table] = {}


def table(text: str, *below: Table) -> Table:
    """The texts by name, in addition to those of the tables below or in their place."""
    _, *parts = _ENTRY.split(text)
    return _merged(*below, {name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)})


def described(shared: Table, *, of: Callable[..., Any] | None = None) -> Callable[[Function], Function]:
    """Completes the docstring of a function, which stays the same object, from a table.

    Args:
        shared: what the functions of a family have in common.
        of: a function that is described already, such as the loss of a gradient: `shared` is then laid over all that
            it was described by, its own docstring included.
    """

    def decorate(function: Function) -> Function:
        if function.__doc__ is not None:  # there is none under python -OO
            below = {} if of is None else _known[inspect.unwrap(of)]
            function.__doc__ = _completed(function, function.__doc__, _merged(below, shared))
        return function

    return decorate


def _completed(function: Callable[..., Any], written: str, shared: Table) -> str:
    code = cast(FunctionType, function).__code__  # of which `inspect.signature` would take 100 times as long
    parameters = [*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
    if code.co_flags & inspect.CO_VARARGS:  # whose name comes after all others
        parameters.insert(code.co_argcount, code.co_varnames[len(parameters)])
    before, sections, after = _parts(inspect.cleandoc(written))
    own = table(sections.get("Args", ""))
    if unknown := own.keys() - set(parameters):
        raise ValueError(f"{function.__qualname__} describes {', '.join(unknown)}: expected parameters that it has")
    returns = {"Returns": " ".join(sections["Returns"].split())} if "Returns" in sections else {}
    known = _known[function] = _merged(shared, own, returns, table(sections.get("Raises", "")))
    if missing := [name for name in (*parameters, "Returns") if name not in known]:
        raise ValueError(
            f"{function.__qualname__} has {', '.join(missing)}: expected a description, here or in a table"
        )

    phrases = {**known, **_of_signature(parameters, known.get("not differentiable", ""))}

    def filled(text: str) -> str:
        return _PHRASE.sub(phrase, text) if "<" in text else text

    def phrase(match: re.Match[str]) -> str:
        if match[1] not in phrases:
            raise ValueError(f"{function.__qualname__} is described with {match[0]}: expected a phrase of its tables")
        return filled(phrases[match[1]])

    def entries(names: list[str]) -> list[str]:
        return [_wrapped(f"{name}: {filled(known[name])}", "    ", "        ") for name in names]

    return "\n\n".join(
        [
            *(_wrapped(filled(" ".join(words.split()))) if _PHRASE.search(words) else words for words in before),
            "\n".join(["Args:", *entries(parameters)]),
            "\n".join(["Returns:", _wrapped(filled(known["Returns"]), "    ", "    ")]),
            "\n".join(["Raises:", *entries(sorted(name for name in known if name.endswith("Error")))]),
            *after,
        ]
    )


def _of_signature(parameters: list[str], constants: str) -> Table:
    """Phrases that name parameters."""
    names = [f"`{name}`" for name in parameters]
    numbers = [f"`{name}`" for name in parameters if name not in constants.split(", ")]
    return {
        "operand": names[0],
        "operands": " or ".join(names[:2]),
        "differentiable": " and ".join([", ".join(numbers[:-1]), *numbers[-1:]]),
    }


def _parts(text: str) -> tuple[list[str], dict[str, str], list[str]]:
    """The paragraphs before the sections of arguments and results, or the examples; these sections; the rest."""
    before: list[str] = []
    sections: dict[str, str] = {}
    after: list[str] = []
    for paragraph in text.split("\n\n"):
        if section := _SECTION.match(paragraph):
            sections[section[1]] = paragraph[section.end() :]
        elif sections or after or paragraph.startswith(">>>"):
            after.append(paragraph)
        else:
            before.append(paragraph)
    return before, sections, after


def _merged(*tables: Table) -> Table:
    """Texts of later tables stand in for those of earlier ones, and hold them where they have their own name in <>."""
    merged: dict[str, str] = {}
    for one in tables:
        for name, text in one.items():
            merged[name] = text.replace(f"<{name}>", merged[name]) if name in merged else text
    return merged


@functools.cache
def _wrapped(text: str, indent: str = "", further: str = "") -> str:
    """Lines of the words of a text. Every import waits for it: `textwrap`, which can do more, takes far longer."""
    return indent + f"\n{further}".join(_LINE.findall(text.replace("  ", " ")))  # a phrase may be empty
