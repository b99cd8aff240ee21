"""Replace the model of a service: test the new model, update the service, undo it on failure.

1. If a second pod fits into the quota of the namespace, the new model is deployed as NAME-next and
checked there. A model that does not become ready or answers wrongly never serves. 2. The service
itself is updated and checked. With surge the new pod starts before the former one ends; with
recreate the former one ends first, which needs no room for a second pod. 3. If this fails, the
former spec, labels and annotations of the service are restored; they match the former pods, which
continue to serve if they still exist. A service that was new is deleted.
"""

from __future__ import annotations

import copy
import math

from clusters import kubernetes_service
from clusters.api import INFERENCE_SERVICE
from clusters.kubernetes_objects import REVISION_LABEL, Objects, digest
from clusters.kubernetes_service import Deployment, NoNodeError
from clusters.manifests import server_of
from clusters.protocol import RUN_LABEL, Check, Manifest, Report, Service
from clusters.reasons import name_of
from clusters.service_name import check as check_name
from clusters.service_name import max_length, too_long
from clusters.waiting import Wait
from common import storage
from common.errors import InterruptedRun, JecError

NEXT = "-next"
RECREATE = "Recreate"
NO_NODE_SECONDS = 300.0  # an autoscaler needs some minutes for a new node
RESTORE_SECONDS = 120.0
# Resources of KServe's own container that fetches the model, in its default configuration
# (kserve v0.15.2 config/configmap/inferenceservice.yaml: storageInitializer).
INITIALIZER = {
    "requests": {"cpu": "100m", "memory": "100Mi"},
    "limits": {"cpu": "1", "memory": "1Gi"},
}


class Rollout:
    """One deploy, from the existing service to the one that passed the check."""

    def __init__(
        self,
        objects: Objects,
        manifest: Manifest,
        *,
        inside: bool,
        check: Check,
        backup: str,
        patience: float,
        deadline: float,
        report: Report,
    ) -> None:
        """Prepare the rollout; nothing is sent yet. Times are in seconds."""
        self._objects = objects
        self._manifest = manifest
        self._name = name_of(manifest)
        self._inside = inside
        self._check = check
        self._backup = backup
        self._patience = patience
        self._deadline = deadline
        self._report = report
        strategy: Manifest = manifest["spec"].get("predictor", {}).get("deploymentStrategy", {})
        self._strategy: str = strategy.get("type", "")
        self._revision = digest(manifest["spec"])
        manifest["metadata"]["labels"][REVISION_LABEL] = self._revision

    def run(self) -> Service:
        """Deploy and check the new model, and restore the former one if it fails.

        Raises:
            InputError: If the name is too long for KServe.
            JecError: If the new model failed, with what became of the former one.
        """
        check_name(self._name, self._objects.namespace)
        wait = Wait(f"service {self._name}", self._deadline, self._report)
        existing = self._objects.find(INFERENCE_SERVICE, self._name, wait)
        former = self._former(existing)
        if existing and not self._is_ours(existing) and self._has_room(wait):
            self._test_as_second_service()
        try:
            service = self._deploy(self._manifest)
        except InterruptedRun:
            raise  # the step is restarted and continues
        except JecError as error:
            _add(error, self._restore_former(former))
            raise
        # emptied and not deleted, since the storage may not allow deletion
        storage.write_json(self._backup, {})
        return service

    def _is_ours(self, existing: Manifest) -> bool:
        labels = existing["metadata"].get("labels") or {}
        revision: str | None = labels.get(REVISION_LABEL)
        return revision == self._revision

    def _former(self, existing: Manifest | None) -> Manifest | None:
        """Return the service as it was before this deploy; None if there was none.

        If an earlier attempt was killed, the backup has it.
        """
        if existing and self._is_ours(existing):
            backup = storage.find_object(self._backup)
            if backup.get("revision") == self._revision:
                former: Manifest | None = backup["service"]
                return former
        if existing is None:
            former = None
        else:
            metadata = existing["metadata"]
            former = {
                "labels": metadata.get("labels") or {},
                "annotations": metadata.get("annotations") or {},
                "spec": existing["spec"],
            }
        storage.write_json(self._backup, {"revision": self._revision, "service": former})
        return former

    def _has_room(self, wait: Wait) -> bool:
        """Choose and report the rollout; return whether a second pod fits.

        --rollout takes precedence over the quota.
        """
        if self._strategy:
            surge = self._strategy != RECREATE
            reason = "as --rollout says"
        else:
            reason = no_room(self._objects.api.quotas(wait), pod_needs(self._manifest))
            surge = not reason
            reason = reason or "the quota allows a second pod"
        if surge:
            self._report(
                f"service {self._name}: rollout by surge ({reason}): the new pod starts before the"
                " former one ends"
            )
        else:
            self._recreate(reason)
        return surge

    def _recreate(self, reason: str) -> None:
        self._manifest["spec"]["predictor"]["deploymentStrategy"] = {"type": RECREATE}
        self._report(
            f"service {self._name}: rollout by recreate ({reason}): the former pod ends before"
            " the new one starts, and the service does not answer in between"
        )

    def _test_as_second_service(self) -> None:
        """Deploy the new model as NAME-next, check it, and delete it again."""
        name = self._name + NEXT
        if too_long(name, self._objects.namespace):
            limit = max_length(self._objects.namespace)
            self._report(
                f"service {self._name}: the new model is not tested as a second service first,"
                f" because the name {name} has more than {limit} characters"
            )
            return
        second = copy.deepcopy(self._manifest)
        second["metadata"]["name"] = name
        second["spec"]["predictor"] |= {"minReplicas": 1, "maxReplicas": 1}
        removal = Wait(f"removal of {name}", RESTORE_SECONDS, self._report)
        try:
            # Without --rollout the strategy may still change to recreate.
            self._deploy(second, no_node_seconds=None if self._strategy else NO_NODE_SECONDS)
        except NoNodeError as error:
            self._objects.remove([(INFERENCE_SERVICE, name)], removal)
            self._recreate(str(error))
        except InterruptedRun:
            raise
        except JecError as error:
            self._objects.api.delete(INFERENCE_SERVICE, name, removal)
            _add(
                error,
                f"the new model was tested as {name}, which is removed; {self._name} still serves"
                " the previous model",
            )
            raise
        else:
            # Its room is for the pod of the update.
            self._objects.remove([(INFERENCE_SERVICE, name)], removal)

    def _deploy(self, manifest: Manifest, no_node_seconds: float | None = None) -> Service:
        """Deploy one service and check it. An error of the check gets the state of the service."""
        deployment = Deployment(
            self._objects,
            manifest,
            patience=self._patience,
            deadline=self._deadline,
            report=self._report,
            no_node_seconds=no_node_seconds,
        )
        ready_service = deployment.run()
        service = kubernetes_service.service_record(
            ready_service, self._objects.namespace, inside=self._inside, certain=deployment.certain
        )
        try:
            self._check(service)
        except InterruptedRun:
            raise
        except JecError as error:
            _add(error, kubernetes_service.describe(self._objects.api, name_of(manifest)))
            raise
        return service

    def _restore_former(self, former: Manifest | None) -> str:
        """Restore the former service and return what was done; also if that fails."""
        wait = Wait(f"restoring service {self._name}", RESTORE_SECONDS, self._report)
        try:
            return self._put_back(former, wait)
        except JecError as error:
            return (
                f"the service could not be restored ({error}); its former state is in"
                f" {self._backup}"
            )

    def _put_back(self, former: Manifest | None, wait: Wait) -> str:
        while True:
            existing = self._objects.find(INFERENCE_SERVICE, self._name, wait)
            if existing is None or not self._is_ours(existing):
                return f"service {self._name} was not changed"
            if former is None:
                self._objects.api.delete(INFERENCE_SERVICE, self._name, wait)
                return f"service {self._name} was new and is removed"
            metadata = copy.deepcopy(existing["metadata"])
            metadata.pop("managedFields", None)
            metadata |= {"labels": former["labels"], "annotations": former["annotations"]}
            spec = copy.deepcopy(former["spec"])
            strategy = self._manifest["spec"]["predictor"].get("deploymentStrategy", {})
            if strategy.get("type") == RECREATE:
                # Without room for a second pod the failed one must end first. The strategy is not
                # part of the pods' template, so that the former pods still match.
                spec["predictor"]["deploymentStrategy"] = strategy
            old_service = {**existing, "metadata": metadata, "spec": spec}
            if self._objects.api.replace(INFERENCE_SERVICE, old_service, wait):
                run = former["labels"].get(RUN_LABEL, "no run of this pipeline")
                return f"service {self._name} is as it was before: its model is that of {run}"


