"""Eight virtual CPU devices and a compilation cache that outlives the run, set before JAX loads.

Programs are compiled without LLVM's optimisations, without XLA's MLIR fusions and each on one
thread: networks this small run once or twice, and most of the time of a test was their compilation.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# The files that take longest begin: what is left at the end is then short, and no worker waits.
LONGEST = (
    "train/test_hosts.py", "nn/test_transformer.py", "train/test_pretrain.py",
    "train/test_trainer.py", "train/test_finetune.py", "test_quantization.py",
    "viz/test_pictures.py", "serve/test_engine.py", "convert/test_fuzz.py",
    "nn/test_golden_glm.py", "chat/test_session.py", "train/test_align.py",
    "test_cli.py", "parity/test_generate.py", "peft/test_lora.py", "nn/test_unstacked.py",
    "ops/test_attention_context.py", "ops/test_attention_kernels.py", "train/test_align_grpo.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {str(ROOT / "tests" / name): at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(LONGEST)))
