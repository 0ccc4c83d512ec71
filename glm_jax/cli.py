"""Models at a terminal: ``python -m glm_jax.cli --help``."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from glm_jax import command_line
from glm_jax.errors import UserError
from glm_jax.terminal import notice, printable

if TYPE_CHECKING:
    from glm_jax.nn import GLM
    from glm_jax.text.tokenizer import Tokenizer

PROG = "python -m glm_jax.cli"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which model."""

    ckpt: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CKPT")]
    """Model directory, as convert.from_torch or a training run writes it."""
    adapter: Path | None = None
    """A prefix or a LoRA to put into the model: its directory."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in memory; as stored by default."""
    quantize: Literal["int8", "int4"] | None = None
    """Turn the layers' matrices into integers while loading: a half or a quarter of the memory."""

    def load(self) -> tuple[GLM, Tokenizer]:
        """The model and its tokenizer; says so where it takes long.

        Raises:
          UserError: a part is missing or damaged.
        """
        from glm_jax.ckpts.model_dir import load_config
        from glm_jax.config import num_params
        from glm_jax.loading import load
        from glm_jax.text import load_tokenizer

        config = load_config(self.ckpt)
        tokenizer = load_tokenizer(self.ckpt)
        options: dict[str, Any] = {"quantize": self.quantize} if self.quantize else {}
        size = f"{num_params(config) / 1e9:.1f} billion parameters"
        with notice(f"loading {self.ckpt} ({size}) ..."):
            return load(self.ckpt, dtype=self.dtype, adapter=self.adapter, **options), tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are chosen."""

    max_new_tokens: int | None = None
    """Tokens of an answer at most."""
    temperature: float | None = None
    """0 always takes the most likely token; 1 follows the model's probabilities."""
    top_p: float | None = None
    """Only the most likely tokens that together have this probability."""
    top_k: int | None = None
    """Only this many of the most likely tokens; 0: no limit."""
    min_p: float | None = None
    """Only tokens at least this much as likely as the most likely one."""
    repetition_penalty: float | None = None
    """Above 1: tokens that were there before become less likely."""
    no_repeat_ngram: int | None = None
    """No run of this many tokens comes twice; 0: no matter."""
    seed: int = 0
    """The same seed gives the same text."""

    def options(self) -> dict[str, Any]:
        """Those that were set, by the names of ``glm_jax.generate``."""
        names = [field.name for field in dataclasses.fields(Sampling)]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(Checkpoint, Sampling):
    """Talk to a ChatGLM or GLM-4 model; /help lists what else can be typed.

    Ctrl-C stops an answer and not the program. Sampling is the release's unless set. Lines may also
    come from a pipe, one question each.

    Example: python -m glm_jax.cli chat ckpt/chatglm3-6b --dtype bfloat16 --temperature 0.5
    """

    system: str | None = None
    """Text for the system's turn, such as "You are a helpful assistant."."""
    tools: Path | None = None
    """JSON file with a list of tools that the model may call; /observe gives it a result."""
    format: str | None = None
    """Chat format, such as chatglm3-6b or glm-4-9b; the checkpoint's own by default."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""

    def run(self) -> None:
        from glm_jax.chat import Chat as Conversation
        from glm_jax.chat.terminal import converse
        from glm_jax.loading import generation_with

        tools = None if self.tools is None else _read_tools(self.tools)
        generation = generation_with(self.ckpt, self.adapter)
        model, tokenizer = self.load()
        chat = Conversation(
            model, tokenizer, system=self.system, tools=tools, generation=generation,
            format=self.format, stop=self.stop, **self.options(),
        )  # fmt: skip
        converse(chat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Checkpoint, Sampling):
    """Continue a text. Models that fill blanks (GLM, ChatGLM-6B) put their text at its end, or at
    the [gMASK] in it.

    Example: python -m glm_jax.cli generate ckpt/glm-10b "Ada Lovelace was" --max-new-tokens 40
    """

    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = "-"
    """The text; - reads it from standard input."""
    num_samples: int = 1
    """How many different answers; needs a temperature."""
    num_beams: int = 1
    """Beam search over this many."""
    length_penalty: float = 1.0
    """Of beam search: above 1 favours longer texts."""

    def run(self) -> None:
        from glm_jax.text.generate import generate, stream
        from glm_jax.text.tokenizer import IncrementalDecoder

        text = _given(self.prompt)
        model, tokenizer = self.load()
        ids = prompt_ids(tokenizer, model.config.prefix_lm, text)
        options: dict[str, Any] = {"vocab_limit": tokenizer.used, **self.options()}
        if self.num_samples > 1 or self.num_beams > 1:
            options |= {"num_samples": self.num_samples, "num_beams": self.num_beams}
            answers = generate(model, [ids], length_penalty=self.length_penalty, **options)
            for answer in answers[0] if self.num_samples > 1 else answers:
                print(printable(tokenizer.decode(answer, skip_special_tokens=True)))
            return
        decoder = IncrementalDecoder(tokenizer, skip_special_tokens=True)
        for some in _first_is_slow(stream(model, ids, **options)):
            print(printable(decoder.push(some)), end="", flush=True)
        print(printable(decoder.flush()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fill(Checkpoint, Sampling):
    """Fill the blanks of a text: [MASK] some words, [sMASK] a sentence, [gMASK] the rest.

    GLM fills several, from left to right; ChatGLM-6B one. Later models fill none.

    Example: python -m glm_jax.cli fill ckpt/glm-10b "The [MASK] sat on the [MASK]."
    """

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = "-"
    """The text with its blanks; - reads it from standard input."""

    def run(self) -> None:
        from glm_jax.text.fill import fill

        text = _given(self.text)
        model, tokenizer = self.load()
        print(printable(fill(model, tokenizer, text, **self.options())))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Checkpoint):
    """How likely a text is: its tokens with their log probabilities, and its perplexity.

    Models that fill blanks (GLM, ChatGLM-6B) score a text as what stands at the end of --prompt, or
    at the blank in it.

    Example: python -m glm_jax.cli score ckpt/chatglm2-6b " of France." --prompt "Paris, capital"
    """

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = "-"
    """The text to score; - reads it from standard input."""
    prompt: str = ""
    """A text before it, which is read and not scored."""
    tokens: bool = True
    """Print every token, and not just the sum."""

    def run(self) -> None:
        import numpy as np

        from glm_jax.text.score import score

        text = _given(self.text)
        model, tokenizer = self.load()
        before, scored = scored_ids(tokenizer, model.config.prefix_lm, self.prompt, text)
        if not scored:
            raise UserError("the text is empty; there is nothing to score")
        with notice("compiling for this length ..."):
            [logits] = score(model, [[*before, *scored]])
        first = len(before) - 1
        logits = logits[first : first + len(scored)].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        each = logits[np.arange(len(scored)), scored]
        if self.tokens:
            for index, value in zip(scored, each, strict=True):
                print(f"{value:10.4f}  {printable(repr(tokenizer.decode([index])))}")
        mean = float(each.mean())
        print(
            f"{len(scored)} tokens, log probability {each.sum():.4f}, {mean:.4f} a token, "
            f"perplexity {math.exp(-mean):.2f}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What a model directory holds; its weights are not read.

    Example: python -m glm_jax.cli info ckpt/glm-4-9b-chat
    """

    ckpt: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CKPT")]
    """Model directory."""

    def run(self) -> None:
        for name, value in describe(self.ckpt):
            print(f"{name:<12} {value}")


