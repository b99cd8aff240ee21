"""The digest of an image: from its reference, else from its registry, else unknown."""

import http.server
import threading

import pytest

from clusters.registry import digest_of

DIGEST = "sha256:" + "0a" * 32


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry that has one open repository, and answers for its tag 1."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        code = 200 if self.path.endswith("/manifests/1") else 404
        if self.path.startswith("/v2/closed/"):
            code = 403
        digest = "nonsense" if self.path.startswith("/v2/odd/") else DIGEST
        self.send_response(code)
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def registry():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("image", "digest"),
    [
        ("REGISTRY/jec/steps:1", DIGEST),
        ("REGISTRY/jec/steps:2", None),
        ("REGISTRY/closed/steps:1", None),
        ("REGISTRY/odd/steps:1", None),
        (f"127.0.0.1:9/jec/steps@{DIGEST}", DIGEST),
        (f"jec-steps@{DIGEST}", DIGEST),
        ("127.0.0.1:9/jec/steps@sha256:abc", None),
        ("127.0.0.1:9/jec/steps:1", None),
        ("jec-steps:latest", None),
        ("none", None),
    ],
)
def test_the_digest_comes_from_the_reference_or_the_registry(registry, image, digest):
    assert digest_of(image.replace("REGISTRY", registry), seconds=5.0) == digest
