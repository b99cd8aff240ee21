"""What training and export share of a network: loading, objective, precision."""
