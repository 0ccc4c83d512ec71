"""Reading the file formats of released checkpoints, without running anything in them."""
