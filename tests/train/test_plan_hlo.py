"""Reading optimized HLO: shapes, loops, sums. The text and its numbers are in small_step.hlo."""

from pathlib import Path

import pytest

from train.planning.hlo import parse, shape_bytes
from train.planning.kept import kept_activations
from train.planning.kernels import causal_flops
from train.planning.loops import trip_count
from train.planning.walk import Collective, _groups, walk

LAYERS = (Path(__file__).parent / "small_step.hlo").read_text()


def test_bytes_of_arrays_and_tuples_leave_padding_and_layout_out():
    assert shape_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2 * 8 * 128
    assert shape_bytes("(s32[], /*index=1*/pred[4]{0}, s4[3]{0})") == 4 + 4 + 2
    assert shape_bytes("f8e4m3fn[16]{0}") == 16


def test_text_becomes_computations_with_an_entry():
    module = parse(LAYERS)
    assert module.entry.name == "main.4"
    assert set(module.computations) == {"fused", "more", "look", "layer", "left", "main.4"}
    loop = module.entry.instructions["done.4"]
    assert (loop.opcode, loop.operands, loop.called("body")) == ("while", ("start.4",), "layer")
    assert module.computations["layer"].instructions["y.2"].cycles == 1000


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("module {}")


def test_a_scan_is_counted_and_what_stays_the_same_is_known_inside():
    module = parse(LAYERS)
    loop = module.entry.instructions["done.4"]
    passes, known = trip_count(module, loop, module.entry, {})
    assert passes == 4
    assert known == {3: 4}  # the bound; the counter changes, the rest is data


def test_a_bound_that_is_data_is_unknown():
    module = parse(LAYERS)
    layer = module.computations["layer"]
    assert trip_count(module, layer.instructions["looked.2"], layer, {})[0] is None
    # The same loop with a bound that the loop around it keeps constant.
    assert trip_count(module, layer.instructions["looked.2"], layer, {2: 7})[0] == 7


def test_a_stated_count_is_believed():
    stated = 'body=%look, backend_config={"known_trip_count":{"n":"9"}}'
    module = parse(LAYERS.replace("body=%look", stated))
    layer = module.computations["layer"]
    assert trip_count(module, layer.instructions["looked.2"], layer, {})[0] == 9


def test_a_counter_that_goes_up_by_two_is_not_guessed_at():
    module = parse(LAYERS.replace("%one.2 = s32[]{:T(128)} constant(1)",
                                  "%one.2 = s32[]{:T(128)} constant(2)"))  # fmt: skip
    assert trip_count(module, module.entry.instructions["done.4"], module.entry, {})[0] is None


def test_sums_are_times_the_loops():
    totals = walk(parse(LAYERS))
    assert totals.cycles == 4 * 1000
    assert [(k.source, k.times, k.flops, k.bytes) for k in totals.kernels] == [
        ("jit(step)/attention", 4, 500, 64)
    ]
    assert [(loop.source, loop.times, loop.once.cycles) for loop in totals.loops] == [
        ("jit(step)/blocks", 4, 30)
    ]
    (gather,) = totals.collectives
    assert (gather.kind, gather.times, gather.group, gather.exposed) == ("all-gather", 4, 4, True)
    assert gather.size == 4 * 8 * 128 * 2
    assert gather.wire == gather.size * 3 / 4
    assert totals.unknown == {"sort": 1}


ASYNCHRONOUS = """HloModule step

%part (p.1: bf16[1,128]) -> bf16[4,128] {
  %p.1 = bf16[1,128]{1,0} parameter(0)
  ROOT %g.1 = bf16[4,128]{1,0} all-gather(%p.1), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p.2: bf16[1,128]) -> bf16[4,128] {
  %p.2 = bf16[1,128]{1,0} parameter(0)
  %start = (bf16[1,128]{1,0}, bf16[4,128]{1,0}, u32[]{:S(2)}) fusion(%p.2), calls=%part
  %flag.1 = u32[]{:S(2)} get-tuple-element(%start), index=2
  %product = (bf16[4,128]{1,0}, u32[]{:S(2)}) fusion(%p.2, %flag.1), calls=%part, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %flag.2 = u32[]{:S(2)} get-tuple-element(%product), index=1
  ROOT %done = bf16[4,128]{1,0} fusion(%flag.2), kind=kCustom, calls=%part
}
"""


def test_a_gather_that_runs_beside_products_is_counted_once_and_not_as_exposed():
    totals = walk(parse(ASYNCHRONOUS))
    (gather,) = totals.collectives
    assert (gather.kind, gather.exposed, gather.wire) == ("all-gather", False, 3 * 128 * 2)
    assert totals.cycles == 100 and not totals.unknown


def test_flops_of_the_attention_kernel_when_rows_are_causal():
    queries, keys, ranges = "bf16[1,2,128,32768]{3,2,1,0}", "bf16[1,2,2048,128]", "s32[1,2,32768]"
    rest = "bf16[1,2,128,2048]{3,2,1,0}", ranges
    # 32 heads x 2048 queries (2 key heads of 16 query heads), each with 1024 of 2048 keys.
    pairs = 32 * 2048 * 1024
    forward = causal_flops("jit/range_attention_forward/pallas_call", [queries, keys, *rest])
    assert forward == 4 * 128 * pairs
    table, sums = "s32[32]{0}", "f32[1,2,1,32768]"
    operands = [table, queries, queries, sums, sums, keys, *rest]
    backward = causal_flops("jit/range_attention_backward/pallas_call", operands)
    assert backward == 10 * 128 * pairs
    in_place = "bf16[1,4096,2048]{2,1,0}"
    operands = [table, in_place, in_place, sums, sums, keys, *rest]
    backward = causal_flops("jit/range_attention_backward/pallas_call", operands)
    assert backward == 10 * 128 * pairs
    assert causal_flops("jit/other/pallas_call", [queries, keys]) is None


def test_what_the_scan_over_layers_keeps():
    module = parse(LAYERS)
    assert kept_activations(module, 4) is None
    keeps = LAYERS.replace(
        "%four.4 =",
        '%kept.4 = bf16[4,8,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"\n'
        "  %four.4 =",
    ).replace("%blocks.4, %four.4)", "%blocks.4, %four.4, %kept.4)")
    assert kept_activations(parse(keeps), 4) == 4 * 8 * 128 * 2
    assert kept_activations(parse(keeps), 5) is None


def test_a_group_over_two_slices_is_seen():
    assert not walk(parse(LAYERS), slice_size=4).collectives[0].crosses_slices
    assert walk(parse(LAYERS), slice_size=2).collectives[0].crosses_slices


def test_bytes_on_the_wire():
    whole = 1000
    made = {k: Collective(k, 1, whole, 4, True).wire for k in ("all-reduce", "reduce-scatter")}
    assert made == {"all-reduce": 1500, "reduce-scatter": 750}
    assert Collective("collective-permute", 1, whole, 4, True).wire == whole


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x=1", [(0, 2), (1, 3)]),
        ("replica_groups=[2,2]<=[4], x=1", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x=1", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x=1", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x=1", [(0, 1, 2, 3)]),
        ("no groups", []),
    ],
)
def test_replica_groups_in_every_notation(text, groups):
    assert list(_groups(text)) == groups
