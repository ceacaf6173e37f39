"""The losses against XLA's own, torch.compile's, Liger's and the memory's limit, measured in the same process.

Run it with `python -m benchmarks.losses`; `--help` lists the options. It prints a table with each goal, and as its last
lines the goals that were missed, and writes JSON, with `--sweep` two plots too. README.md beside this says how to read
them.
"""

import argparse
import os
import pathlib
import sys
import time

# On a CPU a large result is made of fresh pages in every call, and the operating system's work for them is more than
# half the time of a copy. With these settings of glibc a process keeps its pages, as a training step keeps its buffers.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def arguments() -> argparse.Namespace:
    """Of the command line; sets what the environment must hold before jax is imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="where to run; default: what jax chooses")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="measure only rows that contain this, such as 'bfloat16 [8192'; may be repeated",
    )
    parser.add_argument("--sweep", action="store_true", help="instead of the table: over classes, rows and bytes")
    parser.add_argument(
        "--portable", action="store_true", help="instead of the table: its rows by the kernel for GPUs without clusters"
    )
    parser.add_argument("--options", action="store_true", help="instead of the table: cross entropy with its options")
    parser.add_argument(
        "--divergences", action="store_true", help="instead of the table: divergences from a teacher, and the entropy"
    )
    parser.add_argument("--torch", action="store_true", help="torch.compile and Liger too (10 – 20 s a row)")
    parser.add_argument("--quick", action="store_true", help="1/64 of the rows and short loops: to try the script")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start no row after so long")
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1), help="that compile")
    parser.add_argument("--draw", type=pathlib.Path, metavar="FILE", help="only draw the plots of an earlier --sweep")
    parser.add_argument("--output", help="where to write; default: benchmarks/results")
    chosen = parser.parse_args()
    tables = chosen.sweep and not chosen.options, chosen.portable, chosen.options, chosen.divergences
    if sum(tables) > 1 or (chosen.sweep and chosen.torch):
        parser.error(
            "--portable, --options and --divergences exclude each other; --sweep goes with --options, not with --torch"
        )
    if chosen.platform:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[chosen.platform]
    if chosen.platform == "cpu" and not KEEP_PAGES.keys() <= os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, os.environ | KEEP_PAGES)  # they count from a process's start
    if chosen.portable:
        os.environ["JAXLOSS_CROSS_ENTROPY_KERNEL"] = "streaming"
    if chosen.torch:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch uses the same GPU
    return chosen


def draw(file: pathlib.Path) -> None:
    """Draws the plots of a sweep, where there is something to draw with."""
    try:
        from benchmarks import plots
    except ModuleNotFoundError as error:
        print(f"no plots, for {error.name} is not installed: --draw {file} draws them where it is")
    else:
        print(*plots.draw(file), sep="\n")


def main() -> None:
    """Measures, prints and writes."""
    start = time.monotonic()
    chosen = arguments()
    if chosen.draw:
        draw(chosen.draw)
        return
    import jax

    from benchmarks import loss_report, loss_table, record
    from benchmarks.loss_run import measured

    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    if chosen.portable and platform == "cpu":
        raise SystemExit("--portable is about a GPU's kernels: there is no GPU here")
    if chosen.sweep and chosen.options:
        name, works = "losses_options_sweep", list(loss_table.options_sweep(platform))
    elif chosen.sweep:
        name, works = "losses_sweep", list(loss_table.sweep(platform))
    elif chosen.portable:
        name, works = "losses_portable", loss_table.portable_table()
    elif chosen.options:
        name, works = "losses_options", loss_table.OPTIONS_TABLE[platform]
    elif chosen.divergences:
        name, works = "losses_divergences", loss_table.DIVERGENCES_TABLE[platform]
    else:
        name, works = "losses_torch" if chosen.torch else "losses", loss_table.table(platform)
    name += "_quick" if chosen.quick else ""
    works = [work for work in works if not chosen.only or any(words in str(work) for words in chosen.only)]
    if chosen.quick:
        works = [loss_table.smaller(work) for work in works]
    print(record.circumstances())
    print(loss_report.HEADING)
    rows = []
    for row in measured(works, chosen, start):
        rows.append(row)
        print("\n".join(loss_report.lines(row)), flush=True)
        path = record.write(f"{name}_{platform}", rows, chosen.output)  # each time: a run may be cut off
    if not rows:
        raise SystemExit(f"no row was measured: none contains {' or '.join(chosen.only)!r}, or there was no time")
    if chosen.sweep:
        draw(path)
    print(f"{path}; {time.monotonic() - start:.0f} s")
    print(loss_report.summary(rows, works[len(rows) :]))
    if any("error" in row for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
