"""The KServe InferenceService of a run's model: Triton over the run's own model repository."""

from __future__ import annotations

from clusters import manifests
from clusters.protocol import Manifest
from common.run import Run

RUNTIME = "kserve-tritonserver"
# For the server, and room for large batches.
CPU = 2
MEMORY = "4Gi"
# Of the old form only, which names its image; the new one takes the cluster's runtime.
TRITON_VERSION = "23.05-py3"


def inference_service(run: Run, trial: str = "") -> Manifest:
    """A v1beta1 InferenceService, named as the model that it serves.

    Its predictor is `model` with the Triton runtime, or the old `triton`. The storage URI holds the
    run id: new content has a new address, which is what makes KServe load it. A resumed search may
    bring another model to the same address; the `trial` it comes from, as an environment variable,
    then starts new pods.
    """
    config = run.config
    # One instance of the model, however many GPUs a trial has.
    resources = manifests.Resources(cpus=CPU, memory=MEMORY, gpus=1 if config.num_gpus else 0)
    env = manifests.environment({"JEC_TRIAL": trial}) if trial else []
    server: Manifest = {
        "protocolVersion": "v2",
        "storageUri": run.folder.models,
        **manifests.container_fields(env=env, resources=resources, restricted=False),
    }

    # Each form says in its own way which server it is.
    if config.predictor_form == "triton":
        server = {"runtimeVersion": TRITON_VERSION, **server}
    else:
        model_format = {"name": "triton", "version": "2"}
        server = {"modelFormat": model_format, "runtime": RUNTIME, **server}
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
                # Triton and KServe's storage initializer are unproven as another user than theirs.
                **manifests.pod_fields(service_account=config.service_account, restricted=False),
                "minReplicas": config.min_replicas,
                "maxReplicas": max(config.max_replicas, config.min_replicas),
                config.predictor_form: server,
            }
        },
    }
