"""Find the credentials for Kubeflow's gateway.

There are five kinds: no credential, a notebook's token, a bearer token, a cookie of single sign-on,
and a Dex login:

    KFP_TOKEN, KFP_TOKEN_FILE      a bearer token, or the file that holds it
    KFP_COOKIE_FILE                cookies of a browser or of CERN's auth-get-sso-cookie (Netscape's
        format, or name=value; ...)
    KFP_USERNAME, KFP_PASSWORD     a login of Dex, as Kubeflow's own installation has it
    KF_PIPELINES_SA_TOKEN_PATH     file of the token that Kubeflow mounts into a notebook (default:
        /var/run/secrets/kubeflow/pipelines/token)

Secrets come from the environment or from files, never from arguments, which everybody on a machine
can read. The error for an expired or rejected credential says how to get a new one.
"""

from __future__ import annotations

import base64
import dataclasses
import http.cookiejar
import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from common.errors import ClusterError, InputError, UnreachableError, unknown
from common.http import send, session

if TYPE_CHECKING:
    import requests

KINDS = ("auto", "none", "notebook", "token", "cookie", "dex")
NOTEBOOK_CREDENTIAL = "/var/run/secrets/kubeflow/pipelines/token"
# The paths and hosts of Dex, oauth2-proxy, Keycloak and CERN's single sign-on.
LOGIN_PAGE = re.compile(
    r"/(auth|oauth2?|dex|login|sign_?in|sso|realms|keycloak|authorize)\b|[/.]auth[./]",
    re.IGNORECASE,
)
SECONDS = 30.0  # limit for one page of a login
SESSION_COOKIE = (None, 0, -1)
"""Expiry of a cookie that lives as long as its session: curl writes 0, some browsers write -1."""


class AuthError(InputError):
    """Kubeflow rejects our credential; the message names the credential and how to renew it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credentials:
    """The headers of every request to Kubeflow. `repr` hides the secret fields."""

    kind: str
    """One of KINDS, without 'auto'."""
    source: str
    """Where the credential comes from, for messages."""
    renew: str
    """How to get a new one, as a sentence for error messages."""
    token: str = dataclasses.field(default="", repr=False)
    cookies: str = dataclasses.field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of each request."""
        headers = {}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if self.cookies:
            headers["Cookie"] = self.cookies
        return headers

    def refusal(self, host: str, how: str) -> AuthError:
        """Return the error for a gateway that rejects the credential; `how` is its answer."""
        what = f"{self.source} was not accepted"
        if self.kind == "none":
            what = "it requires a login, and no credential is set"
        return AuthError(f"Kubeflow at {host}: {what} ({how}). {self.renew}")


def credentials(host: str, kind: str = "auto") -> Credentials:
    """Return the credentials of this kind for a host.

    'auto' takes the first kind that is configured: token, cookie, Dex login, notebook.

    Raises:
        AuthError: a credential is missing or has expired, or Dex refuses the login.
        ClusterError: the host does not answer a Dex login.
        InputError: `kind` is not one of KINDS.
    """
    if kind not in KINDS:
        raise InputError(f"--auth: {unknown('kind', kind, KINDS)}")
    if kind == "auto":
        kind = configured_kind()
    return LOG_INS[kind](host)


def configured_kind() -> str:
    """Return the kind of credential that the environment configures, or 'none'."""
    if os.environ.get("KFP_TOKEN") or os.environ.get("KFP_TOKEN_FILE"):
        return "token"
    if os.environ.get("KFP_COOKIE_FILE"):
        return "cookie"
    if os.environ.get("KFP_USERNAME"):
        return "dex"
    return "notebook" if notebook_token().exists() else "none"


def notebook_token() -> Path:
    """Return the path at which Kubeflow mounts a notebook's token."""
    return Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", NOTEBOOK_CREDENTIAL))


