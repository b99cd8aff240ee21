"""Prepared data as batches of tensors."""
