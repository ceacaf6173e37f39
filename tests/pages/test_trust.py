"""The campaigns of `make trust` see faults, and docs/trust.md says what there is of them."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import re
import tomllib

import jax
import numpy as np
import pytest

import jaxloss
import linear_oracle
import oracles
from jaxloss._ffi import call, library
from trust import (
    campaign,
    configurations,
    contrastive,
    device,
    finds,
    fuzz,
    handler_oracle,
    jobs,
    lifetime,
    listed_targets,
    mutations,
    names,
    programs,
    tables,
)
from trust.drop_ins import DROP_INS

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.cpu_only


def configuration_of(name: str, transform: str) -> programs.Configuration:
    """The first one of that function and transform, of float32 and more than one number."""
    for number in range(10_000):
        found = programs.configuration(0, number)
        types = {found.dtype, getattr(found, "kernel_dtype", "float32")}
        if (found.function, found.transform, types) == (name, transform, {"float32"}) and np.prod(found.shape) > 1:
            return found
    raise AssertionError(f"none of {name}")


@pytest.fixture
def kept_path(retraced, monkeypatch):
    """The path of calls, which campaigns choose, is afterwards as it was."""
    monkeypatch.setattr(call, "FALLBACK_SIZE", call.FALLBACK_SIZE)


QUICK = campaign.Effort(quick=True, seed=0, minutes=0)
SEEN = [("mse", "grad"), ("mse", "hvp"), ("linear_cross_entropy", "grad"), ("entropy", "jit")]
SEEN += [("sigmoid_contrastive", "grad"), ("optax.l2_loss", "grad")]


@pytest.mark.parametrize(("function", "transform"), SEEN)
def test_the_fuzz_sees_a_wrong_number_and_shows_it(function, transform, kept_path, monkeypatch, tmp_path, capfd):
    """One in a thousand is wrong: the find is a program that runs, of as little as it takes."""
    configuration = configuration_of(function, transform)
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    state = fuzz._State.of(QUICK)
    assert fuzz._finds_of(configuration, QUICK, state) == []
    assert state.counts[transform] == fuzz.calls_of(configuration, QUICK) > 1
    *module, name = function.split(".")
    home = getattr(jaxloss, module[0]) if module else jaxloss
    right = getattr(home, name)
    monkeypatch.setattr(home, name, lambda *arrays, **options: right(*arrays, **options) * np.float32(1.001))
    (found,) = fuzz._finds_of(configuration, QUICK, fuzz._State.of(QUICK))
    assert "expected" in found
    (program,) = tmp_path.glob("finds/*.py")
    assert program.read_text().startswith("# ")
    exec(compile(program.read_text(), str(program), "exec"), {})
    assert "gradient of x" in capfd.readouterr().out or transform == "jit"


def test_the_fuzz_sees_one_wrong_call_of_many(kept_path, monkeypatch, tmp_path):
    """One whose arrays are not like the others': under `vmap` it is found in its batch, too."""
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    right = jaxloss.mse
    wrong = lambda x, a, **options: right(x, a, **options) * jax.numpy.where(x.ravel()[0] > 4, 1.01, 1)  # noqa: E731
    monkeypatch.setattr(jaxloss, "mse", wrong)
    (found,) = fuzz._finds_of(configuration_of("mse", "vmap"), QUICK, fuzz._State.of(QUICK))
    assert "expected" in found


def test_calls_of_one_batch_are_shown_together(kept_path):
    """A find that is only one beside others keeps them."""
    configuration = configuration_of("mse", "vmap")
    text = finds.as_program(configuration, configuration.drawn(np.random.default_rng(0), 3), ["wrong"])
    assert "jax.jit(jax.vmap(" in text
    exec(compile(text, "find", "exec"), {})


def test_configurations_follow_from_their_number():
    again = [str(programs.configuration(3, number)) for number in range(20)]
    assert again == [str(programs.configuration(3, number)) for number in range(20)]
    assert len(set(again)) == 20
    drawn = [programs.configuration(3, 1).drawn(np.random.default_rng(1), 4) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *(d.operands for d in drawn))
    assert not (drawn[0].operands["x"][0] == drawn[0].operands["x"][1]).all()


