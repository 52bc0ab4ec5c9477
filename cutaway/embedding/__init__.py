"""Words and tokens as vectors: the tables that hold them and what can be read from their geometry."""
