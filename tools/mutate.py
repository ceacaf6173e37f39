"""Puts one fault after the other into a copy of this checkout, and says which of them the tests do not see.

    python tools/mutate.py                     # every mutant below, against the tests of `make test` that are about its file
    python tools/mutate.py --list              # the mutants
    python tools/mutate.py --only formulas     # those whose file has that in its name; or whose number it is
    python tools/mutate.py --survivors         # those that survived, once more: after a new test, or with --marker ""

A mutant is one operator, number, name or branch of a line that is another. They are made from the syntax of the files in
`FILES`, each at as many places as are written there, evenly over the file and the same in every run: `MUTANTS` says what is
made of what. `EQUIVALENT` names those that change no result. The checkout is never touched: files are changed in a copy in
`build/mutants/tree`, and for a mutant of a header the kernels of one instruction set are compiled there (`cmake` and `ninja`
are asked for). What has been found is kept after every mutant, in `benchmarks/results/mutants.json`, by what the mutant is;
a mutant whose file has changed since is tried again.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TREE = ROOT / "build/mutants/tree"
RESULTS = ROOT / "benchmarks/results/mutants.json"
SECONDS = 900
"""After so many, the tests are stopped, and the mutant counts as killed: it made something endless."""

FILES = {
    "jaxloss/formulas/regression.py": (6, "regression formulas small_losses edges values"),
    "jaxloss/formulas/binary.py": (12, "binary_options formulas relative_accuracy edges_of_options"),
    "jaxloss/formulas/categorical.py": (16, "cross_entropy_options cross_entropy_stats edges_of_options formulas masked_classes small_losses"),
    "jaxloss/formulas/distillation.py": (12, "distillation distillation_derivatives distillation_calls relative_accuracy formulas"),
    "jaxloss/_cross_entropy.py": (8, "cross_entropy_options cross_entropy_stats edges_of_options masked_classes sums_of_rows axis_name programs"),
    "jaxloss/_divergence.py": (6, "distillation distillation_calls distillation_derivatives sharding"),
    "jaxloss/_elementwise.py": (6, "regression binary_options transforms sharding"),
    "jaxloss/_examples.py": (6, "options transforms loss_scaling"),
    "jaxloss/_linear_split.py": (5, "linear_sharding linear linear_trading"),
    "jaxloss/_linear_work.py": (8, "linear linear_transforms linear_compiled linear_trading"),
    "jaxloss/_long_rows.py": (3, "long_rows small_losses"),
    "jaxloss/_pair.py": (8, "transforms options edges_of_options loss_scaling"),
    "jaxloss/_parameters.py": (4, "traced_options binary_options cross_entropy_options"),
    "jaxloss/_row_product.py": (4, "linear linear_transforms linear_trading"),
    "jaxloss/_rows.py": (5, "transforms cross_entropy_options distillation sharding"),
    "jaxloss/_split_classes.py": (6, "axis_name cross_entropy_options_sharding sharding"),
    "jaxloss/_tangents.py": (5, "transforms edges_of_options options"),
    "jaxloss/_token_chunks.py": (6, "linear linear_transforms linear_sharding"),
    "cuda/maths/elementwise.h": (8, "values regression edges small_losses"),
    "cuda/maths/binary.h": (8, "binary_options values relative_accuracy edges"),
    "cuda/maths/cross_entropy.h": (4, "values small_losses edges"),
    "cuda/maths/cross_entropy_options.h": (6, "cross_entropy_options cross_entropy_stats"),
    "cuda/maths/divergence.h": (8, "distillation relative_accuracy"),
    "cuda/maths/scalar.h": (4, "values edges"),
    "cuda/cpu/cross_entropy.h": (10, "values small_losses edges infinite_logits options"),
    "cuda/cpu/cross_entropy_narrow.h": (8, "values small_losses edges infinite_logits"),
    "cuda/cpu/cross_entropy_options.h": (8, "cross_entropy_options cross_entropy_stats infinite_logits"),
    "cuda/cpu/divergence.h": (5, "distillation infinite_logits"),
    "cuda/cpu/elementwise.h": (4, "values options edges"),
    "cuda/cpu/functions.h": (6, "values accuracy small_losses edges"),
    "cuda/cpu/simd.h": (6, "values edges"),
    "cuda/cpu/steps.h": (6, "values edges"),
}
"""Of each file, how many mutants, and the tests about it (`values` is tests/test_values.py), the likeliest to see it first."""

EQUIVALENT = {}
"""Mutants that change no result, by name, and why."""

WRITTEN = [
    # Whether the label is a class, what is infinite beside a masked one, and what a clip leaves alone, in derivatives.
    ("jaxloss/_cross_entropy.py", "return jnp.where(valid[..., None], difference, 0)", "return difference"),
    ("jaxloss/_cross_entropy.py", "return jnp.where(jnp.isinf(nll) & (target_of_class == 0), 0, nll)", "return nll"),
    ("jaxloss/_cross_entropy.py", "return jnp.where(formulas.counted_classes(z, options), nll, 0)", "return nll"),
    ("jaxloss/_cross_entropy.py", "of_targets_dots.append((of, jnp.where(valid[..., None], b_dot, 0)))", "of_targets_dots.append((of, b_dot))"),
    ("jaxloss/_cross_entropy.py", "terms.append((jnp.where(valid[..., None], of_nll, 0), z_dot))", "terms.append((of_nll, z_dot))"),
    ("jaxloss/_cross_entropy.py", "terms.append((given_nll, jnp.where(valid[..., None], a_dot, 0)))", "terms.append((given_nll, a_dot))"),
    ("jaxloss/_cross_entropy.py", "of_parameters = jnp.where(jnp.isneginf(z), 0, of_parameters)", "pass"),
    ("jaxloss/_cross_entropy.py", "nll_where_targeted(of_labels(named))", "nll_where_targeted(of_given(named))"),
    ("jaxloss/_cross_entropy.py", "jnp.where(z_loss == 0, 0, 2 * z_loss * lse)", "2 * z_loss * lse"),
    ("jaxloss/_cross_entropy.py", "jnp.where(softmax == 0, 0, z - maximum[..., None] - log_sum[..., None])", "z - maximum[..., None] - log_sum[..., None]"),
    ("jaxloss/_elementwise.py", "unclipped = loss.unclipped or loss.value", "unclipped = loss.value"),
    ("jaxloss/_elementwise.py", "if place == 1 and loss.target_derivative is not None:", "if False:"),
    ("jaxloss/_elementwise.py", "jnp.where(_calls.taken_out(row_weight), 0, _of_operands(loss, loss.value, operands))", "_of_operands(loss, loss.value, operands)"),
]
"""Of a file, what stands there once, and what instead: faults that rules of derivatives are prone to."""

PYTHON_OPERATORS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.And: "or", ast.Or: "and",
}  # fmt: skip
PYTHON_NAMES = {
    "minimum": "maximum",
    "maximum": "minimum",
    "exp": "expm1",
    "expm1": "exp",
    "log": "log1p",
    "log1p": "log",
    "sum": "max",
    "any": "all",
    "all": "any",
    "isfinite": "isnan",
    "isinf": "isnan",
}
SWAPPED = ("where", "select")
"""Functions of a condition and two results, which are swapped."""

C_OPERATORS = {
    " < ": " >= ", " <= ": " > ", " > ": " <= ", " >= ": " < ", " == ": " != ", " != ": " == ",
    " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " && ": " || ", " || ": " && ", " += ": " -= ",
    "at_least(": "at_most(", "at_most(": "at_least(", "Value(1)": "Value(0)", "Value(0)": "Value(1)", "Value(0.5)": "Value(1)",
    "true": "false", "false": "true",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One place of a file, and what stands there instead."""

    file: str
    start: int
    old: str
    new: str

    @property
    def line(self) -> int:
        return (ROOT / self.file).read_text().count("\n", 0, self.start) + 1

    @property
    def name(self) -> str:
        """What it changes, in the words of its line: it stays the same when other lines move."""
        text = (ROOT / self.file).read_text()
        begin = text.rfind("\n", 0, self.start) + 1
        end = text.find("\n", self.start + len(self.old))
        line = text[begin : self.start] + "⟦" + self.old + " → " + self.new + "⟧" + text[self.start + len(self.old) : end]
        return f"{self.file}: {' '.join(line.split())}"

    def applied(self) -> str:
        text = (ROOT / self.file).read_text()
        assert text.startswith(self.old, self.start)
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