def test_every_loss_is_drawn():
    drawn = {programs.configuration(0, number).function for number in range(600)}
    public = {name for name in jaxloss.__all__ if callable(getattr(jaxloss, name)) and f"d_{name}" in jaxloss.__all__}
    of_rows = {"log_prob", "entropy", "categorical_cross_entropy_with_stats"}
    linear = {name for name in jaxloss.__all__ if name.startswith("linear_")}
    drop_ins = {name for name in drawn if name.startswith("optax.")}
    assert drawn == public | of_rows | linear | {"sigmoid_contrastive"} | drop_ins
    assert len(drop_ins) == len(DROP_INS)


def _clips(configuration) -> bool:
    """Whether values are clipped, and their gradients not."""
    loss = getattr(configuration, "case", None)
    return bool(loss and loss.loss.has_clip and configuration.static.get("clip", 1e-7))


OF_A_KIND = [
    (listed_targets.of_few_classes, "a"),
    (contrastive.of_pairs, "scale"),
]


@pytest.mark.parametrize(("made", "operand"), OF_A_KIND)
def test_each_oracle_says_what_differences_of_values_do(made, operand):
    """Of what only these calls have: the gradients of shares of classes, of what a reference says, and of a scale."""
    rng, compared = np.random.default_rng(4), 0
    while compared < 40:
        configuration = made(rng, False)
        draw = dataclasses.replace(configuration.drawn(rng, 2), cotangent=np.ones(2, np.float32))
        if draw.pattern not in ("ordinary", "tiny") or operand not in draw.operands or _clips(configuration):
            continue
        x, step = draw.operands[operand].astype(np.float64), 1e-5
        along = rng.standard_normal(x.shape) * (abs(x) if operand == "a" else 1)

        def value(sign, configuration=configuration, draw=draw, x=x, along=along, step=step):
            operands = {**draw.operands, operand: x + sign * step * along}
            value = configuration.exact(dataclasses.replace(draw, operands=operands)).value[0]
            return value.reshape(2, -1).sum(1)

        own = tuple(range(1, x.ndim))
        gradient = (configuration.exact(draw).gradients[operand][0] * along).sum(own)
        np.testing.assert_allclose((value(1) - value(-1)) / (2 * step), gradient, rtol=1e-5, atol=1e-6)
        compared += 1


def test_many_calls_at_once_are_as_each_alone():
    """The stacked oracle, against the suite's own of one call after the other."""
    compared, rng = 0, np.random.default_rng(0)
    for number in range(500):
        configuration = programs.configuration(1, number)
        if type(configuration) is not configurations.LossConfiguration or not 0 < configuration.size < 200:
            continue
        draw = configuration.drawn(rng, 3)
        together = configuration.exact(draw)
        for i in range(3):
            alone = one_by_one(configuration, draw.of(i))
            pairs = [(together.value, alone.value), (together.gradients["x"], alone.of_prediction)]
            given = {"weights": alone.of_weights, "normalizer": alone.of_normalizer}
            pairs += [(together.gradients[name], of_it) for name, of_it in given.items() if of_it is not None]
            for of_all, exact in pairs:
                for part, expected in zip(of_all, exact, strict=True):
                    np.testing.assert_allclose(part[i], expected, rtol=1e-12, err_msg=str(configuration))
            compared += 1
    assert compared > 400


def one_by_one(configuration: configurations.LossConfiguration, draw) -> oracles.Expected:
    """The oracle's results of the one call of a draw."""
    given, static = {name: x[0] for name, x in draw.operands.items()}, configuration.static
    options = {name: given[name].astype(np.float64)[()] for name in configuration.numbers}
    options |= {"num_classes": static["num_classes"]} if "num_classes" in static else {}
    has_clip = configuration.case.loss.has_clip and not configuration.subject.unreduced
    with np.errstate(all="ignore"):
        return oracles.reduced(
            functools.partial(configuration.subject.elements, **options),
            given["x"],
            given.get("a", np.zeros(configuration.units, np.int64)),
            by_rows=configuration.case.loss.by_rows,
            axis=configuration.axis,
            clip=static.get("clip", 1e-7) if has_clip else None,
            ignore_index=static.get("ignore_index"),
            reduction=configuration.reduction,
            cotangent=draw.cotangent[0],
            **{name: given[name] for name in ("where", "weights", "normalizer") if name in given},
        )


