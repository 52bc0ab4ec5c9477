"""The parts between attention and the residual stream: norms, MLPs, and matrices that stay packed."""
