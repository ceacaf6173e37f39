"""What measurements of scaling rest on: collectives are read rightly from modules, and the model's page is what it says."""

import dataclasses

import numpy as np
import pytest

from benchmarks import exchanges, scaling_model
from benchmarks.scaling_model import Hardware, Layout

pytestmark = pytest.mark.cpu_only

# As XLA's GPU compiler writes them: a loop, a collective of several arrays, one of their concatenation, and asynchronous
# ones with and without a computation of their own.
MODULE = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[64,2]) -> f32[8,2] {
  %p = f32[64,2]{1,0} parameter(0)
  ROOT %scattered = f32[8,2]{1,0} reduce-scatter(%p), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[16])) -> (s32[], f32[16]) {
  %state = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%state), index=1
  %told = (f32[16]{0}, f32[16]{0}, /*index=2*/s32[]) all-reduce(%x, %x, %i), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %alone = f32[16]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %next = (s32[], f32[16]{0}) tuple(%i, %alone)
}

%condition (state: (s32[], f32[16])) -> pred[] {
  %state = (s32[], f32[16]{0}) parameter(0)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%joined (p: f32[1], q: f32[512]) -> f32[513] {
  %p = f32[1]{0} parameter(0)
  %q = f32[512]{0} parameter(1)
  ROOT %concatenate = f32[513]{0} concatenate(%p, %q), dimensions={0}
}

%unused (p: f32[4]) -> f32[4] {
  ROOT %nobody = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

ENTRY %main (p: bf16[4,64], q: f32[64,2]) -> f32[] {
  %p = bf16[4,64]{1,0} parameter(0)
  %gather-start = ((bf16[4,64]{1,0}), bf16[16,64]{1,0:S(1)}) all-gather-start(%p), replica_groups=mesh['d'=4,'v'=2] {'d'}, dimensions={0}
  %loop_fusion.3 = f32[64]{0} fusion(%q), kind=kLoop, calls=%fused
  %view = f32[64]{0} bitcast(%loop_fusion.3)
  %gathered = bf16[16,64]{1,0:S(1)} all-gather-done(%gather-start)
  %reduce-start = f32[64]{0} all-reduce-start(%view), replica_groups={}, to_apply=%add
  %product = f32[4]{0} custom-call(%loop_fusion.3), custom_call_target="__cublas$gemm"
  %reduced = f32[64]{0} all-reduce-done(%reduce-start)
  %scatter-start = ((f32[64,2]{1,0}), f32[8,2]{1,0}) async-start(%q), calls=%wrapped
  %scattered = f32[8,2]{1,0} async-done(%scatter-start), calls=%wrapped
  %one = f32[513]{0} fusion(%loss, f32[512]{0} %gradient), kind=kLoop, calls=%joined
  %both = f32[513]{0} all-reduce(f32[513]{0} %one), replica_groups=mesh['d'=4,'v'=2] {'v'}, to_apply=%add
  ROOT %looped = (s32[], f32[16]{0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_collectives_of_a_module():
    found = {each.kind + str(each.results[0][1]): each for each in exchanges.of_module(MODULE)}
    assert set(found) == {"reduce-scatter16", "all-reduce16", "all-gather1024", "all-reduce64", "all-reduce1"}
    scattered, in_loop, gathered, reduced, both = (found[name] for name in found)
    assert (both.results, both.devices) == ((("f32", 1), ("f32", 512)), 2)
    assert (scattered.devices, scattered.times, scattered.bytes_sent) == (8, 1, 7 * 64)
    assert in_loop.results == (("f32", 16), ("f32", 16), ("s32", 1))
    assert (in_loop.devices, in_loop.times, in_loop.bytes, in_loop.meanwhile) == (2, 5, 132, None)
    assert in_loop.bytes_sent == 132
    assert (gathered.devices, gathered.bytes_sent, gathered.meanwhile) == (4, 0.75 * 2048, ("loop_fusion",))
    assert not gathered.beside_compute  # of 64 numbers
    assert (reduced.devices, reduced.bytes_sent, reduced.meanwhile) == (8, 2 * 7 / 8 * 256, ("custom-call",))
    assert reduced.beside_compute


def test_a_loop_of_unknown_length():
    (in_loop,) = (each for each in exchanges.of_module(MODULE.replace("known_trip", "a_trip")) if each.bytes == 132)
    assert in_loop.times is None


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("replica_groups=mesh['d'=8] {'d':(2)4}", 4),
        ("replica_groups={}", 8),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_groups_of_devices(groups, devices):
    module = MODULE.replace("replica_groups=mesh['d'=4,'v'=2] {'d'}", groups)
    (gathered,) = (each for each in exchanges.of_module(module) if each.kind == "all-gather")
    assert gathered.devices == devices


def test_the_model_of_cross_entropy():
    """By hand: bytes over rates, and the messages of a tree over 128 hosts."""
    compute, told = scaling_model.cross_entropy(Hardware(), Layout())
    np.testing.assert_allclose(compute.seconds, 3 * 8 * 8192 * 128256 / 8 * 2 / 3.35e12)
    of_rows = sum(cost.times for cost in told if "row" in cost.what)
    sent = sum(cost.times * cost.sent for cost in told if "row" in cost.what)
    numbers = sum(scaling_model.NUMBERS_OF_ROWS)
    np.testing.assert_allclose(sent, numbers * 2 * 7 / 8 * 65536 * 4)
    seconds = sum(cost.seconds for cost in told if "row" in cost.what)
    np.testing.assert_allclose(seconds, of_rows * 15e-6 + sent / 450e9)
    np.testing.assert_allclose(told[-1].seconds, 14 * 5e-6 + 2 * 127 / 128 * 4 / 50e9)


def test_the_model_of_linear_cross_entropy():
    layout = Layout()
    (compute, whole), (_, split) = (
        scaling_model.linear_cross_entropy(Hardware(), layout, fsdp) for fsdp in (False, True)
    )
    np.testing.assert_allclose(compute.seconds, 6 * 65536 * 4096 * 16032 / 989e12)
    kernel = 4096 * 16032
    summed_in_bfloat16 = scaling_model.linear_cross_entropy(Hardware(), layout, False, 2)[1]
    for costs, expected in (
        (whole, {"reduce-scatter of the kernel's gradient": 4, "all-gather of the kernel's gradient": 2}),
        (split, {"reduce-scatter of the kernel's gradient": 4, "all-gather of the kernel": 2}),
        (summed_in_bfloat16, {"all-reduce of the kernel's gradient": 2 * 2}),
    ):
        by_name = {cost.what.partition(",")[0]: cost for cost in costs}
        assert expected.keys() == {name for name in by_name if "kernel" in name}
        for name, item in expected.items():
            np.testing.assert_allclose(by_name[name].sent, 127 / 128 * kernel * item)
        hidden = by_name["all-reduce of the hidden states' gradient"]
        np.testing.assert_allclose(hidden.sent, 2 * 7 / 8 * 65536 * 4096 * 2)
    alone = dataclasses.replace(layout, in_host=1, hosts=1)
    assert sum(cost.seconds for cost in scaling_model.linear_cross_entropy(Hardware(), alone, False)[1]) == 0


def test_measurements_take_the_place_of_specifications():
    common = {"who": "jaxloss", "devices": 2, "rows": 16384, "classes": 128256, "width": 4096}
    small = {"bytes_sent": 65536, "ms": 0.02, "times": 1}
    large = {"bytes_sent": 2e9, "ms": 8.0, "times": 1}
    rows = [
        {**common, "loss": "cross entropy", "split": "classes", "local_ms": 2.0, "collectives": [small]},
        {**common, "loss": "linear cross entropy", "split": "rows", "local_ms": 40.0, "collectives": [large, small]},
        {**common, "loss": "linear cross entropy", "split": "classes", "failed": "out of memory"},
    ]
    found = scaling_model.measured(Hardware(), rows, "a GPU")
    np.testing.assert_allclose(found.memory.value, 3 * 16384 * 64128 * 2 / 2e-3)
    np.testing.assert_allclose(found.products.value, 6 * 8192 * 4096 * 128256 / 40e-3)
    np.testing.assert_allclose([found.host.value, found.host_start.value], [250e9, 20e-6])
    assert found.memory.source == "measured: 2 × a GPU"
    assert found.network == Hardware().network


def test_the_page_is_what_the_model_says():
    page = scaling_model.page(scaling_model.results_of())
    assert scaling_model.PAGE.read_text() == page, "write it anew: python -m benchmarks.scaling_model --write"
