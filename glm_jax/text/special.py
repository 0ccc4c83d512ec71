"""The command tokens' ids live beside the config, in ``glm_jax.special``; they are wanted here."""

from glm_jax.special import SpecialTokens

__all__ = ["SpecialTokens"]
