"""Position encodings: one file a scheme, and each file is a kind."""
