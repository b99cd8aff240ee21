"""Find the address of Kubeflow Pipelines in what this machine is configured with."""

from __future__ import annotations

import os

from common.config import AUTO
from operations.auth import notebook_token

IN_CLUSTER = "in-cluster"
IN_CLUSTER_URL = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def endpoint(host: str) -> tuple[str, str]:
    """Return the KFP endpoint and its source; two empty texts where there is none.

    'in-cluster' stands for KFP's own default.
    """
    if host != AUTO:
        return host.rstrip("/"), "--host"
    if os.environ.get("KFP_ENDPOINT"):
        return os.environ["KFP_ENDPOINT"].rstrip("/"), "KFP_ENDPOINT"
    if notebook_token().exists():
        return IN_CLUSTER, "the token that Kubeflow mounts into notebooks"
    return "", ""