COMMANDS: dict[str, type] = {
    "chat": Chat, "generate": Generate, "fill": Fill, "score": Score, "info": Info,
}  # fmt: skip
_HELP = f"""usage: {PROG} COMMAND CKPT [options]

  chat      talk to a model: streaming, history, undo, retry
  generate  continue a text
  fill      fill the [MASK] blanks of a text (GLM, ChatGLM-6B)
  score     log probabilities of a text
  info      what a model directory holds

CKPT is a model directory. Make one of a released checkpoint:

  python -m convert.from_torch THUDM/chatglm3-6b ckpt/chatglm3-6b --dtype bfloat16
  {PROG} chat ckpt/chatglm3-6b

{PROG} COMMAND --help explains a command and lists its options.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command.

    Raises:
      UserError: one line that says what is wrong.
      SystemExit: after --help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UserError(f"{words[0]!r} is no command; there are {known} ({PROG} --help)")
    command_line.parse(COMMANDS[words[0]], f"{PROG} {words[0]}", words[1:]).run()


def prompt_ids(tokenizer: Tokenizer, prefix_lm: bool, text: str) -> list[int]:
    """A text as a model reads it before it writes: with a blank and sop where it fills blanks."""
    if not prefix_lm:
        return tokenizer.encode(text)
    special = tokenizer.special
    (sop,) = special.require("sop")
    if not any(blank in text for blank in ("[MASK]", "[sMASK]", "[gMASK]")):
        text += "[MASK]" if special.gmask is None else "[gMASK]"
    ids = tokenizer.encode_blanks(text)
    return [*(ids[: ids.index(sop)] if sop in ids else ids), sop]


def scored_ids(
    tokenizer: Tokenizer, prefix_lm: bool, prompt: str, text: str
) -> tuple[list[int], list[int]]:
    """What is read, and what is scored after it."""
    before = prompt_ids(tokenizer, prefix_lm, prompt)
    if prefix_lm:
        return before, tokenizer.encode(text, add_special_tokens=False)
    # Encoded together: SentencePiece puts a blank before a text of its own.
    whole = tokenizer.encode(prompt + text)
    same = [a == b for a, b in zip(before, whole, strict=False)]
    cut = max(1, same.index(False) if False in same else len(same))
    return whole[:cut], whole[cut:]


def describe(ckpt: Path) -> Iterator[tuple[str, str]]:
    """Names and values of what there is to know about a model directory.

    Raises:
      UserError: it is none, or a part of it is damaged.
    """
    import jax
    from etils import epath

    from glm_jax.ckpts.model_dir import load_config, load_generation, stored_shapes
    from glm_jax.config import num_params
    from glm_jax.text import load_tokenizer

    config, generation = load_config(ckpt), load_generation(ckpt)
    yield "model", config.name or "(no name)"
    yield "parameters", f"{num_params(config):,}"
    shapes = stored_shapes(epath.Path(ckpt).absolute())
    arrays = jax.tree.leaves(shapes, is_leaf=lambda x: hasattr(x, "dtype"))
    kinds = sorted({str(x.dtype) for x in arrays})
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    yield "weights", f"{size / 1e9:.3g} GB as {', '.join(kinds)}"
    yield "layers", f"{config.num_layers} of width {config.embed_dim}"
    heads = f"{config.num_heads} heads of {config.head_dim}"
    yield "attention", f"{heads}, {config.num_kv_heads} of keys and values"
    reads = "its prompt in both directions" if config.prefix_lm else "from left to right"
    yield "reads", f"{reads}, {config.max_seq_len} tokens"
    try:
        tokenizer = load_tokenizer(ckpt)
        yield "tokenizer", f"{tokenizer.family}: {tokenizer.used} of {config.vocab_size} ids"
    except UserError as error:
        yield "tokenizer", f"none that can be read: {error}"
    yield "chat", _chat_of(str(generation.get("prompt_format") or config.name))
    yield "stop ids", ", ".join(map(str, generation.get("stop_ids", ()))) or "none"
    sampling = generation.get("sampling") or {}
    yield "sampling", ", ".join(f"{k} {v}" for k, v in sampling.items()) or "greedy"


def _chat_of(family: str) -> str:
    from glm_jax.chat import chat_format

    try:
        return f"the format of {chat_format(family).name}"
    except UserError:
        return "no format; it continues texts"


def _given(text: str) -> str:
    """The text, or standard input's for -."""
    if text != "-":
        return text
    if sys.stdin.isatty():
        print("(the text, then Ctrl-D)", file=sys.stderr)
    return sys.stdin.read().rstrip("\n")


def _read_tools(path: Path) -> list[Any]:
    import json

    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(tools, list):
        raise UserError(f"{path} holds no list of tools")
    return tools


def _first_is_slow(parts: Iterator[list[int]]) -> Iterator[list[int]]:
    with notice("compiling for the first answer ..."):
        first = next(parts, None)
    if first is not None:
        yield first
        yield from parts


def cli() -> None:
    """The entry point: errors in one line, status 2."""
    start: Callable[[], None] = main
    command_line.run(start)


if __name__ == "__main__":
    cli()
