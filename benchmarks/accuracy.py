"""How far losses and gradients are from float64, by jaxloss and by XLA's formulas, on the platform at hand.

Run it with `python -m benchmarks.accuracy [--platform cpu|gpu] [--quick] [--output DIRECTORY]`. It writes
`accuracy_PLATFORM.json` and, unless `--quick` or `--output` is given, the platform's section of docs/accuracy.md, whose
other sections stay; `--page-from FILE` writes it from a file that another machine wrote. The page says what the numbers
mean.
"""

import argparse
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "accuracy.md"
DTYPES = ("float32", "bfloat16", "float16")
# Deviation and offset of predictions: as training begins, as it ends, far too large, and far from 0.
MAGNITUDES = {"1": (1.0, 0.0), "10": (10.0, 0.0), "100": (100.0, 0.0), "3, about 10⁴": (3.0, 1e4)}
MOST_ULPS = 4
BEYOND_ROUNDING = 2.0**-20


def spacing(numbers: np.ndarray, dtype) -> np.ndarray:
    """One unit in the last place of each number, as that type would hold it."""
    finfo = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(numbers), float(finfo.smallest_normal)))
    return np.ldexp(float(finfo.eps), exponent - 1)


def errors(losses, gradient, exact_losses, exact_gradient, least: float, compared) -> dict[str, float]:
    """The largest errors.

    Args:
        losses: of rows.
        gradient: of each row's own loss.
        exact_losses: in float64.
        exact_gradient: in float64.
        least: the size of the terms of a loss, if the loss is smaller.
        compared: which elements have a derivative.

    Returns:
        `loss_ulps`: of a loss, in units in the last place of float32, of the loss or of `least`;
        `loss_ulps_of_itself`: the same of the loss, however small. `gradient_roundings`: of an element, in halves of a
        unit in the last place of its type, or in 2⁻²⁴ if that is more (it is a difference of numbers of up to 1);
        `gradient_share_of_allowed`: the same error as a share of half a unit and 2⁻²⁰.
    """
    of_loss = abs(losses.astype(np.float64) - exact_losses)
    of_element = np.where(compared, abs(gradient.astype(np.float64) - exact_gradient), 0)
    half = spacing(exact_gradient, gradient.dtype) / 2
    return {
        "loss_ulps": float((of_loss / spacing(np.maximum(abs(exact_losses), least), np.float32)).max()),
        "loss_ulps_of_itself": float((of_loss / spacing(exact_losses, np.float32)).max()),
        "gradient_roundings": float((of_element / np.maximum(half, 2.0**-24)).max()),
        "gradient_share_of_allowed": float((of_element / (half + BEYOND_ROUNDING)).max()),
    }


def measure(quick: bool) -> list[dict]:
    """Every loss, type and width by every magnitude."""
    from benchmarks import accuracy_losses as table

    keys = [
        (name, dtype, width)
        for name, loss in table.LOSSES.items()
        for dtype in (DTYPES[:2] if quick else DTYPES)
        for width in (loss.widths[:1] if quick else loss.widths)
    ]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        programs = pool.map(lambda key: table.compiled(table.LOSSES[key[0]], key[2], key[1]), keys)
    rows = []
    for (name, dtype, width), program in zip(keys, programs, strict=True):
        for magnitude, (deviation, offset) in MAGNITUDES.items():
            loss = table.LOSSES[name]
            x, a = table.operands(loss, width, dtype, deviation, offset)
            exact = (*table.exact(loss, x, a), loss.least, x != a if loss.kinked else True)
            found = {who: errors(*map(np.asarray, run(x, a)), *exact) for who, run in program.items()}
            rows.append({"loss": name, "dtype": dtype, "width": width, "magnitude": magnitude, **found})
    return rows


# ---- the page --------------------------------------------------------------------------------------------------------


def misses(row: dict) -> list[str]:
    """What of a row's jaxloss is beyond its target."""
    name = f"{row['loss']} {row['dtype']} V = {row['width']}, deviation {row['magnitude']}"
    found, lines = row["jaxloss"], []
    if not found["loss_ulps"] <= MOST_ULPS:
        lines.append(
            f"{name}: loss {found['loss_ulps']:.3g} ulp, target {MOST_ULPS} (XLA {row['xla']['loss_ulps']:.3g})"
        )
    if not found["gradient_share_of_allowed"] <= 1:
        lines.append(f"{name}: gradient {found['gradient_share_of_allowed']:.3g} of what is allowed")
    return lines


