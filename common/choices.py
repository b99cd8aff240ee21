"""Choices and defaults that several rooms share.

This module is below all rooms, so that the flags of pipeline.py, the programs of the steps and the
physics name the same values.
"""

from __future__ import annotations

SPLITS = ("train", "val", "test")
"""The sets of jets: trials see the first two, only the evaluation reads the third."""

PRECISIONS = ("auto", "float32", "bf16", "fp16")
"""Arithmetic of a training; `auto` chooses a fast and safe precision for the device."""

RAW_MODELS = ("auto", "required", "none")
"""Whether a second model takes the columns of the files: if the data config allows it, always, or
never.
"""

EARLY_STOPPING = ("none", "medianstop")
"""Katib's names of the rules by which trials are stopped early."""

START_STEPS = ("export", "evaluate", "deploy")
"""Steps that --start-at may begin with; an earlier start would reuse only the decoded data."""

ROLLOUTS = ("auto", "surge", "recreate")
"""When a new pod of the service starts: as the quota allows, before the old one ends, or after."""

GATES = ("default", "strict")
"""The gate refuses a model that is significantly worse than the limits (default), or one that is
not significantly within them (strict).
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
"""Relative to the standard JEC: a gain in one quantity must not come at the cost of another.
"""

MAX_COVERAGE_POINTS = 4.0
"""An uncertainty of a jet that is 10 % too small covers 63.5 % in place of 68 %."""
OPSETS = (12, 20)
"""Lowest and highest opset of an exported model; torch's exporter that traces has no later one."""
