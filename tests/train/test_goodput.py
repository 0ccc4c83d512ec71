"""Where the hours of a run went, over restarts, and a trace of a few steps."""

import itertools
import json

import jax
import jax.numpy as jnp
import pytest

from train.goodput import FILE, KINDS, Ledger
from train.options import Training
from train.profiling import Trace


@pytest.fixture
def clock(monkeypatch):
    """Wall clock and monotonic clock, moved by hand."""

    class Clock:
        now = 1000.0

        def wait(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.time", lambda: 1e9 + clock.now)
    return clock


def nonzero(ledger):
    return {kind: x for kind, x in ledger.seconds.items() if x}


def test_every_moment_is_of_one_kind(clock, tmp_path):
    ledger = Ledger(tmp_path / FILE, 0, began=clock.now - 3)
    ledger.turn("steps")
    clock.wait(10)
    with ledger.spending("heldout"):
        clock.wait(2)
    ledger.turn("data")
    clock.wait(1)
    ledger.turn("steps", was="steps")  # the devices were busy while the host waited
    clock.wait(4)
    numbers = ledger.numbers()
    ledger.close()
    assert nonzero(ledger) == {"start": 3, "steps": 15, "heldout": 2}
    assert numbers["goodput"] == 15 / 20 and numbers["seconds_steps"] == 15
    assert {f"seconds_{kind}" for kind in KINDS} <= numbers.keys()
    assert ledger.text() == "time went into  steps 75.0%  start 15.0%  held-out evaluation 10.0%"


def test_compiling_is_taken_from_what_it_held_up(clock, tmp_path):
    ledger = Ledger(tmp_path / FILE, 0)
    ledger.turn("heldout")
    clock.wait(10)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 6)
    ledger.turn("steps")
    ledger.close()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 6)
    clock.wait(1)
    ledger.turn("steps")
    assert nonzero(ledger) == {"heldout": 4, "compile": 6, "steps": 1}


def killed(clock, path):
    """A run that had lost 2 seconds, saved step 20 after 12 more, and was killed after 5 more."""
    ledger = Ledger(path, 0)
    ledger.seconds["lost"] = 2.0
    ledger.turn("steps")
    clock.wait(12)
    ledger.saved(20)
    clock.wait(5)
    ledger.store()


def test_a_restart_counts_what_is_done_again_and_the_time_away(clock, tmp_path):
    killed(clock, tmp_path / FILE)
    clock.wait(30)
    ledger = Ledger(tmp_path / FILE, 20)
    assert nonzero(ledger) == {"steps": 12, "lost": 2 + 5 + 30}
    ledger.turn("steps")
    clock.wait(3)
    ledger.close()
    clock.wait(1)
    assert nonzero(Ledger(tmp_path / FILE, 20)) == {"steps": 12, "lost": 37 + 3 + 1}


def test_without_a_checkpoint_all_of_it_was_lost(clock, tmp_path):
    killed(clock, tmp_path / FILE)
    assert nonzero(Ledger(tmp_path / FILE, 0)) == {"lost": 2 + 17}


WHOLE = dict.fromkeys(KINDS, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"at": 1, "seconds": {}, "saves": {}}',
        json.dumps({"at": 1, "seconds": WHOLE, "saves": []}),
        json.dumps({"at": 1, "seconds": WHOLE, "saves": {"x": WHOLE}}),
    ],
)
def test_a_record_that_cannot_be_read_is_begun_anew(clock, tmp_path, text):
    (tmp_path / FILE).write_text(text)
    ledger = Ledger(tmp_path / FILE, 7)
    clock.wait(1)
    ledger.close()
    assert nonzero(ledger) == {"start": 1}
    assert json.loads((tmp_path / FILE).read_text())["seconds"]["start"] == 1


@pytest.mark.parametrize(
    ("start", "steps", "count", "expected"),
    [(0, 100, 5, (11, 15)), (40, 100, 5, (51, 55)), (0, 12, 5, (8, 12)), (0, 3, 5, (1, 3))],
)
def test_which_steps_are_traced(tmp_path, start, steps, count, expected):
    trace = Trace(tmp_path, start=start, steps=steps, count=count)
    assert (trace.first, trace.last) == expected


def test_a_trace_is_written_once_and_only_when_asked_for(tmp_path):
    for count in (0, 2):
        trace = Trace(tmp_path / str(count), start=0, steps=4, count=count)
        said = []
        for step in itertools.count(1):
            if step > 4:
                break
            with trace.step(step):
                results = jnp.zeros(3) + step
            said.append(trace.after(step, results))
        trace.close()
        assert said == [False, False, False, count > 0]
        files = list((tmp_path / str(count)).glob("plugins/profile/*/*.xplane.pb"))
        assert len(files) == (count > 0)


def test_fewer_than_no_steps_are_refused():
    with pytest.raises(ValueError, match="--profile-steps -1 is below 0"):
        Training(profile_steps=-1)
