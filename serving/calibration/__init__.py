"""Calibration of files: readers, models and writers."""
