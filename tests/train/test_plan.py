"""The planner without a compiler: names, questions, refusals, estimates, cache, search, errors."""

import dataclasses
import json

import pytest

from glm_jax.config import preset
from glm_jax.errors import UserError
from train import plan
from train.planning import cache, compiler, documents, grids, tables
from train.planning.chips import CHIPS
from train.planning.estimate import estimate
from train.planning.question import Question, default_mesh, mesh_text, parse_mesh
from train.planning.refusal import refusal
from train.planning.result import Result
from train.planning.search import BATCHES, REMATS, meshes, rank, search
from train.planning.topology import known_names, topology

QUESTION = Question("glm-4-9b", "v5p-128", "pretrain", (1, 64, 1, 1), 8192, 64)
FITS = {
    "fits": True,
    "shares": {"parameters": 100, "optimizer": 200, "batch": 10, "gradients": 100},
    "memory": {"argument": 330, "output": 320, "alias": 300, "temp": 400, "peak": 750},
    "model_flops": int(64 * 459e12),  # one second of 64 chips at their peak
    "tokens": 64 * 8192,
    "calls": 1,
    "estimated_cycles": int(1.75e9),
    "collectives": [
        {"kind": "all-gather", "exposed": True, "crosses_slices": False, "times": 3,
         "wire_bytes": int(300e9)},
        {"kind": "all-reduce", "exposed": False, "crosses_slices": False, "times": 3,
         "wire_bytes": int(600e9)},
    ],
    "kernels": [{"source": "attention", "flops": int(459e9), "bytes": 1, "causal_flops": None,
                 "times": 250}],
    "data_loops": [{"source": "blocks", "times": 100, "estimated_cycles": int(1.75e9 / 400)}],
    "unknown": {"sort": 1},
    "kept_bytes": 120,
}  # fmt: skip
REFUSED = {
    "fits": False,
    "shares": {"parameters": 100, "optimizer": 200, "batch": 10, "gradients": 100},
    "model_flops": 1,
    "tokens": 1,
    "calls": 1,
    "refusal": {"message": "no", "needed_bytes": 120 * 2**30, "available_bytes": 96 * 2**30,
                "whole": True},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "glm_jax" / "plans"


@pytest.mark.parametrize(
    ("name", "description", "devices"),
    [
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v4-8", "v4:2x2x1", 4),
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v6e-8", "v6e:2x4", 8),
        ("tpu7x-8", "tpu7x:2x2x1", 8),
        ("2xv5e-256", "v5e:16x16", 512),
        ("V5P-12288", "v5p:16x16x24", 6144),
    ],
)
def test_names_of_slices(name, description, devices):
    found = topology(name)
    assert found.description["topology_name"] == description
    assert found.devices == devices


def test_what_libtpu_needs_beside_the_shape():
    assert topology("v5e-1").description["chips_per_host_bounds"] == (1, 1, 1)
    assert topology("v4-8").description["chip_config_name"] == "megacore"
    assert topology("4xv6e-8").description["num_slices"] == 4


@pytest.mark.parametrize("name", ["v5p-100", "v5e-3", "v5p-7", "0xv5e-8"])
def test_a_slice_that_does_not_exist_is_answered_with_those_that_do(name):
    with pytest.raises(UserError, match="does not exist; there are v5"):
        topology(name)


def test_an_unknown_chip_is_answered_with_the_known():
    with pytest.raises(UserError, match=r"h100-8 is unknown; there are v4-2 to v4-8192, v5e-1"):
        topology("h100-8")


def test_every_listed_name_is_one():
    for chip in CHIPS.values():
        assert [topology(name).name for name in known_names(chip)] == known_names(chip)


def test_meshes_as_text():
    assert parse_mesh("fsdp=64", 64) == (1, 64, 1, 1)
    assert parse_mesh("data=2,fsdp=-1,tensor=4", 64) == (2, 8, 4, 1)
    assert mesh_text((1, 16, 4, 1)) == "fsdp=16,tensor=4"
    for wrong in ("fsdp=3", "rows=4", "fsdp", "fsdp=x"):
        with pytest.raises(UserError, match="--mesh"):
            parse_mesh(wrong, 64)


def test_default_meshes():
    config = preset("glm-4-9b")
    assert default_mesh(config, topology("2xv5e-256"), "pretrain") == (2, 256, 1, 1)
    assert default_mesh(config, topology("v5e-8"), "decode") == (1, 1, 8, 1)
    assert default_mesh(config, topology("v5e-256"), "decode") == (16, 1, 16, 1)
    assert default_mesh(config, topology("v5p-128"), "decode") == (4, 1, 16, 1)


def test_a_question_survives_json_and_names_its_command():
    assert Question.from_json(QUESTION.to_json()) == QUESTION
    command = QUESTION.command().split()
    assert plan.parse(plan.Plan, "plan", command[3:]).question() == QUESTION
    decode = Question("chatglm2-6b", "v5e-1", "decode", (1, 1, 1, 1), 8192, 1, "none", "int4")
    lora = Question("chatglm3-6b", "v5e-8", "finetune", (1, 8, 1, 1), 768, 32, "full", "int8",
                    "float32", "lora")  # fmt: skip
    for question in (decode, lora):
        command = question.command().split()
        assert plan.parse(plan.Plan, "plan", command[3:]).question() == question


def test_fine_tuning_has_the_defaults_of_its_script():
    words = ["--model", "chatglm3-6b", "--topology", "v5e-1", "--task", "finetune"]
    found = plan.parse(plan.Plan, "plan", words).question()
    assert (found.method, found.length, found.remat) == ("lora", 768, "full")
    assert "finetune by lora on bfloat16" in tables.task(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model glm-5", "no preset 'glm-5'; there are"),
        ("--topology v5p-9", "v5p-9 does not exist"),
        ("--task lora", "invalid choice 'lora'"),
        ("--mesh fsdp=63", "needs a multiple of 63 devices"),
        ("--batch-per-chip 0", "at least 1"),
        ("--task decode --topology v5e-256 --batch 3", "3 rows do not divide"),
        ("--model glm-10b --seq-len 4096", "4096 tokens are more than the 1024 learned"),
        ("--quant int4", "integers do not train"),
        ("--task finetune --method full --quant int8", "integers do not train"),
        ("--topology 2xv5e-8 --mesh fsdp=16", "data=1 does not divide over 2 slices"),
        ("--task decode --search", "--search is for pretrain"),
        ("--param-dtype float8", "float8 is not"),
    ],
)
def test_errors_name_what_is_wrong(words, message):
    with pytest.raises(UserError, match=message):
        plan.cli_main(words.split())


