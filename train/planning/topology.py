"""TPU slices by the names under which they are rented, as libtpu describes them."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from glm_jax.errors import UserError
from train.planning.chips import CHIPS, Chip

# Chips -> shape, the ones that Cloud TPU lists (cloud.google.com/tpu/docs/v5e, v6e, v4, v5p,
# tpu7x). Where several shapes have as many chips, the one nearest to a cube.
FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
        256: (16, 16)}  # fmt: skip
CUBIC = {
    1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
    128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
    4096: (16, 16, 16),
}  # fmt: skip
EXTRA = {"v5p": {6144: (16, 16, 24)}}


@dataclasses.dataclass(frozen=True)
class Topology:
    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """What JAX counts, over all slices."""
        return self.chips * self.chip.devices_per_chip

    @property
    def description(self) -> dict[str, Any]:
        """Arguments of ``jax.experimental.topologies.get_topology_desc``."""
        wanted: dict[str, Any] = dict(self.chip.options)
        wanted["topology_name"] = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        if math.prod(self.shape) < 4:
            wanted["chips_per_host_bounds"] = (1, 1, 1)  # libtpu assumes hosts of 2x2 chips
        if self.slices > 1:
            wanted["num_slices"] = self.slices
        return wanted


def known_names(chip: Chip) -> list[str]:
    """The names of one slice of this chip."""
    return [f"{chip.name}-{chips * chip.cores_per_chip}" for chips in _shapes(chip)]


def topology(name: str) -> Topology:
    """The slice that a name such as ``v5p-128``, ``v5litepod-16`` or ``2xv5e-256`` means.

    For v4, v5p and tpu7x the number counts TensorCores, two to a chip; for v5e and v6e chips.

    Raises:
      UserError: no such slice; the message lists those of the chip, or the chips.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(v5litepod|v4|v5e|v5p|v6e|tpu7x)-(\d+)", name.strip().lower())
    if match is None:
        some = ", ".join(f"{known_names(c)[0]} to {known_names(c)[-1]}" for c in CHIPS.values())
        raise UserError(
            f"--topology {name} is unknown; there are {some}, and several slices as 2xv5e-256"
        )
    slices, chip = int(match[1] or 1), CHIPS[match[2].replace("v5litepod", "v5e")]
    chips, left = divmod(int(match[3]), chip.cores_per_chip)
    shapes = _shapes(chip)
    if left or chips not in shapes or slices < 1:
        raise UserError(
            f"--topology {name} does not exist; there are {', '.join(known_names(chip))}"
        )
    return Topology(name.strip().lower(), chip, shapes[chips], slices)


def _shapes(chip: Chip) -> dict[int, tuple[int, ...]]:
    return FLAT if chip.dims == 2 else {**CUBIC, **EXTRA.get(chip.name, {})}
