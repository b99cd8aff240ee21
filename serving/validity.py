"""Reasons why jets are invalid, from the package of the client (jec_client/validity.py)."""

from jec_client.validity import (
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
