"""HTTP requests to other services: Kubeflow's gateway, image registries, webhooks.

Timeouts, retries, proxies and error texts are set here, for all of them. Model servers have their
own client (jec_client), which is faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.errors import UnreachableError

if TYPE_CHECKING:
    import requests

SECONDS = 15.0
"""Time limit for an answer, unless the caller sets one."""
CONNECT_SECONDS = 6.0
"""For a connection: time for TCP's first packet and its repetitions after 1 s and 3 s."""
RETRIES = 1
"""A gateway that restarts refuses connections, or answers 502 to 504, for a moment."""

REASONS = {
    "InvalidURL": "the address is not valid",
    "MissingSchema": "the address does not begin with https:// or http://",
    "InvalidSchema": "the address does not begin with https:// or http://",
    "TooManyRedirects": "the server redirects without end",
    "ChunkedEncodingError": "the answer broke off",
    "ContentDecodingError": "the answer cannot be decompressed",
    "ReadTimeout": "no answer in time",
    "ConnectTimeout": "no connection in time",
    "ProtocolError": "the connection broke off",
    "LocationParseError": "the address is not valid",
    "DecodeError": "the answer cannot be decompressed",
}
"""Names of exceptions of requests and urllib3 -> the reason in words."""


def session() -> requests.Session:
    """Open a session that uses the environment's proxies, keeps cookies and retries once.

    A POST is sent again only if no connection could be made, because otherwise the server may have
    carried it out already.
    """
    # Its import takes twice as long as all of `pipeline.py --help`.
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        connect=RETRIES,
        # Do not wait SECONDS a second time for a server that does not answer. With 0 instead of
        # False, requests would raise ConnectionError and not Timeout.
        read=False,
        other=0,
        status=RETRIES,
        status_forcelist=(502, 503, 504),
        allowed_methods=("GET", "HEAD"),
        raise_on_status=False,
        # a server may ask for an hour
        respect_retry_after_header=False,
    )
    new_session = requests.Session()
    for scheme in ("https://", "http://"):
        new_session.mount(scheme, HTTPAdapter(max_retries=retry))
    new_session.headers["User-Agent"] = "jec-pipeline"
    # Without an `auth`, requests replaces our Authorization header by a login of ~/.netrc
    # (psf/requests#3929).
    new_session.auth = lambda request: request
    return new_session


def send(
    client: requests.Session, method: str, url: str, *, seconds: float = SECONDS, **options: Any
) -> requests.Response:
    """Send one request and return the answer, whatever its status.

    `options` are those of requests.Session.request. Raises UnreachableError where no answer comes;
    its text has only the reason, because the address may contain a secret.
    """
    import requests

    try:
        return client.request(
            method, url, timeout=(min(CONNECT_SECONDS, seconds), seconds), **options
        )
    except requests.Timeout:
        raise UnreachableError(f"no answer within {seconds:g} s") from None
    except requests.RequestException as error:
        raise UnreachableError(reason_of(error)) from None


def status_line(answer: requests.Response) -> str:
    """Return the status of an answer in words: '404 Not Found'."""
    return f"{answer.status_code} {answer.reason or ''}".rstrip()


def reason_of(error: BaseException) -> str:
    """Return why a request failed, in words, without the address.

    The texts of requests and urllib3 contain the address, which may contain secrets. So the text is
    that of the innermost error of the system, or of `REASONS` if there is none.
    """
    import requests
    from urllib3.exceptions import MaxRetryError, NameResolutionError, ResponseError

    reason = f"the request failed ({type(error).__name__})"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NameResolutionError):
            # The host of the connection: a proxy's, if the request goes through one.
            return f"the host name {cause.conn.host} cannot be resolved"
        name = type(cause).__name__
        if name in REASONS:
            reason = REASONS[name]
        elif isinstance(cause, ResponseError):  # the status of the last answer, after all retries
            reason = str(cause)
        elif isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            reason = cause.strerror or str(cause)
        reason_of_retries = cause.reason if isinstance(cause, MaxRetryError) else None
        cause = cause.__cause__ or cause.__context__ or reason_of_retries
    return reason
