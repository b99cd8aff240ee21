"""The namespace of the pod that this program runs in, without a client of Kubernetes."""

from __future__ import annotations

from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def own_namespace() -> str:
    """The namespace of this pod; empty where this is no pod."""
    place = SERVICE_ACCOUNT / "namespace"
    return place.read_text().strip() if place.exists() else ""
