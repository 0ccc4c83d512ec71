"""What all runs of alignment share."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from glm_jax.errors import UserError
from glm_jax.nn import GLM
from glm_jax.peft import combine
from train.alignment.options import OWN, Align
from train.finetuning.base import TuningRun
from train.finetuning.methods import as_type

_FREE = ("heldout", "heldout_percent", "on_bad")


@dataclasses.dataclass(frozen=True)
class AlignRun(TuningRun):
    """A run made ready."""

    args: Align

    @property
    def place(self) -> epath.Path:
        """Where all processes write."""
        return epath.Path(self.args.shared or self.args.output)

    @property
    def has_heldout(self) -> bool:
        data = self.args.data
        return bool(data.heldout or data.heldout_percent)

    def before(self, *, lean: bool = False) -> GLM:
        """The model before the first step, in the types that it is trained in.

        Args:
          lean: a copy of whole weights is kept in the type that they are used in.
        """
        trained = self.first if self.small else self.load()[0]
        dtype = self.args.compute.dtype if lean and not self.small else self.args.param_dtype
        return combine(as_type(trained, dtype), self.rest)

    def identity(self) -> dict[str, Any]:
        args = self.args
        data = {name: value for name, value in vars(args.data).items() if name not in _FREE}
        return {
            **super().identity(),
            "tune": args.tune,
            "lm": args.lm,
            "reward": args.reward,
            **{f"data_{name}": value for name, value in data.items()},
            **{
                f"{name}_{key}": value
                for name in OWN.values()
                for key, value in vars(getattr(args, name)).items()
            },
        }


def shown_format(run: AlignRun) -> str:
    """The chat format that answers are written in.

    Raises:
      UserError: the model has none.
    """
    if not run.chat_format:
        raise UserError(
            f"{run.args.ckpt} has no chat format, by which prompts and answers are written; name "
            "one with --chat-format"
        )
    return run.chat_format
