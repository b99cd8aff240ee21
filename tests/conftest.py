"""Fixtures that every room's tests may use."""

import os
import signal

import pytest

from common import storage


def pytest_configure(config):
    """Take SIGINT as in a terminal.

    A shell's background job ignores it, and so would all processes that tests start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    """Add --update-golden, which writes tests/golden anew instead of failing."""
    parser.addoption("--update-golden", action="store_true", help="write the golden manifests anew")


@pytest.fixture(scope="session")
def update_golden(request) -> bool:
    """Whether golden files are written anew."""
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="session")
def s3_server():
    """A real S3 endpoint on this machine (moto's server); the AWS variables of this process point
    to it.
    """
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
    storage._client.cache_clear()
    yield values["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    storage._client.cache_clear()
    server.stop()


@pytest.fixture
def s3_bucket(s3_server, request):
    """The URI of a fresh bucket."""
    import hashlib

    name = "jec-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    storage._client().create_bucket(Bucket=name)
    return f"s3://{name}"
