"""The ids of GLM's command tokens, as data: which ids a vocabulary gives to which role."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the command tokens of one vocabulary; ``None`` where it has no such token.

    Names follow the GLM paper: ``sop``/``eop`` start and end a piece of Part B, ``mask``,
    ``smask`` and ``gmask`` are the blanks of the token, sentence and generation objectives,
    ``dblock`` is the noise token for Part B's inputs, ``cls`` (``ENC`` in THUDM/GLM) opens a text.
    Two roles may share an id: in GLM-10B-Chinese's vocabulary ``gmask`` is ``eop``.
    """

    pad: int | None = None
    eos: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    unk: int | None = None
    sop: int | None = None
    eop: int | None = None
    gmask: int | None = None
    smask: int | None = None
    dblock: int | None = None

    def masks(self) -> tuple[int, ...]:
        """The ids that mark a blank, in the order in which the references look for them."""
        return tuple(i for i in (self.mask, self.smask, self.gmask) if i is not None)

    def require(self, *names: str) -> tuple[int, ...]:
        """The ids of these roles.

        Raises:
          ValueError: the vocabulary lacks one of them.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"this vocabulary has no {', '.join(missing)} token; it has {self}")
        return tuple(getattr(self, name) for name in names)
