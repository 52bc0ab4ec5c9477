"""Routes that look into the model at some tokens of a prompt: attention, lenses, attribution, divergence."""
