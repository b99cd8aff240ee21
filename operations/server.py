"""A Kubeflow Pipelines server through kfp's own client: reached, understood, of a version that the
SDK compiles for.

The client follows a gateway's redirect to its login page and then fails to read HTML as JSON, and
it asks five times over 25 seconds whether a server is well. So the server is asked plainly first,
and again when the client stumbles: what comes back is recognised as a login that is wanted, a
server that is none, or a version that is too old.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from common.errors import ClusterError, JecError
from operations.auth import LOGIN_PAGE, Credentials, credentials, notebook_token
from operations.endpoint import IN_CLUSTER, IN_CLUSTER_URL

SECONDS = 15.0  # for one plain question
# older servers take no name of a Secret from a parameter (pipelines#10914), nor a step that is not
# root
OLDEST = (2, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answered. `client` is a kfp.Client; use it within `explained`."""

    host: str
    client: Any
    version: str
    """As the server calls itself; empty if it does not say."""
    credentials: Credentials

    @property
    def ui(self) -> str:
        """Where its pages are: the address asked, or in a notebook the one of Kubeflow itself,
        which only the browser knows.
        """
        known = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or (
            "" if self.host == IN_CLUSTER else self.host
        )
        return known.rstrip("/") or "https://YOUR-KUBEFLOW/pipeline"

    def run_url(self, kfp_run: str) -> str:
        return f"{self.ui}/#/runs/details/{kfp_run}"

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Within it the client's exceptions become ours, with the server's words, and its own
        prints are left out.
        """
        import kfp_server_api

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except JecError:
            raise
        except kfp_server_api.ApiException as error:
            if error.status in (401, 403):
                raise self._denied(doing, error) from error
            if _is_page(str(error.body)):
                probe(self.host, self.credentials)
            raise ClusterError(
                f"Kubeflow Pipelines at {self.host} did not {doing}: {_words(error)}"
            ) from error
        # a login page read as JSON, a connection cut: the plain question tells which
        except Exception as error:
            probe(self.host, self.credentials)
            raise ClusterError(
                f"Kubeflow Pipelines at {self.host} did not {doing}: {type(error).__name__}:"
                f" {_line(error)}"
            ) from error

    def _denied(self, doing: str, error: Any) -> JecError:
        said = _words(error)
        if error.status == 401 or "unauthenticated" in said.lower():
            return self.credentials.refused(self.host, said)
        return ClusterError(
            f"Kubeflow Pipelines at {self.host}: we may not {doing}: {said}. Is --namespace one of"
            " yours?"
        )


def connect(host: str, auth: str = "auto", namespace: str | None = None) -> Server:
    """The server at a host, or the notebook's own for 'in-cluster'.

    Raises AuthError or ClusterError before anything is sent.
    """
    held = credentials(IN_CLUSTER_URL if host == IN_CLUSTER else host, auth)
    version = probe(host, held)
    return Server(
        host=host, client=_client(host, held, namespace), version=version, credentials=held
    )


def _client(host: str, held: Credentials, namespace: str | None) -> Any:
    """kfp's client, that refuses a web page: it would take a login page for an answer in which
    there is nothing.
    """
    client = _plain_client(host, held, namespace)
    rest = client.runs.run_service_get_run.__self__.api_client.rest_client  # one of all its APIs
    ask = rest.request

    def request(*arguments: Any, **options: Any) -> Any:
        answer = ask(*arguments, **options)
        if _is_page(answer.data):
            raise held.refused(host, "it answered with a login page")
        return answer

    rest.request = request
    return client


def _is_page(content: Any) -> bool:
    text = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
    return re.match(r"\s*<(!doctype )?html", text[:200], re.IGNORECASE) is not None


def _plain_client(host: str, held: Credentials, namespace: str | None) -> Any:
    import kfp

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", FutureWarning)  # that servers before 2.0 are not served
        if held.kind == "notebook":
            from kfp.client import ServiceAccountTokenVolumeCredentials

            # read anew as the kubelet renews it
            own = ServiceAccountTokenVolumeCredentials(path=str(notebook_token()))
            return kfp.Client(
                host=IN_CLUSTER_URL if host == IN_CLUSTER else host,
                namespace=namespace or "kubeflow",
                credentials=own,
            )
        return kfp.Client(
            host=IN_CLUSTER_URL if host == IN_CLUSTER else host,
            namespace=namespace or "kubeflow",
            existing_token=held.token or None,
            cookies=held.cookies or None,
        )


def probe(host: str, held: Credentials) -> str:
    """The server's version, or empty.

    Raises AuthError where a login is wanted, ClusterError where no such server answers.
    """
    base = (IN_CLUSTER_URL if host == IN_CLUSTER else host).rstrip("/")
    _ask(f"{base}/apis/v2beta1/healthz", host, held)
    with contextlib.suppress(ClusterError):  # only the older API tells the version
        told = _ask(f"{base}/apis/v1beta1/healthz", host, held)
        return str(told.get("tag_name") or told.get("apiServerTagName") or "")
    return ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # a redirect is an answer: it shows where the login is


def _ask(url: str, host: str, held: Credentials) -> dict[str, Any]:
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(
            urllib.request.Request(url, headers={**held.headers, "Accept": "application/json"}),
            timeout=SECONDS,
        ) as answer:
            return _content(answer.read(), host, held)
    except urllib.error.HTTPError as error:
        raise _refusal(error, host, held) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ClusterError(
            f"no Kubeflow Pipelines answers at {host}: {_line(reason)}; check --host and the"
            " network"
        ) from None


def _content(text: bytes, host: str, held: Credentials) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    if _is_page(text):
        if re.search(rb"password|log ?in|sign ?in", text, re.IGNORECASE):
            raise held.refused(host, "it answered with a login page")
        raise ClusterError(
            f"{host} answers with a web page, not with the API of Kubeflow Pipelines; is it"
            f" {host.rstrip('/')}/pipeline?"
        )
    raise ClusterError(
        f"{host} answers with something else than the API of Kubeflow Pipelines: {text[:80]!r}"
    )


def _refusal(error: urllib.error.HTTPError, host: str, held: Credentials) -> JecError:
    if error.code in (401, 403):
        return held.refused(host, f"{error.code} {error.reason}")
    if error.code in (301, 302, 303, 307, 308):
        target = error.headers.get("Location", "")
        if LOGIN_PAGE.search(urlsplit(target).path) or LOGIN_PAGE.search(urlsplit(target).netloc):
            return held.refused(
                host, f"it sent us to the login at {urlsplit(target).netloc or host}"
            )
        return ClusterError(f"{host} has moved to {target}; give that as --host")
    if error.code == 404:
        return ClusterError(
            f"there is no Kubeflow Pipelines at {host} (404); its address often ends in /pipeline"
        )
    return ClusterError(f"Kubeflow Pipelines at {host} answers {error.code} {error.reason}")


def version_problem(version: str, sdk: str) -> str:
    """Why a server of this version may not run what this SDK compiles; empty if it does."""
    found, ours = _numbers(version), _numbers(sdk)
    if not found:
        return "the server does not say its version"
    if found < OLDEST:
        return (
            f"server {version} is older than {'.'.join(map(str, OLDEST))}, the oldest that runs"
            " these steps; upgrade it"
        )
    if found[0] > ours[0]:
        return f"server {version} is of a newer generation than the SDK's {sdk}"
    return ""


def _numbers(version: str) -> tuple[int, int] | None:
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def _words(error: Any) -> str:
    """The message of an error that the server sent, or its status."""
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        content = json.loads(error.body)
        return (
            f"{error.status}"
            f" {_line(content.get('message') or content.get('error') or error.reason)}"
        )
    return f"{error.status} {_line(error.reason)}"


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:400]
