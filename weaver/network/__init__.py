"""Loading, objective and precision of a network, for training and export."""
