"""Models small enough to make inside a notebook, in seconds, on a CPU.

Nothing here is needed with a real checkpoint: each notebook says which line to change.
"""

from __future__ import annotations

import builtins
import io
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
import sentencepiece as spm

import glm_jax
from convert.to_torch import export
from glm_jax import data
from glm_jax.chat import render
from glm_jax.ckpts import save_model
from glm_jax.config import GLMConfig
from glm_jax.nn import GLM, lm_loss
from glm_jax.presets import glm
from glm_jax.text import ChatGLM3Tokenizer, train_sentencepiece

FACTS = {
    "France": ("Paris", "French"),
    "Germany": ("Berlin", "German"),
    "Italy": ("Rome", "Italian"),
    "Spain": ("Madrid", "Spanish"),
    "Greece": ("Athens", "Greek"),
    "Poland": ("Warsaw", "Polish"),
    "Norway": ("Oslo", "Norwegian"),
    "Finland": ("Helsinki", "Finnish"),
    "China": ("Beijing", "Chinese"),
    "Japan": ("Tokyo", "Japanese"),
}
SENTENCES = [
    text
    for country, (capital, language) in FACTS.items()
    for text in (
        f"{capital} is the capital of {country}.",
        f"The capital of {country} is {capital}.",
        f"In {country} people speak {language}.",
        f"People speak {language} in {capital}, the capital of {country}.",
    )
]
Batch = dict[str, np.ndarray]


def train(config: GLMConfig, batches: Iterator[Batch], steps: int, rate: float = 6e-3):
    """Adam with a warm-up and a decay: a new model, trained, and its losses.

    All steps are one compiled loop: so small a step would spend its time on being called.
    """
    schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps, rate / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def step(carry, batch):
        def loss(model):
            (total, weight), _ = lm_loss(model, batch)
            return total / weight

        model, state = carry
        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, updates), state), value

    @jax.jit
    def run(key, data):
        model = GLM(config, key)
        (model, _), losses = jax.lax.scan(step, (model, optimizer.init(model)), data)
        return model, losses

    data = jax.tree.map(lambda *x: np.stack(x), *itertools.islice(batches, steps))
    model, losses = run(jax.random.key(0), data)
    return model, np.asarray(losses)


# A GLM that fills blanks.


def glm_tokenizer():
    """Two hundred words and pieces of them, 256 bytes, and GLM's command tokens."""
    docs = [doc for name in dir(builtins) if (doc := getattr(builtins, name).__doc__)]
    return train_sentencepiece([*SENTENCES * 50, *docs], 640, model_type="bpe")


def glm_config(tokenizer):
    """The network of GLM-10B with two layers, 64 wide."""
    config = glm("tiny-glm", 2, 64, 4, 64, tokenizer.vocab_size, tokenizer.special)
    # So little text is learned by heart, which large initial weights speed up.
    return config.replace(init_std=0.2)


def blanked(tokenizer, text: str, rng: np.random.Generator) -> data.Example:
    """A sentence with one run of words blanked out, or two, in random order."""
    special = tokenizer.special
    ids = [special.cls, *tokenizer.encode(text, add_special_tokens=False), special.eos]
    edges = [1] + [i for i in range(2, len(ids)) if tokenizer.token_bytes(ids[i])[:1] in b" .,"]
    cuts = np.sort(rng.choice(len(edges), 4 if rng.random() < 0.5 else 2, replace=False))
    spans = [(edges[a], edges[min(b, a + rng.integers(1, 3))]) for a, b in cuts.reshape(-1, 2)]
    mask, sop, eop = special.require("mask", "sop", "eop")
    order = rng.permutation(len(spans))
    return data.layout_spans(ids, spans, order, mask_id=mask, sop_id=sop, eop_id=eop)


