"""Names under which network files written for weaver-core import helpers."""
