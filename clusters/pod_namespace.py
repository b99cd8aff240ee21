"""The namespace of the pod of this program, read without a Kubernetes client."""

from __future__ import annotations

from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def own_namespace() -> str:
    """Return the namespace of this pod; empty outside of a pod."""
    place = SERVICE_ACCOUNT / "namespace"
    return place.read_text().strip() if place.exists() else ""
