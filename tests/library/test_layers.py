"""The folders of the package are its layers, in the order in which a call goes through them: none imports one above it.

So it is of the folders of kernels.
"""

import ast
import pathlib
import re

import pytest

import jaxloss

PACKAGE = pathlib.Path(jaxloss.__file__).parent
PUBLIC = (
    "optax",
    "binary",
    "categorical",
    "contrastive",
    "distillation",
    "linear",
    "linear_distillation",
    "objectives",
    "regression",
)
# From the top: what a caller passes is checked; linear losses are made of rows; rows are differentiated; and so on.
LAYERS = ("_checks", "_linear", "_rows", "_autodiff", "_partitioning", "_ffi", "_spec", "_arrays")
OWN = ("formulas", "_docs", "_types", "_version")  # these import nothing of the package but themselves
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
)


def parts(module: str) -> list[str]:
    return module.split(".")[1:]


def imported(path: pathlib.Path) -> set[str]:
    """The first names below `jaxloss` of the modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxloss":
            below = parts(node.module)
            found |= {below[0]} if below else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {parts(alias.name)[0] for alias in node.names if alias.name.startswith("jaxloss.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_layer_imports_one_above_it(path):
    layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if layer in PUBLIC:
        return
    allowed = {layer} if layer in OWN else {*OWN, *LAYERS[LAYERS.index(layer) :]}
    assert imported(path) <= allowed


def test_every_private_module_has_a_layer():
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top == {"__init__", "__main__", *PUBLIC, *LAYERS, *OWN}


KERNELS = pathlib.Path(__file__).parents[2] / "cuda/gpu"
SHARED = ("core", "rows")
"""Folders of kernels that others include, the lowest first. A family includes these and itself."""


def test_families_of_kernels_share_only_what_is_below_them():
    included = {}
    for path in KERNELS.glob("*/*.*"):
        folders = re.findall(r'#include "gpu/(\w+)/', path.read_text())
        included.setdefault(path.parent.name, set()).update(folders)
    assert included["core"] == {"core"}
    assert included.pop("rows") == {"core", "rows"}
    for folder, found in included.items():
        assert found <= {folder, *SHARED}, folder
