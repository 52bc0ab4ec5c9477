"""Make a run's config and data ready for the loop (train/run.py): one file a kind of training."""
