"""How a model knows where a token stands: one file a scheme, and each file is a kind."""
