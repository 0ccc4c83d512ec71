"""Sums of two digits: questions, and rewards of answers."""

from __future__ import annotations

import json


def exact(prompt: str, response: str, answer: str | None) -> float:
    """1 for the right number and nothing else."""
    del prompt
    return float(response.strip() == answer)


def lively(prompt: str, response: str, answer: str | None) -> float:
    """Different letters of an answer: what even a random model has more or less of."""
    del prompt, answer
    return float(len({letter for letter in response if letter.isalpha()}))


def parity(prompt: str, response: str, answer: str | None) -> float:
    """1 where the sum of the letters' numbers is even (answer 0) or odd (1)."""
    del prompt
    return float(str(sum(map(ord, response)) % 2) == answer)


def question(a: int, b: int) -> str:
    return f"{a} + {b} ="


def write_questions(path, digits: int) -> None:
    """Every sum of two numbers below ``digits``, with its answer."""
    lines = [
        json.dumps({"prompt": question(a, b), "answer": a + b})
        for a in range(digits)
        for b in range(digits)
    ]
    path.write_text("\n".join(lines) + "\n")


def write_parities(path) -> None:
    """Four questions that want an even answer or an odd one."""
    lines = [json.dumps({"prompt": "abcd"[i] * 3, "answer": i % 2}) for i in range(4)]
    path.write_text("\n".join(lines) + "\n")
