"""Which credentials XRootD's client finds, and how to renew them.

The client looks for them itself: an X509 proxy (X509_USER_PROXY, else /tmp/x509up_u<uid>), a
Kerberos ticket (KRB5CCNAME, else /tmp/krb5cc_<uid>) and a bearer token (BEARER_TOKEN,
BEARER_TOKEN_FILE, else bt_u<uid> in XDG_RUNTIME_DIR or /tmp). This module describes them
to the user when a server refuses access, and passes on those of a Kubernetes Secret.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import private_folder

SECRET_FOLDER = "JEC_XROOTD_LOGIN"  # noqa: S105 (a variable's name)
"""Variable with the folder of a mounted Secret, which has one or more of KEYS."""
KEYS = {
    "x509up": "X509_USER_PROXY",
    "token": "BEARER_TOKEN_FILE",
    "krb5cc_1000": "KRB5CCNAME",  # as the CronJob of deploy/eos writes it
}
"""Key of the Secret -> the client's variable for a file of it."""

_copies: dict[str, bytes] = {}
"""Key of the Secret -> content that was copied last."""


def prepare() -> None:
    """Give the client private copies of the Secret's files, anew where the Secret was renewed.

    Its token module refuses a file that others may read, and files of a Secret belong to root, so
    that others have to be able to.
    """
    folder = os.environ.get(SECRET_FOLDER)
    if not folder:
        return
    for key, variable in KEYS.items():
        source = Path(folder, key)
        if not source.is_file() or (content := source.read_bytes()) == _copies.get(key):
            continue
        default = Path(tempfile.gettempdir(), f"xrootd-{os.getuid()}")
        place = private_folder.make(default, "TMPDIR")
        # mkstemp's mode is 0600; the rename lets a reader see the old file or the new one
        handle, temporary = tempfile.mkstemp(dir=place)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, place / key)
        os.environ[variable] = str(place / key)
        _copies[key] = content


def forget() -> None:
    """Have `prepare` copy the Secret's files anew."""
    _copies.clear()


def default_proxy() -> Path:
    """Return where the client looks for an X509 proxy when X509_USER_PROXY is not set."""
    return Path(f"/tmp/x509up_u{os.getuid()}")  # noqa: S108


def state() -> str:
    """Yield a sentence for each kind of credential: whether there is one, and how to renew it."""
    return " ".join([_proxy(), _ticket(), _token()])


def _proxy() -> str:
    path = os.environ.get("X509_USER_PROXY") or default_proxy()
    renew = "voms-proxy-init --voms cms"
    try:
        content = Path(path).read_text(encoding="utf-8")
        end = _certificate_end(content)
    except OSError:
        missing = f"There is no X509 proxy {path} ({renew})"
        if "X509_USER_PROXY" in os.environ:
            # The client reads it for TLS, too, and gives up TLS where it cannot.
            return f"{missing}; unset X509_USER_PROXY to log in with a token."
        return f"{missing}."
    except ValueError:
        return f"{path} is not an X509 proxy ({renew})."
    if end < _now():
        return f"The X509 proxy {path} expired on {_text(end)}; renew it: {renew}."
    return f"The X509 proxy {path} is valid until {_text(end)}."


def _certificate_end(pem: str) -> datetime.datetime:
    """Return when the first certificate of a PEM file ends.

    Raises ValueError where there is none.
    """
    match = re.search(r"-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.DOTALL)
    if match is None:
        raise ValueError("no certificate")
    der = base64.b64decode(match[1])
    # X.509's Validity: two times, each an ASN.1 UTCTime (type 0x17, 13 bytes) or, from 2050 on,
    # GeneralizedTime (type 0x18, 15 bytes)
    times = re.search(rb"(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(\x17\x0d|\x18\x0f)(\d{12,14})Z", der)
    if times is None:
        raise ValueError("no validity")
    form = "%y%m%d%H%M%S" if times[1] == b"\x17\x0d" else "%Y%m%d%H%M%S"
    return datetime.datetime.strptime(times[2].decode(), form).replace(tzinfo=datetime.UTC)


def _ticket() -> str:
    renew = "kinit USER@CERN.CH"
    klist = shutil.which("klist")
    if klist is None:
        cache = os.environ.get("KRB5CCNAME", f"/tmp/krb5cc_{os.getuid()}")  # noqa: S108
        if Path(cache.removeprefix("FILE:")).is_file():
            return f"There is a Kerberos ticket {cache}; renew it if it expired: {renew}."
        return f"There is no Kerberos ticket ({renew})."
    valid = subprocess.run([klist, "-s"], check=False, capture_output=True, timeout=10)
    if valid.returncode == 0:
        return "There is a valid Kerberos ticket."
    klist_result = subprocess.run([klist], check=False, capture_output=True, text=True, timeout=10)
    if klist_result.returncode:  # klist lists expired ones, too
        return f"There is no Kerberos ticket ({renew})."
    match = re.search(r"cache: (?:FILE:)?(\S+)", klist_result.stdout)
    place = f" {match[1]}" if match else ""
    return f"The Kerberos ticket{place} expired; renew it: {renew}."


def _token() -> str:
    """Return a sentence on the bearer token, looked up in the order of the WLCG's rules."""
    renew = "oidc-token or htgettoken makes one"
    user = os.getuid()
    token_file = os.environ.get("BEARER_TOKEN_FILE")
    folder = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108
    if token := os.environ.get("BEARER_TOKEN"):
        place = "in BEARER_TOKEN"
    else:
        path = Path(token_file or f"{folder}/bt_u{user}")
        place = str(path)
        try:
            token = path.read_text(encoding="utf-8").strip()
        except OSError:
            missing = "BEARER_TOKEN is not set"
            if token_file:
                missing = f"BEARER_TOKEN_FILE={token_file} is not readable"
            return f"There is no token: {missing} ({renew})."
    end = _token_end(token)
    if end is not None and end < _now():
        return f"The token {place} expired on {_text(end)} ({renew})."
    until = f", valid until {_text(end)}" if end else ""
    return f"There is a token {place}{until}."


def _token_end(token: str) -> datetime.datetime | None:
    """Return when a JSON web token expires; None if it has no expiry."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return datetime.datetime.fromtimestamp(float(claims["exp"]), datetime.UTC)
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _text(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")
