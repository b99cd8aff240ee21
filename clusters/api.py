"""The API server through the published `kubernetes` client: configuration, kinds, requests.

A request that was answered with 429 or 5xx, or whose connection broke, is sent again after a
growing pause, until the deadline of the wait that it belongs to. Given up earlier: the first
contact, so that a wrong address does not take a search's deadline to show, and a webhook that stays
away. A Status of Kubernetes is an answer, whatever its code: then the server was reached.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from clusters.protocol import Manifest
from clusters.reasons import event_time
from clusters.refusals import silent_webhook
from clusters.waiting import Wait
from common.errors import ClusterError, InputError, UnreachableError
from common.progress import clock

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KUBECONFIG = "~/.kube/config"
# overload, a server that restarts, a webhook that is briefly away
PASSING = {429, 500, 502, 503, 504}
# an address that never answered within a minute is wrong, or needs a VPN
FIRST_CONTACT_SECONDS = 60.0
# a controller that restarts or is updated is back by then
WEBHOOK_SECONDS = 1800.0
LONGEST_PAUSE_SECONDS = 15.0
REQUEST_SECONDS = (10.0, 60.0)  # connect, read: a request over a dead connection must not hang


class NoCluster(InputError):
    """No cluster is configured on this machine."""

    short = "no Kubernetes cluster is configured (no KUBECONFIG, and not a pod)"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A custom resource, and the controller that serves it."""

    name: str
    group: str
    version: str
    plural: str
    owner: str

    @property
    def api_version(self) -> str:
        """Group and version, as manifests have them."""
        return f"{self.group}/{self.version}"


EXPERIMENT = Kind("Experiment", "kubeflow.org", "v1beta1", "experiments", "Katib")
TRIAL = Kind("Trial", "kubeflow.org", "v1beta1", "trials", "Katib")
PYTORCHJOB = Kind("PyTorchJob", "kubeflow.org", "v1", "pytorchjobs", "the training operator")
INFERENCE_SERVICE = Kind(
    "InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices", "KServe"
)
WORKFLOW = Kind("Workflow", "argoproj.io", "v1alpha1", "workflows", "Argo Workflows")


@dataclasses.dataclass(frozen=True)
class Connection:
    """A configured client and what its configuration says."""

    client: client.ApiClient
    namespace: str | None
    """The namespace that the configuration names."""
    inside: bool
    """Whether we are a pod of the cluster."""
    source: str
    """The configuration's name, for error messages."""


def connect() -> Connection:
    """Connect by the service account of the pod we run in, or else by the kubeconfig.

    The kubeconfig comes first where KUBECONFIG is set. Raises InputError without either.
    """
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists()
    try:
        connection = (
            _from_pod() if in_pod and not os.environ.get("KUBECONFIG") else _from_kubeconfig()
        )
    except config.ConfigException as error:
        where = os.environ.get("KUBECONFIG") or KUBECONFIG
        raise NoCluster(
            "no Kubernetes cluster is configured: this is not a pod with a service account, and"
            f" {where} gives none ({error}). Set KUBECONFIG to a kubeconfig file, or run on this"
            " machine with --runner local"
        ) from error
    # The server validates; the client's own checks reject lists that real servers send (events with
    # null fields).
    connection.client.configuration.client_side_validation = False
    return connection


def _from_pod() -> Connection:
    settings = client.Configuration()
    config.load_incluster_config(client_configuration=settings)
    namespace = SERVICE_ACCOUNT / "namespace"
    return Connection(
        _client(settings),
        namespace.read_text().strip() if namespace.exists() else None,
        True,
        "the pod's service account",
    )


def _from_kubeconfig() -> Connection:
    settings = client.Configuration()
    # the client itself reads the variable at its import only
    files = os.environ.get("KUBECONFIG") or KUBECONFIG
    config.load_kube_config(files, client_configuration=settings, persist_config=False)
    _, active = config.list_kube_config_contexts(files)
    return Connection(
        _client(settings),
        active["context"].get("namespace"),
        False,
        f"kubeconfig context '{active['name']}'",
    )


def _client(settings: client.Configuration) -> client.ApiClient:
    settings.retries = urllib3.Retry(0)  # Api.call retries: with a deadline, and reports it
    return client.ApiClient(settings)


