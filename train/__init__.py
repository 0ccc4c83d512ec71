"""What people run: pretraining, the demo, and the parts that fine-tuning reuses."""
