"""The permissions that a run needs in its namespace, for `pipeline.py --check` and deploy/.

The steps' pods send Experiments, PyTorchJobs and InferenceServices and read what becomes of them,
by the ServiceAccount that Kubeflow Pipelines runs them as. Whoever types `--check`, `--status`,
`--logs` and `--down` needs the same.
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
    """Plural, with the subresource behind a slash."""
    verbs: tuple[str, ...]
    why: str
    needed: bool = True
    """False where a run ends well without it, and only says less."""

    @property
    def name(self) -> str:
        """As RBAC and kubectl write it: pytorchjobs.kubeflow.org, pods/log."""
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
        needed=False,
    ),
    Permission(
        group="", resource="pods/log", verbs=("get",), why="last lines of what failed", needed=False
    ),
    Permission(
        group="",
        resource="events",
        verbs=("list",),
        why="quota, images and volumes that hold something up",
        needed=False,
    ),
    # Without these two a missing key shows only when KServe's storage initializer fails.
    Permission(
        group="",
        resource="secrets",
        verbs=("get",),
        why="that the S3 Secret has its keys before a service is made",
        needed=False,
    ),
    Permission(
        group="",
        resource="serviceaccounts",
        verbs=("get",),
        why="that the predictor's account names the Secret",
        needed=False,
    ),
    Permission(
        group="",
        resource="resourcequotas",
        verbs=("list",),
        why="how many trials fit at once, and whether a second pod of the service does",
        needed=False,
    ),
    Permission(
        group="apps",
        resource="deployments",
        verbs=("get",),
        why="whether an update of the service is through, where pods may not be listed",
        needed=False,
    ),
    # Of Argo and KFP inside a step's own pod. Without them a run that is given another account
    # than the namespace's own ends in its first pod (seen with KFP 2.15.0 and Argo 3.7.3).
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
        needed=False,
    ),
)


def rules() -> list[dict[str, list[str]]]:
    """The table as the rules of a Role: one for each set of verbs of a group."""
    return [
        {
            "apiGroups": [permission.group],
            "resources": [permission.resource],
            "verbs": list(permission.verbs),
        }
        for permission in PERMISSIONS
    ]


def requests() -> Iterator[tuple[Permission, str]]:
    """Each permission with each of its verbs: what a SelfSubjectAccessReview asks one by one."""
    return ((permission, verb) for permission in PERMISSIONS for verb in permission.verbs)
