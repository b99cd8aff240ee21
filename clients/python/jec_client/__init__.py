"""Calibrate jets with a served model: the columns of a file go in, calibrated jets come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jec_client.errors import InputError, JecError, NotServing, Refused, ServerError, Unreachable

if TYPE_CHECKING:
    from jec_client.client import Client

__all__ = [
    "Client",
    "InputError",
    "JecError",
    "NotServing",
    "Refused",
    "ServerError",
    "Unreachable",
]


def __getattr__(name: str) -> Any:
    # With it NumPy is imported, which a command that only prints its --help should not wait for.
    if name == "Client":
        from jec_client.client import Client

        return Client
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
