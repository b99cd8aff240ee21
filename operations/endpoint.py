"""Find the address of Kubeflow Pipelines: --host, KFP_ENDPOINT, or a notebook's own."""

from __future__ import annotations

import os

from common.config import AUTO, NONE
from common.errors import InputError
from common.storage.addresses import check_url
from operations.auth import notebook_token

IN_CLUSTER = "in-cluster"
IN_CLUSTER_URL = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def endpoint(host: str) -> tuple[str, str]:
    """Return the KFP endpoint and where it comes from; two empty strings if there is none.

    `host` is the value of --host: a URL; 'in-cluster' for KFP's own default; 'none' to ignore
    KFP_ENDPOINT and the notebook; 'auto' for the first of these. Raises InputError for an invalid
    URL.
    """
    if host == NONE:
        return "", ""
    if host == IN_CLUSTER:
        return host, "--host"
    configured = os.environ.get("KFP_ENDPOINT", "")
    for address, source in ((host if host != AUTO else "", "--host"), (configured, "KFP_ENDPOINT")):
        if address:
            try:
                check_url(address)
            except InputError as error:
                raise InputError(
                    f"{source}: {error}; write https://KUBEFLOW/pipeline, or none"
                ) from None
            return address.rstrip("/"), source
    if notebook_token().exists():
        return IN_CLUSTER, "the token that Kubeflow mounts into notebooks"
    return "", ""
