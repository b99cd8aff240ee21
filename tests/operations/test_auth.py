"""Logging in: the configured credentials, expired ones, and all refusals of a gateway."""

from __future__ import annotations

import base64
import http.server
import json
import time
import urllib.parse

import pytest

from common.errors import ClusterError, InputError
from operations.auth import AuthError, credentials
from operations.server import connect
from tests.servers.handling import handling

HOST = "https://kubeflow.example.org/pipeline"


def token(expires: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).decode().rstrip("=")
    return f"header.{payload}.signature"


def test_without_configuration_there_are_no_credentials():
    assert credentials(HOST).kind == "none"


def test_a_token_is_read_from_the_environment_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("KFP_TOKEN", token(time.time() + 60))
    assert credentials(HOST).headers["Authorization"].startswith("Bearer header.")
    monkeypatch.delenv("KFP_TOKEN")
    (tmp_path / "token").write_text("opaque\n")
    monkeypatch.setenv("KFP_TOKEN_FILE", str(tmp_path / "token"))
    notebook_login = credentials(HOST)
    assert notebook_login.headers == {"Authorization": "Bearer opaque"}
    assert "opaque" not in repr(notebook_login)


def test_an_expired_token_says_so_and_how_to_renew_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KFP_TOKEN", token(time.time() - 3600))
    with pytest.raises(
        AuthError, match=r"the token in KFP_TOKEN expired 60 minutes ago.*kubectl create token"
    ):
        credentials(HOST)
    monkeypatch.delenv("KFP_TOKEN")
    (tmp_path / "no-token").write_text(token(time.time() - 3 * 86400))
    with pytest.raises(
        AuthError, match=r"the notebook's token .* expired 72 hours ago.*Restart the notebook"
    ):
        credentials(HOST)


COOKIES = (
    "# Netscape HTTP Cookie File\n"
    ".example.org\tTRUE\t/\tTRUE\t{}\toauth2_proxy\tabc\n"
    "#HttpOnly_other.net\tFALSE\t/\tTRUE\t0\tx\ty\n"
)


def test_cookies_of_single_sign_on_are_sent(monkeypatch, tmp_path):
    file = tmp_path / "cookies.txt"
    monkeypatch.setenv("KFP_COOKIE_FILE", str(file))
    file.write_text(COOKIES.format(int(time.time() + 600)))
    assert credentials(HOST).headers == {"Cookie": "oauth2_proxy=abc"}
    file.write_text(COOKIES.format(int(time.time() - 7200)))
    with pytest.raises(
        AuthError,
        match=(
            r"the cookie in .* expired .* ago.*auth-get-sso-cookie -u"
            r" https://kubeflow.example.org/pipeline"
        ),
    ):
        credentials(HOST)
    file.write_text("Cookie: authservice_session=xyz; other=1\n")
    assert credentials(HOST).headers == {"Cookie": "authservice_session=xyz; other=1"}
    file.write_text(COOKIES.format(0).replace("example.org", "elsewhere.org"))
    with pytest.raises(AuthError, match="holds no cookie for"):
        credentials(HOST)
    file.unlink()
    with pytest.raises(AuthError, match="KFP_COOKIE_FILE: cannot read"):
        credentials(HOST)


def test_cookies_that_end_with_their_session_and_subdomains(monkeypatch, tmp_path):
    file = tmp_path / "cookies.txt"
    monkeypatch.setenv("KFP_COOKIE_FILE", str(file))
    expired = int(time.time() - 60)
    file.write_text(
        "# Netscape HTTP Cookie File\n"
        "#HttpOnly_kubeflow.example.org\tFALSE\t/\tTRUE\t0\tfirst\ta=b\n"
        ".example.org\tTRUE\t/\tTRUE\t\tsecond\tc\n"
        f".example.org\tTRUE\t/\tTRUE\t{expired}\tthird\td\n"
        "notexample.org\tFALSE\t/\tTRUE\t0\tfourth\te\n"
    )
    cookies = credentials(HOST).headers["Cookie"].split("; ")
    assert sorted(cookies) == ["first=a=b", "second=c"]