def of_python(file: str) -> list[Mutant]:
    """Every mutant of a Python file: of its functions' bodies, without annotations and documentation."""
    text = (ROOT / file).read_text()
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    encoded = text.encode()

    def place(line: int, column: int) -> int:
        return len(encoded[: starts[line - 1] + column].decode())

    def begin(node) -> int:
        return place(node.lineno, node.col_offset)

    def end(node) -> int:
        return place(node.end_lineno, node.end_col_offset)

    found = []

    def replaced(at: int, old: str, new: str) -> None:
        found.append(Mutant(file, at, old, new))

    def between(left, right, new: str) -> None:
        """The operator between two operands, whatever brackets are around these."""
        gap = text[end(left) : begin(right)]
        operator = re.search(r"[^\s()\\]+(?: (?:not|in)\b)?", re.sub(r"#.*", lambda m: " " * len(m[0]), gap))
        if operator:
            replaced(end(left) + operator.start(), operator[0], new)

    def swapped(first, second) -> None:
        old = text[begin(first) : end(second)]
        new = text[begin(second) : end(second)] + text[end(first) : begin(second)] + text[begin(first) : end(first)]
        if new != old:
            replaced(begin(first), old, new)

    def visit(node) -> None:
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                between(left, right, PYTHON_OPERATORS[type(operator)])
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in PYTHON_OPERATORS:
                if not isinstance(left, ast.Constant) or not isinstance(left.value, str):
                    between(left, right, PYTHON_OPERATORS[type(operator)])
            case ast.BoolOp(op=operator, values=[left, right, *_]):
                between(left, right, PYTHON_OPERATORS[type(operator)])
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                replaced(begin(node), text[begin(node) : begin(operand)], "")
            case ast.IfExp(body=body, orelse=otherwise):
                replaced(begin(body), text[begin(body) : end(body)], text[begin(otherwise) : end(otherwise)])
            case ast.Constant(value=bool(value)):
                replaced(begin(node), str(value), str(not value))
            case ast.Constant(value=int() | float()):
                replaced(begin(node), text[begin(node) : end(node)], {0: "1", 1: "0"}.get(node.value, f"(2 * {node.value})"))
            case ast.keyword(arg="strict" | "prevent_cse"):  # a check of ours, and a hint to the compiler
                return
            case ast.Call(func=ast.Attribute(attr=name) as function, args=arguments):
                if name in PYTHON_NAMES:
                    replaced(end(function) - len(name), name, PYTHON_NAMES[name])
                elif name in SWAPPED and len(arguments) == 3:
                    swapped(arguments[1], arguments[2])
        for field, child in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "slice") or isinstance(node, ast.JoinedStr | ast.Raise):
                continue
            for each in child if isinstance(child, list) else [child]:
                if isinstance(each, ast.AST):
                    visit(each)

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            for statement in node.body if isinstance(node.body, list) else [node.body]:
                visit(statement)
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.new))


