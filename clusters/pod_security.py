"""Pods that a namespace refuses, by the Pod Security level that its labels enforce.

Reimplements the rules of kubernetes v1.34 staging/src/k8s.io/pod-security-admission/policy that a
pod of a run, or one that a controller adds, can violate.
"""

from __future__ import annotations

from clusters.protocol import Manifest

ENFORCE = "pod-security.kubernetes.io/enforce"
"""Label of a namespace with its level. The default of the cluster is usually privileged."""
PRIVILEGED, BASELINE, RESTRICTED = "privileged", "baseline", "restricted"


def violations(spec: Manifest, level: str) -> list[str]:
    """Return the violations of a level in the spec of a pod, in words; empty if there are none."""
    if level not in (BASELINE, RESTRICTED):
        return []
    problems = []
    folders = [
        volume["hostPath"]["path"] for volume in spec.get("volumes") or [] if "hostPath" in volume
    ]
    if folders:
        problems.append(f"folders of the node ({', '.join(folders)})")
    pod_context = spec.get("securityContext") or {}
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        own = container.get("securityContext") or {}
        missing = []
        if own.get("privileged"):
            missing.append("privileged")
        if level == RESTRICTED:
            missing += _missing(own, {**pod_context, **own})
        if missing:
            problems.append(f"container {container['name']}: {', '.join(missing)}")
    return problems


def _missing(own: Manifest, effective: Manifest) -> list[str]:
    """Return the rules of `restricted` that a container violates.

    Args:
        own: The securityContext of the container.
        effective: The same, with the fields of the pod's securityContext where it has none.
    """
    holds = {
        "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is False,
        "capabilities drop ALL": "ALL" in ((own.get("capabilities") or {}).get("drop") or []),
        "runAsNonRoot: true": effective.get("runAsNonRoot") is True
        and effective.get("runAsUser") != 0,
        "seccompProfile RuntimeDefault": (effective.get("seccompProfile") or {}).get("type")
        in ("RuntimeDefault", "Localhost"),
    }
    return [f"no {rule}" for rule, is_there in holds.items() if not is_there]
