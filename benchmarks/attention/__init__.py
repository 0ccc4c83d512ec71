"""Attention: what the kernel computes, how fast it is, and which chips it compiles for."""
