"""What one device can do at most: the denominator of model-FLOPs utilisation."""

from __future__ import annotations

import jax

# Dense bf16 FLOP/s per JAX device, from the vendors' data sheets. JAX counts the cores of TPU v2
# and v3 singly, and chips from v4 on.
PEAK_FLOPS: dict[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    "NVIDIA H20": 148e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H800": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device | None = None) -> float | None:
    """bf16 FLOP/s of a device (the first by default); None where it is not known."""
    device = jax.devices()[0] if device is None else device
    return PEAK_FLOPS.get(device.device_kind)
