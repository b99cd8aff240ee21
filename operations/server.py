"""Connect to a Kubeflow Pipelines server with kfp's client, with errors that name the cause.

kfp's client follows a gateway's redirect to a login page and then fails to read HTML as JSON; if a
server does not answer, it retries for 25 seconds. Therefore a plain request (`probe`) is sent
before the client is made, and again when a call of the client fails. Its answer tells whether the
gateway requires a login, the address is another server's, or the version is too old.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from common import http
from common.config import AUTO
from common.errors import ClusterError, InputError, JecError, UnreachableError
from components.server_support import OLDEST, Support, support_of
from operations.auth import LOGIN_PAGE, Credentials, credentials, notebook_token
from operations.endpoint import IN_CLUSTER, IN_CLUSTER_URL

# The ServiceAccounts that servers run steps as, if a run names none.
SINGLE_USER_ACCOUNT = "pipeline-runner"  # an account in the server's own namespace
MULTI_USER_ACCOUNT = "default-editor"  # an account in the namespace of the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Health:
    """Version and mode of a server, from its health page."""

    version: str = ""
    """Empty if the server does not tell."""
    multi_user: bool | None = None
    """Whether each user has namespaces of their own; None if the server does not tell."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answered. `client` is a kfp.Client; use it within `explain_errors`."""

    host: str
    client: Any
    version: str
    """The server's version; empty if it does not tell."""
    credentials: Credentials
    multi_user: bool | None = None
    """Whether runs belong to users' namespaces.

    Otherwise all runs are in the server's own namespace and requests name none. None if the server
    does not tell.
    """

    @property
    def ui(self) -> str:
        """URL of Kubeflow's UI: KF_PIPELINES_UI_ENDPOINT, or else the host.

        In a notebook without that variable it is a placeholder, because only the browser knows the
        address.
        """
        address = os.environ.get("KF_PIPELINES_UI_ENDPOINT", "")
        if not address and self.host != IN_CLUSTER:
            address = self.host
        return address.rstrip("/") or "https://YOUR-KUBEFLOW/pipeline"

    @property
    def support(self) -> Support:
        """The features of the pipeline's IR that this server's version supports."""
        return support_of(version_numbers(self.version))

    def namespace_for(self, requested: str) -> str | None:
        """Return the namespace to name in requests; `requested` is the value of --namespace.

        None on a single-user server, or if no namespace is known. Raises InputError if a multi-user
        server needs one: without it the server shares an uploaded pipeline with everybody and
        refuses all other requests.
        """
        if self.multi_user is False:
            return None
        if requested != AUTO:
            return requested
        # kfp's client knows a notebook's own namespace
        own: str = self.client.get_user_namespace()
        if not own and self.multi_user:
            raise InputError(
                f"Kubeflow Pipelines at {self.host} has many users, each with namespaces of their"
                " own: give --namespace NAME, one of yours"
            )
        return own or None

    def run_url(self, kfp_run: str) -> str:
        """Return the address of a run's page in the Kubeflow UI."""
        return f"{self.ui}/#/runs/details/{kfp_run}"

    @contextlib.contextmanager
    def explain_errors(self, action: str) -> Iterator[None]:
        """Convert the client's exceptions within the block to ours, and suppress its prints.

        `action` completes the message 'Kubeflow Pipelines did not ...'.

        Raises:
            ClusterError: the server refuses the request or does not answer.
            AuthError: the server or its gateway rejects the login.
        """
        import kfp_server_api
        import urllib3

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except JecError:
            raise
        except kfp_server_api.ApiException as error:
            if error.status in (401, 403):
                raise self.denial(action, error) from error
            if is_page(error.body):
                probe(self.host, self.credentials)
            raise ClusterError(
                f"Kubeflow Pipelines at {self.host} did not {action}: {_words(error)}"
            ) from error
        # Invalid arguments of the client, a broken connection, an answer that is not JSON.
        except (
            kfp_server_api.OpenApiException,
            urllib3.exceptions.HTTPError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            probe(self.host, self.credentials)
            raise ClusterError(
                f"Kubeflow Pipelines at {self.host} did not {action}: {_reason(error)}"
            ) from error

    def denial(self, action: str, error: Any) -> JecError:
        """Return the error for a 401 or 403: a refused login, or a missing right."""
        words = _words(error)
        # KFP answers a request without a user with 'Unauthenticated', but not always with a 401.
        if error.status == 401 or "unauthenticated" in words.lower():
            return self.credentials.refusal(self.host, words)
        return ClusterError(
            f"Kubeflow Pipelines at {self.host}: we may not {action}: {words}. Is --namespace one"
            " of yours?"
        )


def connect(host: str, auth: str = "auto", namespace: str | None = None) -> Server:
    """Return the server at a host, or the notebook's own for 'in-cluster'.

    Raises AuthError if the login is rejected, ClusterError if no such server answers.
    """
    login = credentials(_address(host), auth)
    health = probe(host, login)
    client = make_client(host, login, namespace)

    # The client would read a login page as an empty answer. All its APIs share one REST client.
    rest = client.runs.run_service_get_run.__self__.api_client.rest_client
    send = rest.request

    def request(*arguments: Any, **options: Any) -> Any:
        """Send a request; raise AuthError if the answer is a login page."""
        answer = send(*arguments, **options)
        if is_page(answer.data):
            raise login.refusal(host, "it answered with a login page")
        return answer

    rest.request = request
    return Server(
        host=host,
        client=client,
        version=health.version,
        credentials=login,
        multi_user=health.multi_user,
    )


def make_client(host: str, login: Credentials, namespace: str | None) -> Any:
    """Return kfp's client with our credentials."""
    import kfp
    from kfp.client import ServiceAccountTokenVolumeCredentials

    # urllib3 logs a warning for each retry; we report the error after the last one.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if login.kind == "notebook":
        # kfp reads the file again for each request, because the kubelet renews the token
        token_file = ServiceAccountTokenVolumeCredentials(path=str(notebook_token()))
        options = {"credentials": token_file}
    else:
        options = {"existing_token": login.token or None, "cookies": login.cookies or None}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", FutureWarning)  # about servers before 2.0
        return kfp.Client(host=_address(host), namespace=namespace or "kubeflow", **options)


def probe(host: str, login: Credentials) -> Health:
    """Return the server's version and mode.

    Raises AuthError if the gateway requires a login, ClusterError if no such server answers.
    """
    base = _address(host).rstrip("/")
    content = _health(f"{base}/apis/v2beta1/healthz", host, login)
    multi_user = content.get("multi_user")
    version = content.get("tag_name")
    if not version:
        # older servers have their version only on this page
        with contextlib.suppress(ClusterError):
            older = _health(f"{base}/apis/v1beta1/healthz", host, login)
            version = older.get("tag_name") or older.get("apiServerTagName")
    # a server that was built without a version reports 'unknown'
    text = str(version or "")
    return Health(
        version=text if version_numbers(text) else "",
        multi_user=multi_user if isinstance(multi_user, bool) else None,
    )


def _health(url: str, host: str, login: Credentials) -> Mapping[str, object]:
    """Return the JSON object of a page of the API. Raises as `probe`."""
    headers = {**login.headers, "Accept": "application/json"}
    try:
        # Do not follow a redirect: it shows the address of the login.
        answer = http.send(http.session(), "GET", url, headers=headers, allow_redirects=False)
    except UnreachableError as error:
        raise ClusterError(
            f"no Kubeflow Pipelines answers at {host}: {_line(error)}; check --host and the network"
        ) from None
    if answer.status_code >= 300:
        raise refusal(answer.status_code, http.status_line(answer), answer.headers, host, login)

    with contextlib.suppress(ValueError):
        content = json.loads(answer.content)
        if isinstance(content, dict):
            return content
    if not is_page(answer.content):
        raise ClusterError(
            f"{host} is not the API of Kubeflow Pipelines; it answers {answer.content[:80]!r};"
            " check --host"
        )
    if re.search(rb"password|log ?in|sign ?in", answer.content, re.IGNORECASE):
        raise login.refusal(host, "it answered with a login page")
    raise ClusterError(
        f"{host} answers with a web page, not with the API of Kubeflow Pipelines; try --host"
        f" {host.rstrip('/')}/pipeline"
    )


def refusal(
    code: int, status: str, headers: Mapping[str, str], host: str, login: Credentials
) -> JecError:
    """Return the error for an answer with a status of 300 or more ('404 Not Found')."""
    if code in (401, 403):
        return login.refusal(host, status)
    if code in (301, 302, 303, 307, 308):
        location = headers.get("Location", "")
        parts = urlsplit(location)
        if LOGIN_PAGE.search(parts.path) or LOGIN_PAGE.search(parts.netloc):
            return login.refusal(host, f"it redirects to the login at {parts.netloc or host}")
        return ClusterError(f"{host} has moved to {location}; give that as --host")
    if code == 404:
        return ClusterError(
            f"there is no Kubeflow Pipelines at {host} (404); its address often ends in /pipeline"
        )
    return ClusterError(f"Kubeflow Pipelines at {host} answers {status}")


def version_problem(version: str, sdk: str) -> str:
    """Return why a server of this version may not run a pipeline of this SDK; empty if it does."""
    server, ours = version_numbers(version), version_numbers(sdk)
    if server is None:
        return "the server does not tell its version"
    if server < OLDEST:
        return (
            f"server {version} is older than {'.'.join(map(str, OLDEST))}, the oldest that runs"
            " these steps; upgrade it"
        )
    if ours is not None and server[0] > ours[0]:
        return f"server {version} has a newer major version than the SDK {sdk}"
    return ""


def version_numbers(version: str) -> tuple[int, int] | None:
    """Return (major, minor) of a version such as '2.17.0' or 'v2.5'; None for another text."""
    match = re.search(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def is_page(content: object) -> bool:
    """Return whether the content of an answer is a web page."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
    return re.match(r"\s*<(!doctype )?html", text[:200], re.IGNORECASE) is not None


def _address(host: str) -> str:
    return IN_CLUSTER_URL if host == IN_CLUSTER else host


def _words(error: Any) -> str:
    """Return the message of an error that the server sent, or else its status."""
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        content = json.loads(error.body)
        message = content.get("message") or content.get("error") or error.reason
        return f"{error.status} {_line(message)}"
    return f"{error.status} {_line(error.reason)}"


def _reason(error: Exception) -> str:
    """Return why a request had no usable answer, in words and in one line."""
    import urllib3

    if isinstance(error, json.JSONDecodeError):
        return "its answer is not JSON"
    if isinstance(error, urllib3.exceptions.HTTPError | OSError):
        return http.reason_of(error)
    return _line(error)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:400]
