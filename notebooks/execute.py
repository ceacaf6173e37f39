"""Execute the notebooks beside this file: do they run, without error and without warning?

python notebooks/execute.py           checks
python notebooks/execute.py --write   and stores the outputs in the notebooks
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 120


def main() -> None:
    """Execute the notebooks named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    arguments = parser.parse_args()

    failed = False
    for path in arguments.notebooks:
        start = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        problems = execute(notebook)
        print(f"{'failed' if problems else 'ok'}: {path.name}, {time.perf_counter() - start:.0f} s")
        for problem in problems:
            print(problem)
        failed |= bool(problems)
        if arguments.write and not problems:
            normalise(notebook)
            nbformat.write(notebook, path)
    sys.exit(failed)


def execute(notebook: nbformat.NotebookNode) -> list[str]:
    """Run all cells in place, and return what went wrong: an error, or anything written to stderr."""
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(HERE)}},
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return [str(error)]
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [output.text for output in outputs if output.get("name") == "stderr"]


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Leave out whatever differs from one execution to the next, or shows only while a kernel runs."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        kept = {name: cell.metadata[name] for name in ("jupyter", "tags") if name in cell.metadata}  # what hides a cell
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            # Widgets without a kernel are dead, and their identifiers random.
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


if __name__ == "__main__":
    main()
