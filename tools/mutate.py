"""Puts one fault after the other into a copy of this checkout, and says which of them the tests do not see.

    python tools/mutate.py                  # every mutant, each against the tests of `make test` about its file
    python tools/mutate.py --list           # the mutants
    python tools/mutate.py --only formulas  # those whose file or line has that in it, or whose number it is
    python tools/mutate.py --survivors      # those that survived, again: after a new test, with --whole, or --marker ""

A mutant is one operator, number, name or branch that is another. They are made from the syntax of the files that
`mutants.toml` beside this file names, each at as many places as it says, evenly over the file and the same in every
run; some are written out there, and so are those that change no result. The checkout is never touched: files are
changed in a copy, `build/mutants/tree`, and for a mutant of a header the kernels of one instruction set are compiled
there, for which `cmake` and `ninja` have to be installed. What was found is kept after every mutant, in
`benchmarks/results/mutants.json`, under what the mutant changes; one whose file has changed since is tried again.

The tests have to pass in the copy as it is first, which also compiles their programs: a mutant then compiles only those
that it changes. Tests that have seen another mutant of the file run first, by themselves; then some cells of each test
before the rest.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable

import checkout_copy
from checkout_copy import ROOT

TREE = ROOT / "build/mutants/tree"
RESULTS = ROOT / "benchmarks/results/mutants.json"
CLEAN_LIBRARY = TREE.parent / "libjaxloss.so"
PASSED = TREE.parent / "passed.json"
"""Which files of tests have passed in the copy without a mutant, each with what it was a test of."""
RESULTS_OF_ONE = ("killed", "survived", "equivalent", "invalid")
"""Of a mutant: seen by a test, or by none; one that changes no result, or is no program."""

TABLE = tomllib.loads((ROOT / "tools/mutants.toml").read_text())
FILES, EQUIVALENT, WRITTEN = TABLE["files"], TABLE["equivalent"], TABLE["written"]

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
    "at_least(": "at_most(", "at_most(": "at_least(", "true": "false", "false": "true",
    "Value(1)": "Value(0)", "Value(0)": "Value(1)", "Value(0.5)": "Value(1)",
}  # fmt: skip
C_MINUS = r"(?<=[(=,?:] )-(?=\w)|(?<=\()-(?=\w)|(?<=return )-(?=\w)"
"""A minus before one operand, which is left out."""


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
        before, after = text[begin : self.start], text[self.start + len(self.old) : end]
        line = f"{before}⟦{self.old} → {self.new}⟧{after}"
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
            case ast.Constant(value=int() | float() as value):
                another = "1" if value == 0 else "0" if value == 1 else f"(2 * {value})"
                replaced(begin(node), text[begin(node) : end(node)], another)
            case ast.keyword(arg="strict" | "prevent_cse"):  # a check of ours, and a hint to the compiler
                return
            case ast.Call(func=ast.Attribute(attr=name) as function, args=arguments):
                if name in PYTHON_NAMES:
                    replaced(end(function) - len(name), name, PYTHON_NAMES[name])
                elif name in SWAPPED and len(arguments) == 3:
                    swapped(arguments[1], arguments[2])
        if isinstance(node, ast.JoinedStr | ast.Raise):
            return
        for field, child in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "slice"):
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
    """Every mutant of a C++ header: of compiled lines of code inside functions, which are indented."""
    text, found, at = (ROOT / file).read_text(), [], 0
    lines = text.splitlines(keepends=True)
    for line, compiled in zip(lines, are_compiled(lines), strict=True):
        code = line.split("//")[0]
        skipped = re.match(r"\s*(#|template|static_assert|using|static constexpr const char)|\S", line)
        if compiled and not skipped:
            places = [(re.escape(old), old, new) for old, new in C_OPERATORS.items()] + [(C_MINUS, "-", "")]
            found += [
                Mutant(file, at + match.start(), old, new)
                for pattern, old, new in places
                for match in re.finditer(pattern, code)
            ]
        at += len(line)
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.new))


def are_compiled(lines: list[str]) -> list[bool]:
    """Of each line, whether kernels of the one instruction set hold it: not only a GPU's, nor only wider vectors."""
    branches, compiled = [], []
    for line in lines:
        directive, _, condition = line.strip().partition(" ")
        other = re.search(r"__CUDA|VECTOR_BYTES == (32|64)|__clang__", condition)
        if directive in ("#if", "#ifdef"):
            branches.append([not other])
        elif directive in ("#elif", "#else"):
            branches[-1].append(not any(branches[-1]) and not other)
        elif directive == "#endif":
            branches.pop()
        compiled.append(all(branch[-1] for branch in branches))
    return compiled


