"""The CPU engine: the model as one fused step on packed weights. Numpy over native/, no torch."""
