"""Scripts that run in the environments of large models, and the protocol that they speak."""
