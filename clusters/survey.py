"""What a cluster says of itself before anything is created: versions, permissions, secrets, quota,
and whether it would take an object.

Every question is one or a few requests with a deadline of seconds. What may not be seen is None,
and `unseen` says why: a user's rights differ from cluster to cluster, and what cannot be looked at
is no fault of the run.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from clusters.api import Api, Connection, Kind, complaint
from clusters.permissions import Permission
from clusters.protocol import Manifest
from clusters.waiting import Wait, ignore
from common.errors import ClusterError

SECONDS = 20.0  # for one question; a cluster that takes longer to answer is in trouble
# who serves a kind -> deployments that run it, by namespace and name, as the usual installations
# have them
CONTROLLERS = {
    "Katib": (("kubeflow", "katib-controller"),),
    "the training operator": (("kubeflow", "training-operator"),),
    "KServe": (("kserve", "kserve-controller-manager"), ("kubeflow", "kserve-controller-manager")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecretKeys:
    """A Secret's values by key (kept in memory only, never printed) and its annotations."""

    values: dict[str, str]
    annotations: dict[str, str]


class Survey:
    """Questions to one namespace of a cluster."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.namespace, self._client = namespace, connection.client
        self._api = Api(connection, namespace, pause=0.3)
        self._core, self._custom = (
            client.CoreV1Api(connection.client),
            client.CustomObjectsApi(connection.client),
        )
        self._reviews = client.AuthorizationV1Api(connection.client)
        self.unseen: dict[str, str] = {}

    def version(self) -> str:
        """The API server's version. Raises ClusterError if it does not answer."""
        try:
            return self._ask(client.VersionApi(self._client).get_code).git_version
        except ApiException as error:
            raise ClusterError(f"the API server answers {complaint(error)}") from error

    def serves(self, kind: Kind) -> bool:
        """Whether the API of a kind is there."""
        try:
            listed = self._ask(self._custom.get_api_resources, kind.group, kind.version)
        except ApiException as error:
            if error.status == 404:
                return False
            raise ClusterError(f"cannot ask for {kind.api_version}: {complaint(error)}") from error
        return any(resource.name == kind.plural for resource in listed.resources)

    def controller_version(self, owner: str) -> str | None:
        """The tag of the image of who serves a kind; None where it cannot be seen."""
        for namespace, name in CONTROLLERS[owner]:
            found = self._glimpse(
                f"{name} in {namespace}",
                client.AppsV1Api(self._client).read_namespaced_deployment,
                name,
                namespace,
            )
            if found is not None:
                return found.spec.template.spec.containers[0].image.rsplit("/", 1)[-1]
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

    def account_allowed(self, account: str, permission: Permission, verb: str) -> bool | None:
        """Whether a ServiceAccount of the namespace may (LocalSubjectAccessReview);

        None if we may not ask for others.
        """
        user = f"system:serviceaccount:{self.namespace}:{account}"
        groups = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{self.namespace}",
            "system:authenticated",
        ]
        spec = client.V1SubjectAccessReviewSpec(
            user=user, groups=groups, resource_attributes=self._attributes(permission, verb)
        )
        review = client.V1LocalSubjectAccessReview(
            metadata={"namespace": self.namespace}, spec=spec
        )
        found = self._glimpse(
            f"rights of ServiceAccount {account}",
            self._reviews.create_namespaced_local_subject_access_review,
            self.namespace,
            review,
        )
        return None if found is None else bool(found.status.allowed)

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
        """A Secret; None if it is not there or may not be read (then `unseen` has its name)."""
        found = self._glimpse(
            f"Secret {name}", self._core.read_namespaced_secret, name, self.namespace
        )
        if found is None:
            return None
        decoded = {
            key: base64.b64decode(value).decode(errors="replace")
            for key, value in (found.data or {}).items()
        }
        return SecretKeys(
            values=decoded | (found.string_data or {}), annotations=found.metadata.annotations or {}
        )

    def account_secrets(self, name: str) -> list[str] | None:
        """Names of the Secrets of a ServiceAccount;

        None if there is no such account or it may not be read.
        """
        found = self._glimpse(
            f"ServiceAccount {name}",
            self._core.read_namespaced_service_account,
            name,
            self.namespace,
        )
        return None if found is None else [secret.name for secret in found.secrets or []]

    def quotas(self) -> list[tuple[str, dict[str, str], dict[str, str]]] | None:
        """(name, hard, used) of the ResourceQuotas of the namespace;

        None if they may not be read.
        """
        found = self._glimpse(
            "ResourceQuotas", self._core.list_namespaced_resource_quota, self.namespace
        )
        if found is None:
            return None
        return [
            (
                one.metadata.name,
                (one.status and one.status.hard) or (one.spec and one.spec.hard) or {},
                (one.status and one.status.used) or {},
            )
            for one in found.items
        ]

    def runtime(self, name: str) -> dict[str, Any] | None:
        """The spec of KServe's serving runtime of this name, the namespace's own before the
        cluster's; None if it is not seen.
        """
        group, version = "serving.kserve.io", "v1alpha1"
        own = self._glimpse(
            f"ServingRuntime {name}",
            self._custom.get_namespaced_custom_object,
            group,
            version,
            self.namespace,
            "servingruntimes",
            name,
        )
        found = own or self._glimpse(
            f"ClusterServingRuntime {name}",
            self._custom.get_cluster_custom_object,
            group,
            version,
            "clusterservingruntimes",
            name,
        )
        return None if found is None else found["spec"]

    def would_take(self, kind: Kind, manifest: Manifest) -> str:
        """Why the cluster, with its webhooks, would refuse to create the object; empty if it would
        take it. Nothing is created.
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
        return ""

    def _ask(self, request: Any, *arguments: Any, **options: Any) -> Any:
        return self._api.call(
            Wait("the API server's answer", SECONDS, ignore), request, *arguments, **options
        )

    def _glimpse(self, what: str, request: Any, *arguments: Any, **options: Any) -> Any | None:
        try:
            return self._ask(request, *arguments, **options)
        except ApiException as error:
            if error.status != 404:
                self.unseen[what] = complaint(error)
            return None
