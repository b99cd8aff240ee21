"""Generate jets with Pythia 8 and a parametrised detector."""
