"""What decides in benchmarks/ and tools/ whether a goal is met, on numbers that are known."""

import argparse
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import tolerance
from benchmarks import accuracy, limits, loss_table, timing, worst_cases

pytestmark = pytest.mark.cpu_only


@pytest.fixture
def compile_cuda(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "tools")
    return importlib.import_module("compile_cuda")


def test_mutants_are_of_lines_that_stand_in_the_sources():
    root = pathlib.Path(__file__).parents[2]
    if not (root / "jaxloss").is_dir():
        pytest.skip("the sources are not here: jaxloss is installed from a wheel")
    ran = subprocess.run([sys.executable, "tools/mutate.py", "--list"], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) >= 120


def row(ours, limit, xla, temporary=0):
    from benchmarks import loss_report

    work = loss_table.memory_row("mse", "numbers", "float32", (8, 16), 1.02, 1.03)
    ms = {
        who: dict.fromkeys(("value", "value_and_grad"), [time] * 3)
        for who, time in (("limit", limit), ("jaxloss", ours), ("xla", xla))
    }
    return loss_report.misses(loss_report.measurement(work, ms, {"read": "sum", "copy": "copy"}, temporary))


def test_goals_met():
    assert row(ours=1.01, limit=1.0, xla=1.0) == []


def test_goals_missed():
    beyond_limit = row(ours=1.025, limit=1.0, xla=1.0)
    assert len(beyond_limit) == 1
    assert "value: 1.025 of the limit's time" in beyond_limit[0]
    behind_xla = row(ours=1.0, limit=1.0, xla=0.9)
    assert len(behind_xla) == 2
    assert all("XLA" in line for line in behind_xla)
    assert "temporaries" in row(ours=1.0, limit=1.0, xla=1.0, temporary=2**21)[0]


def test_rows_of_the_sweep_are_of_the_same_bytes():
    for platform in ("cpu", "gpu"):
        for sweep in (loss_table.sweep(platform), loss_table.options_sweep(platform)):
            rows = [work for work in sweep if work.part == "classes"]
            sizes = [work.prediction_bytes for work in rows]
            assert {work.shape[1] for work in rows} >= {2, 257, 50257, 100003, 151936, 262144}
            assert min(sizes) > 0.98 * max(sizes) > 0


def of_contender(who, ratio, temporary=10**9, **row):
    return {"tokens": 8, "what": "KL", "who": who, "ratio": ratio, "temporary_bytes": temporary, **row}


def test_goals_of_contenders():
    from benchmarks.contenders import missed

    goal = {"products": 1.08, "gigabytes": 3.0, "never_behind": "whole logits"}
    assert missed([of_contender("ours", 1.08, goal=goal), of_contender("whole logits", 1.08)]) == []
    assert missed([of_contender("ours", 1.05), of_contender("whole logits", 1.0)]) == []
    assert missed([of_contender("ours", 1.09, goal=goal)]) == ["KL, 8, ours: 1.090 of the products, goal 1.08"]
    (behind,) = missed([of_contender("whole logits", 1.0), of_contender("ours", 1.05, goal=goal)])
    assert "1.050 of whole logits" in behind
    (memory,) = missed([of_contender("ours", 1.05, 4 * 10**9, goal=goal)])
    assert "4.00 GB of temporaries, goal 3.0" in memory
    failed = {"tokens": 8, "what": "KL", "who": "ours", "failed": "out of memory", "goal": goal}
    assert missed([failed]) == ["KL, 8, ours: out of memory"]


def run_contenders(tmp_path, budget, ours, quick=False):
    """Rows written, of a goal that nothing reaches."""
    from benchmarks import contenders
    from benchmarks import linear_cross_entropy as linear

    work = linear.Work(32, 16, 67, "float32")
    losses = {"ours": ours, "whole logits": linear.whole_logits}
    goals, limit = {"ours": contenders.Goal(products=0.0)}, lambda: linear.all_products(work)
    comparison = contenders.Comparison("loss", losses, work.operands, limit, dataclasses.asdict(work), goals=goals)
    arguments = argparse.Namespace(who="", budget=budget, quick=quick, output=tmp_path)
    try:
        contenders.run("linear", [comparison], arguments)
    except SystemExit:
        missed = True
    else:
        missed = False
    return missed, json.loads((tmp_path / "linear.json").read_text())["measurements"]


