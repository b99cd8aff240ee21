"""Export to ONNX, and the checks that the file answers as PyTorch does."""