def of_c(file: str) -> list[Mutant]:
    """Every mutant of a C++ header: of lines of code inside functions, which are indented."""
    text, found, at = (ROOT / file).read_text(), [], 0
    for line in text.splitlines(keepends=True):
        code = line.split("//")[0]
        skipped = re.match(r"\s*(#|template|static_assert|using|static constexpr const char)|\S", line)
        if not skipped:
            for old, new in C_OPERATORS.items():
                for match in re.finditer(re.escape(old), code):
                    found.append(Mutant(file, at + match.start(), old, new))
            for match in re.finditer(r"(?<=[(=,?:] )-(?=\w)|(?<=\()-(?=\w)|(?<=return )-(?=\w)", code):
                found.append(Mutant(file, at + match.start(), "-", ""))
        at += len(line)
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.new))


def mutants() -> list[Mutant]:
    """Those that are written out, and those of every file, evenly over it."""
    chosen = []
    for file, old, new in WRITTEN:
        text = (ROOT / file).read_text()
        assert text.count(old) == 1, f"{file} has this {text.count(old)} times: {old}"
        chosen.append(Mutant(file, text.index(old), old, new))
    for file, (count, _) in FILES.items():
        every = of_python(file) if file.endswith(".py") else of_c(file)
        count = min(count, len(every))
        chosen += [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]
    return chosen


# ---- a copy of the checkout ----------------------------------------------------------------------------------------


def copied() -> None:
    """Makes the copy what the checkout is; what has not changed keeps its time, so that little is compiled again."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            written(name, (ROOT / name).read_bytes())


def written(name: str, content: bytes) -> None:
    """One file of the copy."""
    target = TREE / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name == "CMakeLists.txt":
        content = content.replace(b"-O3", b"-O1")  # which compiles in a third of the time
    if not target.is_file() or target.read_bytes() != content:
        target.write_bytes(content)


def library() -> bool:
    """Whether the kernels of the copy compile, those of one instruction set; its library is then new."""
    folder = TREE.parent / "library"
    if not (folder / "build.ninja").exists():
        configured = [
            *("cmake", "-S", TREE, "-B", folder, "-G", "Ninja", "-DJAXLOSS_CUDA=OFF", "-DCMAKE_BUILD_TYPE=None"),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-DSKBUILD_PROJECT_VERSION_FULL={version()}"),
            *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=generic"),
        ]
        subprocess.run(configured, check=True, stdout=subprocess.DEVNULL)
    if subprocess.run(["ninja", "-C", folder], capture_output=True).returncode:
        return False
    shutil.copy(folder / "libjaxloss.so", TREE / "jaxloss/libjaxloss.so")
    return True


def version() -> str:
    return re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


PYTEST = f"""
import sys
# An editable installation finds the checkout before it looks along PYTHONPATH.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
import jaxloss, pytest
assert jaxloss.__file__.startswith({str(TREE)!r}), jaxloss.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""
"""A program that runs pytest on the copy."""


