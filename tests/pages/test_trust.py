"""The campaigns of `make trust` see faults, and docs/trust.md says what there is of them."""

import importlib
import json
import pathlib
import re
import tomllib

import jax
import numpy as np
import pytest

import jaxloss
import oracles
from jaxloss._ffi import call, library
from trust import campaign, configurations, draws, finds, fuzz, handler_oracle, mutations, tables

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.cpu_only


def configuration_of(name: str, transform: str) -> configurations.Configuration:
    """The first one of that loss and transform."""
    for number in range(10_000):
        found = configurations.configuration(0, number)
        if (found.case.loss.name, found.transform, found.dtype) == (name, transform, "float32") and np.prod(
            found.shape
        ) > 1:
            return found
    raise AssertionError(f"none of {name}")


@pytest.fixture
def kept_path(retraced, monkeypatch):
    """The path of calls, which campaigns choose, is afterwards as it was."""
    monkeypatch.setattr(call, "FALLBACK_SIZE", call.FALLBACK_SIZE)


@pytest.mark.parametrize("transform", ["grad", "hvp"])
def test_the_fuzz_sees_a_wrong_number_and_shows_it(transform, kept_path, monkeypatch, tmp_path, capfd):
    """One in a thousand is wrong: the find is a program that runs, of as little as it takes."""
    configuration = configuration_of("mse", transform)
    effort = campaign.Effort(quick=True, seed=0, minutes=0)
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    assert fuzz._finds_of(configuration, effort, fuzz._State.of(effort)) == []
    right = jaxloss.mse
    monkeypatch.setattr(jaxloss, "mse", lambda x, a, **options: right(x, a, **options) * np.float32(1.001))
    (found,) = fuzz._finds_of(configuration, effort, fuzz._State.of(effort))
    assert "expected" in found
    (program,) = tmp_path.glob("finds/*.py")
    assert program.read_text().startswith("# ")
    exec(compile(program.read_text(), str(program), "exec"), {})
    assert "gradient of x" in capfd.readouterr().out


def test_configurations_follow_from_their_number():
    again = [str(configurations.configuration(3, number)) for number in range(20)]
    assert again == [str(configurations.configuration(3, number)) for number in range(20)]
    assert len(set(again)) == 20
    drawn = [draws.drawn(configurations.configuration(3, 1), np.random.default_rng(1)) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *(d.operands for d in drawn))


def test_every_loss_is_drawn():
    names = {configurations.configuration(0, number).case.loss.name for number in range(300)}
    public = {
        name for name in jaxloss.__all__ if not name.startswith(("d_", "linear")) and f"d_{name}" in jaxloss.__all__
    }
    assert names == public


def test_a_find_is_made_small(kept_path, monkeypatch):
    """Of many rows and options, one row and no option are left where any of them goes wrong."""
    configuration = configurations.Configuration(
        subject=next(subject for subject in configurations.SUBJECTS if subject.case.loss.name == "mse"),
        shape=(8, 3),
        axis=-1,
        dtype="float32",
        target_dtype=None,
        static={"reduction": "none"},
        numbers=(),
        shapes={"where": (8,)},
        with_normalizer=False,
        transform="jit",
        by_formula=False,
    )
    monkeypatch.setattr(jaxloss, "mse", lambda x, a, **options: 2 * abs(x - a) + 1)
    smaller, draw, errors = finds.smaller(configuration, draws.drawn(configuration, np.random.default_rng(0)))
    assert errors
    assert smaller.shape == draw.operands["x"].shape == (1, 3)
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


def test_the_page_names_every_campaign():
    for name in campaign.CAMPAIGNS:
        assert f"\n| {name} | " in PAGE
        assert callable(importlib.import_module(f"trust.{name}").run)


@pytest.mark.parametrize("name", ["trust_cpu", "mutants"])
def test_tables_say_what_the_files_do(name):
    kept = json.loads((tables.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    _, lines = tables.table("mutants" if name == "mutants" else "campaigns", [name])
    assert f"{{{'mutants' if name == 'mutants' else 'campaigns'}}} {name}" in PAGE
    text = "\n".join(lines)
    if name == "mutants":
        assert all(file in text for file in kept["counts"])
    else:
        assert {part["campaign"] for part in kept["measurements"]} == set(campaign.CAMPAIGNS)
        for part in kept["measurements"]:
            assert part["tried"] in text
            assert part["commit"][:12] in text
            assert not part["commit"].endswith("with changes")


def test_what_was_found_is_held_by_a_test_or_has_a_reason():
    for find in tomllib.loads(tables.MENDED.read_text(encoding="utf-8"))["finds"]:
        assert find["campaign"] in campaign.CAMPAIGNS
        assert ("test" in find) != ("reason" in find)
        if "test" in find:
            file, _, test = find["test"].partition("::")
            assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                find
            )
