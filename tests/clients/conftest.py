"""Fixtures for the tests of the client."""

import pytest


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Repeat failed requests after 10 ms rather than seconds."""
    monkeypatch.setattr("jec_client.http_server.PAUSES", (0.01, 0.01, 0.01))
