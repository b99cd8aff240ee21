"""Choices and defaults that several rooms share.

They stand below all rooms, so that the flags of pipeline.py, the programs of the steps and the
physics name the same values.
"""

from __future__ import annotations

SPLITS = ("train", "val", "test")
"""The sets of jets: trials see the first two, only the evaluation reads the third."""

PRECISIONS = ("auto", "float32", "bf16", "fp16")
"""Arithmetic of a training; `auto` takes what is fast and safe on the device."""

RAW_MODELS = ("auto", "required", "none")
"""Whether a second model takes the files' own columns: where the data config allows it, in any
case, or not at all.
"""

EARLY_STOPPING = ("none", "medianstop")
"""Katib's names of the rules by which trials are stopped early."""

ROLLOUTS = ("auto", "surge", "recreate")
"""How a new pod of the service replaces the former one: by the quota, first or afterwards."""

# Defaults of the gate

MIN_IMPROVEMENT = 0.0
"""Per cent of resolution: not worse than the standard JEC."""

MAX_CLOSURE = 0.02
"""Twice the 1 % that CMS aims at: a network's response is drawn towards 1 from both ends of the pT
range by construction.
"""