def mutants() -> list[Mutant]:
    """Those that are written out, and those of every file, evenly over it."""
    chosen = []
    for file, old, new in (row.values() for row in WRITTEN):
        text = (ROOT / file).read_text()
        assert text.count(old) == 1, f"{file} has this {text.count(old)} times: {old}"
        chosen.append(Mutant(file, text.index(old), old, new))
    for file, (count, _) in FILES.items():
        every = of_python(file) if file.endswith(".py") else of_c(file)
        count = min(count, len(every))
        chosen += [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]
    return chosen


# ---- a copy of the checkout ----------------------------------------------------------------------------------------


def library(jobs: int) -> bool:
    """Whether the kernels of the copy compile, those of one instruction set; its library is then new."""
    folder = TREE.parent / "library"
    if not (folder / "build.ninja").exists():
        configured = [
            *("cmake", "-S", TREE, "-B", folder, "-G", "Ninja", "-DJAXLOSS_CUDA=OFF", "-DCMAKE_BUILD_TYPE=None"),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-DSKBUILD_PROJECT_VERSION_FULL={version()}"),
            *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=generic"),
        ]
        subprocess.run(configured, check=True, stdout=subprocess.DEVNULL)
    if subprocess.run(["ninja", "-C", folder, f"-j{jobs}"], capture_output=True).returncode:
        return False
    shutil.copy(folder / "libjaxloss.so", TREE / "jaxloss/libjaxloss.so")
    return True


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def outcome(tests: str, marker: str, only: Iterable[str] = (), again: bool = False) -> tuple[bool, str, str]:
    """Whether these tests of the copy pass, the first that does not, and what pytest said.

    They are those of these files, all if none is named, or `only` some of them. One that does not end is tried `again`.
    """
    running = TREE.parent / "running"
    running.write_text("collecting the tests\n")
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(TREE.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAXLOSS_ONLY_TESTS": "\n".join(only),
        "JAXLOSS_RUNNING_TEST": str(running),
    }
    chosen = ["-m", marker] if marker else []
    ran = checkout_copy.pytest(TREE, tests.split(), "-x", "-p", "mutant_tests", *chosen, **environment)
    by = running.read_text()
    if not by.endswith("\n"):
        if ran.returncode >= 0 and not again:  # as one does, too, on a machine that was asleep meanwhile
            return outcome(tests, marker, only, again=True)
        by += " crashes" if ran.returncode < 0 else " does not end"
    return ran.returncode in (0, 5), by.strip(), ran.stdout + ran.stderr


def name_of_file(test: str) -> str:
    """Of the file of a test, as `mutants.toml` names it."""
    return pathlib.Path(test.split("::")[0]).stem.removeprefix("test_")


def try_without_a_mutant(tests: set[str], marker: str) -> None:
    """Ends the program where one of these tests fails in the copy as it is: it would see a fault in every mutant."""
    passed = json.loads(PASSED.read_text()) if PASSED.exists() else {}
    subject = digest(
        *(path for folder in ("jaxloss", "cuda", "tests/support") for path in (TREE / folder).rglob("*.*")),
        *(TREE / "tests").glob("*.py"),
    )
    of_test = {}
    for name in tests:
        of_test[name] = f"{marker} {subject} {digest(*(TREE / 'tests').glob(f'*/test_{name}.py'))}"
    for name in sorted(name for name in tests if passed.get(name) != of_test[name]):
        passes, by, said = outcome(name, marker)
        if not passes:
            sys.exit(f"{said}\n{by} fails without a mutant")
        passed[name] = of_test[name]
        PASSED.write_text(json.dumps(passed, indent=1))
        print(f"     {name} without a mutant: {said.strip().splitlines()[-1]}", flush=True)


def digest(*paths: pathlib.Path) -> str:
    """Of what the files hold, but for what Python and the compiler make."""
    of_all = hashlib.sha256()
    for path in sorted(paths):
        if path.suffix not in (".pyc", ".so"):
            of_all.update(path.read_bytes())
    return of_all.hexdigest()[:12]