def infilling_batches(tokenizer, rows: int = 16, length: int = 64) -> Iterator[Batch]:
    """Packed sentences, several to a row."""
    rng, packer, ready = np.random.default_rng(0), data.Packer(length), []
    while True:
        text = SENTENCES[rng.integers(len(SENTENCES))]
        ready.extend(packer.add(blanked(tokenizer, text, rng), 0))
        if len(ready) >= rows:
            yield _stack([ready.pop(0) for _ in range(rows)])


# A ChatGLM3 that answers questions, as files to download.


def released_chatglm3(folder: str | Path, steps: int = 400) -> Path:
    """A folder like THUDM/chatglm3-6b's, with a model of a thousandth of its size.

    It takes about twenty seconds; a folder that is there already stays as it is.
    """
    folder = Path(folder)
    if folder.exists():
        return folder
    tokenizer, pieces = _chatglm3_tokenizer()
    config = glm_jax.preset("chatglm3-6b").replace(
        vocab_size=tokenizer.vocab_size, num_layers=2, embed_dim=64, num_heads=4,
        num_kv_heads=2, head_dim=16, mlp_dim=192, max_seq_len=256, init_std=0.2,
        special=tokenizer.special, stop_ids=(tokenizer.special.eos,),
    )  # fmt: skip
    model, _ = train(config, _chat_batches(tokenizer), steps)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch, "tokenizer")
        files.mkdir()
        (files / "tokenizer.model").write_bytes(pieces)
        save_model(Path(scratch, "model"), model, config, tokenizer_dir=files)
        export(Path(scratch, "model"), folder, dtype="float16")
    return folder


def conversation(rng: np.random.Generator) -> list[tuple[str, str]]:
    """One to three questions with their answers."""
    turns, last = [], None
    for _ in range(rng.integers(1, 4)):
        country = list(FACTS)[rng.integers(len(FACTS))]
        capital, language = FACTS[country]
        asked = [
            (f"What is the capital of {country}?", f"The capital of {country} is {capital}."),
            (f"What do people speak in {country}?", f"In {country} people speak {language}."),
            (f"Where is {capital}?", f"{capital} is the capital of {country}."),
        ]
        kind = rng.integers(len(asked)) if last is None or rng.random() < 0.6 else last
        question, answer = asked[kind]
        if kind == last and kind < 2:
            question = f"And {country}?"
        last = kind
        turns.append((question, answer))
    return turns


def _chatglm3_tokenizer() -> tuple[ChatGLM3Tokenizer, bytes]:
    model, rng = io.BytesIO(), np.random.default_rng(0)
    texts = [t for _ in range(300) for turn in conversation(rng) for t in turn]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=500,
        byte_fallback=True, normalization_rule_name="identity", hard_vocab_limit=False,
        remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return ChatGLM3Tokenizer(model.getvalue(), "chatglm3-6b"), model.getvalue()


def _chat_batches(tokenizer, rows: int = 16, length: int = 80) -> Iterator[Batch]:
    """Conversations in ChatGLM3's own prompt format; every answer is learned."""
    rng = np.random.default_rng(0)
    while True:
        yield _stack([_chat_row(tokenizer, conversation(rng), length) for _ in range(rows)])


def _chat_row(tokenizer, turns: Sequence[tuple[str, str]], length: int) -> Batch:
    messages, learned = [], []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        begin = len(render(messages, tokenizer))
        messages.append({"role": "assistant", "content": answer})
        ids = render(messages, tokenizer, add_generation_prompt=False)
        learned.append((begin, len(ids)))
    ids = np.array([*ids, tokenizer.special_ids["<|user|>"]], np.int32)[: length + 1]
    size = len(ids) - 1
    row = data.empty_row(length)
    row["tokens"][:size], row["targets"][:size] = ids[:-1], ids[1:]
    row["positions"][0, :size] = np.arange(size)
    row["k_end"][:size] = np.arange(1, size + 1)
    for begin, end in learned:
        row["loss_weights"][begin - 1 : min(end, size)] = 1
    return row


def _stack(rows: Sequence[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
