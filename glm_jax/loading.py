"""One call from a directory to a model that is ready to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath
from jax.sharding import Mesh

from glm_jax import quantization
from glm_jax.ckpts.model_dir import load_generation, load_model
from glm_jax.nn import GLM
from glm_jax.peft import Adapter, attach, load_adapter
from glm_jax.peft.adapter import adapter_about
from glm_jax.quantization import Integers


def load(
    directory: epath.PathLike,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    adapter: epath.PathLike | Adapter | Sequence[epath.PathLike | Adapter] | None = None,
    quantize: Integers | None = None,
    group_size: int | None = None,
) -> GLM:
    """The network of a model directory, restored straight into its shards.

    >>> model = glm_jax.load("ckpt/", dtype="bfloat16")

    Args:
      directory: written by ``convert.from_torch`` or ``glm_jax.ckpts.save_model``.
      dtype: of the weights in memory, such as ``"bfloat16"``; as stored by default. Integer weights
        stay integers.
      mesh: every weight is read straight into its shards on it; one device by default.
      adapter: a prefix or a LoRA to put into it (``glm_jax.peft``), or its directory; or several:
        any number of LoRA, whose changes add up, and one prefix. A LoRA is merged into the
        weights, or stays beside them where they are integers in the directory.
      quantize: ``"int8"`` or ``"int4"``: the layers' matrices become integers, with every LoRA
        merged in before.
      group_size: of ``quantize``: input columns per scale; None: one scale per output row.

    Raises:
      UserError: a part is missing, damaged, or does not fit the rest.
    """
    model = load_model(directory, mesh=mesh, dtype=dtype)
    several = isinstance(adapter, Sequence) and not isinstance(adapter, str)
    for one in adapter if several else () if adapter is None else (adapter,):
        model = attach(model, one if isinstance(one, Adapter) else load_adapter(one))
    return model if quantize is None else quantization.quantize(model, quantize, group_size)


def generation_with(
    directory: epath.PathLike, adapter: epath.PathLike | None = None
) -> dict[str, Any]:
    """``glm_jax.ckpts.load_generation``, with the chat format that the adapter was trained in.

    Raises:
      UserError: the directory or the adapter cannot be read.
    """
    generation = load_generation(directory)
    named = adapter_about(adapter)[1].get("prompt_format") if adapter is not None else None
    return generation | ({"prompt_format": named} if named else {})
