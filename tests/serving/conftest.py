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
def triton_workdir(tmp_path_factory) -> Path:
    """The work folder of Triton; skips with the reason where it cannot run."""
    workdir = tmp_path_factory.mktemp("triton")
    if reason := triton.triton_unusable(workdir):
        pytest.skip(f"Triton: {reason}")
    return workdir


@pytest.fixture(scope="session", params=["triton", "kserve-server"])
def server(request, repository, tmp_path_factory):
    """A running server of each kind."""
    workdir = (
        request.getfixturevalue("triton_workdir")
        if request.param == "triton"
        else tmp_path_factory.mktemp("kserve")
    )
    server = triton.start(
        repository / "model",
        model_name=NAME,
        log=workdir / "server.log",
        workdir=workdir,
        kind=request.param,
    )
    yield server
    assert triton.stop(server.pid)
