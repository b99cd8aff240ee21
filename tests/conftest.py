"""Fixtures that every room's tests may use."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from common import storage
from common.config import RunConfig
from common.storage import retries
from tests.servers import web, xrootd


def pytest_configure(config):
    """Take SIGINT as in a terminal.

    A shell's background job ignores it, and so would all processes that tests start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Restore the handlers of signals after each test.

    A command that a test runs in this process leaves its handlers behind. Processes that a later
    test forks would inherit them, and not end by SIGTERM.
    """
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        return (yield)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def pytest_addoption(parser):
    """Add --update-golden, which writes tests/golden anew instead of failing."""
    parser.addoption("--update-golden", action="store_true", help="write the golden manifests anew")


@pytest.fixture(scope="session")
def update_golden(request) -> bool:
    """Whether golden files are written anew."""
    return request.config.getoption("--update-golden")


class CompiledPipeline(NamedTuple):
    """The pipeline as kfp's compiler writes it."""

    path: Path
    spec: dict[str, Any]
    """The PipelineSpec, the file's first document."""
    platform: dict[str, Any]
    """The PlatformSpec, the file's second document: what is Kubernetes' own."""


@pytest.fixture(scope="session", autouse=True)
def stack_without_source_lines():
    """Leave the source lines out of `inspect.stack`.

    kfp asks for the stack for each task of a pipeline and reads only names of functions. Where
    torch is imported, finding the source lines took seconds for each pipeline.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", functools.partial(inspect.stack, 0))
        yield


@pytest.fixture(scope="session")
def compiled_pipeline(tmp_path_factory) -> CompiledPipeline:
    """The pipeline of the default configuration, compiled once for all tests; change no part."""
    # kfp is slow to import, and most sessions of a few tests do not need it.
    from components import chain

    path = chain.compile_to(tmp_path_factory.mktemp("ir") / "pipeline.yaml", RunConfig())
    spec, platform = yaml.safe_load_all(path.read_text())
    return CompiledPipeline(path, spec, platform)


@pytest.fixture(scope="session")
def s3_server():
    """Serve S3 on this machine with moto, and point the AWS variables of this process to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    storage.forget_client()
    yield values["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    storage.forget_client()
    server.stop()


@pytest.fixture
def s3_bucket(s3_server, request):
    """Make a bucket of the test's own; gives its URI."""
    name = "jec-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    storage.s3.client().create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def xrootd_server():
    """Serve a folder over XRootD, without any login."""
    server = xrootd.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def web_server(tmp_path_factory):
    """Serve a folder over HTTP."""
    server = web.start(tmp_path_factory.mktemp("web"))
    yield server
    server.kill()


@pytest.fixture
def no_pauses(monkeypatch):
    """Repeat failed requests at once. Gives the list of our own pauses that were not made.

    boto3's own repeats are without a pause too.
    """
    pauses = []
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda self, context: 0)
    monkeypatch.setattr(retries, "sleep", pauses.append)
    return pauses
