"""The planner asks the real TPU compiler. No TPU is needed."""

import json

import pytest

from tests.tpu import HBM_GIB, long_compile, marks
from train import plan

pytestmark = marks


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def ask(words, capsys):
    plan.cli_main([*words.split(), "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@long_compile
def test_a_training_step_and_its_traffic(capsys):
    words = "--model bench-120m --topology v5p-8 --seq-len 1024 --batch-per-chip 2"
    answer = ask(words, capsys)
    assert answer["fits"] and not answer["cached"]
    assert answer["peak_bytes"] < answer["hbm_bytes"] == int(HBM_GIB["v5p"] * 2**30)
    memory = answer["memory_bytes"]
    assert sum(memory.values()) == answer["peak_bytes"]
    # Full recomputation keeps one bfloat16 stream a layer: 12 layers of 2 rows.
    assert memory["activations kept for the backward pass"] == 12 * 2 * 1024 * 768 * 2
    # Every layer's weights are gathered once forward and once backward, in bfloat16: at least.
    gathered = [c for c in answer["collectives"] if c["kind"] == "all-gather"]
    assert sum(c["times"] for c in gathered) >= 2 * 12
    # No chip does more than its peak; recomputation and small matrices keep it well below.
    assert 0.02 < answer["estimated_utilisation"] < 1
    again = ask(words, capsys)
    assert again["cached"]
    assert again["estimated_cycles"] == answer["estimated_cycles"]


@long_compile
def test_a_model_that_is_too_large_is_refused_with_a_number(capsys):
    answer = ask("--model glm-10b --topology v5e-8 --seq-len 1024", capsys)
    assert not answer["fits"]
    assert answer["over_bytes"] > 2**30
    assert answer["hbm_bytes"] == int(HBM_GIB["v5e"] * 2**30)


def test_writing_one_token_from_int4(capsys):
    answer = ask("--model bench-120m --topology v5e-1 --task decode --quant int4", capsys)
    assert answer["fits"] and answer["tokens_per_step"] == 1
    # Reading the weights cannot be avoided.
    assert answer["estimated_seconds"] > 0.9 * answer["memory_floor_seconds"]


def test_integers_are_multiplied_in_little_more_than_it_takes_to_read_them(capsys):
    """Unpacked from bytes and turned into floats they took three times as long."""
    words = "--model chatglm2-6b --topology v5e-1 --task decode --quant int4 --context 2048"
    answer = ask(words, capsys)
    assert answer["estimated_seconds"] < 2 * answer["memory_floor_seconds"]


@pytest.mark.parametrize(
    ("words", "gigabytes"),
    [
        # Of the release; ChatGLM3's 14,082 and 18,426 MiB are 14.8 and 19.3 GB.
        pytest.param(
            "--model chatglm-6b --topology v5e-1 --method ptuning --quant int4 --seq-len 128",
            7,
            marks=long_compile,
        ),
        pytest.param(
            "--model chatglm3-6b --topology v5e-1 --method lora --batch-per-chip 4",
            14.1,
            marks=long_compile,
        ),
        pytest.param(
            "--model chatglm3-6b --topology v6e-1 --method ptuning --batch-per-chip 4",
            18.4,
            marks=long_compile,
        ),
        pytest.param(
            "--model glm-4-9b --topology v6e-1 --method lora --seq-len 1024", 22, marks=long_compile
        ),
        pytest.param(
            "--model chatglm3-6b --topology v5e-8 --method full", None, marks=long_compile
        ),
        pytest.param(
            "--model glm-4-9b --topology v5p-8 --method full --seq-len 1024",
            None,
            marks=long_compile,
        ),
    ],
)
def test_fine_tuning_takes_less_than_the_releases_say(words, gigabytes, capsys):
    # A machine that does other work besides has taken half an hour for one of them.
    answer = ask(f"--task finetune {words} --timeout 3600", capsys)
    assert answer["fits"]
    assert gigabytes is None or answer["peak_bytes"] < gigabytes * 1e9
