"""Calibrate jets with a served model: the columns of a file go in, calibrated jets come out."""

from jec_client.client import Client
from jec_client.errors import InputError, JecError, NotServing, Refused, ServerError, Unreachable

__all__ = [
    "Client",
    "InputError",
    "JecError",
    "NotServing",
    "Refused",
    "ServerError",
    "Unreachable",
]
