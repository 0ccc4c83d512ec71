"""GPUs that need not be here: what XLA wants to know of one, and NVIDIA's tools."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from glm_jax.errors import UserError

INSTALL = "pip install 'jax[cuda13]' nvidia-cuda-nvdisasm (no GPU needed)"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU. Numbers are those of XLA's own descriptions (xla/backends/gpu/target_config/specs)
    and, for products, of NVIDIA's data sheets."""

    name: str
    kind: str
    """As its driver calls it."""
    capability: tuple[int, int]
    cores: int
    """Streaming multiprocessors."""
    shared: int
    """KiB of shared memory of a core; a program may have one less."""
    lanes: int
    """float32 units of a core."""
    products: int
    """FLOPs of bfloat16 products that a core does in a cycle, summed in float32."""
    bandwidth: float
    """Bytes/s of its memory."""
    memory: int
    """GiB."""
    cache: int
    """MiB, second level."""
    accelerated: bool = False
    """Whether it has instructions that no other generation has (sm_90a, sm_100a)."""

    @property
    def target(self) -> str:
        """XLA's description, as a text protocol buffer."""
        major, minor = self.capability
        feature = " feature_extension: ACCELERATED_FEATURES" if self.accelerated else ""
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.kind}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor}{feature} }}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: 1.4
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              registers_per_block_limit: 65536 registers_per_core_limit: 65536
              shared_memory_per_block: {48 * 1024}
              shared_memory_per_core: {self.shared * 1024}
              shared_memory_per_block_optin: {(self.shared - 1) * 1024}
              block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {int(self.bandwidth)} device_memory_size: {self.memory * 2**30}
              l2_cache_size: {self.cache * 2**20}
            }}"""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 164, 64, 2048, 2.04e12, 80, 40),
        Gpu("a6000", "NVIDIA RTX A6000", (8, 6), 84, 100, 128, 1024, 7.7e11, 48, 6),
        Gpu("l4", "NVIDIA L4", (8, 9), 58, 100, 128, 1024, 3e11, 24, 48),
        Gpu("h100", "NVIDIA H100 80GB HBM3", (9, 0), 132, 228, 128, 4096, 3.35e12, 80, 50, True),
        Gpu("b200", "NVIDIA B200", (10, 0), 148, 228, 128, 8192, 8e12, 180, 126, True),
    )
}


@functools.cache
def device_of(name: str) -> Any:
    """The device to compile for.

    Raises:
      UserError: JAX's plugin for CUDA is not installed.
    """
    try:
        return topologies.get_topology_desc(
            topology_name="", platform="cuda", topology="1x1x1", target_config=GPUS[name].target
        ).devices[0]
    except NotImplementedError:
        raise UserError(f"the compiler for GPUs is not installed: {INSTALL}") from None


def tool(name: str) -> str:
    """The path of one of NVIDIA's programs: of their Python packages, or else of the system.

    Raises:
      UserError: it is not installed.
    """
    import nvidia

    packaged = [
        str(path) for root in nvidia.__path__ for path in sorted(Path(root).rglob(f"bin/{name}"))
    ]
    if found := (packaged or [shutil.which(name)])[0]:
        return found
    raise UserError(f"{name} is not installed: {INSTALL}")
