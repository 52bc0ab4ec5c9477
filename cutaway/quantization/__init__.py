"""Weights in few bits: block formats, how blocks are fitted to weights, and a model's mix of types."""
