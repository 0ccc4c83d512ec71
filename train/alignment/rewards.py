"""Rewards of answers, by a Python function of the user's or by a reward model."""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from glm_jax.chat import chat_format
from glm_jax.ckpts import load_config, load_generation, load_model
from glm_jax.data.preference import Answer, answer_rows, answer_to, some_batches
from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError, first_line
from glm_jax.nn import GLM, Compute
from glm_jax.sharding import local_rows
from glm_jax.text import load_tokenizer
from train.trainer import Batch, put_batch

Function = Callable[[str, str, str | None], float]
"""(what the user said last, the answer, the right answer where the data gives it) -> reward."""


class Reward(Protocol):
    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> Float[np.ndarray, " N"]:
        """The reward of an answer to each prompt, as a user would see it.

        Raises:
          UserError: an answer cannot be rewarded.
        """
        ...


class RewardFunction:
    """A reward function by its name.

    Args:
      name: ``module:function``; the module is looked for where Python looks, and in this directory.

    Raises:
      UserError: there is no such function.
    """

    def __init__(self, name: str):
        module, _, function = name.partition(":")
        if not module or not function:
            raise UserError(f"--reward {name} is no module:function, such as mine:exact")
        if "" not in sys.path:
            sys.path.append("")
        try:
            found = getattr(importlib.import_module(module), function, None)
        except Exception as error:  # whatever the user's module raises
            raise UserError(f"--reward {name}: cannot import {module}: {_said(error)}") from error
        if not callable(found):
            raise UserError(f"--reward {name}: {module} has no function {function}")
        self.name, self._function = name, found

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> Float[np.ndarray, " N"]:
        """Raises UserError: the function fails, or gives something else than a number."""
        return np.array([*map(self._one, prompts, responses)], np.float32)

    def _one(self, prompt: Prompt, response: str) -> float:
        try:
            value = self._function(prompt.text, response, prompt.answer)
        except Exception as error:
            raise UserError(
                f"{self.name} failed on an answer to {prompt.place}: {_said(error)}"
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{self.name} gave {value!r} for an answer to {prompt.place}; a reward is a number"
            )
        return number


class RewardModel:
    """The scores of a model that ``--method reward`` wrote.

    It reads an answer as it read those it was trained on: in its own format, with its end. Of one
    that is longer than its rows, the middle is left out.

    Args:
      folder: its directory.
      seq_len: ids of its rows; a prompt is shorter.
      batch_size: rows at once.

    Raises:
      UserError: there is no reward model in it.
    """

    def __init__(self, folder: str, mesh: Mesh, seq_len: int, batch_size: int, compute: Compute):
        self._config = load_config(folder)
        if self._config.num_labels != 1:
            raise UserError(
                f"--reward-model {folder} has {self._config.num_labels} scores and not one; "
                "train.align --method reward writes a reward model"
            )
        self._tokenizer = load_tokenizer(folder)
        named = str(load_generation(folder).get("prompt_format") or self._tokenizer.family)
        self._format = chat_format(named).name
        self._mesh, self._length, self._size = mesh, seq_len, batch_size
        model = load_model(folder, mesh=mesh, dtype=compute.dtype)
        self._score = functools.partial(jax.jit(functools.partial(_scores, compute=compute)), model)

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> Float[np.ndarray, " N"]:
        answers = [*map(self._answer, prompts, responses)]
        make = lambda indices: answer_rows(
            [answers[i] for i in indices], self._config, self._length
        )
        rows = local_rows(self._mesh, self._size)
        found = []
        for batch in some_batches(make, range(len(answers)), self._size, rows):
            del batch["present"]
            found.append(np.asarray(self._score(put_batch(batch, self._mesh))))
        return np.concatenate(found)[: len(answers)]

    def _answer(self, prompt: Prompt, response: str) -> Answer:
        empty = not response.strip()  # which no format writes: its end stands alone
        try:
            whole = answer_to(
                prompt.messages,
                "." if empty else response,
                self._tokenizer,
                self._format,
                prompt.tools,
            )
        except UserError as error:
            raise UserError(f"{prompt.place}: {error}") from None
        if empty:
            whole = Answer(whole.prompt, whole.answer[-1:])
        room = self._length - len(whole.prompt)
        if room < 2:
            raise UserError(
                f"{prompt.place}: {len(whole.prompt)} ids of the reward model's tokenizer leave no "
                f"room for an answer in --seq-len {self._length}"
            )
        if len(whole.answer) <= room:
            return whole
        return Answer(whole.prompt, [*whole.answer[: room - 1], whole.answer[-1]])


def _scores(model: GLM, rows: Batch, *, compute: Compute) -> Float[Array, " B"]:
    fields = ("tokens", "positions", "k_start", "k_end", "lengths")
    return model.classify(*(rows[name] for name in fields), compute=compute)[:, 0]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
