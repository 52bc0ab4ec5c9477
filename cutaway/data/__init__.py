"""From text to batches: read, clean, tokenize into mapped shards, pack into rows by (seed, step)."""
