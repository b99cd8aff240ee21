"""Why the model calls jets invalid: jec_client/validity.py, of the checkout's clients/python.

The client is a package of its own, which is installed without this project.
"""

import sys

from common.project import ROOT

_CLIENT = str(ROOT / "clients" / "python")
if _CLIENT not in sys.path:
    sys.path.append(_CLIENT)  # behind an installed jec_client

from jec_client.validity import (  # noqa: E402  (the path comes first)
    COUNTER,
    ETA_RANGE,
    KEY,
    NEGATIVE_PT,
    NO_PARTICLES,
    NOT_FINITE,
    OTHER,
    PT_RANGE,
    REASONS,
    ModelRange,
    count_invalid,
    invalid_reasons,
    model_range,
    range_of_config,
)

__all__ = [
    "COUNTER",
    "ETA_RANGE",
    "KEY",
    "NEGATIVE_PT",
    "NOT_FINITE",
    "NO_PARTICLES",
    "OTHER",
    "PT_RANGE",
    "REASONS",
    "ModelRange",
    "count_invalid",
    "invalid_reasons",
    "model_range",
    "range_of_config",
]
