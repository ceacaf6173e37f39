"""The fuzz's oracles of `jaxloss.objectives` are right, and see what is wrong."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest

import jaxloss
from jaxloss._ffi import call
from trust import campaign, fuzz, objectives

pytestmark = pytest.mark.cpu_only
QUICK = campaign.Effort(quick=True, seed=0, minutes=0)


def test_every_objective_is_drawn():
    drawn = {named.name for named in objectives.OBJECTIVES}
    assert drawn == set(jaxloss.objectives.__all__) - {"Objective", "Tokens"}
    for name in drawn:
        taken = set(inspect.signature(getattr(jaxloss.objectives, name)).parameters)
        numbers = {number for named in objectives.OBJECTIVES if named.name == name for number in named.numbers}
        assert numbers == taken - {"length_normalized"}


STOPPED = {("cispo", "old_log_prob"), ("cispo", "epsilon"), ("cispo", "epsilon_high"), ("kto", "divergence")}


@pytest.mark.parametrize("named", objectives.OBJECTIVES, ids=lambda named: named.name)
def test_derivatives_are_what_differences_of_values_are(named):
    """With respect to states, data and numbers; but for steps over a clip, which are few."""
    rng, compared, tried = np.random.default_rng(6), 0, 0
    while tried < 30:
        configuration = objectives.of_objectives(rng, False, [named])
        draw = dataclasses.replace(configuration.drawn(rng, 1), cotangent=np.ones(1, np.float32))
        if draw.pattern not in ("ordinary", "tiny") or not configuration.size:
            continue
        if "advantages" in draw.operands:  # at 0 there may be a kink
            advantages = draw.operands["advantages"].astype(np.float64)
            draw.operands["advantages"] = np.where(advantages == 0, 0.5, advantages)
        gradients = configuration.exact(draw).gradients
        for name in draw.tangents:
            if (named.name, name) in STOPPED:
                assert not gradients[name][0].any()
                continue
            if named.stops and name in ("kernel", "bias"):  # with which the oracle moves what no derivative follows
                continue
            along = rng.standard_normal(draw.operands[name].shape)
            slope, of_half = (difference(configuration, draw, name, step * along) / step for step in (1e-5, 5e-6))
            exact = (gradients[name][0] * along).sum()
            tried += 1
            if abs(slope - of_half) < 1e-6 * max(1, abs(exact)):
                np.testing.assert_allclose(slope, exact, rtol=1e-5, atol=1e-6, err_msg=f"{configuration}: {name}")
                compared += 1
    assert compared > 0.7 * tried


def difference(configuration, draw, name: str, step: np.ndarray) -> float:
    """Half of what the value differs by, so many steps ahead and behind."""

    def value(moved: np.ndarray) -> float:
        if name == "x":  # what no derivative follows stays where it is
            return configuration.exact(draw, moved).value[0][0]
        operands = {**draw.operands, name: moved}
        return configuration.exact(dataclasses.replace(draw, operands=operands)).value[0][0]

    x = draw.operands[name].astype(np.float64)
    return (value(x + step) - value(x - step)) / 2


def with_wrong_slope(right):
    """The function, whose derivative is off by one in a thousand."""

    def wrong(*arrays):
        value = right(*arrays)
        return 1.001 * value - 0.001 * jax.lax.stop_gradient(value)

    return wrong


FAULTS = {
    "nothing": ("_clipped", lambda right: right),
    "a gradient": ("_clipped", with_wrong_slope),
    "the clip's side": ("_clipped", lambda right: lambda ratio, advantage, bounds: -right(ratio, -advantage, bounds)),
    "the entropy's sign": ("_bonus", lambda right: lambda *arrays: -right(*arrays)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fuzz_sees_what_is_wrong(fault, retraced, monkeypatch, tmp_path):
    monkeypatch.setattr(call, "FALLBACK_SIZE", call.FALLBACK_SIZE)
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    (ppo,) = (named for named in objectives.OBJECTIVES if named.name == "ppo")
    configuration = dataclasses.replace(
        objectives.of_objectives(np.random.default_rng(0), False, [ppo]),
        named=dataclasses.replace(ppo, near=(0.3,)),
        transform="grad",
        shape=(3, 5, 4),
        classes=5,
        dtype="float32",
        kernel_dtype="float32",
        data_dtype="float32",
        static={"kernel_axis": -1, "chunk_size": None},
        shapes={},
        numbers=(),
        compiled={"entropy_bonus": 0.3},
        traced=(),
        of_sequences=("advantages",),
    )
    name, change = FAULTS[fault]
    monkeypatch.setattr(jaxloss.objectives, name, change(getattr(jaxloss.objectives, name)))
    found = fuzz._finds_of(configuration, QUICK, fuzz._State.of(QUICK))
    assert len(found) == (fault != "nothing")
