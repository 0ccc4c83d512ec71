"""What one JAX device of each TPU kind has: memory, clock, arithmetic and links."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device: a chip, but for TPU7x, where it is one of a chip's two cores.

    Memory is what the compiler says it may use, in its refusal of a program that needs terabytes
    ("exceeds available HBM (30.75G)", libtpu 0.0.42.1). Peaks and bandwidths are Google's tables
    (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x). The clock is the peak over the FLOPs of
    one cycle (a matrix unit of n x n does 2 n^2): the compiler's own estimates for an 8192-cubed
    product come to 70 to 93 % of the peak at it.
    """

    name: str
    device_kind: str
    hbm_bytes: int
    clock: float
    """Hz: what turns ``estimated_cycles`` into seconds."""
    peak_flops: float
    """bf16, FLOP/s."""
    hbm_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """Bytes/s that all links of the device send together (half of the "bidirectional" figure)."""
    slice_bandwidth: float
    """Bytes/s of the data-centre network, between slices: a chip's share; 0 where Google publishes
    none."""
    cores_per_chip: int
    """What the number in a name such as v5p-128 counts: 2 cores, or 1 where it counts chips."""
    devices_per_chip: int
    dims: int
    """Of the torus."""
    options: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    """What libtpu's topology description needs besides the shape."""

    @property
    def cores(self) -> int:
        """TensorCores of one device."""
        return self.cores_per_chip // self.devices_per_chip


_TWO_CORES = {"cores_per_chip": 2, "devices_per_chip": 1, "dims": 3}
_ONE_CORE = {"cores_per_chip": 1, "devices_per_chip": 1, "dims": 2}

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            "TPU v4",
            hbm_bytes=int(30.75 * GIB),
            clock=1.05e9,
            peak_flops=275e12,
            hbm_bandwidth=1.2e12,
            link_bandwidth=300e9,
            slice_bandwidth=0.0,
            # Without it libtpu describes a chip as two devices, which Cloud TPU never does.
            options={"chip_config_name": "megacore"},
            **_TWO_CORES,
        ),
        Chip(
            "v5e",
            "TPU v5 lite",
            hbm_bytes=int(15.75 * GIB),
            clock=1.5e9,
            peak_flops=197e12,
            hbm_bandwidth=0.8e12,
            link_bandwidth=200e9,
            slice_bandwidth=3.125e9,
            **_ONE_CORE,
        ),
        Chip(
            "v5p",
            "TPU v5",
            hbm_bytes=int(95.73 * GIB),
            clock=1.75e9,
            peak_flops=459e12,
            hbm_bandwidth=2.765e12,
            link_bandwidth=600e9,
            slice_bandwidth=6.25e9,
            **_TWO_CORES,
        ),
        Chip(
            "v6e",
            "TPU v6 lite",
            hbm_bytes=int(31.24 * GIB),
            clock=1.75e9,
            peak_flops=918e12,
            hbm_bandwidth=1.638e12,
            link_bandwidth=400e9,
            slice_bandwidth=12.5e9,
            **_ONE_CORE,
        ),
        Chip(
            "tpu7x",
            "TPU7x",
            hbm_bytes=int(94.75 * GIB),
            clock=2.2e9,
            peak_flops=1153.5e12,
            hbm_bandwidth=3.69e12,
            link_bandwidth=300e9,
            slice_bandwidth=6.25e9,
            cores_per_chip=2,
            devices_per_chip=2,
            dims=3,
        ),
    )
}