def table(rows: list[dict], key: str, beyond) -> str:
    """Rows by loss, type and width, columns by magnitude: jaxloss / XLA, in bold where jaxloss is beyond its target."""
    lines = [
        f"| loss | type | V | {' | '.join(MAGNITUDES)} |",
        f"|---|---|---|{'---|' * len(MAGNITUDES)}",
    ]
    cells, last = {}, None
    for row in rows:
        ours, xla = f"{row['jaxloss'][key]:.3g}", f"{row['xla'][key]:.3g}"
        cell = f"**{ours}** / {xla}" if beyond(row["jaxloss"]) else f"{ours} / {xla}"
        cells.setdefault((row["loss"], row["dtype"], row["width"]), []).append(cell)
    for (name, dtype, width), values in cells.items():
        lines.append(f"| {name if name != last else ''} | {dtype} | {width} | {' | '.join(values)} |")
        last = name
    return "\n".join(lines)


def measured_with(circumstances: dict) -> str:
    """The first line of a platform's section."""
    commit = (circumstances["commit"] or "unknown").partition(" ")[0][:12]
    jax = circumstances["versions"]["jax"]
    return f"Measured with: {circumstances['device']}; {circumstances['kernels']}; jax {jax}; commit {commit}."


def section(rows: list[dict], circumstances: dict) -> str:
    """What the page says of a platform."""
    platform = circumstances["platform"].upper()
    missed = [line for row in rows for line in misses(row)]
    verdict = (
        "All targets are met." if not missed else f"{len(missed)} of {2 * len(rows)} numbers are beyond their target."
    )
    by_loss = table(rows, "loss_ulps", lambda found: not found["loss_ulps"] <= MOST_ULPS)
    by_gradient = table(rows, "gradient_roundings", lambda found: not found["gradient_share_of_allowed"] <= 1)
    return f"""{measured_with(circumstances)}
{verdict}

### Losses of rows, {platform}: jaxloss / XLA, in ulp

{by_loss}

### Gradients, {platform}: jaxloss / XLA, in roundings

{by_gradient}
"""


def with_section(page: str, platform: str, text: str, title: str = "") -> str:
    """The page with that platform's section in the place of the one it had, or at its end."""
    begin, end = f"<!-- measured: {platform} -->\n", f"<!-- end: {platform} -->\n"
    new = f"{begin}## {title or platform.upper()}\n\n{text}{end}"
    if begin in page:
        before, _, rest = page.partition(begin)
        return before + new + rest.partition(end)[2]
    return page.rstrip("\n") + "\n\n" + new


def main() -> None:
    """Measures, prints what is beyond its target, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="where to run; default: what jax chooses")
    parser.add_argument("--quick", action="store_true", help="narrow rows only, and no float16: to try the script")
    parser.add_argument("--page-from", metavar="FILE", type=pathlib.Path, help="only write the section of such a JSON")
    parser.add_argument("--output", help="where to write the JSON, and leave the page; default: benchmarks/results")
    chosen = parser.parse_args()
    if chosen.page_from:
        measured = json.loads(chosen.page_from.read_text())
        platform = "cpu" if measured["platform"] == "cpu" else "gpu"
        PAGE.write_text(with_section(PAGE.read_text(), platform, section(measured["measurements"], measured)))
        return
    if chosen.platform:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[chosen.platform]
    import jax

    from benchmarks import record

    platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
    circumstances = record.circumstances()
    rows = measure(chosen.quick)
    text = section(rows, circumstances)
    print(text)
    print(record.write(f"accuracy_{'quick_' if chosen.quick else ''}{platform}", rows, chosen.output))
    if not chosen.quick and not chosen.output:
        PAGE.write_text(with_section(PAGE.read_text(), platform, text))
        print(PAGE)
    missed = [line for row in rows for line in misses(row)]
    print(
        f"targets: {2 * len(rows)}; missed: {len(missed) or 'none'}", *(f"missed: {line}" for line in missed), sep="\n"
    )


if __name__ == "__main__":
    main()
