"""Measure an exported model on test jets, beside baselines, and judge it."""
