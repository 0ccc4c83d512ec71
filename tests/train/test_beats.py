"""Who is lost, who failed and who is behind, on a clock of the test's own."""

import pytest

from train.beats import Ledger, beat_text
from train.distributed import Hosts

SILENT, STALLED = 10, 100


def post(count, *steps, state=""):
    return {i: beat_text(count, step, f"host-{i}", state) for i, step in enumerate(steps)}


def test_beats_that_come_are_no_reason_to_end():
    ledger = Ledger(3, now=0)
    assert not any(ledger.verdict(post(t, t, t, t), 5 * t, SILENT, STALLED) for t in range(1, 100))


def test_a_silent_process_is_named_with_its_last_step():
    ledger = Ledger(3, now=0)
    last = post(1, 7, 7, 7)
    assert ledger.verdict(last, 1, SILENT, STALLED) == ""
    assert ledger.verdict(post(2, 8, 8, 7) | {2: last[2]}, 11, SILENT, STALLED) == ""
    found = ledger.verdict(post(3, 8, 8, 7) | {2: last[2]}, 11.5, SILENT, STALLED)
    assert found == "not heard of for 10 s: process 2 of 3 (host-2), last seen after step 7"


def test_one_that_never_reported_is_named():
    found = Ledger(2, now=0).verdict(post(1, -1), 11, SILENT, STALLED)
    assert found.endswith("process 1 of 2 (it never reported), before its first step")


def test_many_silent_processes_are_counted():
    found = Ledger(9, now=0).verdict(post(1, 3), 11, SILENT, STALLED)
    assert "process 4 of 9" in found and found.endswith(" and 4 more")


def test_those_behind_are_named_when_no_step_is_finished():
    ledger = Ledger(3, now=0)
    verdicts = [ledger.verdict(post(t, 5, 4, 5), t, SILENT, STALLED) for t in range(1, 103)]
    assert set(verdicts[:-1]) == {""}
    assert verdicts[-1] == (
        "no step finished for 100 s: process 1 of 3 (host-1), last seen after step 4"
    )
    assert Ledger(3, 0).verdict(post(1, 5, 4, 5), 5000, SILENT * 1000, 0) == ""


def test_a_process_that_fails_is_named_with_its_error():
    beats = post(1, 5, 5) | {1: beat_text(1, 5, "host-1", "error no room | on disk")}
    found = Ledger(2, now=0).verdict(beats, 1, SILENT, STALLED)
    assert found == "process 1 of 2 (host-1) ended: no room | on disk"


def test_a_process_that_is_done_may_be_silent():
    ledger = Ledger(2, now=0)
    done = beat_text(2, 9, "host-1", "done")
    for t in range(1, 300):
        assert ledger.verdict(post(t, 9, 9) | {1: done}, t, SILENT, STALLED) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "a:1"}, "needs --hosts.processes and --hosts.process"),
        ({"processes": 2, "process": 0}, "need --hosts.coordinator"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "host is not host:port"),
        ({"coordinator": "a:99999", "processes": 2, "process": 0}, "is not host:port"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "processes is 0"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "process 2 is not one of 0 to 1"),
        ({"silent_seconds": 1}, "silent_seconds is 1; it must be 5 or more"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hosts(**options)
