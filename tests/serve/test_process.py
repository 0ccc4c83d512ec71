"""The command itself, in a process of its own: a short soak, and SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import threading

import httpx
import pytest

from benchmarks.serve_soak import soak
from benchmarks.serving import serving, small_config, write_model
from tests.serve.server import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("served"), small_config(1, 128))
    options = ["--slots", "4", "--context", "256", "--chunk", "64", "--queue", "64"]
    with serving(model, *options, "--max-body", "100000") as server:
        yield server


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind(server):
    assert httpx.get(f"{server.url}/health").status_code == 200  # ready means ready
    files = server.open_files()
    line = asyncio.run(
        soak(server.url, 120, clients=12, memory=server.resident_mb, files=server.open_files)
    )
    assert not line["wrong"], line["first_wrong"]
    assert line["health"] | {"model": ""} == {
        "status": "ok", "model": "", "waiting": 0, "slots_in_use": 0, "slots_free": 4
    }  # fmt: skip
    assert line["server_mb_at_the_end"] < line["server_mb_at_a_fifth"] + 40
    wait_for(lambda: server.open_files() <= files + 2)


def test_sigterm_lets_answers_end_and_takes_nothing_new(server):
    body = {"prompt": [20], "max_tokens": 200, "ignore_eos": True, "stream": True}
    texts, begun = [], threading.Event()

    def read() -> None:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as got:
            for text in got.iter_lines():
                texts.append(text)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    server.process.send_signal(signal.SIGTERM)
    reader.join(60)
    assert texts[-2:] == ["data: [DONE]", ""]
    last = json.loads(texts[-4].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(30) == 0
    assert server.said[-1] == "stopped"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
