"""Prepared data: decoded columns in a folder that runs share."""
