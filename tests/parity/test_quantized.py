"""The released int8 and int4 checkpoints: kept as integers, and turned into floats."""

import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.ops.quantized import LARGEST as LARGEST_INTEGER
from glm_jax.ops.quantized import dequantize, pack_int4, quantize, unpack_int4
from glm_jax.text.layout import lay_out
from tests.parity.golden import Reader, check_rows, load_case

NAMES = ("chatglm-6b-int8", "chatglm-6b-int4", "chatglm2-6b-int8", "chatglm2-6b-int4")


def bits(name):
    return int(name[-1])


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    return request.param


@pytest.mark.parametrize("keep", [True, False], ids=["integers", "floats"])
def test_forward_and_generation(name, keep):
    case = load_case(name, keep_quantized=keep)
    assert case.config.quantization == (f"int{bits(name)}" if keep else "none")
    check_rows(case, "forward", [lay_out(x, case.config) for x in case.get("forward/input_ids")])
    rows = [lay_out(x, case.config) for x in case.get("generate/input_ids")]
    tokens, logits = Reader(case, rows).greedy(case.get("generate/tokens").shape[1])
    assert tokens.tolist() == case.get("generate/tokens").tolist()
    case.close(logits, "generate/step_logits")


def matrices(case):
    return sorted({n.rpartition("/")[0] for n in case.cases if n.startswith("matrix/")})


def test_packing_and_dequantisation_of_the_released_kernels(name):
    case = load_case(name, keep_quantized=True)
    assert len(matrices(case)) == 4
    for matrix in matrices(case):
        get = lambda part, at=matrix: jnp.asarray(case.get(f"{at}/{part}"))
        q, scale = get("weight_q"), get("weight_scale")
        assert int(jnp.abs(q).max()) <= LARGEST_INTEGER[bits(name)]
        stored = q
        if bits(name) == 4:
            stored = get("weight_packed")
            assert np.array_equal(pack_int4(q), stored)
            assert np.array_equal(unpack_int4(stored), q)
        ours = dequantize(stored, scale, bits(name))
        assert np.array_equal(ours, get("dequant_float"))


def test_quantising_gives_the_released_integers(name):
    """From the weights of the checkpoint that the release was made of, in its own float16."""
    case = load_case(name, keep_quantized=True)
    base = load_case(f"{case.family}/base")
    weights = base.released_names(base.model)
    for matrix in matrices(case):
        weight = weights[matrix.removeprefix("matrix/") + ".weight"]
        q, scale = quantize(jnp.asarray(weight), bits(name))
        assert np.array_equal(scale, case.get(f"{matrix}/weight_scale"))
        packed = case.get(f"{matrix}/weight_{'packed' if bits(name) == 4 else 'q'}")
        assert np.array_equal(q, packed)
