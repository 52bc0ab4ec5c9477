"""Looking into a model: its activations, what made its answer, and what changes when a part is edited."""
