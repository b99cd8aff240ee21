"""The digest of an image: from its reference, else from its registry, else unknown."""

import http.server
import re

import pytest

from clusters import registry as registry_module
from clusters.registry import Reference, ask_manifest, digest_of, stored_login
from common.errors import ClusterError, InputError
from tests.servers.handling import handling

DIGEST = "sha256:" + "0a" * 32


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry that has one open repository, and answers for its tag 1."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        code = 200 if self.path.endswith("/manifests/1") else 404
        if self.path.startswith("/v2/closed/"):
            code = 403
        if self.path.startswith("/v2/locked-"):
            self._ask_for_a_login()
            return
        digest = "nonsense" if self.path.startswith("/v2/odd/") else DIGEST
        self.send_response(code)
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _ask_for_a_login(self):
        kind = self.path.split("/")[2].removeprefix("locked-")
        where = f'realm="http://{self.headers["Host"]}/{kind}",' if kind != "nowhere" else ""
        self.send_response(401)
        self.send_header("WWW-Authenticate", f'Bearer {where}service="r"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        content = {"/page": b"<html>", "/number": b"[1]"}.get(self.path, b"{}")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def registry():
    with handling(Registry) as server:
        yield f"127.0.0.1:{server.server_port}"


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


@pytest.mark.parametrize("kind", ["nowhere", "page", "number", "empty"])
def test_a_login_that_does_not_follow_the_specification(registry, kind):
    image = f"{registry}/locked-{kind}/steps:1"
    with pytest.raises(ClusterError):
        ask_manifest(Reference.parse(image), seconds=5.0)
    assert digest_of(image, seconds=5.0) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": 3}', '{"auths": {"r": {"auth": "c2Vjcm"}}}'], ids=repr
)
def test_a_damaged_file_of_logins_is_named_and_not_shown(tmp_path, monkeypatch, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    monkeypatch.setattr(registry_module, "DOCKER_CONFIG", str(file))
    with pytest.raises(InputError, match=re.escape(str(file))) as error:
        stored_login("r")
    assert "c2Vjcm" not in str(error.value)
