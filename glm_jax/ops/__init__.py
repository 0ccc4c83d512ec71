"""Numerics behind plain functions of arrays. Nothing here knows of modules, configs or files.

Axis letters as in ``glm_jax.nn``: B batch, T query length, S key length, N query heads, K kv heads,
G query heads per kv head, H head dim, D model width, F mlp width, V vocabulary, L layers.
"""
