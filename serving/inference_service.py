"""The KServe InferenceService of a run's model: Triton over the run's own model repository."""

from __future__ import annotations

from clusters import manifests, run_pods
from clusters.protocol import Manifest
from common.config import AUTO
from common.run import Run

RUNTIME = "kserve-tritonserver"
# Until its address is gone everywhere, a pod that ends still gets requests: without the pause 4 of
# 685 were lost in an update, with it none of 665 (seen with KServe 0.15.2). As a command, because
# clusters before 1.30 do not know `sleep`.
LAST_REQUESTS: Manifest = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
STRATEGIES = {"surge": "RollingUpdate", "recreate": "Recreate"}
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
    resources = manifests.Resources(
        cpus=config.serving_cpus,
        memory=config.serving_memory,
        gpus=config.serving_gpus,
        gpu_resource=config.gpu_resource,
    )
    settings = run_pods.settings(run, gpus=config.serving_gpus, reads_data=False)
    # KServe's runtime runs Triton as the same user by itself; the image that the old form names is
    # unproven as another user than its own.
    restricted = config.predictor_form == "model"
    env = manifests.environment({"JEC_TRIAL": trial}) if trial else []
    server: Manifest = {
        "protocolVersion": "v2",
        # Without the slash the storage initializer also fetches siblings whose names begin so.
        "storageUri": f"{run.folder.models}/",
        **manifests.container_fields(settings, env=env, resources=resources, restricted=restricted),
        "lifecycle": LAST_REQUESTS,
    }
    # Left open for 'auto': the backend knows the namespace's quota.
    strategy = {}
    if config.rollout != AUTO:
        strategy = {"deploymentStrategy": {"type": STRATEGIES[config.rollout]}}

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
                **manifests.pod_fields(
                    settings, service_account=config.service_account, restricted=restricted
                ),
                **strategy,
                "minReplicas": config.min_replicas,
                "maxReplicas": max(config.max_replicas, config.min_replicas),
                config.predictor_form: server,
            }
        },
    }