def test_a_run_of_contenders(tmp_path, capsys):
    pytest.importorskip("optax")
    from benchmarks import contenders
    from benchmarks import linear_cross_entropy as linear

    number, traced = types.SimpleNamespace(number=1), []

    def ours(*operands):
        traced.append(number.number)
        return linear.whole_logits(*operands)

    missed, rows = run_contenders(tmp_path, float("inf"), contenders.with_setting(number, "number", 2, ours))
    assert missed
    assert (traced, number.number) == ([2], 1)
    assert [(row["who"], row.get("goal")) for row in rows] == [("ours", {"products": 0.0}), ("whole logits", None)]
    assert all(row["ratio"] > 0 for row in rows)
    missed, rows = run_contenders(tmp_path, 0.0, lambda *_: 1 / 0, quick=True)
    assert not missed
    assert [row.get("failed") for row in rows] == ["ZeroDivisionError: division by zero"]
    printed = capsys.readouterr().out
    assert "the budget of 0 s is spent" in printed
    assert "loss, 32, 16, 67, float32, ours: ZeroDivisionError" in printed


def test_the_products_of_an_odd_vocabulary_are_those_of_the_next_multiple():
    pytest.importorskip("optax")
    from benchmarks import linear_cross_entropy as linear

    odd = linear.Work(32, 16, 509, "float32")
    assert odd.aligned.classes == odd.aligned.aligned.classes == 512
    both, value = linear.comparisons(odd, 1.06)
    assert (both.wrt, value.wrt) == ((0, 1), ())
    assert [x.shape for x in both.limit()()] == [(32, 512), (32, 16), (16, 512)]
    assert value.limit()().shape == (32, 512)
    assert both.goals["jaxloss"].products == 1.06


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(256, 1024), (99, 257), (3, 257)])
@pytest.mark.parametrize("operands", [1, 2])
def test_programs_of_the_limit_move_all_bytes_once(shape, dtype, operands):
    # Whole numbers whose sums are exact.
    numbers = [jax.random.randint(jax.random.key(i), shape, 0, 8).astype(dtype) for i in range(operands)]
    bits = [np.asarray(x).view(f"uint{8 * x.dtype.itemsize}") for x in numbers]
    functions = limits._functions(shape, operands)
    assert any("rows" in name for name in functions["read"]) == (shape[0] > 3)
    for name, read in functions["read"].items():
        expected = sum(np.asarray(x, np.float64).sum() for x in numbers)
        if "maxim" in name:
            largest = np.bitwise_xor.reduce(bits).max()
            expected = np.float64(numbers[0].max()) if "bits" not in name and operands == 1 else largest
        assert np.float64(jax.jit(read)(*numbers)) == expected, name
    for name, copy in functions["copy"].items():
        assert jax.jit(copy)(*numbers).nbytes == numbers[0].nbytes, name


def test_rows_of_a_read_are_reduced_first():
    x = jax.ShapeDtypeStruct((256, 8192), jnp.bfloat16)
    for name, read in limits.READS_BY_ROWS[1].items():
        assert "[256]" in jax.jit(read).lower(x).compile().as_text(), name


def test_the_limit_goes_through_the_operands_and_is_scaled_by_their_bytes():
    sets = [(jnp.full((512, 1024), i, jnp.float32), jnp.zeros((512, 1024))) for i in (1, 2)]
    limit = limits.limit_of(sets)
    assert limit.by["read"] in limits.READS[2] | limits.READS_BY_ROWS[2]
    assert limit.by["copy"] in limits.COPIES[2]
    first, second, third = (np.asarray(limit.programs["copy"].call()) for _ in range(3))
    assert (first != second).all()
    assert (first == third).all()
    nbytes = 512 * 1024 * 4
    assert limit.read_share(2 * nbytes) == 1
    assert limit.copy_share(3.3 * nbytes) == pytest.approx(1.1)


