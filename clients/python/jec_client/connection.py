"""Keep HTTP connections to one model server: one per thread, opened when first needed.

It uses http.client because latency counts here. One jet a request to a small model takes 0.54 ms
with http.client and 1.02 ms with a requests.Session a thread (Triton on 127.0.0.1, 2 cores, median
of 1,500; 0.84 and 1.37 ms with kserve's server).
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping

from jec_client.errors import InputError

PIECE = 1 << 20  # bytes of an answer that are read before the deadline is checked again


class _SelfClosingConnection(http.client.HTTPConnection):
    """A connection that closes when its thread or its client has ended.

    Threads share a client, but each has its own connection, so that no thread can close them all.
    """

    def __del__(self) -> None:
        self.close()


class _SelfClosingTLSConnection(_SelfClosingConnection, http.client.HTTPSConnection):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """A server's answer, read whole."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    """By name in any case: gateways such as Envoy send all names in lower case."""
    content: bytes


class Connections:
    """Connections to the host of `url`, through the proxy that the environment sets for it, if any.

    No proxy is used for 127.0.0.1, which would be the proxy itself. timeout: seconds for
    one request and its whole answer. verify: False takes any certificate, a path names a file or a
    folder of certificate authorities. Raises InputError where that path has none.
    """

    def __init__(self, url: str, timeout: float, verify: bool | str = True) -> None:
        """Keep the address; no connection is opened yet."""
        self.url, self.timeout = urllib.parse.urlsplit(url), timeout
        self.tls = _context(verify) if self.url.scheme == "https" else None
        host = self.url.hostname or ""
        local = host in ("localhost", "::1") or host.startswith("127.")
        proxy = (
            None
            if local or urllib.request.proxy_bypass(host)
            else urllib.request.getproxies().get(self.url.scheme)
        )
        self.proxy = (
            urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
        )
        self._mine = threading.local()

    def request(
        self,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout: float | None = None,
    ) -> Reply:
        """Send a GET, or a POST where there is a body.

        A connection that the server has closed meanwhile is opened again, once. Raises
        TimeoutError, and any other OSError or http.client.HTTPException where no answer comes.
        """
        ends = time.monotonic() + (self.timeout if timeout is None else timeout)
        existing = getattr(self._mine, "connection", None)
        if existing is not None and self._mine.process != os.getpid():
            existing = None  # it belongs to the parent of this forked process, which still uses it
        try:
            return self._exchange(existing or self._open(ends), path, body, headers, ends)
        except (ConnectionError, http.client.BadStatusLine, http.client.CannotSendRequest):
            if existing is None:
                raise
        return self._exchange(self._open(ends), path, body, headers, ends)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        ends: float,
    ) -> Reply:
        # The connection is kept for further requests only once the whole answer has been read.
        self._mine.connection = None
        whole_url = self.proxy is not None and self.url.scheme == "http"
        target = (
            f"{self.url.scheme}://{self.url.netloc}{self.url.path}{path}"
            if whole_url
            else f"{self.url.path}{path}"
        )
        try:
            _limit(connection, ends)
            connection.request(
                "GET" if body is None else "POST", target, body=body, headers=dict(headers)
            )
            # getresponse sets connection.sock to None if the server closes the connection
            sock = connection.sock
            answer = connection.getresponse()
            content = _read(answer, sock, ends)
        except BaseException:
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._mine.connection, self._mine.process = connection, os.getpid()
        return Reply(
            status=answer.status,
            reason=answer.reason,
            headers=answer.headers,
            content=content,
        )

    def _open(self, ends: float) -> http.client.HTTPConnection:
        address = self.url if self.proxy is None else self.proxy
        host, seconds = address.hostname or "", _seconds_left(ends)
        connection: http.client.HTTPConnection
        if self.tls is None:
            connection = _SelfClosingConnection(host, address.port, timeout=seconds)
        else:
            connection = _SelfClosingTLSConnection(
                host, address.port, timeout=seconds, context=self.tls
            )
            if self.proxy is not None:
                connection.set_tunnel(self.url.hostname or "", self.url.port or 443)
        return connection


def _context(verify: bool | str) -> ssl.SSLContext:
    if isinstance(verify, bool):
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        if os.path.isdir(verify):
            return ssl.create_default_context(capath=verify)
        return ssl.create_default_context(cafile=verify)
    except (OSError, ValueError) as error:  # ValueError for a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"verify= takes True, False, or the path of a file or a folder of certificates;"
            f" {verify!r} cannot be read: {reason}"
        ) from None


def _seconds_left(ends: float) -> float:
    """Return seconds until the deadline. Raises TimeoutError where it has passed."""
    seconds = ends - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _limit(connection: http.client.HTTPConnection, ends: float) -> None:
    connection.timeout = _seconds_left(ends)
    if connection.sock is not None:
        connection.sock.settimeout(connection.timeout)


def _read(answer: http.client.HTTPResponse, sock: socket.socket, ends: float) -> bytes:
    """Return the answer's content; the deadline also stops a server that sends slowly."""
    pieces = []
    while answer.length != 0:  # None where the server does not say it
        if sock.fileno() >= 0:
            sock.settimeout(_seconds_left(ends))
        piece = answer.read1(PIECE)
        if not piece:
            break
        pieces.append(piece)
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    answer.read()  # nothing is left; with that the connection is free for the next request
    return b"".join(pieces)
