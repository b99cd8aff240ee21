"""Files of web servers (https:// and http://), read only, with requests.

Files are read in byte ranges; from a server without ranges the whole file is downloaded once into
a temporary file. Globs and folders need a server that lists its folders as web pages, as Apache,
nginx and XRootD do.

A range is first read through the connections of requests, but without requests itself
(`range_of`), which takes half of the CPU time. If that fails, requests reads it: it follows
redirects and reports errors.
"""

from __future__ import annotations

import contextlib
import functools
import html.parser
import os
import re
import socket
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from common.errors import AccessError, InputError
from common.http import CONNECT_SECONDS, reason_of, status_line
from common.storage import space
from common.storage.entry import Entry
from common.storage.levels import Child, matching_files
from common.storage.retries import PassingError, retry
from common.storage.source import REQUESTS, Source

SECONDS = 60.0  # longest pause in an answer
CHUNK = 2**20
USER_AGENT = "jec-pipeline"
OVERLOADED = (408, 425, 429, 500, 502, 503, 504)
ACCESS_DENIED = (401, 403, 407)
MISSING = (404, 410)
WILDCARDS = "*["  # a question mark begins the query
BEGIN = 64  # bytes that distinguish a page from data
# also behind a byte order mark; data files, data configs and JSON begin otherwise
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head|body)", re.IGNORECASE)


class MissingFile(InputError):
    """The server says that there is no such file."""


class WebPage(InputError):
    """The server answers with a page for people: a login, an error, or a folder's contents."""


_known_by_ranges: set[str] = set()
"""Files of which this process has read a range, as when they were listed."""


