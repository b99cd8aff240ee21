"""The KServe InferenceService of a run's model: Triton over the run's own model repository."""

from __future__ import annotations

from clusters import manifests, run_pods
from clusters.protocol import Manifest
from common.config import AUTO
from common.run import Run

RUNTIME = "kserve-tritonserver"
# A pod that ends still gets requests until its address is removed everywhere: without the pause 4
# of 685 were lost in an update, with it none of 665 (seen with KServe 0.15.2). It is a command,
# because clusters before 1.30 have no `sleep` hook.
LAST_REQUESTS: Manifest = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
STRATEGIES = {"surge": "RollingUpdate", "recreate": "Recreate"}
# For the old form only, which names its image; the new one uses the runtime of the cluster.
TRITON_VERSION = "23.05-py3"


def inference_service(run: Run, trial: str = "") -> Manifest:
    """Return the InferenceService (v1beta1) of a run, with the name of the model that it serves.

    Its predictor is `model` with the Triton runtime, or the old `triton`. The storage URI contains
    the run id, because KServe loads a model again only if its address changes. A resumed search may
    put another model at the same address; the environment variable with `trial`, from which it was
    exported, then starts new pods.
    """
    config = run.config
    resources = manifests.Resources(
        cpus=config.serving_cpus,
        memory=config.serving_memory,
        gpus=config.serving_gpus,
        gpu_resource=config.gpu_resource,
    )
    settings = run_pods.settings(run, gpus=config.serving_gpus, reads_data=False)
    # KServe's runtime runs Triton as the same user by default. The image of the old form was not
    # tried with another user than its own.
    restricted = config.predictor_form == "model"
    env = manifests.environment({"JEC_TRIAL": trial}) if trial else []
    server: Manifest = {
        "protocolVersion": "v2",
        # Without the slash the storage initializer also fetches folders whose names begin likewise.
        "storageUri": f"{run.folder.models}/",
        **manifests.container_fields(settings, env=env, resources=resources, restricted=restricted),
        "lifecycle": LAST_REQUESTS,
    }
    # Not set for 'auto', because the backend chooses by the quota of the namespace.
    strategy = {}
    if config.rollout != AUTO:
        strategy = {"deploymentStrategy": {"type": STRATEGIES[config.rollout]}}

    # Each form names its server in another way.
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
                    settings,
                    service_account=config.service_account,
                    restricted=restricted,
                    # the account is the operator's, and what else reads its token is not known
                    keep_token=True,
                ),
                **strategy,
                "minReplicas": config.min_replicas,
                "maxReplicas": max(config.max_replicas, config.min_replicas),
                config.predictor_form: server,
            }
        },
    }
