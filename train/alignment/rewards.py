"""Rewards of answers, by a Python function of the user's."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable

from glm_jax.data.preference.questions import Prompt
from glm_jax.errors import UserError, first_line

Function = Callable[[str, str, str | None], float]
"""(what the user said last, the answer, the right answer where the data gives it) -> reward."""


class Reward:
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

    def __call__(self, prompt: Prompt, response: str) -> float:
        """The reward of one answer.

        Raises:
          UserError: the function fails, or gives something else than a number.
        """
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


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
