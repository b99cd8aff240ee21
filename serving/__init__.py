"""Serve exported models, ask them, and calibrate files with them."""
