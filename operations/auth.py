"""Who we are to Kubeflow's gateway: nobody, a notebook's own token, a bearer token, a cookie of
single sign-on, or a Dex login.

    KFP_TOKEN, KFP_TOKEN_FILE      a bearer token, or the file that holds it
    KFP_COOKIE_FILE                cookies of a browser or of CERN's auth-get-sso-cookie (Netscape's
        format, or name=value; ...)
    KFP_USERNAME, KFP_PASSWORD     a login of Dex, as Kubeflow's own installation has it
    KF_PIPELINES_SA_TOKEN_PATH     the token that Kubeflow mounts into a notebook (its usual place
        is found by itself)

Secrets come from the environment or from files, never from arguments, which everybody on a machine
can read. An expired or refused one is named, with how to get another.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import time
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from common.errors import ClusterError, InputError, unknown

KINDS = ("auto", "none", "notebook", "token", "cookie", "dex")
NOTEBOOK_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
LOGIN_PAGE = re.compile(
    r"/(auth|oauth2?|dex|login|sign_?in|sso|realms|keycloak|authorize)\b|[/.]auth[./]",
    re.IGNORECASE,
)
SECONDS = 30.0  # for one page of a login


class AuthError(InputError):
    """Kubeflow does not accept who we are; the text says which credential it was and how to renew
    it.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credentials:
    """What goes with every request. The secret parts are left out of `repr`."""

    kind: str
    source: str
    renew: str
    token: str = dataclasses.field(default="", repr=False)
    cookies: str = dataclasses.field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return ({"Authorization": f"Bearer {self.token}"} if self.token else {}) | (
            {"Cookie": self.cookies} if self.cookies else {}
        )

    def refused(self, host: str, how: str) -> AuthError:
        """The sentence for a gateway that did not let us in."""
        what = (
            f"{self.source} was not accepted"
            if self.kind != "none"
            else "it wants a login, and no credential is set"
        )
        return AuthError(f"Kubeflow at {host}: {what} ({how}). {self.renew}")


def credentials(host: str, kind: str = "auto") -> Credentials:
    """The credentials of this kind for a host; 'auto' takes the first that is configured, in the
    order of this module's table.

    Raises AuthError for one that is missing or has expired, or a login that is refused.
    """
    if kind not in KINDS:
        raise InputError(f"--auth: {unknown('kind', kind, KINDS)}")
    return MAKERS[_configured() if kind == "auto" else kind](host)


def _configured() -> str:
    if os.environ.get("KFP_TOKEN") or os.environ.get("KFP_TOKEN_FILE"):
        return "token"
    if os.environ.get("KFP_COOKIE_FILE"):
        return "cookie"
    if os.environ.get("KFP_USERNAME"):
        return "dex"
    return "notebook" if notebook_token().exists() else "none"


def notebook_token() -> Path:
    """Where Kubeflow mounts a notebook's token."""
    return Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", NOTEBOOK_TOKEN))


def _none(host: str) -> Credentials:
    renew = (
        "Set KFP_COOKIE_FILE (single sign-on; CERN: auth-get-sso-cookie -u HOST -o FILE),"
        " KFP_USERNAME and KFP_PASSWORD (Dex), or KFP_TOKEN; in a Kubeflow notebook, tick 'Allow"
        " access to Kubeflow Pipelines'"
    )
    return Credentials(kind="none", source="no credential", renew=renew.replace("HOST", host))


def _notebook(host: str) -> Credentials:
    path = notebook_token()
    renew = "Restart the notebook with the configuration 'Allow access to Kubeflow Pipelines'"
    if not path.exists():
        raise AuthError(f"there is no token of a notebook at {path}. {renew}")
    return _with_token(path.read_text(), f"the notebook's token {path}", "notebook", renew)


def _token(host: str) -> Credentials:
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
    expires = _expiry(text.strip())
    if expires is not None and expires < time.time():
        raise AuthError(f"{source} expired {_ago(expires)}. {renew}")
    return Credentials(kind=kind, source=source, renew=renew, token=text.strip())


