"""What the online softmaxes agree on. All numbers are finite, so that nothing ever makes a NaN."""

from __future__ import annotations

import math

HIDDEN = -1e30
"""Score of a key that a query does not see."""
LOWEST = 0.5 * HIDDEN
"""The lowest maximum of a row. Hidden scores lie below it: a row that has seen nothing yet weighs
them with 2 ** (HIDDEN - LOWEST) = 0 and not with 2 ** 0."""
EMPTY = -HIDDEN
"""Log-sum-exp of a row that sees nothing, as the backward pass wants it: its probabilities come out
as zero."""


def to_base_2(head_dim: int) -> float:
    """What makes the product of a query and a key the power of two of its weight."""
    return math.log2(math.e) * head_dim**-0.5
