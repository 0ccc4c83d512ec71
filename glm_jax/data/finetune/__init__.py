"""Fine-tuning data: conversations, pairs and texts of users' files to packed batches."""

from glm_jax.data.finetune.loader import PARTS, make_finetune_loader, open_records
from glm_jax.data.finetune.options import FinetuneData
from glm_jax.data.finetune.records import Record, Records

__all__ = [
    "PARTS",
    "FinetuneData",
    "Record",
    "Records",
    "make_finetune_loader",
    "open_records",
]
