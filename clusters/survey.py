"""Read the properties of a cluster before anything is created: versions, rights, secrets, quota.

Each question takes one or a few requests with a deadline of seconds. The answer is None for what
may not be read, and `unseen` has the reason. Rights differ between clusters, so that unreadable
properties are not errors of the run.
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

SECONDS = 20.0  # limit for one question; a cluster that takes longer is overloaded
# deployments (namespace, name) of each controller in the usual installations
CONTROLLERS = {
    "Katib": (("kubeflow", "katib-controller"),),
    "the training operator": (("kubeflow", "training-operator"),),
    "KServe": (("kserve", "kserve-controller-manager"), ("kubeflow", "kserve-controller-manager")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecretKeys:
    """The contents of a Secret by key, which are never printed, and its annotations."""

    contents: dict[str, bytes]
    annotations: dict[str, str]

    @property
    def values(self) -> dict[str, str]:
        """The contents as text."""
        return {key: value.decode(errors="replace") for key, value in self.contents.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """Labels and resources of a node."""

    labels: dict[str, str]
    allocatable: dict[str, str]
    schedulable: bool
    """Whether it accepts new pods; taints are ignored."""


class Survey:
    """Questions about one namespace of a cluster."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        """Use a connection in one namespace."""
        self.namespace = namespace
        self._client = connection.client
        self._api = Api(connection, namespace, pause=0.3)
        self._core = client.CoreV1Api(connection.client)
        self._custom = client.CustomObjectsApi(connection.client)
        self._reviews = client.AuthorizationV1Api(connection.client)
        self.unseen: dict[str, str] = {}

    def version(self) -> str:
        """Return the version of the API server.

        Raises:
            ClusterError: If it does not answer.
        """
        try:
            version: str = self._ask(client.VersionApi(self._client).get_code).git_version
        except ApiException as error:
            raise ClusterError(f"the API server answers {complaint(error)}") from error
        return version

    def serves(self, kind: Kind) -> bool:
        """Return whether the cluster serves a kind.

        Raises:
            ClusterError: If the question is refused.
        """
        try:
            resources = self._ask(self._custom.get_api_resources, kind.group, kind.version)
        except ApiException as error:
            if error.status == 404:
                return False
            raise ClusterError(f"cannot ask for {kind.api_version}: {complaint(error)}") from error
        return any(resource.name == kind.plural for resource in resources.resources)

    def controller_version(self, owner: str) -> str | None:
        """Return image and tag of the controller of a kind; None if it may not be read."""
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

    def is_allowed(self, permission: Permission, verb: str) -> bool:
        """Return whether we have this right in the namespace (SelfSubjectAccessReview).

        Raises:
            ClusterError: If the question is refused.
        """
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
            raise ClusterError(f"cannot ask for our rights: {complaint(error)}") from error

    def account_is_allowed(
        self, account: str, permission: Permission, verb: str, account_namespace: str
    ) -> bool | None:
        """Return whether a ServiceAccount has a right here (LocalSubjectAccessReview).

        `account_namespace` is the namespace of the account. None if we may not ask about others.
        """
        user = f"system:serviceaccount:{account_namespace}:{account}"
        groups = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{account_namespace}",
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
        """Return a Secret; None if there is none, or if it may not be read (see `unseen`)."""
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
        """Return the names of a ServiceAccount's Secrets; None without it, or if unreadable."""
        account = self._try_read(
            f"ServiceAccount {name}",
            self._core.read_namespaced_service_account,
            name,
            self.namespace,
        )
        return None if account is None else [secret.name for secret in account.secrets or []]

    def quotas(self) -> list[tuple[str, dict[str, str], dict[str, str]]] | None:
        """Return (name, hard, used) of each ResourceQuota of the namespace; None if unreadable."""
        quota_list = self._try_read(
            "ResourceQuotas", self._core.list_namespaced_resource_quota, self.namespace
        )
        if quota_list is None:
            return None
        quotas = []
        for quota in quota_list.items:
            hard = (quota.status and quota.status.hard) or (quota.spec and quota.spec.hard) or {}
            usage = (quota.status and quota.status.used) or {}
            quotas.append((quota.metadata.name, hard, usage))
        return quotas

    def namespace_labels(self) -> dict[str, str] | None:
        """Return the labels of the namespace; None if unreadable."""
        namespace = self._try_read(
            f"Namespace {self.namespace}", self._core.read_namespace, self.namespace
        )
        return None if namespace is None else (namespace.metadata.labels or {})

    def nodes(self) -> list[Node] | None:
        """Return the nodes of the cluster; None if they may not be listed."""
        node_list = self._try_read("Nodes", self._core.list_node)
        if node_list is None:
            return None
        return [
            Node(
                labels=node.metadata.labels or {},
                allocatable=(node.status and node.status.allocatable) or {},
                schedulable=not (node.spec and node.spec.unschedulable),
            )
            for node in node_list.items
        ]

    def katib_config(self) -> Manifest | None:
        """Return Katib's configuration from its usual place; None if unreadable."""
        name = "katib-config"
        config_map = self._try_read(
            f"ConfigMap {name}", self._core.read_namespaced_config_map, name, "kubeflow"
        )
        text = ((config_map and config_map.data) or {}).get(f"{name}.yaml")
        if not text:
            return None
        config: Manifest = yaml.safe_load(text)
        return config

    def storage_container(self) -> Manifest | None:
        """Return the container that fetches models for KServe; None if unreadable."""
        container = self._try_read(
            "ClusterStorageContainer default",
            self._custom.get_cluster_custom_object,
            "serving.kserve.io",
            "v1alpha1",
            "clusterstoragecontainers",
            "default",
        )
        return None if container is None else container["spec"]["container"]

    def operator_arguments(self) -> list[str] | None:
        """Return the arguments of the training operator; None if unreadable."""
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
        """Return the spec of a serving runtime of KServe; None if unreadable.

        A runtime of the namespace takes precedence over one of the cluster.
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

    def dry_run_refusal(self, kind: Kind, manifest: Manifest) -> str:
        """Return why the cluster, with its webhooks, would refuse an object; else empty.

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
            # 409: it exists, so that it was accepted before
            return "" if error.status == 409 else complaint(error)
        except DeadlineError as error:  # for example, a webhook is unavailable
            return " ".join(str(error).split())
        return ""

    def _ask(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self._api.call(
            Wait("the API server's answer", SECONDS, ignore), request, *arguments, **options
        )

    def _try_read(
        self, what: str, request: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any | None:
        """Return the answer; None if there is no such object, or if it may not be read."""
        try:
            return self._ask(request, *arguments, **options)
        except ApiException as error:
            if error.status != 404:
                self.unseen[what] = complaint(error)
            return None