def test_loops_are_as_long_as_asked(monkeypatch):
    """Where a loop's start and end take longer than a call."""
    now = [0.0]

    def take(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    program = timing.Program(lambda: take(1e-4), lambda _: take(4e-4))
    (loop,) = timing.in_turn({"": program}, repeats=1, seconds=0.1)[""]
    assert loop == pytest.approx(0.1, rel=0.01)  # milliseconds a call
    before = now[0]
    program.loop(1)
    assert now[0] - before == pytest.approx(5e-4)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_spacing(dtype):
    finfo = ml_dtypes.finfo(dtype)
    numbers = np.array([1.0, 1.5, -0.99, 3e-5, 0.0, 2.0**-10, 60000.0])
    expected = [abs(np.spacing(np.float32(x))) * float(finfo.eps) / 2.0**-23 for x in numbers]
    expected[4] = float(finfo.smallest_subnormal)
    if dtype == np.float16:
        expected[3] = float(finfo.smallest_subnormal)
    np.testing.assert_array_equal(accuracy.spacing(numbers, dtype), expected)


def test_errors_of_a_result():
    exact = np.array([2.0]), np.array([[0.5, -1e-9]])
    gradient = np.array([[0.5 + 2.0**-23, 0.0]], np.float32)
    found = accuracy.errors(np.array([2.0 + 2.0**-21], np.float32), gradient, *exact, 0.0, True)
    assert found["loss_ulps"] == 2
    assert found["gradient_roundings"] == 2
    assert found["gradient_share_of_allowed"] < 1


def test_a_section_takes_the_place_of_its_own_platform():
    page = "# Page\n\ntext\n"
    once = accuracy.with_section(accuracy.with_section(page, "cpu", "of a CPU\n"), "gpu", "of a GPU\n")
    again = accuracy.with_section(once, "cpu", "of another CPU\n")
    assert again == once.replace("of a CPU", "of another CPU")
    assert again.startswith(page)


def test_ulps_of_small_numbers():
    """What is lost by a flush to zero is at most one; what float16 holds below its normal numbers is not flushed."""
    exact = np.array([1.0, 2.0**-126, 2.0**-130, 0.0, 1.0], np.longdouble)
    found = np.array([1 + 2.0**-22, 2.0**-126, 0.0, 2.0**-125, np.nan], np.float32)
    np.testing.assert_array_equal(worst_cases.ulps(found, exact), [2, 0, 1 / 16, 2**24, np.inf])
    tiny = np.array([2.0**-24], np.float16)
    assert worst_cases.ulps(tiny, np.array([2.0**-22], np.longdouble)) == 3
    assert worst_cases.shares(tiny, np.array([2.0**-22], np.longdouble), 2.0**-24, 1.0) == pytest.approx(2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_worst_cases_are_found(dtype, monkeypatch):
    """With the row that made them, and those beyond their bound."""
    from benchmarks import worst_case_losses

    name, factor = "categorical_cross_entropy, labels", 1.0
    right = worst_case_losses.LOSSES[name]

    def ours(x, labels, **options):
        return factor * right.ours(x, labels, **options)

    loss = dataclasses.replace(right, ours=ours, widths={3: 1.0})
    monkeypatch.setitem(worst_case_losses.LOSSES, name, loss)
    with ThreadPoolExecutor(1) as pool:
        found = worst_cases.measure(name, dtype, 300, pool, 1)
        assert found["rows"] == 300
        assert worst_cases.beyond(found) == []
        assert found["xla"]["loss"]["ulps"]["is"] > 1000
        factor = 1.1
        wrong = worst_cases.measure(name, dtype, 300, pool, 1)
    assert len(worst_cases.beyond(wrong)) == 2  # loss and gradient
    worst = wrong["jaxloss"]["loss"]["share_of_bound"]
    assert worst["found"] == pytest.approx(1.1 * worst["exact"], rel=1e-5)
    logits = np.array(worst["prediction"])
    expected = np.logaddexp.reduce(logits) - logits[worst["label"]]
    assert worst["exact"] == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
def test_references_of_worst_cases_agree_with_the_oracles(dtype):
    """Up to what cancels in float64, of the largest numbers of a row."""
    from benchmarks import accuracy_losses, worst_case_losses

    random = np.random.default_rng(0)
    for name, loss in worst_case_losses.LOSSES.items():
        known = accuracy_losses.LOSSES.get(name) or accuracy_losses.LOSSES.get(name.rpartition(",")[0])
        if known is None or name.endswith("logits"):
            continue
        drawn = loss.drawn(random, 50, 7, dtype)
        reference = loss.exact(drawn.x, drawn.a, 1)
        with np.errstate(divide="ignore"):
            losses, gradient = accuracy_losses.exact(known, drawn.x, drawn.a)
        sizes = [np.abs(np.reshape(x, (50, -1)).astype(float)).max(1) for x in (drawn.x, drawn.a)]
        of_rows, double = 1 + sum(sizes), {"computed": np.float64, "stored": np.float64, "terms": 7}
        error = tolerance.bound(losses, np.abs(losses) + 7 * of_rows, **double)
        tolerance.assert_within(reference.losses.astype(float), losses, error, name)
        error = tolerance.bound(gradient, np.maximum(np.abs(gradient), 1) * of_rows[:, None], **double)
        defined = np.broadcast_to(reference.defined, gradient.shape)
        found = reference.gradient.astype(float)
        tolerance.assert_within(found[defined], gradient[defined], error[defined], name)


PTXAS = """
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_80'
ptxas info    : Function properties for _Z5firstv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90a'
ptxas info    : Function properties for _Z6secondv
    8 bytes stack frame, {} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers
"""


def test_spills_are_found(compile_cuda):
    measure = compile_cuda.measure
    assert measure(PTXAS.format(0)) == ([], [], {"80": [40], "90a": [128]})
    ((spilling,), unknown, _) = measure(PTXAS.format(4))
    assert "second" in spilling
    assert "sm_90a" in spilling
    assert unknown == []
    silent = PTXAS.format(0).replace("Function properties for _Z6secondv", "")
    assert "second" in measure(silent)[1][0]


def test_size_of_a_release(compile_cuda):
    assert set(compile_cuda.released()) < set(compile_cuda.KILOBYTES)
    sections = ".text 100 0\n.nv_fatbin   2000000   4096\n"
    for compiled in (["80", "90a"], ["90a"]):
        size, kernels = compile_cuda.released_bytes(3_000_000, sections, compiled, ["80", "86", "90a"])
        assert kernels == 2_000_000
        of_release = {"80": 2655, "86": 2642, "90a": 3338, "PTX": 3861}
        here = sum(of_release[name] for name in compiled)
        assert size == pytest.approx(1_000_000 + 2_000_000 * sum(of_release.values()) / here)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["KL", "reverse KL", "Jensen-Shannon"])
def test_liger_computes_what_it_is_compared_with(name):
    # Peers that benchmarks leave out where they are not installed.
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("liger_kernel")
    from benchmarks import linear_distillation, linear_torch
    from benchmarks.linear_cross_entropy import Work

    operands = linear_distillation.Pair(Work(64, 32, 96, "float32"), 48).operands()
    contenders = linear_distillation.contenders(name)
    expected = jax.jit(jax.value_and_grad(contenders["whole logits"], (0, 1)))(*operands)
    tensors = [torch.from_dlpack(x).detach().requires_grad_(x.dtype == jnp.float32) for x in operands]
    value, gradients = linear_torch.value_and_gradients(contenders["Liger"].loss(), tensors, (0, 1))
    found = value.item(), [gradient.cpu().numpy() for gradient in gradients]
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(x - np.asarray(y)).max() < 2e-2 * np.abs(y).max()  # products of tensor cores


@pytest.mark.parametrize("name", ["KL", "reverse KL", "Jensen-Shannon", "KL and labels", "Jensen-Shannon and labels"])
def test_contenders_of_linear_distillation_agree(name):
    from benchmarks import linear_distillation
    from benchmarks.linear_cross_entropy import Work

    operands = linear_distillation.Pair(Work(12, 4, 9, "float32"), 6).operands()
    results = {
        who: jax.jit(jax.value_and_grad(loss, (0, 1)))(*operands)
        for who, loss in linear_distillation.contenders(name).items()
        if "softcap" not in who
    }
    whole = results.pop("whole logits")
    for who, result in results.items():
        options = {"operations": 2 * tolerance.OPERATIONS, "terms": 12 * 9}  # either errs
        if "bfloat16" in who:  # what two chunks add to a sum is rounded, each time by half an epsilon
            options = {"computed": jnp.bfloat16, "operations": 2 / 2, "terms": 0}
        tolerance.assert_trees_close(result, whole, **options)
