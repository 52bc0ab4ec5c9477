"""Text from a model, one token after another: how to choose (sample), and the loop around it (decode)."""
