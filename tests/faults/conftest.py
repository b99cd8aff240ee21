"""Fixtures of the tests of faults."""

import os
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def own_environment():
    """Undo changes of the environment: commands that run in this process set its S3 endpoint."""
    with mock.patch.dict(os.environ):
        yield
