"""The KServe InferenceService of a run's model: Triton over the run's own model repository."""

from __future__ import annotations

from clusters import manifests
from clusters.protocol import Manifest
from common.run import Run

CPU, MEMORY = "2", "4Gi"  # for the server and room for large batches


def inference_service(run: Run) -> Manifest:
    """A v1beta1 InferenceService in the new style (`predictor.model`), named as the model that it serves.

    The storage URI holds the run id: new content has a new address, which is what makes KServe load it.
    """
    config = run.config
    amounts = {"cpu": CPU, "memory": MEMORY, **({"nvidia.com/gpu": "1"} if config.num_gpus else {})}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": run.model_name,
            **run.namespace,
            "labels": manifests.labels(run.id, "deploy"),
            "annotations": dict(manifests.NO_SIDECAR),
        },
        "spec": {
            "predictor": {
                "serviceAccountName": config.service_account,
                "minReplicas": 1,  # scaled to zero, the first physicist of the day would wait for a GPU
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "runtime": "kserve-tritonserver",
                    "protocolVersion": "v2",
                    "storageUri": run.path("model"),
                    "resources": {"requests": dict(amounts), "limits": dict(amounts)},
                },
            }
        },
    }