def no_credential(host: str) -> Credentials:
    """Return credentials without any secret, for a server that requires no login."""
    renew = (
        f"Set KFP_COOKIE_FILE (single sign-on; CERN: auth-get-sso-cookie -u {host} -o FILE),"
        " KFP_USERNAME and KFP_PASSWORD (Dex), or KFP_TOKEN; in a Kubeflow notebook, tick 'Allow"
        " access to Kubeflow Pipelines'"
    )
    return Credentials(kind="none", source="no credential", renew=renew)


def notebook_credential(host: str) -> Credentials:
    """Log in with the token of a Kubeflow notebook. Raises AuthError if it is missing or old."""
    path = notebook_token()
    renew = "Restart the notebook with the configuration 'Allow access to Kubeflow Pipelines'"
    if not path.exists():
        raise AuthError(f"no notebook token at {path}. {renew}")
    return _with_token(path.read_text(), f"the notebook's token {path}", "notebook", renew)


def token_credential(host: str) -> Credentials:
    """Log in with KFP_TOKEN or KFP_TOKEN_FILE. Raises AuthError if it is missing or expired."""
    file = os.environ.get("KFP_TOKEN_FILE", "")
    renew = (
        f"Put a new token into {file or 'KFP_TOKEN'}, as kubectl create token ACCOUNT --audience"
        " pipelines.kubeflow.org prints it"
    )
    if text := os.environ.get("KFP_TOKEN", ""):
        return _with_token(text, "the token in KFP_TOKEN", "token", renew)
    if not file:
        raise AuthError("no token: set KFP_TOKEN, or KFP_TOKEN_FILE to the file that holds it")
    return _with_token(_read(file, "KFP_TOKEN_FILE"), f"the token in {file}", "token", renew)


def _with_token(text: str, source: str, kind: str, renew: str) -> Credentials:
    token = text.strip()
    expires = expiry(token)
    if expires is not None and expires < time.time():
        raise AuthError(f"{source} expired {_ago(expires)}. {renew}")
    return Credentials(kind=kind, source=source, renew=renew, token=token)


