"""The Argo Workflow of a run, which owns the objects that steps create until they succeed.

The garbage collector of Kubernetes deletes an object when its owner is gone. So a run that was
deleted, or whose exit handler did not run, leaves no objects for long. It also deletes objects
whose owner is in another namespace, so that owners must be in the namespace of the object
(kubernetes.io/docs/concepts/architecture/garbage-collection).
"""

from __future__ import annotations

import dataclasses
import os

from clusters import api as api_module
from clusters.api import WORKFLOW, Api, connect
from clusters.protocol import KFP_POD, Manifest, Report
from clusters.waiting import Wait

LOOK_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """A Workflow and its namespace."""

    api_version: str
    name: str
    uid: str
    namespace: str

    @property
    def reference(self) -> Manifest:
        """Return the entry for an object's ownerReferences.

        It has no blockOwnerDeletion, which needs a right on the owner's finalizers.
        """
        return {
            "apiVersion": self.api_version,
            "kind": WORKFLOW.name,
            "name": self.name,
            "uid": self.uid,
        }


def is_workflow(reference: Manifest) -> bool:
    """Return whether an entry of ownerReferences names an Argo Workflow."""
    group = reference.get("apiVersion", "").partition("/")[0]
    return reference.get("kind") == WORKFLOW.name and group == WORKFLOW.group


def workflow_of(pod: Manifest) -> Owner | None:
    """Return the Workflow that a pod belongs to; None if there is none."""
    for reference in pod["metadata"].get("ownerReferences") or []:
        if is_workflow(reference):
            return Owner(
                api_version=reference["apiVersion"],
                name=reference["name"],
                uid=reference["uid"],
                namespace=pod["metadata"]["namespace"],
            )
    return None


def workflow_of_this_pod(report: Report) -> Owner | None:
    """Return the Workflow that the pod of this process belongs to.

    None if this is not a pod of a Workflow, or the pod may not be read.

    Raises:
        InputError: If no cluster is configured.
    """
    place = api_module.SERVICE_ACCOUNT / "namespace"
    # a host name is cut after 63 characters, while the name of a pod has up to 253
    name = os.environ.get(KFP_POD) or os.environ.get("HOSTNAME")
    if not name or not place.exists():
        return None
    namespace = place.read_text().strip()
    wait = Wait(f"a look at pod {name}", LOOK_SECONDS, report)
    pod = Api(connect(), namespace).pod(name, wait)
    return workflow_of(pod) if pod else None