class HttpSource(Source):
    """A file of a web server."""

    def __init__(self, uri: str, entry: Entry | None = None) -> None:
        """Request the size, and download the file if the server has no ranges."""
        self.uri = uri
        self._whole: IO[bytes] | None = None
        self._is_direct = True
        """Whether ranges are read without requests."""
        if entry is not None and uri in _known_by_ranges:
            self.size, self._version = entry.size, entry.tag
            return
        size, self._version = retry(lambda: _probe(uri))
        if size is None:
            # closed in `close`
            with space.catch_full_disk(space.temporary_folder()):
                whole = tempfile.TemporaryFile()  # noqa: SIM115
                size = retry(lambda: _fetch(uri, whole))
            self._whole = whole
        self.size = size

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop. Raises StorageError, InputError."""
        if stop <= start:  # HTTP knows no empty range
            return b""
        if self._whole is not None:
            content = os.pread(self._whole.fileno(), stop - start, start)
            return self.check(content, start, stop)
        direct = None
        if self._is_direct:
            direct = range_of(self.uri, start, stop, {}, version=self._version)
            self._is_direct = direct is not None
        content = retry(lambda: self._request(start, stop)) if direct is None else direct
        return self.check(content, start, stop)

    def _request(self, start: int, stop: int) -> bytes:
        with _answer(self.uri, f"bytes={start}-{stop - 1}") as answer:
            if answer.status_code != 206 or _version(answer) != self._version:
                raise _change_error(self.uri)
            return _body(answer)

    def close(self) -> None:
        """Remove the downloaded file, if there is one."""
        if self._whole is not None:
            self._whole.close()


def range_of(
    url: str,
    start: int,
    stop: int,
    headers: dict[str, str],
    verify: str | bool = True,
    version: str | None = None,
) -> bytes | None:
    """Return the bytes start:stop at an address, which may be signed.

    None where they do not come whole.

    There is one attempt, and a failure is not reported. version: that of the file; an answer with
    another version is a failure, too.
    """
    import requests
    import urllib3

    request_headers = {
        "User-Agent": USER_AGENT,
        "Accept-Encoding": "identity",
        "Range": f"bytes={start}-{stop - 1}",
        **headers,
    }
    try:
        server = _direct(os.getpid(), url, verify)
        if server is None:
            through_proxy = _session(os.getpid()).get(
                url,
                headers=request_headers,
                stream=True,
                timeout=(CONNECT_SECONDS, SECONDS),
                allow_redirects=False,
                verify=verify,
            )
            answer = through_proxy.raw
        else:
            connections, target = server
            answer = connections.urlopen(
                "GET",
                target,
                headers=request_headers,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=SECONDS),
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
        try:
            is_version = version is None or _version(answer) == version
            is_part = answer.status == 206 and is_version and not _is_page(answer)
            content: bytes = answer.read() if is_part else b""
        finally:
            answer.close()
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError):
        return None
    return content if len(content) == stop - start else None


@functools.lru_cache(maxsize=1024)
def _direct(process: int, url: str, verify: str | bool) -> tuple[Any, str] | None:
    """Return the connections of requests to an address's server, and the path of the request.

    None if there is a proxy. The result is cached for each file, because requests reads the
    environment's settings again for each request. Raises requests' errors, InputError.
    """
    import requests

    session = _session(process)
    request = session.prepare_request(requests.Request("GET", url))
    address = str(request.url)
    settings = session.merge_environment_settings(address, {}, True, verify, None)
    if requests.utils.select_proxy(address, settings["proxies"]):
        return None
    adapter = session.get_adapter(address)
    connections = adapter.get_connection_with_tls_context(request, settings["verify"])
    adapter.cert_verify(connections, address, settings["verify"], None)
    return connections, adapter.request_url(request, {})


def _body(answer: Any) -> bytes:
    """Return the rest of an answer, in one piece.

    Requests would join many small pieces, which takes longer than to receive them. Raises requests'
    errors.
    """
    import requests
    import urllib3

    try:
        content: bytes = answer.raw.read()
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error, request=answer.request) from error
    return content


def open_source(uri: str, entry: Entry | None = None) -> Source:
    """Open a file for reading parts of it."""
    return HttpSource(uri, entry)


def exists(uri: str) -> bool:
    """Return True for a file, and for a folder that the server lists."""
    try:
        retry(lambda: _probe(uri))
    except MissingFile:
        return False
    except WebPage:
        return bool(_children(uri))
    return True


def read_bytes(uri: str) -> bytes:
    """Return a whole file. Raises StorageError, InputError."""

    def request() -> bytes:
        with _answer(uri) as answer:
            content = bytes(answer.content)
            _check_content(uri, answer, content)
            return content

    return retry(request)


def entries(uri: str) -> list[Entry]:
    """Return the one file of that address, or the files that the server lists in that folder."""
    try:
        return [_entry(uri)]
    except MissingFile:
        return []
    except WebPage:
        children = _children(uri)
        if not children:
            raise
        return [_entry(child.uri) for child in children if not child.is_folder]


def glob(pattern: str) -> list[Entry]:
    """Return the files that match, in folders that the server lists.

    Raises:
        InputError: the pattern is no address.
    """
    try:
        parts = urllib.parse.urlsplit(pattern)
    except ValueError as error:
        raise InputError(
            f"'{pattern}' is not an address: {error}; write https://server/path"
        ) from None
    root = f"{parts.scheme}://{parts.netloc}"
    files = matching_files(root, parts.path, WILDCARDS, _children)
    return [_entry(file.uri) for file in files]


def download(uri: str, target: str) -> None:
    """Copy one file to a local path."""

    def request() -> None:
        with open(target, "wb") as file:
            _fetch(uri, file)

    retry(request)


def write_bytes(uri: str, content: bytes) -> NoReturn:
    """Raise InputError: web servers are read only."""
    raise _read_only(uri)


def upload(source: str, uri: str) -> NoReturn:
    """Raise InputError: web servers are read only."""
    raise _read_only(uri)


def delete(uri: str) -> NoReturn:
    """Raise InputError: web servers are read only."""
    raise _read_only(uri)


def _read_only(uri: str) -> InputError:
    return InputError(f"{uri}: web servers are read only; write to s3://, root:// or a folder")


def _change_error(uri: str) -> PassingError:
    return PassingError(
        f"{uri} has changed while it was read, or its server no longer knows ranges"
    )


def _entry(uri: str) -> Entry:
    """Return one file's size and version. Raises MissingFile or WebPage where there is none."""
    size, version = retry(lambda: _probe(uri))
    if size is None:
        with HttpSource(uri) as source:
            size = source.size
    return Entry(uri=uri, size=size, tag=version)


