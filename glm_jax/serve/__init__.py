"""An OpenAI-compatible server: ``python -m glm_jax.serve CKPT``.

A request's path: ``chat`` or ``completions`` read it, ``engine`` queues it, ``schedule`` gives it a
slot, ``slots`` reads and writes its tokens on the device, ``text`` makes text of them.
"""