def namespace_of(connection: Connection, asked: str | None) -> str:
    """The namespace to work in. None and 'auto' mean the one that the configuration names.

    Raises InputError if that names none.
    """
    if asked and asked != "auto":
        return asked
    if connection.namespace:
        return connection.namespace
    raise InputError(
        f"{connection.source} names no namespace; pass --namespace NAME, or type: kubectl config"
        " set-context --current --namespace NAME"
    )


class Api:
    """Read and write objects of one namespace.

    Every request belongs to a Wait, which bounds it and is told about failed requests.
    """

    def __init__(self, connection: Connection, namespace: str, *, pause: float = 1.0) -> None:
        """Use a connection in one namespace; `pause` (s) lies between two attempts."""
        self.namespace = namespace
        self._pause = pause
        self._client = connection.client
        self._custom = client.CustomObjectsApi(connection.client)
        self._core = client.CoreV1Api(connection.client)
        self._apps = client.AppsV1Api(connection.client)
        self._reached = False

    # Custom resources
    # --------------------------------------------------------------------------------------------

    def create(self, kind: Kind, manifest: Manifest, wait: Wait) -> Manifest | None:
        """Create an object and return it as the server stored it.

        Returns None if one of this name exists. Raises ClusterError if it is refused.
        """
        try:
            created: Manifest = self.call(
                wait, self._custom.create_namespaced_custom_object, *self._at(kind), manifest
            )
            return created
        except ApiException as error:
            if error.status == 409:
                return None
            raise ClusterError(
                self._refusal(error, "create", kind, manifest["metadata"]["name"])
            ) from error

    def get(self, kind: Kind, name: str, wait: Wait) -> Manifest | None:
        """The object, or None if there is none of this name."""
        try:
            thing: Manifest = self.call(
                wait, self._custom.get_namespaced_custom_object, *self._at(kind), name
            )
            return thing
        except ApiException as error:
            if error.status == 404:
                return None
            raise ClusterError(self._refusal(error, "get", kind, name)) from error

    def replace(self, kind: Kind, manifest: Manifest, wait: Wait) -> Manifest | None:
        """Replace an object and return it as stored.

        Returns None if it has changed since it was read, or is gone.
        """
        name = manifest["metadata"]["name"]
        try:
            stored: Manifest = self.call(
                wait, self._custom.replace_namespaced_custom_object, *self._at(kind), name, manifest
            )
            return stored
        except ApiException as error:
            if error.status in (404, 409):
                return None
            raise ClusterError(self._refusal(error, "update", kind, name)) from error

    def delete(self, kind: Kind, name: str, wait: Wait) -> bool:
        """Ask for the removal of an object; False if it was gone already.

        Its dependents go in the background, after it. While an Experiment is deleted in the
        foreground, Katib makes the deleted jobs and the suggestion anew, in rounds of 33 s (seen
        with Katib 0.19.0).
        """
        options = client.V1DeleteOptions(propagation_policy="Background")
        try:
            self.call(
                wait,
                self._custom.delete_namespaced_custom_object,
                *self._at(kind),
                name,
                body=options,
            )
        except ApiException as error:
            if error.status == 404:
                return False
            raise ClusterError(self._refusal(error, "delete", kind, name)) from error
        return True

    def list_objects(self, kind: Kind, selector: str, wait: Wait) -> list[Manifest]:
        """All objects with these labels; none where the cluster does not serve the kind."""
        try:
            answer = self.call(
                wait,
                self._custom.list_namespaced_custom_object,
                *self._at(kind),
                label_selector=selector,
            )
        except ApiException as error:
            if error.status == 404:
                return []
            raise ClusterError(self._refusal(error, "list", kind, "")) from error
        objects: list[Manifest] = answer["items"]
        return objects

    # Pods: only for explanations, so a failure to read them never ends a wait
    # --------------------------------------

    def pods(self, selector: str, wait: Wait) -> list[Manifest] | None:
        """Pods with these labels; None if they cannot be read now."""
        answer = self._glimpse(
            wait, "pods", self._core.list_namespaced_pod, self.namespace, label_selector=selector
        )
        return None if answer is None else self._plain(answer.items)

    def pod(self, name: str, wait: Wait) -> Manifest | None:
        """The pod of this name; None if there is none, or it cannot be read."""
        answer = self._glimpse(wait, "pods", self._core.read_namespaced_pod, name, self.namespace)
        return None if answer is None else self._plain([answer])[0]

    def events(self, name: str, wait: Wait) -> list[Manifest]:
        """Events about the object of this name, oldest first; none if they cannot be read."""
        return self._events(f"involvedObject.name={name}", wait)

    def events_of(self, kind: str, prefix: str, wait: Wait) -> list[Manifest]:
        """Events about objects of a kind whose name is `prefix` and one word, oldest first.

        'NAME-predictor-' finds those of ReplicaSet NAME-predictor-5d8f9c. Empty if they cannot be
        read.
        """
        name = re.compile(re.escape(prefix) + "[a-z0-9]+")
        return [
            event
            for event in self._events(f"involvedObject.kind={kind}", wait)
            if name.fullmatch(event["involvedObject"].get("name") or "")
        ]

    def _events(self, selector: str, wait: Wait) -> list[Manifest]:
        answer = self._glimpse(
            wait,
            "events",
            self._core.list_namespaced_event,
            self.namespace,
            field_selector=selector,
        )
        return sorted([] if answer is None else self._plain(answer.items), key=event_time)

    def deployment(self, name: str, wait: Wait) -> Manifest | None:
        """A Deployment; None if there is none of this name or it cannot be read."""
        answer = self._glimpse(
            wait, "deployments", self._apps.read_namespaced_deployment, name, self.namespace
        )
        if answer is None:
            return None
        deployment: Manifest = self._client.sanitize_for_serialization(answer)
        return deployment

    def quotas(self, wait: Wait) -> list[Manifest] | None:
        """The ResourceQuotas of the namespace; None if they cannot be read."""
        answer = self._glimpse(
            wait, "resourcequotas", self._core.list_namespaced_resource_quota, self.namespace
        )
        return None if answer is None else self._plain(answer.items)

    def log(
        self, pod: str, container: str, wait: Wait, *, lines: int, previous: bool = False
    ) -> list[str]:
        """The last lines that a container wrote; empty if they cannot be read.

        `previous` asks for those before the container's last restart.
        """
        answer = self._glimpse(
            wait,
            "pods/log",
            self._core.read_namespaced_pod_log,
            pod,
            self.namespace,
            container=container,
            tail_lines=lines,
            previous=previous,
            _preload_content=False,
        )
        if answer is None:
            return []
        text: str = answer.data.decode("utf-8", "replace")
        return text.splitlines()[-lines:]

    def _plain(self, models: list[Any]) -> list[Manifest]:
        """The client's models as the dicts that the server sent."""
        dicts: list[Manifest] = self._client.sanitize_for_serialization(models)
        return dicts

    # Requests
    # --------------------------------------------------------------------------------------------

    def call(self, wait: Wait, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The answer to a request, which is sent again after a failure that may pass.

        Raises ApiException for a failure that will not pass (4xx), DeadlineError at the wait's
        deadline, UnreachableError if the server was never reached, or if a webhook that it has to
        ask stays away.
        """
        pause = self._pause
        started = time.monotonic()
        webhook_since = 0.0
        failures = 0
        obstacles = {"API server"}  # there may be one of the request before
        while True:
            try:
                answer = request(*arguments, _request_timeout=self._timeout(wait), **options)
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                # an answer of Kubernetes, not of a proxy before it
                self._reached = self._reached or bool(_status_of(error))
                if isinstance(error, ApiException) and error.status not in PASSING:
                    self._reached = True
                    self._clear(obstacles, wait)
                    raise
                self._check_first_contact(error, started)
                if not isinstance(error, ApiException) and wait.left() <= 0 and failures:
                    # the deadline cut this request: what held up those before it is the reason
                    wait.sleep(pause)
                failures += 1
                webhook = silent_webhook(complaint(error))
                if webhook:
                    webhook_since = webhook_since or time.monotonic()
                    self._check_webhook(error, webhook, webhook_since)
                    topic, reason = webhook[0], f"does not answer: {webhook[1]}"
                else:
                    webhook_since = 0.0
                    topic, reason = "API server", complaint(error)
                self._clear(obstacles - {topic}, wait)
                obstacles.add(topic)
                wait.obstacle(topic, f"{reason}; trying again")
                wait.sleep(max(pause, _retry_after(error)))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._reached = True
                self._clear(obstacles, wait)
                return answer

    def _clear(self, obstacles: set[str], wait: Wait) -> None:
        for topic in obstacles:
            wait.obstacle(topic, "")

    def _check_webhook(self, error: Exception, webhook: tuple[str, str], since: float) -> None:
        """Give up on a webhook that has been away for WEBHOOK_SECONDS."""
        name, reason = webhook
        if time.monotonic() - since > WEBHOOK_SECONDS:
            raise UnreachableError(
                f"{name} of the cluster has not answered for {clock(WEBHOOK_SECONDS)} ({reason});"
                " nothing can be made without it. Ask the cluster's administrator for the"
                " controller that it belongs to"
            ) from error

    def _glimpse(
        self,
        wait: Wait,
        resource: str,
        request: Callable[..., Any],
        *arguments: Any,
        **options: Any,
    ) -> Any | None:
        """The answer, or None after three tries. Reports why we cannot look."""
        said = ""
        for attempt in range(3):
            try:
                answer = request(*arguments, _request_timeout=self._timeout(wait), **options)
                wait.obstacle(f"reading {resource}", "")
                return answer
            except ApiException as error:
                said = complaint(error)
                if error.status == 403:
                    wait.tell(
                        f"forbidden {resource}",
                        f"reasons will be missing: not allowed to read {resource}"
                        f" ({complaint(error)})",
                    )
                if error.status not in PASSING:
                    return None
            except urllib3.exceptions.HTTPError as error:
                said = complaint(error)
            if attempt < 2:
                time.sleep(min(self._pause, max(wait.left(), 0.0)))
        wait.obstacle(f"reading {resource}", f"{said}; reasons may be missing")
        return None

    def _timeout(self, wait: Wait) -> tuple[float, float]:
        connect_seconds, read_seconds = REQUEST_SECONDS
        left = max(wait.left(), 1.0)
        return min(connect_seconds, left), min(read_seconds, left)

    def _check_first_contact(self, error: Exception, started: float) -> None:
        if not self._reached and time.monotonic() - started > FIRST_CONTACT_SECONDS:
            host = self._client.configuration.host
            raise UnreachableError(
                f"the API server at {host} cannot be reached ({complaint(error)}); check the"
                " kubeconfig and the network"
            ) from error

    def _at(self, kind: Kind) -> tuple[str, str, str, str]:
        return kind.group, kind.version, self.namespace, kind.plural

    def _refusal(self, error: ApiException, verb: str, kind: Kind, name: str) -> str:
        """The error message for a request that the server refused."""
        thing = f"{kind.name} {name}".strip()
        said = complaint(error)
        if error.status == 401:
            return (
                f"the API server does not accept our credentials ({said}); log in anew or renew the"
                " token of the kubeconfig"
            )
        if (
            error.status == 403
            and "denied the request" not in said
            and "exceeded quota" not in said
        ):
            return (
                f"not allowed to {verb} {kind.plural}.{kind.group} in namespace '{self.namespace}':"
                f" {said}"
            )
        if error.status == 404:
            installed = f"is {kind.owner} installed ({kind.api_version}), and the namespace right?"
            return f"cannot {verb} {thing} in namespace '{self.namespace}': {said}; {installed}"
        return f"the cluster refused to {verb} {thing}: {said}"


def _status_of(error: Exception) -> dict[str, Any]:
    """The Status object with which Kubernetes answers; empty if the answer is none."""
    try:
        body = json.loads(getattr(error, "body", None) or "")
    except ValueError:
        return {}
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}


def complaint(error: Exception) -> str:
    """What went wrong with a request, in one line: the server's message or the connection's."""
    if not isinstance(error, ApiException):
        reason = getattr(error, "reason", None) or error
        return f"{type(reason).__name__}: {reason}".split("\n")[0]
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = str(error.reason or "no reason given").split("\n")[0]
    return f"{error.status} {said}"


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks us to wait; 0 if it does not say."""
    asked = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(asked) if str(asked).isdigit() else 0.0