def test_whole_logits_are_as_the_linear_oracle_has_them():
    """The fuzz's oracle of linear losses, against the suite's."""
    configuration = dataclasses.replace(
        configuration_of("linear_cross_entropy", "grad"),
        shape=(7, 3),
        classes=5,
        with_bias=True,
        numbers=(),
        shapes={"where": (7,)},
        with_normalizer=False,
        static={"reduction": "sum", "kernel_axis": -1, "chunk_size": None},
    )
    draw = configuration.drawn(np.random.default_rng(3), 2)
    found = configuration.exact(draw)
    for i in range(2):
        given = {name: x[i] for name, x in draw.operands.items()}
        sample = linear_oracle.Sample(given["x"], given["kernel"], given["labels"], given["bias"])
        expected = linear_oracle.expected(sample, draw.cotangent[i], given["where"])
        np.testing.assert_allclose(found.value[0][i], expected.losses[0].sum(), rtol=1e-12)
        for name, of in (("x", "hidden"), ("kernel", "kernel"), ("bias", "bias")):
            np.testing.assert_allclose(found.gradients[name][0][i], getattr(expected, f"of_{of}")[0], atol=1e-12)


def test_a_find_is_made_small(kept_path, monkeypatch):
    """Of many rows and options, one row and no option are left where any of them goes wrong."""
    configuration = dataclasses.replace(
        configuration_of("mse", "jit"),
        shape=(8, 3),
        target_dtype=None,
        static={"reduction": "none"},
        numbers=(),
        shapes={"where": (8,)},
        with_normalizer=False,
        by_formula=False,
    )
    monkeypatch.setattr(jaxloss, "mse", lambda x, a, **options: 2 * abs(x - a) + 1)
    smaller, draw, errors = finds.smaller(configuration, configuration.drawn(np.random.default_rng(0), 1))
    assert errors
    assert smaller.shape == draw.operands["x"].shape[1:] == (1, 3)
    assert not smaller.shapes


def test_handlers_that_give_wrong_numbers_are_seen():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 5)), np.ones(3)
    labels = np.array([0, 4, 2], np.int32)
    losses = oracles.categorical_cross_entropy(x, labels, 1e-7).loss[0]
    name, clip = f"jaxloss_cross_entropy_value_v{library.CALLING_CONVENTION}", {"clip": np.float64(1e-7)}
    assert handler_oracle.error_of(name, [x, labels, weight], [losses], clip) == ("", True)
    error, _ = handler_oracle.error_of(name, [x, labels, weight], [losses * (1 + 1e-9)], clip)
    assert "loss" in error


def test_mutations_change_calls():
    rng = np.random.default_rng(0)
    calls = [mutations.valid(rng) for _ in range(300)]
    assert {call.target for call in calls} == {c.name for c in mutations.handler_calls.CALLS}
    changed = sum(str(mutations.mutated(call, rng)) != str(call) for call in calls)
    assert changed > 250


def test_memory_that_grows_and_processes_that_go_wrong_are_seen(monkeypatch):
    sizes = iter([10, 10 + 2 * lifetime.FLAT])
    monkeypatch.setattr(device, "in_use", lambda: next(sizes))
    part = device.watched("calls", "calls", 5, 60, lambda: 1)
    assert part.counts == {"calls": 5}
    assert len(part.finds) == 1
    right = {"errors": ["RESOURCE_EXHAUSTED: Out of memory"], "left": 0, "first": [2.0, 1.0], "second": [2.0, 1.0]}
    assert list(device.faults_of_fraction({**right, "exact": 2.0})) == []
    for wrong in ({"errors": [""]}, {"errors": ["other"]}, {"left": 2**30}, {"second": [2.0, 0.5]}, {"exact": 3.0}):
        assert len(list(device.faults_of_fraction({"exact": 2.0, **right, **wrong}))) == 1


def counted(tried: str, finds: int = 0) -> jobs.Part:
    return jobs.Part(tried, {"calls": 2}, ["wrong"] * finds)


