"""Amounts as Kubernetes writes them: 500m, 12Gi, 2e3."""

from __future__ import annotations

import re

from common.errors import InputError

SUFFIXES = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


def amount(text: str | float) -> float:
    """The number that a quantity means. Raises InputError for a text that is none.

    >>> amount("500m"), amount("1Gi"), amount("2e3")
    (0.5, 1073741824.0, 2000.0)
    """
    match = re.fullmatch(r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)([A-Za-z]*)", str(text))
    if not match or match[2] not in SUFFIXES:
        raise InputError(f"'{text}' is no quantity of Kubernetes")
    return float(match[1]) * SUFFIXES[match[2]]


def shown(value: float) -> str:
    """A number as short as it can be read: 2, 0.5, 12Gi."""
    for suffix in ("Ti", "Gi", "Mi"):
        if value >= SUFFIXES[suffix]:
            return f"{value / SUFFIXES[suffix]:.4g}{suffix}"
    return f"{value:.4g}"
