"""Find the address of Kubeflow Pipelines in what this machine is configured with."""

from __future__ import annotations

import os

from common.config import AUTO, NONE
from common.errors import InputError
from operations.auth import notebook_token

IN_CLUSTER = "in-cluster"
IN_CLUSTER_URL = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def endpoint(host: str) -> tuple[str, str]:
    """Return the KFP endpoint and its source; two empty texts where there is none.

    'in-cluster' stands for KFP's own default, 'none' for no endpoint, whatever is configured.
    Raises InputError for an address that is no URL.
    """
    if host == NONE:
        return "", ""
    if host not in (AUTO, IN_CLUSTER) and not host.startswith(("http://", "https://")):
        raise InputError(f"--host '{host}' is no URL; write https://KUBEFLOW/pipeline, or none")
    if host != AUTO:
        return host.rstrip("/"), "--host"
    if os.environ.get("KFP_ENDPOINT"):
        return os.environ["KFP_ENDPOINT"].rstrip("/"), "KFP_ENDPOINT"
    if notebook_token().exists():
        return IN_CLUSTER, "the token that Kubeflow mounts into notebooks"
    return "", ""