def _probe(uri: str) -> tuple[int | None, str]:
    """Return size and version of a file; no size if the server has no ranges.

    Some bytes are requested, because some servers refuse HEAD, presigned addresses are for GET, and
    a server may send a web page instead of data.
    """
    with _answer(uri, f"bytes=0-{BEGIN - 1}") as answer:
        _check_content(uri, answer, next(answer.iter_content(BEGIN), b""))
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        has_ranges = answer.status_code in (206, 416) and total.isdigit()
        if has_ranges:
            _known_by_ranges.add(uri)
        return int(total) if has_ranges else None, _version(answer)


def _version(answer: Any) -> str:
    """Return a text that changes with the file.

    The servers behind one name may differ in their ETags.
    """
    headers = answer.headers
    tag = headers.get("ETag", "").removeprefix("W/").strip('"')
    return str(headers.get("Last-Modified") or tag)


def _fetch(uri: str, file: IO[bytes]) -> int:
    """Write the whole file into an open one, from its start; returns the number of bytes."""
    file.seek(0)
    file.truncate()
    with _answer(uri) as answer:
        for chunk in answer.iter_content(CHUNK):
            file.write(chunk)
    file.flush()
    return file.tell()


@contextlib.contextmanager
def _answer(uri: str, byte_range: str = "", page: bool = False) -> Iterator[Any]:
    """Yield the answer to one GET, whose body is not read yet; the block may read it.

    page: whether a web page is expected. Raises MissingFile, WebPage, AccessError where
    access is refused, PassingError for what may pass.
    """
    try:
        import requests
    except ImportError:
        raise InputError("https:// takes requests; type: pip install requests") from None

    # compressed on the way, ranges would be of something else
    headers = {"Accept-Encoding": "identity"} | ({"Range": byte_range} if byte_range else {})
    try:
        with _session(os.getpid()).get(
            uri, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SECONDS)
        ) as answer:
            _check_status(uri, answer)
            if not page and _is_page(answer):
                raise _web_page(uri, answer)
            yield answer
    except requests.exceptions.SSLError as error:
        raise InputError(
            f"{uri}: no TLS connection: {reason_of(error)}; correct the host's name, or name the"
            " PEM file of the authority that signed its certificate in REQUESTS_CA_BUNDLE"
        ) from None
    except requests.exceptions.InvalidURL:
        raise InputError(f"'{uri}' is not an address; write https://server/path") from None
    except requests.RequestException as error:
        raise _unreachable(uri, error) from None


def _check_status(uri: str, answer: Any) -> None:
    status = answer.status_code
    if status in (200, 206) or (status == 416 and "Range" in answer.request.headers):
        return
    words = f"{status_line(answer)}{_redirect_text(uri, answer.url)}"
    if status in MISSING:
        raise MissingFile(f"there is no file {uri} ({words}); correct the address")
    if status in ACCESS_DENIED:
        raise AccessError(
            f"the server refused access to {uri} ({words}); renew an address with a signature or"
            " token in it; files behind a login are read by root:// with a proxy, a ticket or a"
            " token"
        )
    if status in OVERLOADED:
        raise PassingError(f"the server failed for {uri} ({words})")
    raise InputError(f"the server does not give {uri} ({words})")


