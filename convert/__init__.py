"""Between released PyTorch checkpoints and model directories, one table of names per family."""
