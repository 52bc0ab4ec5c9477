"""How well a model predicts: perplexity, and divergence from another model."""
