"""The PyTorch model: models as pure functions of a frozen config, in PyTorch, written to be read."""