def passes(tests: str, marker: str) -> tuple[bool, str]:
    """Whether these tests of the copy pass, and the first that does not."""
    paths = [f"tests/test_{name}.py" for name in tests.split()] if tests else ["tests"]
    command = [sys.executable, "-c", PYTEST, "-x", "-q", "--no-header", "-p", "no:cacheprovider", *paths]
    if marker:
        command += ["-m", marker]
    environment = os.environ | {
        "PYTHONPATH": str(TREE),
        "JAX_COMPILATION_CACHE_DIR": str(TREE.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    try:
        ran = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"nothing within {SECONDS} s"
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    return ran.returncode in (0, 5), first[1] if first else f"pytest ended with {ran.returncode}"


# ---- a campaign ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say which mutants there are")
    parser.add_argument("--only", default="", help="mutants whose name has this in it, or the number of one")
    parser.add_argument("--marker", default="not slow", help="of the tests that are run, as pytest's -m takes it")
    parser.add_argument("--survivors", action="store_true", help="those that survived, again")
    parser.add_argument("--whole", action="store_true", help="run every test file, not only those about the mutant's file")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    options = parser.parse_args()

    known = json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else {}
    chosen = [
        (number, mutant)
        for number, mutant in enumerate(mutants())
        if options.only in (mutant.name, str(number)) or (options.only in mutant.name and not options.only.isdigit())
    ]
    if options.list:
        for number, mutant in chosen:
            print(f"{number:4d} {known.get(mutant.name, {}).get('result', ''):10} {mutant.line:4d} {mutant.name}")
        return

    start, changed_library = time.monotonic(), None
    copied()
    if not library():
        sys.exit("the library of the checkout itself does not compile: ninja -C build/mutants/library")
    for number, mutant in chosen:
        before, digest = known.get(mutant.name, {}), hashlib.sha256((ROOT / mutant.file).read_bytes()).hexdigest()[:12]
        again = options.survivors and before.get("result") == "survived"
        if (before.get("file") == digest and not again) or (options.survivors and not again):
            continue
        if time.monotonic() - start > 60 * options.minutes:
            break
        is_c = not mutant.file.endswith(".py")
        written(mutant.file, mutant.applied().encode())
        try:
            if mutant.name in EQUIVALENT:
                result, by = "equivalent", EQUIVALENT[mutant.name]
            elif is_c and not library():
                result, by = "killed", "the compiler"
            else:
                passed, by = passes("" if options.whole else FILES[mutant.file][1], options.marker)
                result, by = ("survived", "") if passed else ("killed", by)
        finally:
            written(mutant.file, (ROOT / mutant.file).read_bytes())
            changed_library = changed_library or is_c
        print(f"{number:4d} {result:10} {mutant.name}  {by}", flush=True)
        known[mutant.name] = {"result": result, "by": by, "file": digest}
        kept(known)
    table(known)


def kept(known: dict) -> None:
    now = {mutant.name: known[mutant.name] for mutant in mutants() if mutant.name in known}
    RESULTS.write_text(json.dumps({"counts": counted(now), "mutants": now}, indent=1, ensure_ascii=False) + "\n")


def counted(known: dict) -> dict[str, dict[str, int]]:
    """How many of each file, and of all, have each result."""
    counts = {}
    for name, found in known.items():
        for row in (name.split(":")[0], "all"):
            of_row = counts.setdefault(row, {"killed": 0, "survived": 0, "equivalent": 0})
            of_row[found["result"]] += 1
    return dict(sorted(counts.items()))


def table(known: dict) -> None:
    print(f"\n{'':44}killed survived equivalent")
    for row, of_row in counted(known).items():
        print(f"{row:44}{of_row['killed']:6} {of_row['survived']:8} {of_row['equivalent']:10}")
    for name, found in known.items():
        if found["result"] == "survived":
            print(f"survived: {name}")


if __name__ == "__main__":
    main()
