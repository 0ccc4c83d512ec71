"""The parts of ``python -m train.align``."""
