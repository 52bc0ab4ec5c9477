"""Continuous batching: many sequences in one engine step, for serving, evaluation, rewards and attacks."""
