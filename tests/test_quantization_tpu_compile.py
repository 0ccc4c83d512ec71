"""int4 models decode on one v5e chip in less memory than the release asks of a GPU (6 GB)."""

import pytest

from tests.tpu import long_compile, marks, run_program

pytestmark = marks

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from glm_jax import nn
from glm_jax.config import preset
from glm_jax.text.decoding_loop import Next, State, write
from glm_jax.text.sampling import RowSampling
from train.planning.program import device_bytes

topology, name, length, cache_dtype, group = sys.argv[1:]
chip = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices[0]
length, group = int(length), int(group)
config = preset(name).replace(quantization="int4", quant_group=group)
compute = nn.Compute(dtype="bfloat16", cache_dtype=cache_dtype)

def everything():
    model = nn.arranged(nn.GLM(config, jax.random.key(0), param_dtype=jnp.bfloat16))
    numbers = jnp.zeros(1, jnp.int32)
    state = State(
        model.new_cache(1, length, compute.cache_type), jnp.zeros((1, config.vocab_size)),
        Next(*[numbers] * 5), jnp.zeros((1, length), jnp.int32), numbers, numbers > 0, None)
    sampling = RowSampling(*(jnp.asarray(x) for x in vars(RowSampling.make(1)).values()))
    return model, state, sampling, jnp.zeros(8, jnp.int32), numbers, jnp.int32(0)

on_chip = SingleDeviceSharding(chip)
arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_chip), jax.eval_shape(everything))
memory = write.lower(*arguments, compute=compute).compile().memory_analysis()
print(json.dumps({
    "weights": device_bytes(arguments[0]),
    "arguments": memory.argument_size_in_bytes,
    "temp": memory.temp_size_in_bytes,
    "peak": memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
}))
"""


@pytest.mark.parametrize(
    ("name", "length", "cache_dtype", "group"),
    [
        pytest.param("chatglm2-6b", 8192, "same", 0, marks=long_compile),
        pytest.param("chatglm2-6b", 8192, "int8", 0, marks=long_compile),
        pytest.param("chatglm2-6b", 8192, "same", 128, marks=long_compile),
        pytest.param("chatglm-6b", 2048, "same", 0, marks=long_compile),
    ],
)
def test_decoding_with_int4_weights_takes_less_than_6_gb(name, length, cache_dtype, group):
    memory = run_program(PROGRAM, "v5e:2x2", name, str(length), cache_dtype, str(group))
    assert memory["arguments"] >= memory["weights"]
    assert memory["peak"] < 6e9
