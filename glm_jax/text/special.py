"""The command tokens' ids live beside the config (``glm_jax.special``); this is their usual door."""

from glm_jax.special import SpecialTokens

__all__ = ["SpecialTokens"]
