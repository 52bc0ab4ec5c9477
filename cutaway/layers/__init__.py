"""The parts between attention and the residual stream: norms, MLPs, mixtures of them, and matrices that stay
packed.
"""
