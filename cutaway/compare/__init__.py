"""One budget, one part swapped: the same model trained again and again, and a table that can be trusted."""