def _expiry(token: str) -> float | None:
    """When a JSON web token ends, in seconds since 1970; None for any other token."""
    try:
        payload = token.split(".")[1]
        return float(
            json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        )
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def _cookie(host: str) -> Credentials:
    file = os.environ.get("KFP_COOKIE_FILE", "")
    renew = f"Get a new one, as with: auth-get-sso-cookie -u {host} -o {file or 'FILE'}"
    if not file:
        raise AuthError(f"no cookie: set KFP_COOKIE_FILE to the file that holds it. {renew}")
    text = _read(file, "KFP_COOKIE_FILE")
    pairs = (
        _netscape(text, urlsplit(host).hostname or "", file, renew)
        if "\t" in text
        else _plain(text)
    )
    if not pairs:
        raise AuthError(f"{file} holds no cookie for {host}. {renew}")
    return Credentials(
        kind="cookie", source=f"the cookie in {file}", renew=renew, cookies="; ".join(pairs)
    )


def _plain(text: str) -> list[str]:
    line = text.strip().removeprefix("Cookie:").strip()
    return [part.strip() for part in line.split(";") if "=" in part]


def _netscape(text: str, host: str, file: str, renew: str) -> list[str]:
    """The cookies of a host in Netscape's format: domain, subdomains too, path, https only, expiry,
    name, value.
    """
    rows = [
        line.removeprefix("#HttpOnly_").split("\t")
        for line in text.splitlines()
        if line.count("\t") == 6
    ]
    mine = [
        row for row in rows if host == row[0].lstrip(".") or host.endswith("." + row[0].lstrip("."))
    ]
    alive = [row for row in mine if float(row[4] or 0) in (0, -1) or float(row[4]) > time.time()]
    if mine and not alive:
        raise AuthError(
            f"the cookie in {file} expired {_ago(max(float(row[4]) for row in mine))}. {renew}"
        )
    return [f"{row[5]}={row[6].strip()}" for row in alive]


def _dex(host: str) -> Credentials:
    """Log in at Dex as a browser would: follow the redirects to its form, post it, keep the
    session's cookie.
    """
    import requests

    name, password = os.environ.get("KFP_USERNAME", ""), os.environ.get("KFP_PASSWORD", "")
    renew = (
        "Check KFP_USERNAME and KFP_PASSWORD; the name is an e-mail address at Kubeflow's own Dex"
    )
    if not (name and password):
        raise AuthError(f"no Dex login: KFP_USERNAME or KFP_PASSWORD is not set. {renew}")
    session = requests.Session()
    try:
        page = session.get(host, timeout=SECONDS)
        page = _to_form(session, page)
        if not LOGIN_PAGE.search(urlsplit(page.url).path):
            return Credentials(
                kind="none", source="no credential (none was asked for)", renew=renew
            )
        answer = session.post(
            _form_target(page), data={"login": name, "password": password}, timeout=SECONDS
        )
    except requests.RequestException as error:
        raise ClusterError(f"cannot log in at {host}: {type(error).__name__}: {error}") from error
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in session.cookies)
    if LOGIN_PAGE.search(urlsplit(answer.url).path) or not cookies:
        raise AuthError(f"Dex at {urlsplit(page.url).netloc} refused the login of {name}. {renew}")
    return Credentials(kind="dex", source=f"the Dex login of {name}", renew=renew, cookies=cookies)


def _to_form(session, page):
    """On the way to Dex' form: oauth2-proxy's page with one button, and Dex' choice of how to log
    in.
    """
    if "/oauth2/sign_in" in page.url:
        page = session.get(urljoin(page.url, "/oauth2/start"), params={"rd": "/"}, timeout=SECONDS)
    parts = urlsplit(page.url)
    if re.search(r"/auth$", parts.path):
        page = session.get(parts._replace(path=parts.path + "/local").geturl(), timeout=SECONDS)
    return page


def _form_target(page) -> str:
    """Where the form of a login page is posted to: its action, or else the page itself."""
    found = re.search(r"<form[^>]*\baction=\"([^\"]+)\"", page.text)
    return urljoin(page.url, found[1].replace("&amp;", "&")) if found else page.url


def _read(file: str, variable: str) -> str:
    try:
        return Path(file).expanduser().read_text()
    except OSError as error:
        raise AuthError(f"{variable}: cannot read {file}: {error.strerror}") from None


def _ago(moment: float) -> str:
    minutes = (time.time() - moment) / 60
    return f"{minutes:.0f} minutes ago" if minutes < 120 else f"{minutes / 60:.0f} hours ago"


MAKERS = {"none": _none, "notebook": _notebook, "token": _token, "cookie": _cookie, "dex": _dex}
