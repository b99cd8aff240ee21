"""Access to the API server through the published `kubernetes` client.

A request that was answered with 429 or 5xx, or whose connection broke, is repeated with growing
pauses until the deadline of its wait. Two cases end earlier: a server that never answered, so that
a wrong address shows soon, and a webhook that stays unavailable. A Status object of Kubernetes
counts as an answer of the server, whatever its code.
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
from common.http import reason_of
from common.progress import clock

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KUBECONFIG = "~/.kube/config"
# overload, a restarting server, a webhook that is briefly unavailable
TRANSIENT_CODES = {429, 500, 502, 503, 504}
# an address that does not answer within a minute is wrong, or needs a VPN
FIRST_CONTACT_SECONDS = 60.0
# longer than a restart or an update of a controller takes
WEBHOOK_SECONDS = 1800.0
LONGEST_PAUSE_SECONDS = 15.0
REQUEST_SECONDS = (10.0, 60.0)  # connect, read: a request over a dead connection must not hang


class NoCluster(InputError):
    """No cluster is configured on this machine."""

    short = "no Kubernetes cluster is configured (no kubeconfig, and not a pod)"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A custom resource and the controller that serves it."""

    name: str
    group: str
    version: str
    plural: str
    owner: str

    @property
    def api_version(self) -> str:
        """Group and version, as in manifests."""
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
    """A client with its configuration."""

    client: client.ApiClient
    namespace: str | None
    """Namespace of the configuration; None if it names none."""
    inside: bool
    """Whether this process runs in a pod of the cluster."""
    source: str
    """Name of the configuration, for error messages."""


