"""The parts of ``python -m train.finetune``."""
