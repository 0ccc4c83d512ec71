"""The command line, as a person meets it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

import glm_jax
from glm_jax import cli
from glm_jax.ckpts import save_model
from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.terminal import notice, printable
from tests.chat.models import tiny_config, tiny_model
from tests.text import tiny
from tests.text.every import tiny_tokenizer

FILES = {
    "chatglm-6b": ("ice_text.model", tiny.chatglm),
    "glm-4-9b": ("tokenizer.model", tiny.ranks),
    "glm-10b": (("vocab.json", "merges.txt"), (tiny.gpt2_vocab, tiny.merges)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories of three tiny models, tokenizers and all."""
    root = tmp_path_factory.mktemp("models")
    for name, (names, makers) in FILES.items():
        folder = root / f"{name} tokenizer"
        folder.mkdir()
        pairs = [(names, makers)] if isinstance(names, str) else zip(names, makers, strict=True)
        for file, make in pairs:
            (folder / file).write_bytes(make())
        generation = {
            "family": name,
            "prompt_format": name,
            "stop_ids": [tiny_tokenizer(name).special.eos],
            "sampling": {"temperature": 0.8, "top_p": 0.8},
        }
        config = tiny_config(name)
        save_model(root / name, tiny_model(name), config, tokenizer_dir=folder,
                   generation=generation)  # fmt: skip
    return root


def run(*words, capsys):
    cli.main([str(word) for word in words])
    return capsys.readouterr()


def process(*words, **options):
    command = [sys.executable, "-m", "glm_jax.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def test_help_teaches(capsys):
    out = run("--help", capsys=capsys).out
    assert "chat      talk to a model" in out
    assert "python -m convert.from_torch" in out
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        assert f"Example: python -m glm_jax.cli {command} ckpt/" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    result = process("chat", tmp_path / "nothing")
    assert result.returncode == 2
    assert (
        result.stderr == f"error: {tmp_path}/nothing is no model directory: it has no config.json\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chatt"], "'chatt' is no command; there are chat, generate, fill, score, info"),
        (["chat"], "required"),
        (["chat", "x", "--temperature", "warm"], "'warm' is not a number"),
        (["info", "{root}"], "it has no config.json"),
        (["chat", "{root}/glm-10b"], "glm-10b has no chat format; there are chatglm-6b"),
        (["chat", "{root}/glm-4-9b", "--tools", "{root}/none.json"], "none.json cannot be read"),
        (["chat", "{root}/glm-4-9b", "--format", "llama"], "llama has no chat format"),
        (["fill", "{root}/glm-4-9b", "a [MASK]"], "fills no blanks; GLM and ChatGLM-6B do"),
        (["fill", "{root}/glm-10b", "no blank"], "the text has no blank"),
        (["generate", "{root}/glm-4-9b", "x", "--max-new-tokens", "0"], "at least 1"),
        (["score", "{root}/glm-4-9b", ""], "nothing to score"),
    ],
)
def test_mistakes_say_what_would_be_right(models, words, message):
    with pytest.raises(UserError, match=message) as caught:
        cli.main([word.format(root=models) for word in words])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_info(models, capsys, name):
    out = run("info", models / name, capsys=capsys).out
    config = tiny_config(name)
    assert f"{config.num_layers} of width {config.embed_dim}" in out
    assert f"tokenizer    {name}: {tiny_tokenizer(name).used} of {config.vocab_size} ids" in out
    assert "GB as float32" in out
    chat = "no format; it continues texts" if name == "glm-10b" else f"the format of {name}"
    assert f"chat         {chat}" in out


@pytest.mark.parametrize("name", FILES)
def test_generate_streams_what_generate_gives(models, capsys, name):
    out = run("generate", models / name, "the file", "--max-new-tokens", 8, capsys=capsys).out
    tokenizer, model = tiny_tokenizer(name), tiny_model(name)
    prompt = cli.prompt_ids(tokenizer, model.config.prefix_lm, "the file")
    [ids] = glm_jax.generate(model, [prompt], max_new_tokens=8, vocab_limit=tokenizer.used)
    assert out == printable(tokenizer.decode(ids, skip_special_tokens=True)) + "\n"


def test_several_answers(models, capsys):
    words = ["generate", models / "glm-4-9b", "the", "--max-new-tokens", 4, "--temperature", 1]
    out = run(*words, "--num-samples", 3, capsys=capsys).out
    assert len(set(out.splitlines())) > 1
    assert run("generate", models / "glm-4-9b", "the", "--max-new-tokens", 4, "--num-beams", 2,
               capsys=capsys).out  # fmt: skip


@pytest.mark.parametrize("name", ["glm-10b", "chatglm-6b"])
def test_fill(models, capsys, name):
    out = run("fill", models / name, "the [MASK] reads", "--max-new-tokens", 4, capsys=capsys).out
    assert out.startswith("the ")
    assert out.endswith(" reads\n")