def connect() -> Connection:
    """Connect with the service account of this pod, or else with the kubeconfig.

    The kubeconfig comes first if KUBECONFIG is set.

    Raises:
        NoCluster: If there is neither.
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
    # the client reads the variable only when it is imported
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


def namespace_of(connection: Connection, name: str | None) -> str:
    """Return the namespace to work in.

    Args:
        connection: The connection.
        name: A namespace; None or 'auto' for that of the configuration.

    Raises:
        InputError: If the configuration names no namespace either.
    """
    if name and name != "auto":
        return name
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
        """Use a connection in one namespace; `pause` is the time between two attempts (s)."""
        self.namespace = namespace
        self._pause = pause
        self._client = connection.client
        self._custom = client.CustomObjectsApi(connection.client)
        self._core = client.CoreV1Api(connection.client)
        self._apps = client.AppsV1Api(connection.client)
        self._has_answered = False

    # Custom resources
    # --------------------------------------------------------------------------------------------

    def create(self, kind: Kind, manifest: Manifest, wait: Wait) -> Manifest | None:
        """Create an object.

        Returns:
            The object as the server stored it; None if one of this name exists.

        Raises:
            ClusterError: If the server refuses it.
        """
        try:
            new_object: Manifest = self.call(
                wait, self._custom.create_namespaced_custom_object, *self._at(kind), manifest
            )
            return new_object
        except ApiException as error:
            if error.status == 409:
                return None
            raise ClusterError(
                self._refusal(error, "create", kind, manifest["metadata"]["name"])
            ) from error

    def get(self, kind: Kind, name: str, wait: Wait) -> Manifest | None:
        """Return the object of this name; None if there is none.

        Raises:
            ClusterError: If it may not be read.
        """
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
        """Replace an object.

        Returns:
            The object as the server stored it; None if it has changed since it was read, or is
            gone.

        Raises:
            ClusterError: If the server refuses it.
        """
        name = manifest["metadata"]["name"]
        try:
            new_object: Manifest = self.call(
                wait, self._custom.replace_namespaced_custom_object, *self._at(kind), name, manifest
            )
            return new_object
        except ApiException as error:
            if error.status in (404, 409):
                return None
            raise ClusterError(self._refusal(error, "update", kind, name)) from error

    def delete(self, kind: Kind, name: str, wait: Wait) -> bool:
        """Request the deletion of an object; return False if it does not exist.

        Kubernetes deletes the dependents later, in the background. During a foreground deletion of
        an Experiment, Katib creates the deleted jobs and the suggestion again, in rounds of 33 s
        (seen with Katib 0.19.0).

        Raises:
            ClusterError: If the server refuses it.
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
        """Return all objects with these labels; none if the cluster does not serve the kind.

        Raises:
            ClusterError: If they may not be listed.
        """
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

    # Pods: read only to explain waits, so that failures to read them never end a wait
    # --------------------------------------

    def pods(self, selector: str, wait: Wait) -> list[Manifest] | None:
        """Return the pods with these labels; None if they cannot be read."""
        answer = self._try_read(
            wait, "pods", self._core.list_namespaced_pod, self.namespace, label_selector=selector
        )
        return None if answer is None else self._plain(answer.items)

    def pod(self, name: str, wait: Wait) -> Manifest | None:
        """Return the pod of this name; None if there is none, or it cannot be read."""
        answer = self._try_read(wait, "pods", self._core.read_namespaced_pod, name, self.namespace)
        return None if answer is None else self._plain([answer])[0]

    def events(self, name: str, wait: Wait) -> list[Manifest]:
        """Return the events about the object of this name, oldest first; none if unreadable."""
        return self._events(f"involvedObject.name={name}", wait)

    def events_of(self, kind: str, prefix: str, wait: Wait) -> list[Manifest]:
        """Return events about objects of a kind whose name is `prefix` and one word, oldest first.

        'NAME-predictor-' matches those of ReplicaSet NAME-predictor-5d8f9c. Empty if unreadable.
        """
        name = re.compile(re.escape(prefix) + "[a-z0-9]+")
        return [
            event
            for event in self._events(f"involvedObject.kind={kind}", wait)
            if name.fullmatch(event["involvedObject"].get("name") or "")
        ]

    def _events(self, selector: str, wait: Wait) -> list[Manifest]:
        answer = self._try_read(
            wait,
            "events",
            self._core.list_namespaced_event,
            self.namespace,
            field_selector=selector,
        )
        return sorted([] if answer is None else self._plain(answer.items), key=event_time)

    def deployment(self, name: str, wait: Wait) -> Manifest | None:
        """Return a Deployment; None if there is none of this name, or it cannot be read."""
        answer = self._try_read(
            wait, "deployments", self._apps.read_namespaced_deployment, name, self.namespace
        )
        if answer is None:
            return None
        deployment: Manifest = self._client.sanitize_for_serialization(answer)
        return deployment

    def quotas(self, wait: Wait) -> list[Manifest] | None:
        """Return the ResourceQuotas of the namespace; None if they cannot be read."""
        answer = self._try_read(
            wait, "resourcequotas", self._core.list_namespaced_resource_quota, self.namespace
        )
        return None if answer is None else self._plain(answer.items)

    def log(
        self, pod: str, container: str, wait: Wait, *, lines: int, previous: bool = False
    ) -> list[str]:
        """Return the last lines that a container wrote; empty if they cannot be read.

        Args:
            pod: Name of the pod.
            container: Name of the container.
            wait: The wait that the request belongs to.
            lines: Number of lines.
            previous: Read the log of the container before its last restart.
        """
        answer = self._try_read(
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
        """Convert models of the client to the dicts that the server sent."""
        dicts: list[Manifest] = self._client.sanitize_for_serialization(models)
        return dicts

    # Requests
    # --------------------------------------------------------------------------------------------

    def call(self, wait: Wait, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Send a request, and repeat it after errors that may pass.

        Raises:
            ApiException: If the server refuses the request (4xx).
            DeadlineError: At the deadline of the wait.
            UnreachableError: If the server never answered, or a webhook that it needs stays
                unavailable.
        """
        pause = self._pause
        start = time.monotonic()
        webhook_since = 0.0
        failures = 0
        obstacles = {"API server"}  # an earlier request may have set it
        while True:
            try:
                answer = request(*arguments, _request_timeout=self._timeout(wait), **options)
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                # only Kubernetes itself sends a Status, a proxy does not
                self._has_answered = self._has_answered or bool(_status_of(error))
                if isinstance(error, ApiException) and error.status not in TRANSIENT_CODES:
                    self._has_answered = True
                    self._clear(obstacles, wait)
                    raise
                self._check_first_contact(error, start)
                if not isinstance(error, ApiException) and wait.seconds_left() <= 0 and failures:
                    # the deadline cut this request short; the reason is the error of earlier
                    # requests
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
                self._has_answered = True
                self._clear(obstacles, wait)
                return answer

    def _clear(self, obstacles: set[str], wait: Wait) -> None:
        for topic in obstacles:
            wait.obstacle(topic, "")

    def _check_webhook(self, error: Exception, webhook: tuple[str, str], since: float) -> None:
        """Give up on a webhook that has been unavailable for WEBHOOK_SECONDS."""
        name, reason = webhook
        if time.monotonic() - since > WEBHOOK_SECONDS:
            raise UnreachableError(
                f"{name} of the cluster has not answered for {clock(WEBHOOK_SECONDS)} ({reason});"
                " no object can be created without it. Ask the cluster's"
                " administrator to restart its controller"
            ) from error

    def _try_read(
        self,
        wait: Wait,
        resource: str,
        request: Callable[..., Any],
        *arguments: Any,
        **options: Any,
    ) -> Any | None:
        """Return the answer; None, with a report, after a refusal or three attempts."""
        message = ""
        for attempt in range(3):
            try:
                answer = request(*arguments, _request_timeout=self._timeout(wait), **options)
                wait.obstacle(f"reading {resource}", "")
                return answer
            except ApiException as error:
                message = complaint(error)
                if error.status == 403:
                    wait.tell(
                        f"forbidden {resource}",
                        f"reasons will be missing: not allowed to read {resource}"
                        f" ({complaint(error)})",
                    )
                if error.status not in TRANSIENT_CODES:
                    return None
            except urllib3.exceptions.HTTPError as error:
                message = complaint(error)
            if attempt < 2:
                time.sleep(min(self._pause, max(wait.seconds_left(), 0.0)))
        wait.obstacle(f"reading {resource}", f"{message}; reasons may be missing")
        return None

    def _timeout(self, wait: Wait) -> tuple[float, float]:
        connect_seconds, read_seconds = REQUEST_SECONDS
        seconds_left = max(wait.seconds_left(), 1.0)
        return min(connect_seconds, seconds_left), min(read_seconds, seconds_left)

    def _check_first_contact(self, error: Exception, start: float) -> None:
        if not self._has_answered and time.monotonic() - start > FIRST_CONTACT_SECONDS:
            host = self._client.configuration.host
            raise UnreachableError(
                f"the API server at {host} cannot be reached ({complaint(error)}); check the"
                " kubeconfig and the network"
            ) from error

    def _at(self, kind: Kind) -> tuple[str, str, str, str]:
        return kind.group, kind.version, self.namespace, kind.plural

    def _refusal(self, error: ApiException, verb: str, kind: Kind, name: str) -> str:
        """Return the error message for a request that the server refused."""
        thing = f"{kind.name} {name}".strip()
        message = complaint(error)
        if error.status == 401:
            return (
                f"the API server does not accept our credentials ({message}); log in again or renew"
                " the token of the kubeconfig"
            )
        if (
            error.status == 403
            and "denied the request" not in message
            and "exceeded quota" not in message
        ):
            return (
                f"not allowed to {verb} {kind.plural}.{kind.group} in namespace '{self.namespace}':"
                f" {message}"
            )
        if error.status == 404:
            hint = f"is {kind.owner} installed ({kind.api_version}), and the namespace right?"
            return f"cannot {verb} {thing} in namespace '{self.namespace}': {message}; {hint}"
        return f"the cluster refused to {verb} {thing}: {message}"


def _status_of(error: Exception) -> dict[str, Any]:
    """Return the Status object in an answer of Kubernetes; empty if there is none."""
    try:
        body = json.loads(getattr(error, "body", None) or "")
    except ValueError:
        return {}
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}


def complaint(error: Exception) -> str:
    """Return in one line why a request failed: the message of the server or of the connection."""
    if not isinstance(error, ApiException):
        return reason_of(error)
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = str(error.reason or "no reason given").split("\n")[0]
    return f"{error.status} {message}"


def _retry_after(error: Exception) -> float:
    """Return how many seconds the server asks to wait; 0 if it does not say."""
    seconds = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(seconds) if str(seconds).isdigit() else 0.0