# ---- a campaign ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say which mutants there are")
    parser.add_argument("--only", default="", help="mutants whose name has this in it, or the number of one")
    parser.add_argument(
        "--marker", default="not slow and not rest", help="of the tests that are run, as pytest's -m takes it"
    )
    parser.add_argument("--survivors", action="store_true", help="those that survived, again")
    parser.add_argument("--whole", action="store_true", help="every test, not only those about the file")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--jobs", type=int, default=2, help="so many compilers at once")
    options = parser.parse_args()

    known = found_before()
    chosen = [
        (number, mutant)
        for number, mutant in enumerate(mutants())
        if options.only in (mutant.name, str(number)) or (options.only in mutant.name and not options.only.isdigit())
    ]
    if options.list:
        for number, mutant in chosen:
            print(f"{number:4d} {known.get(mutant.name, {}).get('result', ''):10} {mutant.line:4d} {mutant.name}")
        return

    left = [(number, mutant) for number, mutant in chosen if is_left(mutant, known.get(mutant.name), options.survivors)]
    start = time.monotonic()
    checkout_copy.copy_to(TREE)
    if not library(options.jobs):
        sys.exit("the library of the checkout itself does not compile: ninja -C build/mutants/library")
    shutil.copy(TREE / "jaxloss/libjaxloss.so", CLEAN_LIBRARY)
    if not options.whole:
        names = {name for _, mutant in left if mutant.name not in EQUIVALENT for name in FILES[mutant.file][1].split()}
        try_without_a_mutant(names, options.marker)
    for number, mutant in left:
        if time.monotonic() - start > 60 * options.minutes:
            break
        since = time.monotonic()
        checkout_copy.write(TREE, mutant.file, mutant.applied().encode())
        try:
            result, by = tried(mutant, options)
        finally:
            checkout_copy.write(TREE, mutant.file, (ROOT / mutant.file).read_bytes())
            shutil.copy(CLEAN_LIBRARY, TREE / "jaxloss/libjaxloss.so")
        seconds = round(time.monotonic() - since)
        print(f"{number:4d} {result:10} {seconds:4d} s  {mutant.name}  {by}", flush=True)
        kept({mutant.name: {"result": result, "by": by, "seconds": seconds, "file": digest(ROOT / mutant.file)}})
    table(found_before())


def is_left(mutant: Mutant, before: dict | None, survivors: bool) -> bool:
    """Whether it is to be tried: as one that never was, or whose file has changed since; or as a survivor, if asked."""
    if survivors or before is None:
        return survivors == (before is not None and before["result"] == "survived")
    return before["file"] != digest(ROOT / mutant.file) or (mutant.name in EQUIVALENT) != (
        before["result"] == "equivalent"
    )


def tried(mutant: Mutant, options: argparse.Namespace) -> tuple[str, str]:
    """What becomes of the mutant that is now in the copy, and by what."""
    if mutant.name in EQUIVALENT:
        return "equivalent", EQUIVALENT[mutant.name]
    if not mutant.file.endswith(".py") and not library(options.jobs):
        return "invalid", "it does not compile"
    seen_by = {found["by"] for name, found in found_before().items() if name.startswith(f"{mutant.file}: ")}
    likely = {by.removesuffix(" crashes").removesuffix(" does not end") for by in seen_by if "::" in by}
    # A run of few tests ends sooner, for what it does not import and collect.
    rounds = [(" ".join({name_of_file(test) for test in likely}), likely)] if likely else []
    for tests, only in (*rounds, ("" if options.whole else FILES[mutant.file][1], ())):
        passes, by, _ = outcome(tests, options.marker, only)
        if not passes:
            return "killed", by
    return "survived", ""


def found_before() -> dict:
    return json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else {}


def kept(found: dict) -> None:
    """Adds it to the results, and leaves out what is no mutant any more."""
    known = found_before() | found
    now = {mutant.name: known[mutant.name] for mutant in mutants() if mutant.name in known}
    RESULTS.write_text(json.dumps({"counts": counted(now), "mutants": now}, indent=1, ensure_ascii=False) + "\n")


def counted(known: dict) -> dict[str, dict[str, int]]:
    """How many of each file, and of all, have each result."""
    counts = {}
    for name, found in known.items():
        for row in (name.split(":")[0], "all"):
            of_row = counts.setdefault(row, dict.fromkeys(RESULTS_OF_ONE, 0))
            of_row[found["result"]] += 1
    return dict(sorted(counts.items()))


def table(known: dict) -> None:
    print(f"\n{'':44}{' '.join(RESULTS_OF_ONE)}")
    for row, of_row in counted(known).items():
        print(f"{row:44}{' '.join(f'{of_row[result]:{len(result)}}' for result in RESULTS_OF_ONE)}")
    for name, found in known.items():
        if found["result"] == "survived":
            print(f"survived: {name}")


if __name__ == "__main__":
    main()