def _add(error: JecError, text: str) -> None:
    """Add lines to the text of an error."""
    error.args = (f"{error}\n{text}", *error.args[1:])


def pod_needs(service: Manifest) -> dict[str, float]:
    """Return the resources of a pod of the predictor, by the names of a ResourceQuota."""
    needs = {"pods": 1.0}
    resources = server_of(service)["resources"]
    for kind, amounts in resources.items():
        for resource, text in amounts.items():
            amount = _amount(text)
            initializer_amount = INITIALIZER[kind].get(resource)
            needs[f"{kind}.{resource}"] = max(
                amount, _amount(initializer_amount) if initializer_amount else 0.0
            )
    # A quota may name these two without 'requests.'.
    for resource in ("cpu", "memory"):
        needs[resource] = needs[f"requests.{resource}"]
    return needs


def no_room(quotas: list[Manifest] | None, needs: dict[str, float]) -> str:
    """Return which quota has no room for another pod; empty if none or if unreadable."""
    for quota in quotas or []:
        status = quota.get("status") or {}
        limits = status.get("hard") or quota.get("spec", {}).get("hard") or {}
        usage = status.get("used") or {}
        for resource, limit in limits.items():
            free = _amount(limit) - _amount(usage.get(resource, "0"))
            need = needs.get(resource, 0.0)
            if need > free and not math.isclose(need, free):
                return (
                    f"quota {quota['metadata']['name']} allows {limit} of {resource}, of which"
                    f" {usage.get(resource, '0')} are in use"
                )
    return ""


def _amount(text: str) -> float:
    from kubernetes.utils.quantity import parse_quantity

    return float(parse_quantity(text))
