"""One table of names per family, and finding out which one a checkpoint needs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from convert.families import chatglm, chatglm2, glm, transformers
from convert.table import Entry, Rule, rules
from glm_jax.config import GLMConfig
from glm_jax.errors import UserError

# Tensors that are computed, not learned: known, checked by nobody, and kept for the way back.
BUFFERS = re.compile(
    r"(rotary_pos_emb|rotary_emb)\.inv_freq$|\.attention\.(masked_)?bias$|position_ids$"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way of naming the tensors of a checkpoint."""

    name: str
    entries: tuple[Entry, ...]
    title: str
    mark: str
    """A tensor that only this layout has, behind any prefix."""
    body: str = ""
    """The part of the prefix that the heads, written with a leading slash, stand outside of."""

    def rules(
        self, config: GLMConfig, shapes: Mapping[str, tuple[int, ...]], prefix: str
    ) -> list[Rule]:
        """The table for a model whose parameters have these shapes (``convert.table.rules``)."""
        outer = prefix.removesuffix(self.body)
        entries = [
            dataclasses.replace(e, theirs=outer + e.theirs[1:])
            if e.theirs.startswith("/")
            else dataclasses.replace(e, theirs=prefix + e.theirs)
            for e in _entries(self, config)
        ]
        return rules(entries, shapes)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("glm", glm.ENTRIES, "THUDM's GLM", "transformer.position_embeddings.weight", "glm."),
        Layout("chatglm", chatglm.ENTRIES, "ChatGLM-6B", "transformer.word_embeddings.weight"),
        Layout(
            "chatglm2",
            chatglm2.ENTRIES,
            "ChatGLM2, ChatGLM3 and GLM-4 as released",
            "transformer.embedding.word_embeddings.weight",
        ),
        Layout(
            "transformers",
            transformers.ENTRIES,
            "Transformers' Glm",
            "embed_tokens.weight",
            "model.",
        ),
    )
}
FAMILIES = (
    "glm-base", "glm-large", "glm-doc", "glm-410m", "glm-515m", "glm-roberta-large",
    "glm-large-chinese", "glm-2b", "glm-10b", "glm-10b-chinese", "chatglm-6b", "chatglm-6b-v1.0",
    "chatglm2-6b", "chatglm3-6b", "glm-4-9b",
)  # fmt: skip


def detect_layout(names: Collection[str]) -> tuple[Layout, str]:
    """The layout that these tensor names have, and the prefix before them (such as ``glm.``).

    Raises:
      UserError: none of those that are known.
    """
    # Longest mark first: ChatGLM2's ends like ChatGLM-6B's.
    for layout in sorted(LAYOUTS.values(), key=lambda layout: -len(layout.mark)):
        for name in names:
            if name == layout.mark or name.endswith("." + layout.mark):
                return layout, name.removesuffix(layout.mark)
    some = ", ".join(sorted(names)[:3])
    known = "; ".join(f"{layout.mark} ({layout.title})" for layout in LAYOUTS.values())
    raise UserError(f"these tensors are of no known family: {some}.. ; looked for {known}")


def family_of(config: GLMConfig, files: Collection[str] = ()) -> str:
    """The released family whose tokenizer and prompts a model uses.

    Args:
      files: names of the files beside the weights, which tell what sizes do not.
    """
    name = config.name.lower().replace("glm4-", "glm-4-")
    # Longest first: chatglm-6b-v1.0 before chatglm-6b.
    for family in sorted(FAMILIES, key=len, reverse=True):
        if name.startswith(family):
            if family == "chatglm-6b" and config.special.eop != config.special.eos:
                return "chatglm-6b-v1.0"
            return family
    if config.position == "learned":
        return _glm_family(config, files)
    if config.rope_2d or config.residual_scale is not None:
        return "chatglm-6b" if config.special.eop == config.special.eos else "chatglm-6b-v1.0"
    if config.vocab_size == 151552 or len(config.stop_ids) > 1:
        return "glm-4-9b"
    # The same network; ChatGLM3's releases have 8k (and 32k, 128k by rope_ratio).
    return "chatglm2-6b" if config.max_seq_len == 32768 and config.rope_theta == 1e4 else (
        "chatglm3-6b"
    )  # fmt: skip


def _glm_family(config: GLMConfig, files: Collection[str]) -> str:
    if any(file.startswith("cog-pretrain") for file in files) or config.vocab_size == 50048:
        return "glm-10b-chinese" if config.num_layers == 48 else "glm-large-chinese"
    if "vocab.txt" in files or config.vocab_size == 30592:
        return "glm-large" if config.num_layers >= 24 else "glm-base"
    if config.num_layers == 24 and config.max_seq_len <= 512:
        return "glm-roberta-large"
    return "glm-2b" if config.num_layers == 36 else "glm-10b"


def _entries(layout: Layout, config: GLMConfig) -> Sequence[Entry]:
    if layout.name != "chatglm2":
        return layout.entries
    # Without multi_query_attention the fused matrix takes turns by head, as ChatGLM-6B's does.
    grouped = config.num_kv_heads != config.num_heads or _says_multi_query(config)
    return layout.entries if grouped else chatglm2.UNGROUPED


def _says_multi_query(config: GLMConfig) -> bool:
    return bool(config.to_hf().get("multi_query_attention"))
