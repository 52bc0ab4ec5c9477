"""Weights: files to tensors and back, by tables read both ways."""
