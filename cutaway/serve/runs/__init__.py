"""Training runs in a folder, read while they train: curves, samples, and checkpoints as models."""