def test_refusals_are_read():
    whole = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 18.21G of 15.75G hbm. Exceeded hbm capacity by 2.46G.\n\nTotal hbm usage: ..."
    )
    found = refusal(whole)
    assert found is not None and found.whole
    assert (found.needed_bytes, found.available_bytes) == (int(18.21 * 2**30), int(15.75 * 2**30))
    early = refusal(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (22.96G) exceeds available HBM (15.75G)."
    )
    assert early is not None and not early.whole
    assert early.needed_bytes == int(22.96 * 2**30)
    assert (
        refusal("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem").needed_bytes is None
    )
    assert refusal("INVALID_ARGUMENT: no") is None


def test_the_estimate_adds_up_only_what_stops_the_chip():
    made = estimate(QUESTION, FITS)
    seconds = {part.name: part.seconds for part in made.parts}
    assert seconds == {
        "compute": 1.0,
        "Pallas kernels": 0.25,
        "loops over data": 0.25,
        "links, exposed": 0.5,
        "links, beside compute": 1.0,
    }
    assert made.seconds == 2.0
    assert made.utilisation == 0.5


def test_a_silent_kernel_is_named_and_not_guessed_at():
    kernel = {"source": "k", "flops": None, "bytes": None, "times": 40}
    silent = {**FITS, "kernels": [{**kernel, "causal_flops": None}]}
    (part,) = [p for p in estimate(QUESTION, silent).parts if p.name == "other kernels"]
    assert part.seconds is None and "40 calls" in part.how


def test_the_attention_kernel_is_counted_as_causal():
    kernel = {"source": "range_attention_forward", "flops": None, "bytes": None, "times": 100}
    ours = {**FITS, "kernels": [{**kernel, "causal_flops": int(459e10)}]}
    (part,) = [p for p in estimate(QUESTION, ours).parts if p.name == "attention kernel"]
    assert part.seconds == 1.0 and "causal" in part.how


def test_numbers_of_a_plan_that_fits():
    answer = Result(QUESTION, FITS).to_dict()
    assert (answer["fits"], answer["peak_bytes"]) == (True, 750)
    assert answer["hbm_bytes"] == int(95.73 * 2**30)
    memory = answer["memory_bytes"]
    assert sum(memory.values()) == 750
    assert memory["activations kept for the backward pass"] == 120
    assert memory["other temporaries"] == 400 - 100 - 120
    json.dumps(answer)


def test_numbers_of_a_plan_that_does_not_fit():
    answer = Result(QUESTION, REFUSED).to_dict()
    assert (answer["fits"], answer["estimated_cycles"]) == (False, None)
    assert answer["over_bytes"] == 24 * 2**30


def test_answers_are_remembered_until_something_changes(own_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(compiler, "_run", lambda *args: asked.append(args) or FITS)
    assert not compiler.ask(QUESTION)["cached"]
    assert compiler.ask(QUESTION)["cached"]
    assert len(asked) == 1
    compiler.ask(dataclasses.replace(QUESTION, rows=128))
    assert len(asked) == 2
    monkeypatch.setattr(cache, "version", lambda package: "0.0")
    compiler.ask(QUESTION)
    monkeypatch.setattr(cache, "sources", lambda question: "other source")
    compiler.ask(QUESTION)
    assert len(asked) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fits": 1}', '{"fits": true}', "\x00"])
def test_damaged_memories_are_ignored(own_cache, monkeypatch, damage):
    monkeypatch.setattr(compiler, "_run", lambda *args: FITS)
    compiler.ask(QUESTION)
    (path,) = own_cache.glob("*.json")
    path.write_text(damage)
    assert not compiler.ask(QUESTION)["cached"]
    assert compiler.ask(QUESTION)["cached"]


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "glm_jax").write_text("a file in the way")
    monkeypatch.setattr(compiler, "_run", lambda *args: FITS)
    assert compiler.ask(QUESTION)["fits"]


