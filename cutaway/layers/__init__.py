"""The layers around attention: norms, MLPs, mixtures of experts, and packed weight matrices."""
