"""A small model in a repository, and both kinds of server over it.

Each server is ended by its fixture.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import triton
from tests.exporting.small import write_repository

NAME = "small"


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """A folder with model/ (the Triton repository) and golden/ (requests and PyTorch's answers)."""
    folder = tmp_path_factory.mktemp("served")
    write_repository(folder, NAME)
    (folder / "model" / "export.json").write_text("{}")  # lies beside the model in a run's folder
    return folder


@pytest.fixture(scope="session")
def triton_runs(tmp_path_factory) -> None:
    """Skips with the reason where Triton cannot run."""
    if reason := triton.triton_unusable(tmp_path_factory.mktemp("triton")):
        pytest.skip(f"Triton: {reason}")


@pytest.fixture(scope="session", params=["triton", "kserve-server"])
def server(request, repository, tmp_path_factory):
    """A running server of each kind."""
    if request.param == "triton":
        request.getfixturevalue("triton_runs")
    server = triton.start(
        repository / "model",
        model_name=NAME,
        log=tmp_path_factory.mktemp("server") / "server.log",
        kind=request.param,
    )
    yield server
    assert triton.stop(server.pid)