def test_score_is_the_sum_over_its_tokens(models, capsys):
    out = run("score", models / "glm-4-9b", " reads", "--prompt", "the file", capsys=capsys).out
    *tokens, last = out.splitlines()
    total = sum(float(line.split()[0]) for line in tokens)
    assert f"{len(tokens)} tokens, log probability {total:.2f}" in last.replace(
        f"{float(last.split()[4].strip(',')):.4f}", f"{total:.2f}"
    )
    assert run("score", models / "chatglm-6b", "x", "--prompt", "the", capsys=capsys).out


def test_score_encodes_a_text_with_its_prompt():
    """SentencePiece would put a blank of its own before a text that it is given alone."""
    tokenizer = tiny_tokenizer("chatglm2-6b")
    before, scored = cli.scored_ids(tokenizer, False, "the file", " reads")
    assert before + scored == tokenizer.encode("the file reads")
    assert before == tokenizer.encode("the file")
    assert cli.scored_ids(tokenizer, False, "", "the")[0] == tokenizer.encode("")


def test_chat_takes_lines_from_a_pipe(models, tmp_path):
    lines = ["the file \\", "reads", "/usage", "/undo", "/undo", "/nonsense", "//x", "/retry",
             "/system be brief", "/set temperature 0", "/set warmth 1", "/history",
             f"/save {tmp_path}/saved.json", "/clear", f"/load {tmp_path}/saved.json",
             f"/load {tmp_path}/none.json", "/help"]  # fmt: skip
    result = process("chat", models / "glm-4-9b", "--max-new-tokens", 6,
                     input="\n".join(lines) + "\n")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "6 written" in result.stdout
    assert "took back: the file" in result.stdout
    assert "/undo           take back the last question" in result.stdout
    assert "temperature 0.0" in result.stdout
    assert "user: /x" in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: there is nothing to undo",
        "error: /nonsense is no command; /help lists them",
        "error: 'warmth' is no setting; there are temperature, top_p, top_k, min_p, "
        "repetition_penalty, no_repeat_ngram, max_new_tokens, seed",
        f"error: [Errno 2] No such file or directory: '{tmp_path}/none.json'",
    ]
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved[0] == {"role": "system", "content": "be brief"}
    assert saved[1] == {"role": "user", "content": "/x"}


class Terminal:
    """A program at a pseudo-terminal."""

    def __init__(self, *words):
        self._fd, child = pty.openpty()
        command = [sys.executable, "-m", "glm_jax.cli", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(child)
        self.seen = ""

    def type(self, text):
        os.write(self._fd, text.encode())

    def interrupt(self):
        """What a terminal does for Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def until(self, text, seconds=120, meanwhile=lambda: None):
        """What is shown before this text; ``meanwhile`` is called whenever nothing comes."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if not select.select([self._fd], [], [], 0.5)[0]:
                meanwhile()
            else:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def until_anything(self):
        while not self.seen.strip():
            self.seen += os.read(self._fd, 65536).decode(errors="replace")


@pytest.fixture
def terminal(models, tmp_path):
    """A chat whose answers are long."""
    config = tiny_config("chatglm-6b", max_seq_len=100_000)
    generation = {"prompt_format": "chatglm-6b", "family": "chatglm-6b"}
    save_model(tmp_path / "endless", tiny_model("chatglm-6b"), config, generation=generation,
               tokenizer_dir=models / "chatglm-6b tokenizer")  # fmt: skip
    words = ["--temperature", "1", "--max-new-tokens", "1800"]
    program = Terminal("chat", tmp_path / "endless", *words)
    yield program
    program.process.kill()
    program.process.wait()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal):
    shown = terminal.until("> ")
    assert "chatglm-6b. /help lists the commands." in shown
    assert "in both directions" in shown
    terminal.type("the file\n")
    terminal.until("the file\r\n")
    terminal.until_anything()  # the answer has begun
    terminal.interrupt()
    terminal.until("[stopped]")
    terminal.until("> ")
    terminal.type("/usage\n")
    written = int(terminal.until(" written").split()[-1])
    assert 0 < written < 1800
    terminal.until("> ")
    # Once may be lost: a signal between readline's prompt and its wait waits for the next key.
    terminal.until("(Ctrl-D or /quit leaves)", meanwhile=terminal.interrupt)
    terminal.type("/quit\n")
    assert terminal.process.wait(60) == 0


def test_what_a_model_writes_does_not_steer_the_terminal():
    assert printable("a\x1b[2Jb\r\u202ec\n\td\x9b晚") == "a?[2Jb??c\n\td?晚"


def test_what_takes_long_is_said(capsys):
    with notice("loading ...", patience=0.01):
        time.sleep(0.1)
    assert capsys.readouterr().err.startswith("loading ... ")
    with notice("loading ...", patience=10):
        pass
    assert capsys.readouterr().err == ""


def test_every_preset_has_a_chat_format_or_none():
    formats = {name: cli._chat_of(name) for name in ("glm-10b", "chatglm2-6b-32k", "glm-4-9b-chat")}
    assert formats["glm-10b"].startswith("no format")
    assert formats["chatglm2-6b-32k"].endswith("chatglm2-6b")
    assert formats["glm-4-9b-chat"].endswith("glm-4-9b")
    assert preset("glm-4-9b-chat").name
