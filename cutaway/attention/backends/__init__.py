"""The backends of softmax attention: ``naive`` is the reference implementation and judges the others."""
