"""How the work is cut, per chip and shape.

A program of the kernel holds ``queries`` queries with all query heads of one key head, and
``keys`` keys, in fast memory. Inside, it computes ``lanes`` rows (a row is a query of one head) by
``step`` keys at a time where every row sees every key, and by ``unit`` keys where a mask is needed;
only whole units that nobody sees are left out, so small units and few queries per tile waste
little and large ones keep the matrix unit busy.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of one kernel (forward or backward)."""

    queries: int
    """Queries of one program; each comes with the G heads that share a key head."""
    lanes: int
    """Rows computed together."""
    keys: int
    """Keys in fast memory."""
    step: int
    """Keys computed together where all are seen."""
    unit: int = 128
    """The same where some are hidden."""
    heads: int = 1
    """Key heads of one program: all see the same keys, and one computes while another waits."""
    vmem: int | None = None
    """Bytes of fast memory to ask for; None: what the compiler gives."""

    @property
    def tile(self) -> int:
        """Queries computed together."""
        return min(self.lanes, self.queries)

    @property
    def tiles(self) -> int:
        """Tiles of one program."""
        return self.queries // self.tile