def expiry(token: str) -> float | None:
    """Return when a JSON web token expires, in seconds since 1970; None for any other token."""
    try:
        payload = token.split(".")[1]
        # the padding that RFC 7515 leaves out
        padding = "=" * (-len(payload) % 4)
        return float(json.loads(base64.urlsafe_b64decode(payload + padding))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def cookie_credential(host: str) -> Credentials:
    """Log in with KFP_COOKIE_FILE.

    Raises AuthError if the file is missing, has no cookie for the host, or only expired ones.
    """
    file = os.environ.get("KFP_COOKIE_FILE", "")
    renew = f"Get a new one, as with: auth-get-sso-cookie -u {host} -o {file or 'FILE'}"
    if not file:
        raise AuthError(f"no cookie: set KFP_COOKIE_FILE to the file that holds it. {renew}")
    text = _read(file, "KFP_COOKIE_FILE")

    if "\t" in text:
        pairs = cookies_of_jar(file, urlsplit(host).hostname or "", renew)
    else:
        line = text.strip().removeprefix("Cookie:").strip()
        pairs = [part.strip() for part in line.split(";") if "=" in part]
    if not pairs:
        raise AuthError(f"{file} holds no cookie for {host}. {renew}")
    return Credentials(
        kind="cookie", source=f"the cookie in {file}", renew=renew, cookies="; ".join(pairs)
    )


def cookies_of_jar(file: str, host: str, renew: str) -> list[str]:
    """Return 'name=value' of each valid cookie for a host in a cookie file in Netscape's format.

    Raises AuthError for a file in another format, or if all cookies of the host have expired.
    """
    jar = http.cookiejar.MozillaCookieJar()
    try:
        with warnings.catch_warnings():
            # the module warns of a bug of its own where a line is malformed
            warnings.simplefilter("ignore")
            # Expiry is judged below: the module takes an expiry of 0 for the year 1970.
            jar.load(str(Path(file).expanduser()), ignore_discard=True, ignore_expires=True)
    except http.cookiejar.LoadError:
        # its text quotes the line, which is a secret
        raise AuthError(
            f"{file} is not a cookie file in Netscape's format, which begins with"
            f" '# Netscape HTTP Cookie File'. {renew}"
        ) from None

    cookies = []
    for cookie in jar:
        domain = cookie.domain.lstrip(".")
        if host == domain or host.endswith(f".{domain}"):
            cookies.append(cookie)
    valid = []
    for cookie in cookies:
        if cookie.expires in SESSION_COOKIE or not cookie.is_expired():
            valid.append(f"{cookie.name}={(cookie.value or '').strip()}")
    if cookies and not valid:
        latest = max(cookie.expires or 0 for cookie in cookies)
        raise AuthError(f"the cookie in {file} expired {_ago(latest)}. {renew}")
    return valid


def dex_credential(host: str) -> Credentials:
    """Log in at Dex as a browser would and keep the session's cookie.

    Follows the redirects to the form, posts the form, and checks whether it leads back to a login.

    Raises:
        AuthError: a variable is not set, or Dex refuses the login.
        ClusterError: the host does not answer.
    """
    name, password = os.environ.get("KFP_USERNAME", ""), os.environ.get("KFP_PASSWORD", "")
    renew = (
        "Check KFP_USERNAME and KFP_PASSWORD; the name is an e-mail address at Kubeflow's own Dex"
    )
    if not (name and password):
        raise AuthError(f"no Dex login: KFP_USERNAME or KFP_PASSWORD is not set. {renew}")

    browser = session()
    try:
        page = login_page(browser, host)
        if not LOGIN_PAGE.search(urlsplit(page.url).path):
            source = "no credential (the server asks for none)"
            return Credentials(kind="none", source=source, renew=renew)
        # The form is posted to its action, or else to the page itself.
        action = re.search(r"<form[^>]*\baction=\"([^\"]+)\"", page.text)
        target = urljoin(page.url, action[1].replace("&amp;", "&")) if action else page.url
        form = {"login": name, "password": password}
        answer = send(browser, "POST", target, seconds=SECONDS, data=form)
    except UnreachableError as error:
        raise ClusterError(f"cannot log in at {host}: {error}") from error

    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)
    # After a refused login Dex shows its form again.
    if LOGIN_PAGE.search(urlsplit(answer.url).path) or not cookies:
        raise AuthError(f"Dex at {urlsplit(page.url).netloc} refused the login of {name}. {renew}")
    return Credentials(kind="dex", source=f"the Dex login of {name}", renew=renew, cookies=cookies)


def login_page(browser: requests.Session, host: str) -> requests.Response:
    """Return the page with Dex's form, or the host's own page where it asks for no login."""
    page = send(browser, "GET", host, seconds=SECONDS)
    if "/oauth2/sign_in" in page.url:
        # oauth2-proxy shows a page with one button first
        start = urljoin(page.url, "/oauth2/start")
        page = send(browser, "GET", start, seconds=SECONDS, params={"rd": "/"})
    parts = urlsplit(page.url)
    if parts.path.endswith("/auth"):
        # Dex asks which connector to log in with; 'local' is its own list of passwords
        local = parts._replace(path=parts.path + "/local").geturl()
        page = send(browser, "GET", local, seconds=SECONDS)
    return page


def _read(file: str, variable: str) -> str:
    try:
        return Path(file).expanduser().read_text()
    except OSError as error:
        raise AuthError(f"{variable}: cannot read {file}: {error.strerror}") from None


def _ago(moment: float) -> str:
    """Return how long ago a moment (seconds since 1970) was, in words."""
    minutes = (time.time() - moment) / 60
    return f"{minutes:.0f} minutes ago" if minutes < 120 else f"{minutes / 60:.0f} hours ago"


LOG_INS = {
    "none": no_credential,
    "notebook": notebook_credential,
    "token": token_credential,
    "cookie": cookie_credential,
    "dex": dex_credential,
}
