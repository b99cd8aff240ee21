"""The permissions that a run needs in its namespace, for `pipeline.py --check` and deploy/.

The pods of steps create Experiments, PyTorchJobs and InferenceServices and read their state, with
the ServiceAccount of Kubeflow Pipelines. Users of `--check`, `--status`, `--logs` and `--down` need
the same permissions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permission:
    """Verbs on one kind of object of the namespace."""

    group: str
    """API group; empty for the core one."""
    resource: str
    """Plural, with a subresource after a slash."""
    verbs: tuple[str, ...]
    why: str
    is_needed: bool = True
    """False if a run succeeds without it and only explains less."""

    @property
    def name(self) -> str:
        """Name as in RBAC and kubectl: pytorchjobs.kubeflow.org, pods/log."""
        return f"{self.resource}.{self.group}" if self.group else self.resource


PERMISSIONS = (
    Permission(
        group="kubeflow.org",
        resource="experiments",
        verbs=("create", "get", "list", "update", "delete"),
        why="the search; update for --more-trials and for the workflow that owns it meanwhile",
    ),
    Permission(
        group="kubeflow.org",
        resource="trials",
        verbs=("get", "list", "delete"),
        why="its trials and their losses; delete for those that a search leaves running",
    ),
    Permission(
        group="kubeflow.org",
        resource="pytorchjobs",
        verbs=("create", "get", "list", "update", "delete"),
        why="export, evaluation, trials that are resumed; update for the workflow that owns them",
    ),
    Permission(
        group="serving.kserve.io",
        resource="inferenceservices",
        verbs=("create", "get", "list", "update", "delete"),
        why="the service",
    ),
    Permission(
        group="",
        resource="pods",
        verbs=("get", "list"),
        why="why something waits or failed, and the workflow that a step's pod belongs to",
        is_needed=False,
    ),
    Permission(
        group="",
        resource="pods/log",
        verbs=("get",),
        why="last lines of what failed",
        is_needed=False,
    ),
    Permission(
        group="",
        resource="events",
        verbs=("list",),
        why="quota, images and volumes that hold something up",
        is_needed=False,
    ),
    # Without these two, a missing key shows only when KServe's storage initializer fails.
    Permission(
        group="",
        resource="secrets",
        verbs=("get",),
        why="that the S3 Secret has its keys before a service is made",
        is_needed=False,
    ),
    Permission(
        group="",
        resource="serviceaccounts",
        verbs=("get",),
        why="that the predictor's account names the Secret",
        is_needed=False,
    ),
    Permission(
        group="",
        resource="resourcequotas",
        verbs=("list",),
        why="how many trials fit at once, and whether a second pod of the service does",
        is_needed=False,
    ),
    Permission(
        group="apps",
        resource="deployments",
        verbs=("get",),
        why="whether an update of the service is through, where pods may not be listed",
        is_needed=False,
    ),
    # For Argo and KFP in the pod of a step. Without them a run with another account than the
    # default of the namespace fails in its first pod (seen with KFP 2.15.0 and Argo 3.7.3).
    Permission(
        group="argoproj.io",
        resource="workflowtaskresults",
        verbs=("create", "patch"),
        why="how Argo's executor reports the end of a step",
    ),
    Permission(
        group="",
        resource="configmaps",
        verbs=("get",),
        why="the settings that KFP's driver and launcher read",
    ),
    Permission(
        group="argoproj.io",
        resource="workflows",
        verbs=("get",),
        why="whether the run was terminated, for its summary",
        is_needed=False,
    ),
)


def rules() -> list[dict[str, list[str]]]:
    """Return the permissions as the rules of a Role, one for each resource."""
    return [
        {
            "apiGroups": [permission.group],
            "resources": [permission.resource],
            "verbs": list(permission.verbs),
        }
        for permission in PERMISSIONS
    ]


def requests() -> Iterator[tuple[Permission, str]]:
    """Yield each permission with each of its verbs, one SelfSubjectAccessReview each."""
    return ((permission, verb) for permission in PERMISSIONS for verb in permission.verbs)
