"""The GLM family in JAX: blank-infilling pretraining, ChatGLM and GLM-4, made for TPUs."""

__version__ = "0.1.0"
