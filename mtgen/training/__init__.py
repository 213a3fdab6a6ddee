"""Both steps, the trainer and the DeepSpeed engines."""
