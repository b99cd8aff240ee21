"""Data configs, checks of jets, conversion of NanoAOD, and the generator of jets."""