def _is_page(answer: Any) -> bool:
    """Return whether the server says that it answers with a web page."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def _check_content(uri: str, answer: Any, content: bytes) -> None:
    """Raise WebPage for content that begins as a page does, whatever the server calls it."""
    if answer.status_code in (200, 206) and PAGE.match(content):
        raise _web_page(uri, answer)


def _web_page(uri: str, answer: Any) -> WebPage:
    return WebPage(
        f"{uri} is a web page, no data{_redirect_text(uri, answer.url)}: the server asks for a"
        " login, or shows an error or a folder as a page"
    )


def _redirect_text(uri: str, url: str | None) -> str:
    """Return the server that was reached, if it is another one than the user named."""
    host, final_host = (urllib.parse.urlsplit(text or "").netloc for text in (uri, url))
    return f" after a redirect to {final_host}" if final_host and final_host != host else ""


def _unreachable(uri: str, error: Any) -> InputError | PassingError:
    """Return the error for a server that does not answer, or breaks off."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            server = urllib.parse.urlsplit(uri).netloc
            return InputError(
                f"{uri}: there is no server {server}; correct its name, or check this machine's"
                " network"
            )
        cause = cause.__cause__ or cause.__context__
    url = getattr(error.request, "url", None)
    return PassingError(f"cannot read {uri}{_redirect_text(uri, url)}: {reason_of(error)}")


@functools.lru_cache(maxsize=1)
def _session(process: int) -> Any:
    """Return the connections of this process: a forked one must not share them."""
    import requests
    from requests import adapters, utils

    base: Any = adapters.HTTPAdapter

    class SharedTrust(base):  # type: ignore[misc]
        """Loads the trusted certificates once, which takes 20 ms of CPU time, for all connections.

        The methods are those that requests has for it.
        """

        def build_connection_pool_key_attributes(
            self, request: Any, verify: str | bool, cert: Any = None
        ) -> tuple[dict[str, Any], dict[str, Any]]:
            server, tls = super().build_connection_pool_key_attributes(request, verify, cert)
            if verify and server["scheme"] == "https":
                path = utils.DEFAULT_CA_BUNDLE_PATH if verify is True else verify
                tls = {**tls, "ssl_context": _trust(path), "ca_certs": None, "ca_cert_dir": None}
            return server, tls

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
            super().cert_verify(conn, url, verify, cert)
            if conn.proxy is None:  # a proxy may have a certificate of its own
                conn.ca_certs = conn.ca_cert_dir = None

    new_session = requests.Session()
    for scheme in ("https://", "http://"):
        new_session.mount(scheme, SharedTrust(pool_maxsize=2 * REQUESTS, max_retries=0))
    new_session.headers["User-Agent"] = USER_AGENT
    # Without an `auth`, requests sends a login of ~/.netrc (psf/requests#3929).
    new_session.auth = lambda request: request
    return new_session


@functools.lru_cache
def _trust(path: str) -> Any:
    """Return the TLS settings with the trusted certificates of a file or folder.

    Raises InputError.
    """
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context()  # which asks for a certificate
    try:
        if os.path.isdir(path):
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except OSError as error:
        raise InputError(
            f"no trusted certificates in {path} ({error.strerror or error}); name a file of them in"
            " PEM form, or a folder, with REQUESTS_CA_BUNDLE (for S3: AWS_CA_BUNDLE)"
        ) from None
    return context


# --------------------------------------------------------------------------------------- listings


def _children(folder: str) -> list[Child]:
    """Return the files and folders in a folder, by the links of the server's page for it."""

    def request() -> list[Child]:
        try:
            with _answer(folder.rstrip("/") + "/", page=True) as answer:
                return _links_in(folder.rstrip("/"), answer)
        except MissingFile:
            return []

    return retry(request)


def _links_in(folder: str, answer: Any) -> list[Child]:
    links = _Links()
    links.feed(answer.text)
    base = urllib.parse.urlsplit(answer.url)
    children = {}
    for link in links.targets:
        target = urllib.parse.urlsplit(urllib.parse.urljoin(answer.url, link))
        if target.netloc != base.netloc or not target.path.startswith(base.path):
            continue
        part = target.path[len(base.path) :]
        name = part.rstrip("/")
        if name and "/" not in name:
            children[name] = Child(
                name=urllib.parse.unquote(name),
                uri=f"{folder}/{name}",
                is_folder=part.endswith("/"),
            )
    return list(children.values())


class _Links(html.parser.HTMLParser):
    """Collects the addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]
