"""The real TPU compiler takes the attention kernels: a few cases always, all of them when asked."""

import json

import pytest

from benchmarks.attention.programs import LENGTHS, SLICES
from tests.tpu import long_compile, marks, run_program

pytestmark = marks

# ChatGLM2's heads are GLM-4's.
MODELS = ("glm-10b", "chatglm-6b", "glm-4-9b")

FORWARD_AND_BACKWARD = """
import json, sys
from benchmarks.attention.compile import attempt
from benchmarks.attention.programs import Program
programs = [Program(*case) for case in json.loads(sys.argv[1])]
print(json.dumps([[f.program.tensor, f.error] for f in map(attempt, programs)]))
"""
DECODE = """
import json, sys
from benchmarks.attention.programs import Decode, lower_decode
programs = [Decode(*case) for case in json.loads(sys.argv[1])]
print(json.dumps([lower_decode(p).compile().memory_analysis().temp_size_in_bytes
                  for p in programs]))
"""
STEP = """
import json
from train.planning.child import answer
from train.planning.question import Question
print(json.dumps(answer(Question("glm-4-9b", "v5e-4", "decode", (1, 1, 4, 1), 8192, 8))))
"""
# Less than a layer of any cache here: queries, outputs and sums.
FEW_BYTES = 2**24


def refused(cases):
    found = run_program(FORWARD_AND_BACKWARD, json.dumps(cases))
    return [(case, error) for case, (_, error) in zip(cases, found, strict=True) if error]


def decode_temporaries(cases):
    return run_program(DECODE, json.dumps(cases))


@long_compile
def test_forward_and_backward_on_a_chip_with_little_and_one_with_much_fast_memory():
    assert not refused([["v4", "glm-10b", 1024], ["v5e", "glm-4-9b", 1024]])


def test_decoding_copies_nothing_of_the_cache():
    """Two key heads and thirty-two, integers and bfloat16."""
    cases = [["v5e", "glm-4-9b", 8192, "int8"], ["v5p", "chatglm-6b", 2048, "bfloat16"]]
    assert max(decode_temporaries(cases)) < FEW_BYTES


@long_compile
@pytest.mark.parametrize("chip", SLICES)
def test_every_shape_and_length(chip):
    cases = [[chip, model, length] for model in MODELS for length in LENGTHS]
    assert not refused(cases)


@long_compile
@pytest.mark.parametrize("chip", SLICES)
def test_decoding_with_every_shape(chip):
    cases = [
        [chip, model, slots, dtype]
        for model, slots in (("chatglm-6b", 2048), ("glm-4-9b", 131072))
        for dtype in ("int8", "bfloat16")
    ]
    assert max(decode_temporaries(cases)) < FEW_BYTES


def test_a_step_of_decoding_glm_4_copies_no_cache():
    """Eight rows of 8192 slots on four v5e: a copy per layer would be hundreds of millions."""
    found = run_program(STEP)
    assert [kernel["times"] for kernel in found["kernels"]] == [40]
    assert found["estimated_cycles"] < 30e6
    assert found["memory"]["temp"] < found["shares"]["cache"]
