"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        of = {"registry": self.registry}
        self.ended = Counter("glm_requests", "Rows that ended, by reason", ["reason"], **of)
        self.refused = Counter("glm_refused", "HTTP requests refused, by status", ["status"], **of)
        self.read = Counter("glm_prompt_tokens", "Tokens of prompts that were read", **of)
        self.written = Counter("glm_completion_tokens", "Tokens that were written", **of)
        self.waiting = Gauge("glm_waiting", "Rows that wait for a slot", **of)
        self.in_use = Gauge("glm_slots_in_use", "Slots that have a row", **of)
        self.slots = Gauge("glm_slots", "Slots in all", **of)
        self.first_token = Histogram(
            "glm_first_token_seconds", "From arrival to the first token", buckets=_SECONDS, **of
        )
        self.duration = Histogram(
            "glm_request_seconds", "From arrival to the last token", buckets=_SECONDS, **of
        )
        self.failures = Counter("glm_engine_failures", "Times the device had to start anew", **of)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
