"""``python -m train.finetune``: every method learns, changes nothing else, and goes on exactly."""

import dataclasses
import json
import signal
import sys
import time

import jax
import numpy as np
import pytest

import glm_jax
from convert.from_torch import convert
from convert.to_torch import export
from glm_jax.ckpts import load_model, save_model
from glm_jax.ckpts.trees import flat_paths, to_plain
from glm_jax.errors import UserError
from glm_jax.loading import generation_with
from glm_jax.peft import combine, load_adapter
from tests.chat.models import tiny_config, tiny_model
from tests.text import tiny
from tests.text.every import tiny_tokenizer
from tests.train import runs
from train import cli, finetune
from train.finetuning.options import DEFAULTS
from train.finetuning.run import FinetuneRun
from train.trainer import put_batch

NAME = "glm-4-9b"
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Norway": "Oslo"}
KNOWN = {"Spain": "Madrid", "Greece": "Athens", "China": "Beijing", "Peru": "Lima"}
METHODS = {
    "lora": ["--lora-targets", "all-linear", "--optimizer.schedule.peak", "0.02"],
    "qlora": ["--base-quant", "int8", "--optimizer.schedule.peak", "0.02"],
    "ptuning": ["--prefix-length", "4", "--optimizer.schedule.peak", "0.1"],
    "full": [],
    "freeze": ["--freeze", "embedding,layers.0", "--mesh.data", "2"],
}
# The held-out loss that is left, of the loss before. Sixteen numbers a token are few, and most of
# what is new (four names) is in the embedding and the head, which LoRA and prefixes leave alone.
LEFT = {"lora": 0.6, "qlora": 0.6, "ptuning": 0.95, "full": 0.25, "freeze": 0.25}
STEPS = 30
QUICK = [
    pytest.param(name, marks=pytest.mark.slow if name in ("qlora", "freeze") else ())
    for name in METHODS
]
ASKING = ["--asking.metrics", "exact", "rouge", "--asking.max-new-tokens", "16",
          "--asking.count", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def base(few_devices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(tiny.ranks())
    generation = {
        "family": NAME, "prompt_format": NAME, "stop_ids": [tiny_tokenizer(NAME).special.eos]
    }  # fmt: skip
    save_model(folder / "model", tiny_model(NAME), tiny_config(NAME), generation=generation,
               tokenizer_dir=folder / "tokenizer")  # fmt: skip
    ask(folder / "train.jsonl", CAPITALS, "What is the capital of", "Capital of", "Capital, of")
    ask(folder / "first.jsonl", KNOWN, "Where is the seat of", "Capital of")
    first = ["--data", str(folder / "first.jsonl"), "--steps", "100"]
    finetune.cli_main(words(folder, folder / "first", "full", *first))
    (folder / "model").rename(folder / "random")
    (folder / "first" / "model").rename(folder / "model")
    return folder


def ask(file, capitals, *questions):
    lines = [
        json.dumps({"prompt": f"{question} {country}?", "response": f"It is {city}."})
        for question in questions
        for country, city in capitals.items()
    ]
    file.write_text("\n".join(8 * lines) + "\n")


def words(base, output, method, *options):
    return [
        str(base / "model"), "--data", str(base / "train.jsonl"), "--output", str(output),
        "--method", "lora" if method == "qlora" else method,
        "--steps", str(STEPS), "--batch-size", "8", "--seq-len", "48", "--mesh.data", "1",
        "--optimizer.schedule.peak", "0.01", "--optimizer.schedule.warmup", "0",
        "--every.save", "0", "--every.log", "1", "--compute.dtype", "float32",
        "--compute.remat", "none", "--seed", "3", *METHODS[method], *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run_of(base, tmp_path_factory):
    """Each method's finished run, made when it is first asked for."""
    made = {}

    def of(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("runs") / method
            extra = {"lora": ["--merge", "True"], "full": ASKING}.get(method, [])
            finetune.cli_main(words(base, made[method], method, *extra))
        return made[method]

    return of


def heldout(output):
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line["task"] for line in lines if line["kind"] == "heldout"]


def loaded(base, output):
    if (output / "adapter").exists():
        return glm_jax.load(base / "model", adapter=output / "adapter")
    return glm_jax.load(output / "model")


@pytest.mark.parametrize("method", QUICK)
def test_it_learns_and_what_it_writes_loads(method, base, run_of):
    output = run_of(method)
    first, last = heldout(output)
    assert last < LEFT[method] * first
    assert (loaded(base, output).prefix is not None) == (method == "ptuning")
    if (output / "adapter").exists():
        assert generation_with(base / "model", output / "adapter")["prompt_format"] == NAME


def test_answers_are_generated_and_scored_on_the_way(run_of):
    lines = map(json.loads, (run_of("full") / "log.jsonl").read_text().splitlines())
    for line in (line for line in lines if line["kind"] == "heldout"):
        # "It is Madrid." has two of the three words of "It is Paris."; the third is hard to learn.
        assert 66 < line["answers/rouge-1"] <= 100 and 50 <= line["answers/rouge-2"] <= 100
        assert 0 <= line["answers/exact"] <= 100


@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_the_base_is_the_same_bit_for_bit(method, base, run_of):
    kind = {"lora": "lora", "ptuning": "prefix"}[method]
    assert load_adapter(run_of(method) / "adapter").kind == kind
    args = cli.parse(DEFAULTS, "lora", "finetune", words(base, run_of(method), method), "--method")
    run = FinetuneRun.make(args)
    # What is planned is what is held.
    planned, held = jax.tree.leaves(run.abstract_rest()), jax.tree.leaves(run.rest)
    for one, other in zip(planned, held, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert other.sharding.is_equivalent_to(one.sharding, other.ndim)
    with jax.set_mesh(run.mesh):
        state = run.fresh()
        after, _ = run.step()(state, put_batch(next(run.train_batches()), run.mesh))
    ours = flat_paths(to_plain(combine(after.model, run.rest)))
    before = flat_paths(to_plain(load_model(base / "model")))
    for name, x in before.items():
        assert np.array_equal(np.asarray(ours[name]), np.asarray(x)), name
    assert set(ours) - set(before)


def test_merged_is_the_same_as_beside(base, run_of):
    prompts = [[5, 6, 7, 8, 9, 10]]
    [merged] = glm_jax.score(glm_jax.load(run_of("lora") / "model"), prompts)
    [beside] = glm_jax.score(loaded(base, run_of("lora")), prompts)
    np.testing.assert_allclose(merged, beside, atol=1e-5 * np.abs(beside).max())


def test_a_prefix_survives_the_released_files(run_of, tmp_path):
    ours = run_of("ptuning") / "adapter"
    export(ours, tmp_path / "released")
    about = json.loads((tmp_path / "released" / "config.json").read_text())
    assert about == {"pre_seq_len": 4, "prefix_projection": False}
    convert(tmp_path / "released", tmp_path / "back")
    was, now = load_adapter(ours), load_adapter(tmp_path / "back")
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(was.params), dict(now.params)))
    assert (now.settings["length"], now.settings["projection"]) == (4, False)


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_a_lora_survives_pefts_files(layout, base, run_of, tmp_path):
    ours = run_of("lora") / "adapter"
    export(ours, tmp_path / "peft", layout=layout)
    convert(tmp_path / "peft", tmp_path / "back", base=base / "model")
    prompts = [[5, 6, 7, 8, 9, 10]]
    [was], [now] = (
        glm_jax.score(glm_jax.load(base / "model", adapter=path), prompts)
        for path in (ours, tmp_path / "back")
    )
    np.testing.assert_allclose(now, was, atol=1e-5 * np.abs(was).max())


def test_peft_gives_our_logits(base, run_of, tmp_path):
    """Transformers' network with PEFT's arithmetic, on files that we wrote."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    export(base / "model", tmp_path / "hf", layout="transformers")
    export(run_of("lora") / "adapter", tmp_path / "peft", layout="transformers")
    network = transformers.GlmForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    network = peft.PeftModel.from_pretrained(network, tmp_path / "peft").eval()
    prompt = [5, 6, 7, 8, 9, 10]
    with torch.no_grad():
        theirs = network(torch.tensor([prompt])).logits[0].numpy()
        with network.disable_adapter():
            without = network(torch.tensor([prompt])).logits[0].numpy()
    [ours] = glm_jax.score(loaded(base, run_of("lora")), [prompt])
    assert np.abs(theirs - without).max() > 0.01 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("method", ["freeze"])
def test_a_run_in_two_parts_is_the_run_in_one(method, base, run_of, tmp_path):
    finetune.cli_main(words(base, tmp_path, method, "--steps", "12"))
    finetune.cli_main(words(base, tmp_path, method))
    assert runs.losses(tmp_path) == runs.losses(run_of(method))
    held = sum(f.stat().st_size for f in (tmp_path / "checkpoints").rglob("*") if f.is_file())
    assert held > 0


@pytest.mark.slow  # of the trainer itself tests/train/test_pretrain.py shows it in make test
@pytest.mark.parametrize("method", METHODS)
def test_after_kill_9_the_same_losses_follow(method, base, tmp_path):
    def command(output):
        own = words(base, output, method, "--steps", "60", "--every.save", "5", "--mesh.data", "1")
        return [sys.executable, "-m", "train.finetune", *own]

    status, _, err = runs.finish(command(tmp_path / "whole"))
    assert status == 0, err
    process = runs.start(command(tmp_path / "killed"))
    log, end = tmp_path / "killed" / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and log.read_text().count('"train"') >= 25:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    status, out, err = runs.finish(command(tmp_path / "killed"))
    assert status == 0, err
    assert "resuming at step" in out
    assert runs.losses(tmp_path / "killed") == runs.losses(tmp_path / "whole")
    for sums in (tmp_path / "whole").glob("*/checksums.json"):  # of every array that was written
        assert (tmp_path / "killed" / sums.parent.name / sums.name).read_text() == sums.read_text()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", ["--lora-targets", "w_proj"], "target 'w_proj' is none of all-linear"),
        ("freeze", ["--freeze", "layers.7"], "this model's layers are 0 to 1"),
        ("full", ["--base-quant", "int8"], "--base-quant is for lora and ptuning"),
        ("ptuning", ["--packing", "True"], "--packing True is not for ptuning"),
        ("lora", ["--data", "nothing.jsonl"], "nothing.jsonl"),
        ("lora", ["--chat-format", "gpt"], "gpt"),
    ],
)
def test_mistakes_are_one_line(method, options, message, base, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        finetune.cli_main(words(base, tmp_path, method, *options))
    assert "\n" not in str(error.value)


def test_every_method_has_defaults_that_parse():
    for name, defaults in DEFAULTS.items():
        assert dataclasses.asdict(defaults)["method"] == name
