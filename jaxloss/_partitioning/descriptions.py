"""What a thing is made from as text that is the same in every process, and the thing again from such text.

It may come from a file. So it can name nothing but functions of `jaxloss.formulas` and dataclasses of this library.
"""

import base64
import dataclasses
import functools
import importlib
import json
import types
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss import formulas


def text_of(x) -> str:
    """Of numbers, strings, types, precisions, formulas, this library's dataclasses, and tuples and dicts of such."""
    text = json.dumps(_encoded(x), sort_keys=True, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def made_of(text: str) -> Any:
    """The reverse: something equal to what the text is of."""
    return _decoded(json.loads(zlib.decompress(base64.b64decode(text))))


def own_module(name: str) -> types.ModuleType:
    """A module of this library."""
    if name.partition(".")[0] != __name__.partition(".")[0]:
        raise ValueError(f"{name} is not a module of this library")
    return importlib.import_module(name)


def _encoded(x) -> Any:
    """As JSON has it."""
    match x:
        case None | bool() | int() | float() | str():
            return x
        case tuple():
            return [_encoded(part) for part in x]
        case jax.lax.Precision():
            return {"precision": x.name}
        case jax.lax.DotAlgorithmPreset():
            return {"algorithm": x.name}
        case jax.lax.DotAlgorithm():
            return {"operation": [_encoded(part) for part in x]}
        case np.dtype():
            return {"dtype": x.name}
        case dict():
            return {"items": [[_encoded(key), _encoded(value)] for key, value in x.items()]}
        case functools.partial() if not x.args:
            return {**_encoded(x.func), "with": {key: _encoded(value) for key, value in x.keywords.items()}}
        case _ if callable(x) and getattr(formulas, getattr(x, "__name__", ""), None) is x:
            return {"formula": x.__name__, "with": {}}
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = {field.name: _encoded(getattr(x, field.name)) for field in dataclasses.fields(x)}
        return {"class": [type(x).__module__, type(x).__name__], "fields": fields}
    raise TypeError(f"{x!r} can not be described")


def _decoded(x) -> Any:
    match x:
        case list():
            return tuple(map(_decoded, x))
        case {"precision": name}:
            return jax.lax.Precision[name]
        case {"algorithm": name}:
            return jax.lax.DotAlgorithmPreset[name]
        case {"operation": parts}:
            return jax.lax.DotAlgorithm(*map(_decoded, parts))
        case {"dtype": name}:
            return jnp.dtype(name)
        case {"items": items}:
            return dict(map(_decoded, items))
        case {"formula": name, "with": given}:
            formula = getattr(formulas, name)
            if not callable(formula) or not formula.__module__.startswith(formulas.__name__):
                raise ValueError(f"{name} is not a formula")
            return functools.partial(formula, **{k: _decoded(v) for k, v in given.items()}) if given else formula
        case {"class": [module, name], "fields": fields}:
            found = getattr(own_module(module), name)
            if not (dataclasses.is_dataclass(found) and isinstance(found, type)):
                raise ValueError(f"{module}.{name} is not a dataclass")
            return found(**{key: _decoded(value) for key, value in fields.items()})
    return x
