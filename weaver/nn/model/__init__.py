"""The models that network files written for weaver-core import."""
