"""Any TFDS data set that the user names, read as it lies (no second copy is written)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from glm_jax.errors import UserError

_HELDOUT_SPLITS = ("validation", "valid", "test")


def builder(name: str, data_dir: str | Path | None) -> tfds.core.DatasetBuilder:
    """The builder of "name/config:version".

    Raises:
      UserError: TFDS knows no such data set, or cannot make it here.
    """
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # TFDS raises many kinds; the first sentence says which name it is
        reason = re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[0]
        raise UserError(f"tfds:{name}: {reason}") from error


def check_field(made: tfds.core.DatasetBuilder, text_field: str) -> None:
    """Raises UserError unless the data set has this text field."""
    features = made.info.features
    if text_field not in features:
        fields = ", ".join(features)
        raise UserError(f"tfds:{made.name} has no field {text_field!r}; its fields: {fields}")
    if not isinstance(features[text_field], tfds.features.Text):
        kind = type(features[text_field]).__name__
        raise UserError(f"tfds:{made.name}: field {text_field!r} is {kind}, not Text")


def split_name(splits: Sequence[str], split: str, heldout_percent: float) -> str:
    """TFDS's name for our "train" or "heldout".

    Held out is the validation or test split where there is one, else the end of "train".
    """
    if "train" not in splits:
        raise UserError(f"the data set has no split 'train'; its splits: {', '.join(splits)}")
    named = next((name for name in _HELDOUT_SPLITS if name in splits), None)
    if named:
        return named if split == "heldout" else "train"
    cut = max(1, round(heldout_percent))
    return f"train[-{cut}%:]" if split == "heldout" else f"train[:-{cut}%]"
