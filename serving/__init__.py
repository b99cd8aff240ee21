"""Serve exported models, send requests to them, and calibrate files with them."""
