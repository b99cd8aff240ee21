"""The steps of the chain, and the chain itself."""
