"""The CPU engine: the definition's model as one fused step on packed weights. Numpy over native/, no torch."""