def test_search_stops_at_refusals_and_ranks():
    """A chip that holds 4 rows with full remat, 1 with anything else, and nothing with tensor."""
    asked = []

    def ask(question):
        asked.append(question)
        ways = question.mesh[0] * question.mesh[1]
        most = (4 if question.remat == "full" else 1) if question.mesh[2] == 1 else 0
        if question.rows // ways > most:
            return REFUSED
        return {**FITS, "tokens": question.rows * question.length}

    said = []
    results = list(search(QUESTION, ask, said.append))
    whole = [(q.remat, q.rows // 64) for q in asked if q.mesh == (1, 64, 1, 1)]
    assert whole[:4] == [("full", 1), ("full", 2), ("full", 4), ("full", 8)]
    # attention is refused at 2, so minimal and none are tried with 1 alone.
    assert whole[4:] == [("attention", 1), ("attention", 2), ("minimal", 1), ("none", 1)]
    assert [q.remat for q in asked if q.mesh[2] > 1] == ["full"] * 3
    best = rank(results)[0]
    assert (best.question.remat, best.question.rows) == ("full", 256)
    assert len(said) == len(asked) < len(meshes(QUESTION)) * len(REMATS) * len(BATCHES)


def test_long_rows_are_tried_over_context():
    long = dataclasses.replace(QUESTION, length=131072)
    assert (1, 4, 1, 16) in meshes(long)
    assert all(mesh[3] == 1 for mesh in meshes(QUESTION))


def test_json_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "_run", lambda *args: FITS)
    plan.cli_main(["--model", "glm-4-9b", "--topology", "v5p-128", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert answer["fits"] and answer["estimated_seconds"] == 2.0 and not answer["cached"]


def test_tables_say_what_matters(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "_run", lambda *args: FITS)
    plan.cli_main(["--model", "glm-4-9b", "--topology", "v5p-128"])
    shown = capsys.readouterr().out
    for text in ("fits: 0.00 of 95.73 GiB", "optimizer", "all-gather", "at least", "1 sort"):
        assert text in shown
    monkeypatch.setattr(compiler, "_run", lambda *args: REFUSED)
    plan.cli_main(["--model", "glm-4-9b", "--topology", "v5p-128", "--batch-per-chip", "2"])
    assert "does not fit: needs 120.00 of 96.00 GiB per device, 24.00" in capsys.readouterr().out


def test_a_slow_compiler_is_ended():
    with pytest.raises(UserError, match=r"more than 0\.01 s"):
        compiler.ask(QUESTION, timeout=0.01)


def test_every_command_of_the_documents_is_a_question(tmp_path):
    asked = []

    def answer(options):
        asked.append(plan.parse(plan.Plan, "plan", options.split()).question())
        return Result(asked[-1], FITS if "v5p" in options else REFUSED)

    for name in ("tpu.md", "finetuning.md"):
        (tmp_path / name).write_text((documents.DOCS / name).read_text())
    documents.rewrite(answer, tmp_path)
    text = (tmp_path / "tpu.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for options in grids.TRAINING + grids.INFERENCE:
        assert sum(row.endswith(f"| `{options}` |") for row in rows) == 1
    assert len(asked) == len(set(asked))
    assert "| 0.00 of 95.73 | 1 s | 500 ms | 500 ms | 2 s | 50% |" in text
    assert "**does not fit**: 120.00 of 96.00" in text
    tuned = (tmp_path / "finetuning.md").read_text()
    assert "| glm-4-9b | full |  | 4 x 1024 | 80 GB on each of 8 GPUs | 0.00 GB |" in tuned
    documents.rewrite(lambda options: None, tmp_path)
    assert (tmp_path / "tpu.md").read_text() == text
    documents._put(tmp_path / "tpu.md", "training", "")
    documents.rewrite(lambda options: None, tmp_path)
    assert "--seq-len" not in (tmp_path / "tpu.md").read_text().split("## Training")[1]
    with pytest.raises(ValueError, match="marks for 'nothing'"):
        documents._put(tmp_path / "tpu.md", "nothing", "")


def test_tables_of_known_rows_compile_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "_run", lambda *args: pytest.fail("compiled"))
    written = []
    monkeypatch.setattr(
        documents, "rewrite", lambda answer: written.extend(map(answer, grids.TRAINING))
    )
    first = plan.parse(plan.Plan, "plan", grids.TRAINING[0].split()).question()
    cache.store(cache.key(first), FITS)
    plan.cli_main(["--table", "known"])
    assert written[0].fits and not any(written[1:])
