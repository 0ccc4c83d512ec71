"""One server for the tests that only ask it."""

from __future__ import annotations

import openai
import pytest

from tests.serve.server import running, served_of, started


@pytest.fixture(scope="package")
def engine():
    with started() as engine:
        yield engine


@pytest.fixture(scope="package")
def url(engine):
    with running(engine, served_of()) as url:
        yield url


@pytest.fixture(scope="package")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client
