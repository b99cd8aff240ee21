"""The search: its space, and the Katib Experiment whose trials are PyTorchJobs."""
