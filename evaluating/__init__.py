"""Measure an exported model and its baselines on the test jets, and apply the gate."""
