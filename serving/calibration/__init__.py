"""Calibrate files: readers, models, writers."""
