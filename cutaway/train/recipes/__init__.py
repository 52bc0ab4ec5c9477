"""How a run's config and data are made ready for the loop (train/run.py): one file a kind of training."""
