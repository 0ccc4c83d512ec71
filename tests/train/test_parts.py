"""The loop's smaller parts: mixing, reports, held-out losses, the time limit, utilisation."""

import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glm_jax.data import INFILLING_PRESETS
from glm_jax.errors import UserError
from glm_jax.sharding import MeshConfig, make_mesh
from tests.train.small import QUIET, batch
from train import budget
from train.devices import PEAK_FLOPS, peak_flops
from train.heldout import Heldout, objectives_of
from train.loop import Intervals, fit
from train.mixing import MixedBatches
from train.presets import PRESETS, TINY
from train.reporting import Reporter
from train.trainer import TrainState

ONE = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])


class Numbered:
    def __init__(self, name: str):
        self.name, self.at = name, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return self.name, self.at

    def get_state(self):
        return self.at

    def set_state(self, state):
        self.at = state


def mixed(ratio: float) -> MixedBatches:
    return MixedBatches(Numbered("main"), Numbered("other"), ratio, seed=3)


def test_mixing_keeps_the_ratio_and_uses_each_stream_in_order():
    drawn = [next(b) for b in [mixed(0.25)] for _ in range(400)]
    other = [n for name, n in drawn if name == "other"]
    assert 70 < len(other) < 130
    assert other == list(range(1, len(other) + 1))


def test_mixing_resumes():
    batches = mixed(0.5)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    ahead = [next(batches) for _ in range(20)]
    again = mixed(0.5)
    again.set_state(state)
    assert [next(again) for _ in range(20)] == ahead


def reporter(path, **options):
    fixed = {"steps": 4, "tokens_per_step": 100, "flops_per_token": 10.0}
    return Reporter(path, **{**fixed, **options})


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    first = reporter(tmp_path)
    for step in (1, 2, 3):
        first.step(step, {"loss": float(step), "gmask": float("nan")})
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    second = reporter(tmp_path, start=2)
    second.step(3, {"loss": 3.5})
    second.close()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e["step"], e["loss"]) for e in entries] == [(1, 1.0), (2, 2.0), (3, 3.5)]
    assert all("gmask" not in e for e in entries)


def test_throughput_and_utilisation(tmp_path, monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    report = reporter(tmp_path, peak_flops=4000.0, steps=9)
    for step in range(1, 4):
        report.step(step, {"loss": 1.0})
    report.close()
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["mfu"] == pytest.approx(last["tokens_per_s"] * 10.0 / 4000.0)


def test_other_processes_are_silent(tmp_path, capsys):
    report = reporter(tmp_path / "x", active=False)
    report.say("hello")
    report.step(1, {"loss": 1.0})
    report.heldout(1, {"mask": 1.0})
    report.close()
    assert capsys.readouterr().out == "" and not (tmp_path / "x").exists()


def test_peaks_are_known_for_tpus():
    assert peak_flops(types.SimpleNamespace(device_kind="TPU v5p")) == 459e12
    assert peak_flops(types.SimpleNamespace(device_kind="TPU v6 lite")) == 918e12
    assert peak_flops(types.SimpleNamespace(device_kind="cpu")) is None
    assert len(PEAK_FLOPS) > 8


def test_heldout_loss_is_averaged_by_token():
    def loss_fn(model, rows, key):
        assert key is None
        weight = rows["loss_weights"]
        return ((weight * model).sum(), weight.sum()), {}

    rows = [{"loss_weights": np.full((1, n), 1.0, np.float32)} for n in (4, 4, 4)]
    rows[1]["loss_weights"][:] = 0
    heldout = Heldout(loss_fn, {"mask": lambda: (row for row in rows)}, ONE, batches=2)
    assert heldout(jnp.asarray(2.5)) == {"mask": 2.5}


def test_objectives_of_a_recipe():
    assert objectives_of(INFILLING_PRESETS["ds_block_base"]) == ("mask",)
    assert objectives_of(INFILLING_PRESETS["glm-130b"]) == ("mask", "gmask")


def test_every_preset_names_what_exists():
    for name, run in PRESETS.items():
        assert run.preset == name
        assert run.data.infilling in INFILLING_PRESETS
        config = run.model.config(run.vocab_size, QUIET.special)
        assert run.seq_len <= config.max_seq_len


def test_a_time_limit_shortens_steps_and_schedule_once(tmp_path, monkeypatch):
    args = dataclasses.replace(TINY, output=str(tmp_path), steps=100, max_minutes=1.0)
    schedule = dataclasses.replace(args.optimizer.schedule, decay_steps=200)
    args = dataclasses.replace(
        args, optimizer=dataclasses.replace(args.optimizer, schedule=schedule)
    )
    run = types.SimpleNamespace(args=args)
    monkeypatch.setattr(budget, "seconds_per_step", lambda run: 1.5)
    found = budget.within_time(run)
    assert (found.steps, found.optimizer.schedule.decay_steps) == (40, 80)
    monkeypatch.setattr(budget, "seconds_per_step", lambda run: 99.0)
    assert budget.within_time(run) == found  # a resumed run keeps its plan


def fake_step(skipped_in_a_row):
    """A step that reports, as a device would, how many steps in a row were skipped."""

    def step(state, rows):
        n = state.step + 1
        metrics = {"loss": jnp.nan, "skipped_in_a_row": jnp.asarray(skipped_in_a_row(int(n)))}
        return dataclasses.replace(state, step=n), metrics

    return step


def run_loop(tmp_path, skipped_in_a_row, steps=50):
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, None, None, zero, zero)
    rows = iter(lambda: batch(1), None)
    every, report = Intervals(1, 0, 0), reporter(tmp_path, steps=steps)
    step = fake_step(skipped_in_a_row)
    return fit(state, step, rows, mesh=ONE, steps=steps, every=every, report=report)


def test_twenty_in_a_row_stop_the_run_and_nineteen_do_not(tmp_path):
    with pytest.raises(UserError, match=r"stopped at step 20: .* in 20 steps in a row"):
        run_loop(tmp_path / "a", lambda n: n)
    state, done = run_loop(tmp_path / "b", lambda n: n % 20)
    assert done and int(state.step) == 50
