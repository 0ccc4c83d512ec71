"""What every command line of the project shares: dataclasses as options, errors in one line."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from glm_jax.errors import UserError

T = TypeVar("T")


def parse(options: type[T], prog: str, argv: Sequence[str], default: T | None = None) -> T:
    """The options of ``argv`` as a dataclass.

    Raises:
      UserError: an unknown option, or a value that its option does not take.
      SystemExit: after --help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if default is None:
                return tyro.cli(options, args=argv, prog=prog)
            config = (tyro.conf.FlagConversionOff,)
            return tyro.cli(options, args=argv, prog=prog, config=config, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise UserError(f"{_one_line(said.getvalue())} ({prog} --help lists all)") from None


def run(main: Callable[[], object]) -> None:
    """Calls ``main`` and ends the process: status 2 after a UserError, in one line on stderr."""
    _quieten_background()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        if not isinstance(error, UserError) and error.errno != errno.ENOSPC:
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        # What background threads fail with from here on follows from the same cause.
        threading.excepthook = sys.unraisablehook = lambda args: None
        warnings.simplefilter("ignore")
        sys.exit(2)


def _quieten_background() -> None:
    """When a disk is full, Orbax's and TensorBoard's own threads print tracebacks; the main thread
    gets the error as well and reports it."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if getattr(args.exc_value, "errno", None) != errno.ENOSPC:
            threading.__excepthook__(args)

    threading.excepthook = in_thread


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws, without its help text."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ \t")
        if not line.startswith("│"):
            continue
        if set(text) == {"─"}:
            parts.append([])
        else:
            parts[-1].append(text)
    message = " ".join(parts[0]).removeprefix("Error parsing ")
    for part in parts[1:]:
        if part and part[0].startswith("Perhaps you meant"):
            message += f"; perhaps {part[1].split()[0]}"
    kinds = {"int": "is not a whole number", "float": "is not a number"}
    found = re.search(
        r"(invalid literal for int\(\)[^']*|could not convert string to float: )", message
    )
    if found:
        kind = kinds["int" if "int" in found[1] else "float"]
        message = f"{message.replace(found[1], '')} {kind}"
    return message
