"""The one parser of addresses: `s3://bucket/key`, `root://server//path`, `https://...` or a path.

Text that looks like an address of another scheme is refused, so that it never becomes a local
folder of that name.
"""

from __future__ import annotations

import fnmatch
import os
import re
import urllib.parse

from common.errors import SIGNATURE, InputError, nearest

LOCAL = ""
S3 = "s3"
XROOTD = ("root", "roots")
HTTP = ("https", "http")
SQLITE = "sqlite:///"  # MLflow's own file, on one machine
SCHEMES = {
    "s3": "s3://bucket/path",
    "root": "root://server//path",
    "roots": "roots://server//path",
    "https": "https://server/path",
    "http": "http://server/path",
    "file": "file:///path",
}
"""Scheme -> how an address is written."""
EXTRA = "pip install 'xrootd>=6'"
FOREIGN = (
    *("abfs", "az", "dav", "davs", "ftp", "gcs", "gs", "gsiftp", "hdfs", "minio", "s3a", "s3n"),
    *("sftp", "srm", "webdav", "xroot", "xroots"),
)
"""Schemes of storage systems that are not supported."""

SCHEME = re.compile(r"^\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>/+)")
# misspelt addresses such as `s3:bucket/x` and `s3//bucket/x`, which look like local paths
MISSPELT = re.compile(r"^\s*(?P<scheme>[A-Za-z][A-Za-z0-9]*)(?::|//)")
# up to a blank, or to the next address
ADDRESS = re.compile(r"\b(?P<scheme>\w+)://(?:(?!\b\w+://)\S)+")
PASSWORD = re.compile(r"^[^/]*/+[^/\s]*:[^/\s]*@")
"""A password in front of the server: `//user:password@`."""
TOKEN = re.compile(r"^[^/]*/+[^/?#\s]*@")
"""Anything in front of the server: `//token@`."""
WILDCARDS = "*?["
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+(%\w+)?")
"""A name, an IPv4 address, or an IPv6 address without its brackets."""
BUCKET = re.compile(r"[\w.:-]{1,255}", re.ASCII)
"""As boto3 takes it, with the tenant that Ceph writes in front (tenant:bucket)."""
BUCKET_NAME = "the name of a bucket (letters, digits, '.', '-' and '_')"


def scheme_of(uri: str) -> str:
    """Return the scheme of an address; empty for a local path.

    Raises InputError for a scheme that is unknown or misspelt, unless that path exists, and for an
    address that holds a password, a token or a signature.
    """
    if _path_exists(uri):
        return LOCAL
    match = SCHEME.match(uri)
    if match is None:
        misspelt = MISSPELT.match(uri)
        if misspelt is not None and is_storage_scheme(misspelt["scheme"]):
            raise unknown_scheme(uri, misspelt["scheme"])
        return LOCAL
    scheme = match["scheme"]
    _refuse_secret(uri, scheme)
    if uri[0].isspace():
        raise InputError(f"'{uri}' begins with a blank; leave it out")
    if scheme == "file":
        return LOCAL
    if scheme in SCHEMES and len(match["slashes"]) >= 2:
        return scheme
    raise unknown_scheme(uri, scheme)


def _path_exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a null byte
        return False


def refuse_secrets(text: str) -> None:
    """Raise InputError for a text with an address that holds a secret, without showing it.

    To be called before the text is cut at commas, which an address may hold.
    """
    if not _path_exists(text):
        for match in ADDRESS.finditer(text):
            _refuse_secret(match[0], match["scheme"])


def _refuse_secret(uri: str, scheme: str) -> None:
    """Raise InputError for an address with a password, a token or a signature, without showing it.

    Arguments are visible to others and stored with the run. Anyone who reads a presigned address
    can use it, and it has expired when the run is repeated.
    """
    # A web server may take a token in place of the user; XRootD's servers take a bare user's name.
    has_login = PASSWORD.search(uri) or (scheme in HTTP and TOKEN.search(uri))
    # a server takes X-Amz%2DSignature for the same
    if not has_login and SIGNATURE.search(urllib.parse.unquote(uri)) is None:
        return
    server = uri.partition("//")[2].rpartition("@")[2].partition("/")[0].partition("?")[0]
    remedy = (
        "read presigned files from S3 itself with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and"
        " files behind a login from XRootD (docs/storage.md)"
    )
    if scheme == S3:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif scheme in XROOTD:
        remedy = "set BEARER_TOKEN or BEARER_TOKEN_FILE"
    raise InputError(
        f"{scheme}://{server}/...: the address holds a token, a signature or a password, and"
        f" addresses are stored with the run; leave it out; {remedy}"
    )


def unknown_scheme(uri: str, scheme: str) -> InputError:
    """Return the error for an address of this scheme, with the schemes that work."""
    problem = f"'{uri}': unknown scheme '{scheme}:'"
    near = nearest(scheme, SCHEMES, 1)
    if scheme in SCHEMES:
        problem = f"'{uri}' is not an address; write {SCHEMES[scheme]}"
    elif near and scheme not in FOREIGN:
        problem += f"; did you mean {SCHEMES[near[0]]}?"
    return InputError(
        f"{problem}. Addresses are: a path, {', '.join(SCHEMES.values())} (root:// and roots://"
        f" need {EXTRA}; https:// and http:// are read only)"
    )


