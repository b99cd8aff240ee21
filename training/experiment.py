"""The Katib Experiment of a run: a search whose trials are PyTorchJobs that run weaver.train."""

from __future__ import annotations

from typing import Any

from clusters import manifests
from clusters.protocol import Manifest
from common import storage
from common.config import AUTO
from common.run import Run
from training.search_space import Parameter, for_network, load
from weaver.allocator import ENVIRONMENT as ALLOCATOR
from weaver.options import TRAIN_FLAGS

OBJECTIVE = "AvgLoss"
ADDITIONAL_METRICS = ("AvgMSE", "AvgMAE", "learning_rate", "jets_per_second")
METRICS_LOG = "/var/log/katib/metrics.log"  # in a pod; Katib mounts its volume at this file's folder
TRIAL_NAME = "trialName"


def experiment(run: Run) -> Manifest:
    """The v1beta1 Experiment. Its name is the run id; every trial writes to `<run>/trials/<trial name>/`.

    Raises InputError where the search space does not parse or has nothing for the network.
    """
    config = run.config
    parameters = for_network(load(config.search_space), config.network_config)
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": run.id, **run.namespace, "labels": labels(run)},
        "spec": {
            "objective": _objective(),
            "algorithm": {
                "algorithmName": config.algorithm,
                "algorithmSettings": [] if config.algorithm == "grid" else [{"name": "random_state", "value": str(config.seed)}],
            },
            "parallelTrialCount": config.parallel_trials,
            "maxTrialCount": config.max_trials,
            "maxFailedTrialCount": min(config.max_failed_trials, config.max_trials),  # Katib refuses more
            # The suggestion service stays until the experiment is deleted, so that a finished search can be extended.
            "resumePolicy": "LongRunning",
            "metricsCollectorSpec": {
                "collector": {"kind": "File"},
                "source": {"fileSystemPath": {"path": METRICS_LOG, "kind": "File", "format": "TEXT"}},
            },
            "parameters": [parameter.as_katib() for parameter in parameters],
            "trialTemplate": _trial_template(run, parameters),
        },
    }


def labels(run: Run) -> dict[str, str]:
    return manifests.labels(run.id, "search", run.config.user)


def _objective() -> dict[str, Any]:
    strategies = {OBJECTIVE: "min", **dict.fromkeys(ADDITIONAL_METRICS, "latest")}
    return {
        "type": "minimize",
        "objectiveMetricName": OBJECTIVE,
        "additionalMetricNames": list(ADDITIONAL_METRICS),
        "metricStrategies": [{"name": name, "value": value} for name, value in strategies.items()],
    }


def _trial_template(run: Run, parameters: list[Parameter]) -> dict[str, Any]:
    config = run.config
    references = [{"name": p.trial_name, "description": p.name, "reference": p.name} for p in parameters]
    pod = manifests.pod_template(
        labels=labels(run),
        image=config.weaver_image,
        command=manifests.python_command("weaver.train", gpus=config.num_gpus),
        args=trial_args(run, parameters),
        env=training_environment(run),
        resources=resources(run),
    )
    return {
        "primaryContainerName": "pytorch",
        "primaryPodLabels": {"training.kubeflow.org/job-role": "master"},
        "retain": True,  # or Katib removes the pods, and with them the logs, of finished trials
        "successCondition": 'status.conditions.#(type=="Succeeded")#|#(status=="True")#',
        "failureCondition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
        "trialParameters": [*references, {"name": TRIAL_NAME, "description": "name of the trial", "reference": "${trialSpec.Name}"}],
        "trialSpec": {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"labels": labels(run)},
            "spec": manifests.pytorch_job_spec(
                pod, replicas=config.num_replicas, gpus=config.num_gpus, deadline=round(config.deadline_hours * 3600)
            ),
        },
    }


def trial_args(run: Run, parameters: list[Parameter]) -> list[str]:
    """Arguments of weaver.train. The test set is not among them: it must not reach the choice of a model."""
    config = run.config
    chosen = {parameter.name.replace("_", "-") for parameter in parameters}
    fixed = {"num-epochs": config.num_epochs, "batch-size": config.batch_size, "data-fraction": config.data_fraction}
    args = [
        f"--data-train={run.path('data', 'train.json')}",
        f"--data-val={run.path('data', 'val.json')}",
        f"--data-config={run.path('config', 'data.yaml')}",
        f"--network-config={run.path('config', 'network.py')}",
        f"--model-prefix={run.path('trials', '${trialParameters.' + TRIAL_NAME + '}')}/",
        f"--metrics-log={METRICS_LOG}",
        "--regression-mode",
        "--gpus=auto",
        "--backend=auto",
        f"--seed={config.seed}",
        *(f"--{name}={value}" for name, value in fixed.items() if name not in chosen),
    ]
    for parameter in parameters:
        value = "${trialParameters." + parameter.trial_name + "}"
        name = parameter.name.replace("_", "-")
        option = f"--network-option={parameter.name.replace('-', '_')}:{value}"
        args.append(f"--{name}={value}" if name in TRAIN_FLAGS else option)
    return args


def training_environment(run: Run) -> list[dict[str, Any]]:
    """Environment of every pod of a run that trains, exports or evaluates: the C allocator's settings, unbuffered output, S3."""
    config = run.config
    env = manifests.environment({**ALLOCATOR, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(config.num_cpus)})
    if storage.is_s3(config.s3_bucket):
        env += manifests.s3_environment(None if config.s3_endpoint == AUTO else config.s3_endpoint, config.s3_secret)
    return env


def resources(run: Run) -> manifests.Resources:
    config = run.config
    return manifests.Resources(
        cpus=config.num_cpus, memory=config.memory, gpus=config.num_gpus, shared_memory=config.shared_memory
    )