def test_jobs_run_in_processes_and_their_shares_are_added_up(capfd):
    """Those that are to be alone come last, a process that dies is a find, and what it said before stays."""
    share, alone = functools.partial(counted, "calls of a share", 1), functools.partial(counted, "alone")
    first = campaign.Campaign([share, functools.partial(os._exit, 3), share], [alone])
    second = campaign.Campaign([functools.partial(divmod, 1, 0)])
    effort = dataclasses.replace(QUICK, quick=False)
    kept = list(campaign.measured({"device": first, "fuzz": second}, effort, 2))
    (undone,), (added, died, last) = kept
    assert [added["tried"], added["counts"], added["finds"]] == ["calls of a share", {"calls": 4}, ["wrong"] * 2]
    assert (died["campaign"], last["tried"]) == ("device", "alone")
    assert "ended with status 3" in died["finds"][0]
    assert "ZeroDivisionError" in undone["finds"][0]
    assert capfd.readouterr().out.splitlines()[-1].startswith("device: alone: 2 calls; 0 found")


def test_the_fuzz_makes_its_calls_in_shares(kept_path, monkeypatch, tmp_path):
    """Shares have all configurations between them; one that has made its calls makes no more, and says how many."""
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz, "CHUNK", 2)
    monkeypatch.setattr(fuzz, "calls_of", lambda configuration, effort: 3)
    monkeypatch.setattr(programs, "configuration", lambda seed, number, made=programs.configuration: made(0, 1))
    effort = dataclasses.replace(QUICK, quick=False, minutes=1)
    states = [fuzz._State.of(effort, place, 3) for place in range(3)]
    assert [state.next for state in states] == [0, 1, 2]
    part = fuzz._share(effort, 1, 3, 7)
    assert part.counts["calls"] >= 7
    assert fuzz._State.of(effort, 1, 3).next == 1 + 3 * part.counts["programs"]
    again = fuzz._share(effort, 1, 3, 7)
    assert again.counts == part.counts
    assert "earlier run" in again.note


def test_parts_of_other_campaigns_stay(monkeypatch, tmp_path):
    """Of a platform's file those that ran are written anew, where they are asked to be, and the tools' are behind them."""
    monkeypatch.setattr(campaign.record, "RESULTS", tmp_path / "kept")

    def written(names, directory=None, count=1):
        path = campaign.write([{"campaign": name, "count": count} for name in names], "gpu", directory)
        return [(part["campaign"], part["count"]) for part in json.loads(path.read_text())["measurements"]]

    written(["memcheck", "device", "fuzz"])
    assert written(["fuzz"], str(tmp_path / "out"), 2) == [("fuzz", 2), ("device", 1), ("memcheck", 1)]
    assert written(["device"], str(tmp_path / "out"), 3) == [("fuzz", 2), ("device", 3), ("memcheck", 1)]


def test_the_page_names_every_campaign():
    for name in names.ALL:
        assert f"\n| {name} | " in PAGE
        assert callable(importlib.import_module(f"trust.{name}").campaign)


OF_PAGE = {"trust_cpu": "campaigns", "trust_gpu": "campaigns", "mutants": "mutants", "cuda_mutants": "mutants"}


@pytest.mark.parametrize("name", OF_PAGE)
def test_tables_say_what_the_files_do(name):
    path, lines = tables.table(OF_PAGE[name], [name])
    assert f"{{{OF_PAGE[name]}}} {name}" in PAGE
    text = "\n".join(lines)
    if not path.exists():
        assert f"`benchmarks/results/{name}.json` is not there" in text
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    if OF_PAGE[name] == "mutants":
        assert all(file in text for file in kept["counts"])
        left = [mutant for mutant in kept["mutants"].values() if mutant["result"] in ("survived", "equivalent")]
        assert all(mutant.get("reason", "") in text and mutant["by"] in text for mutant in left)
        return
    if name == "trust_cpu":  # what has not run on a GPU, the page says, is not there
        assert set(names.CAMPAIGNS["cpu"]) <= {part["campaign"] for part in kept["measurements"]}
    for part in kept["measurements"]:
        assert part["tried"] in text
        assert part["commit"][:12] in text
        assert not part["commit"].endswith("with changes")


def test_what_was_found_is_held_by_a_test_or_has_a_reason():
    for find in tomllib.loads(tables.MENDED.read_text(encoding="utf-8"))["finds"]:
        assert find["campaign"] in names.ALL
        assert ("test" in find) != ("reason" in find)
        if "test" in find:
            file, _, test = find["test"].partition("::")
            assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                find
            )
