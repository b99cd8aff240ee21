"""Parse and print the quantities of Kubernetes: 500m, 12Gi, 2e3."""

from __future__ import annotations

from common.errors import InputError

BINARY = {"Ti": 2.0**40, "Gi": 2.0**30, "Mi": 2.0**20}


def amount(text: str | float) -> float:
    """Return a quantity as a number. Raises InputError for a text that is not a quantity.

    >>> amount("500m"), amount("1Gi"), amount("2e3")
    (0.5, 1073741824.0, 2000.0)
    """
    # the package takes half a second to import
    from kubernetes.utils.quantity import parse_quantity

    try:
        return float(parse_quantity(text))
    except ValueError:
        raise InputError(f"'{text}' is not a Kubernetes quantity; write 2, 500m or 8Gi") from None


def quantity_text(value: float) -> str:
    """Format a number with four digits and a binary suffix: 2, 0.5, 12Gi."""
    for suffix, size in BINARY.items():
        if value >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"
