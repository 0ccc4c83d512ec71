"""Attention over key ranges as a Pallas kernel for TPUs."""
