"""Turn the best checkpoint into a Triton model repository."""
