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

START_STEPS = ("export", "evaluate", "deploy")
"""Steps that --start-at may begin with; before them a run has nothing to keep but decoded data."""

ROLLOUTS = ("auto", "surge", "recreate")
"""How a new pod of the service replaces the former one: by the quota, first or afterwards."""

GATES = ("default", "strict")
"""What the gate refuses: a model whose test jets show that it is worse than allowed, or any that
they do not show to be within the limits.
"""

GATE_REGIONS = ("both", "barrel", "endcap")
"""Regions of eta that the gate judges; a selection of jets may leave one region empty."""

# Defaults of the gate

MIN_IMPROVEMENT = 0.0
"""Per cent of resolution: not worse than the standard JEC."""

MAX_CLOSURE = 0.01
"""What CMS aims at, from 60 GeV up."""

MAX_RESOLUTION_RATIO = 1.05
MAX_TAIL_RATIO = 1.05
MAX_FLAVOUR_RATIO = 1.05
"""Of the standard JEC's: a trade of one quantity for another is refused before it is seen in an
analysis.
"""

MAX_COVERAGE_POINTS = 4.0
"""An uncertainty of a jet that is 10 % too small covers 63.5 % in place of 68 %."""
