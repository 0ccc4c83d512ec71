"""Runs of several processes that talk over loopback, as the hosts of a pod do over its network.

The module's fixtures are one story: a run of four processes loses one, starts again, is asked to
stop, and goes on as one process, as two, and as four.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from glm_jax.ckpts import load_model
from glm_jax.text import train_sentencepiece
from tests.train import runs

LIMIT = 300  # seconds that any one run may take on a busy machine
SILENT = 12

FOUR = ("--mesh.data", "2", "--mesh.fsdp", "4")


@dataclasses.dataclass(frozen=True)
class Ended:
    """What is left of a process."""

    status: int
    out: str
    err: str


@dataclasses.dataclass
class Hosts:
    """Processes of one run, with two CPU devices each."""

    processes: list[subprocess.Popen]

    @classmethod
    def start(cls, args: list[str], count: int) -> Hosts:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        shared = [*args, "--hosts.coordinator", address, "--hosts.processes", str(count)]
        shared += ["--hosts.silent-seconds", str(SILENT), "--hosts.connect-seconds", "100"]
        flags = "--xla_force_host_platform_device_count=2"
        return cls(
            [
                runs.start([*shared, "--hosts.process", str(i)], XLA_FLAGS=flags)
                for i in range(count)
            ]
        )

    def wait(self) -> list[Ended]:
        """All processes, ended; those that do not end in time are killed."""
        end, ended = time.monotonic() + LIMIT, []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=max(1, end - time.monotonic()))
                ended.append(Ended(process.returncode, out, err))
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
        return ended

    def until(self, step: int, output: pathlib.Path) -> None:
        """Waits until the log has a step."""
        end, wanted = time.monotonic() + LIMIT, f'"step": {step},'
        while time.monotonic() < end and all(p.poll() is None for p in self.processes):
            if (output / "log.jsonl").exists() and wanted in (output / "log.jsonl").read_text():
                return
            time.sleep(0.02)


def run_hosts(args: list[str], count: int) -> list[Ended]:
    ended = Hosts.start(args, count).wait()
    assert [e.status for e in ended] == [0] * count, "\n".join(e.err[-2000:] for e in ended)
    return ended


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    runs.write_corpus(directory / "corpus")
    texts = (path.read_text() for path in sorted((directory / "corpus").iterdir()))
    train_sentencepiece(texts, 512, directory / "tokenizer")
    return directory / "corpus"


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory) -> dict[int, float]:
    """Losses of one process with eight devices."""
    output = tmp_path_factory.mktemp("runs") / "single"
    args = runs.command(output, corpus, *FOUR, "--steps", "60", "--every.save", "0")
    status, _, err = runs.finish(args, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert status == 0, err
    return runs.losses(output)


@pytest.fixture(scope="module")
def four(corpus, tmp_path_factory):
    """Output directory and processes of a whole run of four."""
    output = tmp_path_factory.mktemp("runs") / "four"
    return output, run_hosts(runs.command(output, corpus, *FOUR, "--steps", "20"), 4)


@pytest.fixture(scope="module")
def lost(corpus, tmp_path_factory):
    """A run of four whose third process is killed in mid-step; seconds until the last ended."""
    output = tmp_path_factory.mktemp("runs") / "lost"
    args = runs.command(output, corpus, *FOUR, "--steps", "10000", "--every.save", "5")
    hosts = Hosts.start(args, 4)
    hosts.until(7, output)
    hosts.processes[2].send_signal(signal.SIGKILL)
    began = time.monotonic()
    ended = hosts.wait()
    return output, ended, time.monotonic() - began


@pytest.fixture(scope="module")
def stopped(lost, corpus):
    """The same run started again and asked to stop; the step that was saved."""
    output = lost[0]
    first = max(runs.losses(output))
    args = runs.command(output, corpus, *FOUR, "--steps", "10000", "--every.save", "0")
    hosts = Hosts.start(args, 4)
    hosts.until(first + 2, output)
    for process in hosts.processes:
        process.send_signal(signal.SIGTERM)
    ended = hosts.wait()
    saved = re.search(r"saved at step (\d+)", ended[0].out)
    return output, ended, int(saved[1]) if saved else -1


def test_four_processes_train_as_one(single, four):
    """Also: only process 0 speaks and logs, and what they export together is a model."""
    output, ended = four
    found = runs.losses(output)
    assert list(found) == list(range(1, 21))
    assert found == pytest.approx({step: single[step] for step in found}, rel=1e-6)
    assert "step 20/20" in ended[0].out
    for other in ended[1:]:
        assert "step" not in other.out, other.out
    assert load_model(output / "model").config.vocab_size == 512


def test_a_killed_process_ends_the_others_who_name_it(lost):
    _, ended, seconds = lost
    assert ended[2].status == -signal.SIGKILL
    assert seconds < 60
    named = f"not heard of for {SILENT} s: process 2 of 4 ("
    assert ended[0].status == 1 and named in ended[0].err
    for other in (ended[1], ended[3]):
        assert other.status == 1 and named in other.err


def test_a_request_to_stop_is_agreed_upon(stopped):
    output, ended, step = stopped
    assert [e.status for e in ended] == [0] * 4, "\n".join(e.err[-2000:] for e in ended)
    assert "resuming at step" in ended[0].out
    assert step == max(runs.losses(output))


def test_what_four_saved_goes_on_as_one_as_two_and_as_four(stopped, single, corpus, tmp_path):
    """On other meshes each time. Every loss since the first step, killed and stopped in between, is
    that of the unbroken run."""
    output, _, step = stopped
    shutil.copytree(output, tmp_path / "run")
    args = lambda steps, *mesh: runs.command(
        tmp_path / "run", corpus, "--steps", str(step + steps), *mesh
    )
    flags = "--xla_force_host_platform_device_count=4"
    status, out, err = runs.finish(args(2, "--mesh.tensor", "2"), XLA_FLAGS=flags)
    assert status == 0 and f"resuming at step {step}" in out, err
    run_hosts(args(4, "--mesh.fsdp", "2"), 2)
    run_hosts(args(6, *FOUR), 4)
    found = runs.losses(tmp_path / "run")
    assert list(found) == list(range(1, step + 7))
    assert found == pytest.approx({s: single[s] for s in found}, rel=1e-4)


def test_nobody_at_the_coordinators_address(corpus, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = ("--hosts.coordinator", address, "--hosts.processes", "2", "--hosts.process", "1")
    args = runs.command(tmp_path / "run", corpus, *hosts, "--hosts.connect-seconds", "1")
    status, _, err = runs.finish(args)
    assert status == 2
    assert err.startswith(f"error: coordinator {address} was not reached within 1 s")
