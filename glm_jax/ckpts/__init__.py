"""Saving and restoring: whole models as directories, and training runs."""

from glm_jax.ckpts.model_dir import load_config, load_generation, load_model, save_model
from glm_jax.ckpts.training import TrainCheckpoints

__all__ = ["TrainCheckpoints", "load_config", "load_generation", "load_model", "save_model"]
