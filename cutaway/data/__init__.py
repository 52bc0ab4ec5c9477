"""From text to batches: read, clean, tokenise into mapped shards, pack into rows whose order is a function
of (seed, step).
"""
