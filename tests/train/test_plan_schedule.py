"""Reading a kernel's schedule, and how often each of its parts runs."""

import itertools

from glm_jax.ops.attention.tpu.blocks import Blocks
from train.planning.kernels import Call, call_of, causal_bundles, causal_trips
from train.planning.schedule import Part, dumped, parse

# 3 bundles, a loop of 12 that begins at the region's number, and 2 behind it. Behind a branch four
# more bundles are issued in any case.
TEXT = """
LB: loop body
     0   :  { one }
0x1   :  { two }
0x2   :  { three }
0x3 LB: > { %a = x } /* Start region 7 */
{body}
0xa   : > { %b = sbr.rel (%p1) target = $region7 }
0xb   : > { }
0xc   : > { }
0xd   : > { }
0xe   : > { }
0xf   :  { end }
0x10   :  { end }
"""


def test_loops_are_found_in_a_schedule(tmp_path):
    body = "\n".join(f"0x{i:x}   : > {{ }}" for i in range(4, 10))
    text = TEXT.replace("{body}", body)
    program = parse(text)
    (loop,) = program.loops
    assert (program.stop, loop.start, loop.stop) == (17, 3, 15)
    assert program.own == 17 - 12
    (tmp_path / "123-range_attention_forward.4-01-final_bundles.txt").write_text(text)
    (tmp_path / "124-fusion.3-01-final_bundles.txt").write_text(text)
    assert list(dumped(tmp_path)) == ["range_attention_forward.4"]


BLOCKS = Blocks(queries=64, lanes=64, keys=256, step=64, unit=16)
CALL = Call(False, BLOCKS, batch=2, kv_heads=2, groups=4, row=512, slots=512)


def by_hand(blocks, first_query, origin):
    """Edges and whole steps of one tile over one block of causal keys."""
    seen = [range(q + 1) for q in range(first_query, first_query + blocks.tile)]
    units = range(origin, origin + blocks.keys, blocks.unit)
    some = [u for u in units if any(u in keys for keys in seen)]
    whole = [u for u in some if all(u + blocks.unit - 1 in keys for keys in seen)]
    steps = len(whole) // (blocks.step // blocks.unit)
    return len(some) - steps * (blocks.step // blocks.unit), steps


def test_trips_are_those_of_a_causal_row():
    trips = causal_trips(CALL)
    tiles = itertools.product(range(0, CALL.row, BLOCKS.tile), range(0, CALL.slots, BLOCKS.keys))
    edges, whole = (sum(n) for n in zip(*(by_hand(BLOCKS, *at) for at in tiles), strict=True))
    per_row = CALL.groups * CALL.batch * CALL.kv_heads
    assert (trips.edges, trips.whole) == (edges * per_row, whole * per_row)
    assert trips.parts == trips.edges  # tiles are not divided
    assert trips.programs == 8 * 2 * 4  # blocks of queries, blocks of keys, rows x key heads
    assert trips.first == trips.programs / 2


def test_a_backward_pass_over_segments_is_the_mean_of_its_calls():
    one = causal_trips(CALL._replace(backward=True, slots=256))
    assert one.whole == causal_trips(CALL).whole / 2


def test_each_part_counts_as_often_as_it_runs():
    loops = [Part("loop", 20, 25), Part("loop", 30, 50), Part("loop", 60, 65)]
    tile = Part("loop", 15, 70, loops)
    program = Part("program", 0, 100, [Part("loop", 10, 90, [tile])])
    trips = causal_trips(CALL)
    outside = 80 - 55
    wanted = outside * trips.programs + (55 - 30) * trips.tiles + 5 * trips.edges + 20 * trips.whole
    assert causal_bundles(CALL, program) == wanted
    assert causal_bundles(CALL, Part("program", 0, 9)) is None


def test_a_call_says_how_it_was_cut():
    sizes = BLOCKS.metadata(batch=2, kv_heads=2, groups=4, row=512, slots=512)
    inside = ",".join(f'"{name}":"{n}"' for name, n in sizes.items())
    attributes = f"frontend_attributes={{kernel_metadata={{{inside}}}}}"
    assert call_of("jit(step)/range_attention_forward/pallas_call", attributes) == CALL
    assert call_of("jit(step)/other/pallas_call", attributes) is None
    assert call_of("jit(step)/range_attention_forward/pallas_call", "") is None
