"""Whole runs as data: the demo, a tiny one for tests, and the recipes of the released models."""

from __future__ import annotations

from glm_jax.data import DataConfig
from glm_jax.nn import Compute
from train.loop import Intervals
from train.optim import Optimizer
from train.options import Model, Pretrain
from train.schedules import Schedule


def _released(
    model: str,
    infilling: str,
    schedule: Schedule,
    *,
    steps: int,
    batch: int,
    decay: float = 0.1,
    seq_len: int = 512,
    large: bool = False,
    name: str = "",
) -> Pretrain:
    """A recipe of THUDM/GLM config/ (``ds_block_*.sh`` and ``config_*.json``).

    ``batch`` is the micro-batch per GPU times the GPUs of the paper or launcher; float16 with
    loss scaling becomes bfloat16 arithmetic on float32 weights.
    """
    betas = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8} if large else {}
    name = name or model
    return Pretrain(
        preset=name,
        output=f"runs/{name}",
        steps=steps,
        batch_size=batch,
        seq_len=seq_len,
        vocab_size=50048 if "chinese" in model else 30592,
        model=Model(preset=model),
        data=DataConfig(infilling=infilling, num_workers=4),
        optimizer=Optimizer(schedule=schedule, weight_decay=decay, **betas),
        compute=Compute(dtype="bfloat16", remat="attention" if large else "none"),
    )


def _cosine(peak: float, steps: int, floor: float, warmup: float) -> Schedule:
    return Schedule(peak, steps, warmup, floor, "cosine")


def _linear(peak: float, steps: int, floor: float, warmup: float) -> Schedule:
    return Schedule(peak, steps, warmup, floor, "linear")


_RECIPES = (
    _released(
        "glm-base", "ds_block_base", _cosine(4e-4, 120_000, 0.05, 0.05), steps=150_000, batch=1024
    ),
    _released(
        "glm-large", "ds_block_large", _cosine(2e-4, 160_000, 0.05, 0.05), steps=200_000, batch=1024
    ),
    # The released script; the paper says 250k steps.
    _released(
        "glm-roberta-large",
        "ds_blockta_large",
        _linear(4e-4, 500_000, 0.025, 0.06),
        steps=500_000,
        batch=8192,
        decay=0.01,
    ),
    _released(
        "glm-large-chinese",
        "ds_block_large_chinese",
        _cosine(4e-4, 200_000, 0.1, 0.04),
        steps=250_000,
        batch=2048,
        decay=0.01,
    ),
    _released(
        "glm-10b",
        "ds_block_10B",
        _cosine(1e-4, 175_000, 0.1, 0.04),
        steps=250_000,
        batch=5376,
        large=True,
    ),
    # These two continue the ones before them on longer rows, with a fresh schedule.
    _released(
        "glm-10b",
        "ds_block_10B_longer",
        _linear(3e-5, 50_000, 0.1, 0.005),
        steps=50_000,
        batch=2048,
        seq_len=1024,
        large=True,
        name="glm-10b-longer",
    ),
    _released(
        "glm-10b-chinese",
        "ds_block_10B_chinese",
        _cosine(1e-4, 120_000, 0.1, 0.04),
        steps=150_000,
        batch=5376,
        large=True,
    ),
    _released(
        "glm-10b-chinese",
        "ds_block_10B_chinese_longer",
        _cosine(3e-5, 20_000, 0.1, 0.025),
        steps=150_000,
        batch=2048,
        seq_len=1024,
        large=True,
        name="glm-10b-chinese-longer",
    ),
)

DEMO = Pretrain(
    steps=400,
    batch_size=4,
    seq_len=256,
    max_minutes=4.0,
    model=Model("glm-base", num_layers=6, embed_dim=320, num_heads=5, max_seq_len=256, dropout=0.0),
    optimizer=Optimizer(schedule=Schedule(1e-3, 400, 0.08, 0.05)),
    every=Intervals(log=1, heldout=100, save=200),
    heldout_batches=12,
    keep=2,
)
"""About 10 million parameters; four minutes on two CPU cores."""

TINY = Pretrain(
    preset="tiny",
    output="runs/tiny",
    steps=60,
    batch_size=8,
    seq_len=64,
    vocab_size=512,
    model=Model("glm-base", num_layers=2, embed_dim=32, num_heads=4, max_seq_len=64, dropout=0.1),
    optimizer=Optimizer(schedule=Schedule(3e-3, 60, 0.1, 0.1)),
    every=Intervals(log=1, heldout=0, save=20),
    heldout_batches=1,
)
"""Seconds: for tests, and for trying options out."""

PRESETS: dict[str, Pretrain] = {p.preset: p for p in (DEMO, TINY, *_RECIPES)}
