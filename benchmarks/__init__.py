"""Measurements: each prints one JSON line and compares with a peer or a limit in the same run."""
