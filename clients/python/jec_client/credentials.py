"""Tokens and cookies of a gateway, read from a file or from the environment at each request.

A client stores only the path or the variable's name, never the secret. So `repr` and pickle (used
by dask and multiprocessing) cannot reveal it, and a file that is renewed while the client exists,
such as a token that Kubernetes mounts, takes effect at the next request.
"""

from __future__ import annotations

import dataclasses
import http.cookiejar
import os
import warnings
from pathlib import Path

from jec_client.errors import InputError

SESSION_COOKIE = (None, 0, -1)
"""Expiry of a cookie that lives as long as its session: curl writes 0, some browsers write -1."""


@dataclasses.dataclass(frozen=True)
class Secret:
    """The place of a secret: the path of a file, or the name of an environment variable."""

    option: str
    file: str = ""
    variable: str = ""

    @classmethod
    def at(cls, option: str, place: str | os.PathLike[str]) -> Secret:
        """Return the secret at '$VARIABLE' or in a file. Raises InputError where there is none.

        Text that is no file may be the secret itself, so no error repeats it.
        """
        text = os.fspath(place) if isinstance(place, os.PathLike) else place
        if not isinstance(text, str):
            raise InputError(
                f"{option}= takes the path of a file, or '$NAME' for a variable of the environment,"
                f" not an object of the type {type(place).__name__}"
            )
        if text.startswith("$"):
            secret = cls(option, variable=text[1:].strip("{}"))
            if not secret.variable:
                raise InputError(f"{option}= names no variable of the environment behind '$'")
        else:
            path = Path(text)
            try:
                path = path.expanduser()
                there = path.is_file()
            # a name that no file can have, and ~NAME of a user who does not exist
            except (OSError, ValueError, RuntimeError):
                there = False
            if not there:
                hint = f"; there is no file {text}" if isinstance(place, os.PathLike) else ""
                raise InputError(
                    f"{option}= takes the path of a file, or '$NAME' for a variable of the"
                    f" environment, and never the secret itself{hint}"
                )
            secret = cls(option, file=str(path.absolute()))
        secret.read()
        return secret

    def read(self) -> str:
        """Return the secret as it is now. Raises InputError where it is gone or empty."""
        if self.variable:
            where, text = f"the variable {self.variable}", os.environ.get(self.variable, "")
            if not text.strip():
                raise InputError(f"{self.option}: {where} is not set in the environment")
        else:
            where = self.file
            try:
                text = Path(self.file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise InputError(f"{self.option}: cannot read {where}: {reason}") from None
        if not text.strip():
            raise InputError(f"{self.option}: {where} is empty; write the secret into it")
        return text.strip()

    def __str__(self) -> str:
        """Say where the secret comes from, not what it is."""
        return f"${self.variable}" if self.variable else self.file


def authorization(token: Secret) -> str:
    """Return the value of the header Authorization.

    Raises InputError for what no header can hold.
    """
    text = token.read().removeprefix("Bearer ").strip()
    return f"Bearer {_printable(text, token)}"


def cookie_header(cookies: Secret, host: str) -> str:
    """Return the value of the header Cookie for a host.

    The file has Netscape's format, as curl and CERN's auth-get-sso-cookie write it, or holds
    name=value; name=value, as the variable does. Raises InputError where no cookie is for the host,
    or all have expired.
    """
    text = cookies.read()
    if "\t" in text and cookies.file:
        pairs = _of_jar(cookies, host)
    else:
        line = text.removeprefix("Cookie:").strip()
        pairs = [part.strip() for part in line.split(";") if "=" in part]
    if not pairs:
        raise InputError(f"cookies: {cookies} holds no cookie for {host}")
    return _printable("; ".join(pairs), cookies)


def _of_jar(cookies: Secret, host: str) -> list[str]:
    jar = http.cookiejar.MozillaCookieJar()
    try:
        with warnings.catch_warnings():
            # the module warns of a bug of its own where a line is malformed
            warnings.simplefilter("ignore")
            # Expiry is judged below: the module takes an expiry of 0 for the year 1970.
            jar.load(cookies.file, ignore_discard=True, ignore_expires=True)
    except (http.cookiejar.LoadError, OSError):
        # its text quotes the line, which is a secret
        raise InputError(
            f"cookies: {cookies} is not a cookie file in Netscape's format, which begins with"
            " '# Netscape HTTP Cookie File'; write one with curl --cookie-jar or"
            " auth-get-sso-cookie"
        ) from None
    of_host = []
    for cookie in jar:
        domain = cookie.domain.lstrip(".")
        if host == domain or host.endswith(f".{domain}"):
            of_host.append(cookie)
    valid = []
    for cookie in of_host:
        if cookie.expires in SESSION_COOKIE or not cookie.is_expired():
            valid.append(f"{cookie.name}={(cookie.value or '').strip()}")
    if of_host and not valid:
        raise InputError(f"cookies: those of {cookies} for {host} have expired; get new ones")
    return valid


def _printable(text: str, secret: Secret) -> str:
    """Return the text, if a header can hold it: http.client would quote it in an error."""
    if not text.isascii() or not text.isprintable():
        raise InputError(
            f"{secret.option}: {secret} holds a line break or another character that no header can"
            " hold; write it as one line of ASCII"
        )
    return text
