"""Which pods a namespace refuses by the Pod Security level that its labels enforce.

Restated from kubernetes v1.34 staging/src/k8s.io/pod-security-admission/policy: of all its rules
those that a pod of a run, or of a controller for it, can break.
"""

from __future__ import annotations

from clusters.protocol import Manifest

ENFORCE = "pod-security.kubernetes.io/enforce"
"""Label of a namespace with its level; without it the cluster's default holds, mostly privileged.
"""
PRIVILEGED, BASELINE, RESTRICTED = "privileged", "baseline", "restricted"


def violations(spec: Manifest, level: str) -> list[str]:
    """What a level refuses in the spec of a pod, in words; empty if it takes the pod."""
    if level not in (BASELINE, RESTRICTED):
        return []
    refused = []
    folders = [one["hostPath"]["path"] for one in spec.get("volumes") or [] if "hostPath" in one]
    if folders:
        refused.append(f"folders of the node ({', '.join(folders)})")
    pod_context = spec.get("securityContext") or {}
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        own = container.get("securityContext") or {}
        missing = []
        if own.get("privileged"):
            missing.append("privileged")
        if level == RESTRICTED:
            missing += _missing(own, {**pod_context, **own})
        if missing:
            refused.append(f"container {container['name']}: {', '.join(missing)}")
    return refused


def _missing(own: Manifest, merged: Manifest) -> list[str]:
    """What `restricted` misses in a container: by its own context, and by that of its pod, too."""
    holds = {
        "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is False,
        "capabilities drop ALL": "ALL" in ((own.get("capabilities") or {}).get("drop") or []),
        "runAsNonRoot: true": merged.get("runAsNonRoot") is True and merged.get("runAsUser") != 0,
        "seccompProfile RuntimeDefault": (merged.get("seccompProfile") or {}).get("type")
        in ("RuntimeDefault", "Localhost"),
    }
    return [f"no {rule}" for rule, is_there in holds.items() if not is_there]
