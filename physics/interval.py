"""A statistical interval: its record in metrics.json, and its text on pages and on the console."""

from __future__ import annotations

from collections.abc import Mapping

Interval = dict[str, float]
"""{"value", "low", "high"}: a measured number between the ends of its interval (physics.bootstrap).
"""


def interval_text(
    interval: Mapping[str, float],
    *,
    unit: str = "",
    scale: float = 1.0,
    digits: int = 1,
    sign: str = "+",
) -> str:
    """Return an interval as text, such as '+4.1 % [3.2, 5.0]'.

    The three numbers are multiplied by `scale` and have `digits` decimals. `unit` follows the value
    after a space. `sign` is '+' for a value with its sign, or empty to leave out the plus.
    """
    value = scale * interval["value"]
    low = scale * interval["low"]
    high = scale * interval["high"]
    unit = f" {unit}" if unit else ""
    return f"{value:{sign}.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]"


def percent(
    interval: Mapping[str, float], scale: float = 1.0, digits: int = 1, sign: str = "+"
) -> str:
    """Return an interval in per cent as text; `scale` is 100 for one that is a fraction.

    >>> percent({"value": 0.041, "low": 0.032, "high": 0.05}, 100)
    '+4.1 % [3.2, 5.0]'
    """
    return interval_text(interval, unit="%", scale=scale, digits=digits, sign=sign)