def check_text(text: str) -> None:
    """Raise InputError for an empty text, and for one with control characters.

    A path or a name with a line break would break every file and line that names it.
    """
    if not text:
        raise InputError("it is empty; leave the flag out, or write a value")
    if CONTROL.search(text):
        raise InputError(f"{text!r} has a control character; write it without line breaks")


def check_url(text: str) -> None:
    """Raise InputError for what is no http:// or https:// address of a server, or has a login."""
    problem = ""
    try:
        parts = urllib.parse.urlsplit(text)
        if "@" in parts.netloc or SIGNATURE.search(urllib.parse.unquote(text)):
            raise InputError(
                f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}: the address holds a login,"
                " and addresses are stored with the run and visible in arguments; leave it out, and"
                " set the variables for credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of"
                " S3; KFP_TOKEN, or KFP_USERNAME and KFP_PASSWORD, of Kubeflow;"
                " MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, of MLflow)"
            )
        if parts.scheme not in HTTP or not parts.hostname:
            problem = "is not a URL of a server"
        elif CONTROL.search(text) or " " in text or not HOST.fullmatch(parts.hostname):
            problem = f"names no host: {parts.hostname!r}"
        elif parts.port == 0:
            problem = "has the port 0"
    except ValueError as error:  # a port that is no number, an address in brackets that is none
        problem = f"is not a URL: {error}"
    if problem:
        without_login = re.sub(r"//[^/@]*@", "//", text)  # without a login
        raise InputError(f"{without_login!r} {problem}; write https://HOST or https://HOST:PORT")


def check_endpoints() -> None:
    """Raise InputError where a variable with the address of an S3 server is no URL or has a login.

    These are the variables of boto3, one for each service, and TensorBoard's.
    """
    for variable, address in os.environ.items():
        if address and (variable == "S3_ENDPOINT" or variable.startswith("AWS_ENDPOINT_URL")):
            try:
                check_url(address)
            except InputError as error:
                raise InputError(f"{variable}: {error}") from None


def check_tracking_address(text: str) -> None:
    """Raise InputError for what is no address of an MLflow server, or of its SQLite file."""
    if not text.startswith(SQLITE):
        check_url(text)


def is_storage_scheme(name: str) -> bool:
    """Return whether `name` in `name:/path` is the scheme of a storage system, supported or not.

    Otherwise it is the name of a sample or a set of files.
    """
    return name.lower() in FOREIGN or name.lower() in SCHEMES


def is_s3(uri: str) -> bool:
    """Return whether an address is one of S3."""
    return uri.startswith("s3://")


def is_local(uri: str) -> bool:
    """Return True for a path on this machine's disks. Raises InputError for an unknown scheme."""
    return scheme_of(uri) == LOCAL


def local_path(uri: str) -> str:
    """Return the path of a local address, which may be written as file:///path.

    Raises InputError for file://host/path of another host.
    """
    match = SCHEME.match(uri)
    if match is None or match["scheme"] != "file" or _path_exists(uri):
        return uri
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"'{uri}' names the disk of {parts.netloc}; write file:///path")
    return urllib.parse.unquote(parts.path)


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """Return the address in its one form, without dependence on the working directory.

    A relative path becomes absolute, `root://server/path` becomes `root://server//path`. Raises
    InputError for an unknown scheme, and for S3 without a bucket.
    """
    scheme = scheme_of(uri)
    if scheme == LOCAL:
        return os.path.abspath(os.path.expanduser(local_path(uri)))
    if scheme == S3:
        split_s3(uri)
    if scheme in XROOTD:
        server, path = split_xrootd(uri)
        return f"{server}/{path}".rstrip("/")
    return uri.rstrip("/")


def name(uri: str) -> str:
    """Return the last part of an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def split_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key. Raises InputError where no bucket is named."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"'{uri}' names no bucket; write s3://bucket/prefix")
    if not BUCKET.fullmatch(bucket):
        raise InputError(f"'{uri}': {bucket!r} is not {BUCKET_NAME}; write s3://bucket/prefix")
    return bucket, key


def split_xrootd(uri: str) -> tuple[str, str]:
    """Return `root://server` and the absolute path on it.

    Raises InputError where no server is named, or where the address holds a token or a password:
    arguments are visible to others and stored with the run.
    """
    scheme, _, rest = uri.partition("://")
    server, _, path = rest.partition("/")
    if not server:
        raise InputError(f"'{uri}' names no server; write {scheme}://server//path")
    _refuse_secret(uri, scheme)
    return f"{scheme}://{server}", "/" + path.lstrip("/")


def wildcard_at(pattern: str) -> int | None:
    """Return the place of the first wildcard; None where there is none.

    In an http address a question mark begins the query.
    """
    wild = "*[" if scheme_of(pattern) in HTTP else WILDCARDS
    return next((place for place, char in enumerate(pattern) if char in wild), None)


def matches(uri: str, pattern: str) -> bool:
    """Return whether an address matches a pattern, no wildcard of which crosses a slash."""
    parts, patterns = uri.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
