"""``python -m glm_jax.serve CKPT``."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from glm_jax import command_line
from glm_jax.errors import UserError

PROG = "python -m glm_jax.serve"


@dataclasses.dataclass(frozen=True)
class Args:
    """Serves a model to any OpenAI client, and a chat page to any browser.

    CKPT is a model directory: of python -m convert.from_torch, or of train/. When the server says
    that it is ready, open http://127.0.0.1:8000/ or ask it from a terminal:

      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'

    or with OpenAI's library: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any").

    Requests share the device: each takes one of --slots, others wait in a queue of --queue, and
    beyond that they get 429 with Retry-After. SIGTERM (Ctrl-C) takes nothing new, lets the answers
    that are being written come to their end, and stops. /health and /metrics say how it is.

    Example, for others on the network, with keys: python -m glm_jax.serve CKPT --host 0.0.0.0 \\
      --api-key-file keys.txt --dtype bfloat16 --slots 16 --context 8192
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CKPT")]
    """The model directory."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network that this machine is on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, and the line that says "ready" names it."""
    name: str | None = None
    """What clients call the model; the directory's name by default."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in memory; as stored by default."""
    adapter: Path | None = None
    """A prefix or a LoRA to put into the model (glm_jax.peft)."""
    slots: int = 8
    """Requests answered at a time. Each costs memory for --context tokens."""
    context: int | None = None
    """Tokens of a request, prompt and answer together; by default the model's length, but at most
    4096."""
    chunk: int = 256
    """Tokens of a prompt that are read between two steps of the answers being written. Smaller:
    long prompts disturb others less; larger: they are read faster. Models that read a prompt in
    both directions (GLM, ChatGLM-6B) read it whole."""
    queue: int = 256
    """Requests that may wait for a slot."""
    max_tokens: int = 4096
    """Most tokens of an answer, whatever a request asks for."""
    max_body: int = 4 << 20
    """Most bytes of a request."""
    api_key_file: Path | None = None
    """File with one key a line. Requests must then send Authorization: Bearer KEY, all but the page
    and /health."""
    drain_seconds: int = 60
    """How long to wait for answers to come to their end after SIGTERM."""
    log_requests: bool = False
    """Write a line for every request."""


def main(argv: list[str]) -> None:
    """Loads, compiles, serves until a signal comes.

    Raises:
      UserError: an option or the model directory is bad, or the port is taken.
    """
    args = command_line.parse(Args, PROG, argv)
    _check(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)
    # After the options: whoever asks for --help does not want to wait for JAX.
    from glm_jax.serve.guard import read_keys
    from glm_jax.serve.http import listen, serve

    keys = read_keys(args.api_key_file) if args.api_key_file else []
    socket = listen(args.host, args.port)
    app = _app(args, keys)
    url = f"http://{args.host}:{socket.getsockname()[1]}/"
    serve(
        app,
        socket,
        drain_seconds=args.drain_seconds,
        log_requests=args.log_requests,
        ready=lambda: _say(f"ready: {url} (chat page), {url}v1 (OpenAI's API)"),
    )
    _say("stopped")


def _app(args: Args, keys: list[str]):
    import glm_jax
    from glm_jax.loading import generation_with
    from glm_jax.serve.app import make_app
    from glm_jax.serve.engine import Engine
    from glm_jax.serve.served import Served

    begin = time.monotonic()
    _say(f"loading {args.checkpoint}")
    tokenizer = glm_jax.load_tokenizer(args.checkpoint)
    generation = generation_with(args.checkpoint, args.adapter)
    model = glm_jax.load(args.checkpoint, dtype=args.dtype, adapter=args.adapter)
    longest = model.config.max_seq_len
    length = min(args.context or 4096, longest)
    if args.context and args.context > longest:
        _say(f"--context {args.context} is more than the model's positions: {longest}")
    served = Served.of(
        model, tokenizer, name=args.name or args.checkpoint.resolve().name,
        generation=generation, length=length, most_tokens=args.max_tokens,
    )  # fmt: skip
    engine = Engine(
        model, slots=args.slots, length=length, chunk=args.chunk, most_waiting=args.queue
    )
    del model  # the engine may have a copy of its own
    _say(f"loaded in {time.monotonic() - begin:.1f} s; compiling")
    engine.start(_say)
    if served.no_chat:
        _say(f"no chat: {served.no_chat}")
    return make_app(engine, served, keys=keys, most_bytes=args.max_body)


def _check(args: Args) -> None:
    least = {"slots": 1, "chunk": 1, "queue": 0, "max_tokens": 1, "max_body": 1, "port": 0}
    for name, value in least.items():
        if getattr(args, name) < value:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(args, name)}; it must be at least {value}")
    if args.port > 65535:
        raise UserError(f"--port is {args.port}; the highest is 65535")
    if args.context is not None and args.context < 2:
        raise UserError(f"--context is {args.context}; it must be at least 2")
    if not args.checkpoint.is_dir():
        raise UserError(f"{args.checkpoint} is no folder; give a model directory")


def _say(text: str) -> None:
    print(f"{text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(lambda: main(sys.argv[1:]))
