"""Programs that train something with jaxloss, one a file: docs/examples.md lists them."""

import argparse
import sys

COMMANDS = {"jaxloss": "pip install .", "torch": "pip install torch"}
"""What brings a package that is not in the dependency group `examples`."""


def quick() -> bool:
    """Whether `--quick` asks for seconds instead of a minute; `--help` says what the example does."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less training: some seconds")
    return parser.parse_args().quick


def what_is_missing(error: ModuleNotFoundError) -> str:
    """The package that was not found, and the command that brings it."""
    package = (error.name or "").partition(".")[0]
    return f"{package} is not installed: {COMMANDS.get(package, 'pip install --group examples')}"


def _say_what_is_missing(kind, error, traceback) -> None:
    if isinstance(error, ModuleNotFoundError):
        print(f"error: {what_is_missing(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[0] == "-m":  # while Python looks for the example that `python -m examples.…` names
    sys.excepthook = _say_what_is_missing
