"""Command lines made of frozen dataclasses that start from a named preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from glm_jax import command_line
from glm_jax.command_line import run
from glm_jax.errors import UserError

__all__ = ["parse", "run"]

T = TypeVar("T")


def parse(
    defaults: Mapping[str, T], default: str, prog: str, argv: Sequence[str], option="--preset"
) -> T:
    """The options of ``argv`` on top of those of the preset that ``--preset`` names.

    Args:
      defaults: presets by name, all of one dataclass with a field for the option.
      default: the preset when none is named.
      option: what names it.

    Raises:
      UserError: an unknown preset or option, or a value that its option does not take.
    """
    name = _option(argv, option) or default
    if name not in defaults:
        raise UserError(f"{option} {name} is unknown; there are {', '.join(defaults)}")
    chosen = defaults[name]
    return command_line.parse(type(chosen), prog, argv, chosen)


def _option(argv: Sequence[str], name: str) -> str | None:
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
