"""Ask a cluster about itself before anything is created: versions, permissions, secrets, quota.

Every question is one or a few requests with a deadline of seconds. The answer is None for what we
may not see, and `unseen` says why. A user's rights differ from cluster to cluster, and what cannot
be looked at is no fault of the run.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from typing import Any

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from clusters.api import Api, Connection, Kind, complaint
from clusters.permissions import Permission
from clusters.protocol import Manifest
from clusters.waiting import Wait, ignore
from common.errors import ClusterError, DeadlineError

SECONDS = 20.0  # for one question; a cluster that takes longer to answer is overloaded
# owner of a kind -> deployments that run it, by namespace and name, as the usual installations have
# them
CONTROLLERS = {
    "Katib": (("kubeflow", "katib-controller"),),
    "the training operator": (("kubeflow", "training-operator"),),
    "KServe": (("kserve", "kserve-controller-manager"), ("kubeflow", "kserve-controller-manager")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecretKeys:
    """A Secret's contents by key (kept in memory only, never printed) and its annotations."""

    contents: dict[str, bytes]
    annotations: dict[str, str]

    @property
    def values(self) -> dict[str, str]:
        """The contents as texts."""
        return {key: value.decode(errors="replace") for key, value in self.contents.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """What a node offers to pods."""

    labels: dict[str, str]
    allocatable: dict[str, str]
    schedulable: bool
    """Whether it takes new pods; taints are not looked at."""


class Survey:
    """Questions to one namespace of a cluster."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        """Ask with one connection, in one namespace."""
        self.namespace = namespace
        self._client = connection.client
        self._api = Api(connection, namespace, pause=0.3)
        self._core = client.CoreV1Api(connection.client)
        self._custom = client.CustomObjectsApi(connection.client)
        self._reviews = client.AuthorizationV1Api(connection.client)
        self.unseen: dict[str, str] = {}

    def version(self) -> str:
        """The API server's version. Raises ClusterError if it does not answer."""
        try:
            version: str = self._ask(client.VersionApi(self._client).get_code).git_version
        except ApiException as error:
            raise ClusterError(f"the API server answers {complaint(error)}") from error
        return version

    def serves(self, kind: Kind) -> bool:
        """Whether the cluster serves a kind."""
        try:
            listed = self._ask(self._custom.get_api_resources, kind.group, kind.version)
        except ApiException as error:
            if error.status == 404:
                return False
            raise ClusterError(f"cannot ask for {kind.api_version}: {complaint(error)}") from error
        return any(resource.name == kind.plural for resource in listed.resources)

    def controller_version(self, owner: str) -> str | None:
        """Image and tag of the controller that serves a kind; None where they cannot be seen."""
        for namespace, name in CONTROLLERS[owner]:
            deployment = self._try_read(
                f"{name} in {namespace}",
                client.AppsV1Api(self._client).read_namespaced_deployment,
                name,
                namespace,
            )
            if deployment is not None:
                image: str = deployment.spec.template.spec.containers[0].image
                return image.rsplit("/", 1)[-1]
        return None

    def allowed(self, permission: Permission, verb: str) -> bool:
        """Whether we may do this in the namespace (SelfSubjectAccessReview)."""
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(
                resource_attributes=self._attributes(permission, verb)
            )
        )
        try:
            return bool(
                self._ask(self._reviews.create_self_subject_access_review, review).status.allowed
            )
        except ApiException as error:
            raise ClusterError(f"cannot ask what we are allowed to: {complaint(error)}") from error

    def account_allowed(
        self, account: str, permission: Permission, verb: str, home: str
    ) -> bool | None:
        """Whether a ServiceAccount may do this in the namespace (LocalSubjectAccessReview).

        `home` is the account's own namespace. None if we may not ask for others.
        """
        user = f"system:serviceaccount:{home}:{account}"
        groups = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{home}",
            "system:authenticated",
        ]
        spec = client.V1SubjectAccessReviewSpec(
            user=user, groups=groups, resource_attributes=self._attributes(permission, verb)
        )
        review = client.V1LocalSubjectAccessReview(
            metadata={"namespace": self.namespace}, spec=spec
        )
        answer = self._try_read(
            f"rights of ServiceAccount {account}",
            self._reviews.create_namespaced_local_subject_access_review,
            self.namespace,
            review,
        )
        return None if answer is None else bool(answer.status.allowed)

    def _attributes(self, permission: Permission, verb: str) -> client.V1ResourceAttributes:
        resource, _, sub = permission.resource.partition("/")
        return client.V1ResourceAttributes(
            namespace=self.namespace,
            group=permission.group,
            resource=resource,
            subresource=sub or None,
            verb=verb,
        )

    def secret(self, name: str) -> SecretKeys | None:
        """A Secret; None if there is none, or if it may not be read (then `unseen` says why)."""
        secret = self._try_read(
            f"Secret {name}", self._core.read_namespaced_secret, name, self.namespace
        )
        if secret is None:
            return None
        contents = {key: base64.b64decode(value) for key, value in (secret.data or {}).items()}
        for key, value in (secret.string_data or {}).items():
            contents[key] = value.encode()
        return SecretKeys(contents=contents, annotations=secret.metadata.annotations or {})

    def account_secrets(self, name: str) -> list[str] | None:
        """Names of the Secrets of a ServiceAccount.

        None if there is no such account, or if it may not be read.
        """
        account = self._try_read(
            f"ServiceAccount {name}",
            self._core.read_namespaced_service_account,
            name,
            self.namespace,
        )
        return None if account is None else [secret.name for secret in account.secrets or []]

    def quotas(self) -> list[tuple[str, dict[str, str], dict[str, str]]] | None:
        """(name, hard, used) of each ResourceQuota of the namespace.

        None if they may not be read.
        """
        listed = self._try_read(
            "ResourceQuotas", self._core.list_namespaced_resource_quota, self.namespace
        )
        if listed is None:
            return None
        quotas = []
        for quota in listed.items:
            hard = (quota.status and quota.status.hard) or (quota.spec and quota.spec.hard) or {}
            used = (quota.status and quota.status.used) or {}
            quotas.append((quota.metadata.name, hard, used))
        return quotas

    def namespace_labels(self) -> dict[str, str] | None:
        """Labels of the namespace; None if it is not seen."""
        namespace = self._try_read(
            f"Namespace {self.namespace}", self._core.read_namespace, self.namespace
        )
        return None if namespace is None else (namespace.metadata.labels or {})

    def nodes(self) -> list[Node] | None:
        """The cluster's nodes; None if they may not be listed."""
        listed = self._try_read("Nodes", self._core.list_node)
        if listed is None:
            return None
        return [
            Node(
                labels=node.metadata.labels or {},
                allocatable=(node.status and node.status.allocatable) or {},
                schedulable=not (node.spec and node.spec.unschedulable),
            )
            for node in listed.items
        ]

    def katib_config(self) -> Manifest | None:
        """Katib's configuration, where the usual installation keeps it; None if it is not seen."""
        name = "katib-config"
        found = self._try_read(
            f"ConfigMap {name}", self._core.read_namespaced_config_map, name, "kubeflow"
        )
        text = ((found and found.data) or {}).get(f"{name}.yaml")
        if not text:
            return None
        config: Manifest = yaml.safe_load(text)
        return config

    def storage_container(self) -> Manifest | None:
        """The container that fetches models for KServe; None if it is not seen."""
        found = self._try_read(
            "ClusterStorageContainer default",
            self._custom.get_cluster_custom_object,
            "serving.kserve.io",
            "v1alpha1",
            "clusterstoragecontainers",
            "default",
        )
        return None if found is None else found["spec"]["container"]

    def operator_arguments(self) -> list[str] | None:
        """Arguments of the training operator; None if it is not seen."""
        namespace, name = CONTROLLERS["the training operator"][0]
        deployment = self._try_read(
            f"{name} in {namespace}",
            client.AppsV1Api(self._client).read_namespaced_deployment,
            name,
            namespace,
        )
        if deployment is None:
            return None
        return list(deployment.spec.template.spec.containers[0].args or [])

    def runtime(self, name: str) -> Manifest | None:
        """The spec of KServe's serving runtime of this name; None if it is not seen.

        The namespace's own runtime comes before the cluster's.
        """
        group = "serving.kserve.io"
        version = "v1alpha1"
        own = self._try_read(
            f"ServingRuntime {name}",
            self._custom.get_namespaced_custom_object,
            group,
            version,
            self.namespace,
            "servingruntimes",
            name,
        )
        runtime = own or self._try_read(
            f"ClusterServingRuntime {name}",
            self._custom.get_cluster_custom_object,
            group,
            version,
            "clusterservingruntimes",
            name,
        )
        return None if runtime is None else runtime["spec"]

    def would_take(self, kind: Kind, manifest: Manifest) -> str:
        """Why the cluster, with its webhooks, would refuse an object; empty if it would take it.

        Nothing is created.
        """
        try:
            self._ask(
                self._custom.create_namespaced_custom_object,
                kind.group,
                kind.version,
                self.namespace,
                kind.plural,
                manifest,
                dry_run="All",
            )
        except ApiException as error:
            # 409: it exists, and was taken before
            return "" if error.status == 409 else complaint(error)
        except DeadlineError as error:  # such as a webhook that is away
            return " ".join(str(error).split())
        return ""

    def _ask(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self._api.call(
            Wait("the API server's answer", SECONDS, ignore), request, *arguments, **options
        )

    def _try_read(
        self, what: str, request: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any | None:
        """The answer; None if there is no such object, or if we may not see it."""
        try:
            return self._ask(request, *arguments, **options)
        except ApiException as error:
            if error.status != 404:
                self.unseen[what] = complaint(error)
            return None
