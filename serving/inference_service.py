"""The KServe InferenceService of a run's model: Triton over the run's own model repository."""

from __future__ import annotations

from clusters import manifests
from clusters.protocol import Manifest
from common.run import Run

RUNTIME = "kserve-tritonserver"
CPU, MEMORY = "2", "4Gi"  # for the server and room for large batches


# of the old form only, which names its image; the new one takes the cluster's runtime
TRITON_VERSION = "23.05-py3"


def inference_service(run: Run, trial: str = "") -> Manifest:
    """A v1beta1 InferenceService named as the model that it serves: `predictor.model` with the
    Triton runtime, or the old `triton`.

    The storage URI holds the run id: new content has a new address, which is what makes KServe load
    it. A search that was gone on with may bring another model to the same address; the `trial` it
    comes from, as an environment variable, starts new pods then.
    """
    config = run.config
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": run.model_name,
            **run.namespace,
            "labels": manifests.labels(run.id, "deploy", config.user),
            "annotations": dict(manifests.NO_SIDECAR),
        },
        "spec": {
            "predictor": {
                "serviceAccountName": config.service_account,
                "minReplicas": config.min_replicas,
                "maxReplicas": max(config.max_replicas, config.min_replicas),
                config.predictor_form: _server(run, trial),
            }
        },
    }


def _server(run: Run, trial: str) -> Manifest:
    """What both forms say of the server, and what each says of who it is."""
    amounts = {
        "cpu": CPU,
        "memory": MEMORY,
        **({"nvidia.com/gpu": "1"} if run.config.num_gpus else {}),
    }
    common = {
        "protocolVersion": "v2",
        "storageUri": run.path("model"),
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        **({"env": manifests.environment({"JEC_TRIAL": trial})} if trial else {}),
    }
    if run.config.predictor_form == "triton":
        return {"runtimeVersion": TRITON_VERSION, **common}
    return {"modelFormat": {"name": "triton", "version": "2"}, "runtime": RUNTIME, **common}
