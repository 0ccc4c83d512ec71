"""HTTP: keys, limits, a full queue, clients that hang up, health and metrics, and the end."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from glm_jax.errors import UserError
from glm_jax.serve.guard import read_keys
from glm_jax.serve.http import listen
from tests.serve.server import idle, running, served_of, slow_down, started, wait_for

BODY = {"prompt": "The file reads", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def counted(http) -> dict[str, float]:
    """Every sample of /metrics, by name and labels."""
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_keys_open_everything_but_the_page_and_health(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst-key\n\nsecond-key \n")
    with started() as engine, running(engine, served_of(), keys=read_keys(file)) as url:
        for key in ("first-key", "second-key"):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                assert client.models.list().data
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="first", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="no valid API key"),
        ):
            client.completions.create(model="x", prompt="y")
        for path, status in (("/", 200), ("/health", 200), ("/metrics", 401), ("/v1/models", 401)):
            response = httpx.get(url + path)
            assert response.status_code == status
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_file_without_a_key_is_refused(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(UserError, match="has no key"):
        read_keys(tmp_path / "keys")
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "missing")


def test_a_body_beyond_the_limit_is_not_read():
    with started() as engine, running(engine, served_of(), most_bytes=1000) as url:
        big = BODY | {"prompt": "x" * 2000}
        assert httpx.post(f"{url}/v1/completions", json=big).status_code == 413
        pieces = (b" " * 400 for _ in range(5))  # no length is said beforehand
        assert httpx.post(f"{url}/v1/completions", content=pieces).status_code == 413
        assert httpx.post(f"{url}/v1/completions", json=BODY).status_code == 200


def test_answers_have_a_longest_length():
    with started() as engine, running(engine, served_of(most_tokens=5)) as url:
        answer = httpx.post(f"{url}/v1/completions", json=BODY).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("content", [b"{", b"", b"null", b"[1]", b"\xff", b"[" * 30_000])
def test_what_is_no_json_object_is_told_so(http, content):
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "JSON" in response.json()["error"]["message"]


def test_a_path_that_is_not_there(http):
    for response, status in ((http.get("/v2/models"), 404), (http.get("/v1/completions"), 405)):
        assert response.status_code == status
        assert "there is no GET /v" in response.json()["error"]["message"]


def test_a_full_queue_is_429_and_says_when_to_come_again(monkeypatch):
    slow_down(monkeypatch)
    with started(slots=1, most_waiting=1, burst=0) as engine, running(engine, served_of()) as url:
        long = BODY | {"max_tokens": 100}
        threads = [
            threading.Thread(target=httpx.post, args=[f"{url}/v1/completions"],
                             kwargs={"json": long, "timeout": 60})
            for _ in range(2)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        wait_for(lambda: engine.load()["waiting"] == 1 and engine.load()["slots_in_use"] == 1)
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
            pytest.raises(openai.RateLimitError, match="the queue is full") as refused,
        ):
            client.completions.create(model="tiny-glm-4-9b", prompt="x")
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        for thread in threads:
            thread.join(60)
        wait_for(lambda: idle(engine, slots=1))


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_leaves_the_slot_at_once(monkeypatch, stream):
    slow_down(monkeypatch, 0.05)
    with started(slots=1, burst=0) as engine, running(engine, served_of()) as url:
        body = json.dumps(BODY | {"max_tokens": 150, "stream": stream}).encode()
        address = ("127.0.0.1", httpx.URL(url).port)
        with socket.create_connection(address) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            wait_for(lambda: engine.load()["slots_in_use"] == 1)
        begin = time.monotonic()
        wait_for(lambda: idle(engine, slots=1))
        assert time.monotonic() - begin < 2  # the whole answer takes 7.5 s


def test_health_and_metrics_count_what_happened(http, engine):
    wait_for(lambda: idle(engine))
    before = counted(http)
    assert http.post("/v1/completions", json=BODY).status_code == 200
    assert http.post("/v1/completions", json=BODY | {"n": 0}).status_code == 400
    wait_for(lambda: idle(engine))
    after = counted(http)
    rise = lambda name: after[name] - before.get(name, 0)
    assert rise("glm_requests_total length") == 1
    assert rise("glm_completion_tokens_total") == 8
    assert rise("glm_prompt_tokens_total") > 0
    assert rise("glm_refused_total 400") == 1
    assert rise("glm_first_token_seconds_count") == rise("glm_request_seconds_count") == 1
    assert (after["glm_slots"], after["glm_slots_in_use"], after["glm_waiting"]) == (4, 0, 0)
    health = http.get("/health").json()
    assert health == {
        "status": "ok", "model": "tiny-glm-4-9b", "waiting": 0, "slots_in_use": 0, "slots_free": 4
    }  # fmt: skip


def test_a_taken_port_is_said_before_the_model_is_loaded(url):
    with pytest.raises(UserError, match="choose another --port"):
        listen("127.0.0.1", httpx.URL(url).port)
