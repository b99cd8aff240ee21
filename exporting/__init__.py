"""Export the best checkpoint as a Triton model repository."""