@pytest.mark.parametrize("head", ["", "# Netscape HTTP Cookie File\n.example.org\tTRUE\n"])
def test_a_file_of_another_format_is_named_and_not_quoted(monkeypatch, tmp_path, head):
    file = tmp_path / "cookies.txt"
    monkeypatch.setenv("KFP_COOKIE_FILE", str(file))
    file.write_text(head + ".example.org\tTRUE\t/\tTRUE\tnever\tname\tsecret-part\n")
    with pytest.raises(AuthError) as error:
        credentials(HOST)
    assert str(file) in str(error.value)
    assert "secret-part" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("token", "KFP_TOKEN"),
        ("cookie", "KFP_COOKIE_FILE"),
        ("dex", "KFP_USERNAME"),
        ("notebook", "Allow access to Kubeflow Pipelines"),
    ],
)
def test_missing_credentials_of_a_kind_say_what_to_set(kind, message):
    with pytest.raises(AuthError, match=message):
        credentials(HOST, kind)
    with pytest.raises(InputError, match="did you mean 'cookie'"):
        credentials(HOST, "cookies")


@pytest.mark.parametrize(
    ("login", "message"),
    [("401", "401"), ("redirect", "it redirects to the login at"), ("page", "a login page")],
)
def test_a_gateway_that_asks_for_a_login_is_recognised(kfp, monkeypatch, login, message):
    kfp.login, kfp.valid_headers = login, {"Authorization": "Bearer right"}
    with pytest.raises(
        AuthError,
        match=rf"it requires a login, and no credential is set \(.*{message}.*KFP_COOKIE_FILE",
    ):
        connect(kfp.url)
    monkeypatch.setenv("KFP_TOKEN", "wrong")
    with pytest.raises(AuthError, match=rf"the token in KFP_TOKEN was not accepted \(.*{message}"):
        connect(kfp.url)
    monkeypatch.setenv("KFP_TOKEN", "right")
    assert connect(kfp.url).version == "2.17.0"


@pytest.mark.parametrize("login", ["401", "redirect", "page"])
def test_a_login_that_expires_during_the_work_is_recognised(kfp, monkeypatch, login):
    monkeypatch.setenv("KFP_TOKEN", "right")
    kfp.valid_headers = {"Authorization": "Bearer right"}
    server = connect(kfp.url)
    kfp.login, kfp.valid_headers = login, {"Authorization": "Bearer another"}
    with (
        pytest.raises(AuthError, match="the token in KFP_TOKEN was not accepted"),
        server.explain_errors("list runs"),
    ):
        server.client.list_runs(namespace="physics")


def test_a_server_that_is_not_kubeflow_is_refused(kfp, monkeypatch):
    with pytest.raises(ClusterError, match=r"no Kubeflow Pipelines answers at http://127.0.0.1:9"):
        connect("http://127.0.0.1:9")
    with pytest.raises(
        ClusterError,
        match=r"there is no Kubeflow Pipelines at .*\(404\); its address often ends in /pipeline",
    ):
        connect(f"{kfp.url}/elsewhere")


class Dex(http.server.BaseHTTPRequestHandler):
    """Kubeflow behind Dex: the way from the front page to the form and back with a session's
    cookie.
    """

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/" and "session=" in self.headers.get("Cookie", ""):
            return self.page("<html>Kubeflow</html>")
        if path in ("/", "/dex/auth"):
            return (
                self.go("/dex/auth?client_id=kubeflow")
                if path == "/"
                else self.page("<html>choose</html>")
            )
        return self.page(
            '<html><form method="post" action="/dex/auth/local/login?back=&amp;state=s1"><input'
            ' name="login"></form></html>'
        )

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if "state=s1" not in self.path or form.get("password") != ["right"]:
            self.page("<html>Invalid Email Address and password.</html>")
        else:
            self.go("/", {"Set-Cookie": "session=abc; Path=/"})

    def go(self, target, headers=()):
        self.send_response(303)
        for key, value in {"Location": target, **dict(headers), "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def page(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def dex():
    with handling(Dex) as server:
        yield server.url


def test_a_login_at_dex(dex, monkeypatch):
    monkeypatch.setenv("KFP_USERNAME", "user@example.org")
    monkeypatch.setenv("KFP_PASSWORD", "right")
    notebook_login = credentials(dex)
    assert (notebook_login.kind, notebook_login.cookies) == ("dex", "session=abc")
    assert "right" not in repr(notebook_login)
    monkeypatch.setenv("KFP_PASSWORD", "wrong")
    with pytest.raises(
        AuthError,
        match=r"refused the login of user@example.org. Check KFP_USERNAME and KFP_PASSWORD",
    ):
        credentials(dex)
