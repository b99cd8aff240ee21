"""The Katib Experiment of a run: a search whose trials are PyTorchJobs that run weaver.train."""

from __future__ import annotations

from typing import Any

from clusters import manifests
from clusters.protocol import Manifest
from common import storage
from common.config import AUTO, NONE, selector, tolerations
from common.errors import InputError
from common.run import Run
from training.search_space import Parameter, for_network, grid_size, load
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR
from weaver.fit.options import TRAIN_FLAGS

OBJECTIVE = "AvgLoss"
ADDITIONAL_METRICS = ("AvgMSE", "AvgMAE", "learning_rate", "jets_per_second")
# in a pod; Katib mounts its volume at this file's folder
METRICS_LOG = "/var/log/katib/metrics.log"
TRIAL_NAME = "trialName"


def experiment(run: Run, *, carried: int = 0) -> Manifest:
    """The v1beta1 Experiment. Its name is the run id; every trial writes to `<run>/trials/<trial
    name>/`.

    `carried` trials of an earlier experiment of the run, which is gone, count among max_trials: the
    new one has a name of its own, so that no trial is named twice, and another seed, or it would
    draw the same parameters again. Raises InputError where the search space does not parse or has
    nothing for the network.
    """
    config = run.config
    parameters = for_network(load(config.search_space), config.network_config)
    most = config.max_trials - carried
    if config.algorithm == "grid":
        most = min(most, grid_size(parameters))  # Katib refuses more
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {
            "name": f"{run.id}-{carried}" if carried else run.id,
            **run.namespace,
            "labels": labels(run),
        },
        "spec": {
            "objective": _objective(run),
            "algorithm": {
                "algorithmName": config.algorithm,
                "algorithmSettings": _algorithm_settings(run, carried),
            },
            **_early_stopping(run, parameters),
            "parallelTrialCount": min(config.parallel_trials, most),
            "maxTrialCount": most,
            "maxFailedTrialCount": min(config.max_failed_trials, most),  # Katib refuses more
            # The suggestion service stays until the experiment is deleted, so that a finished
            # search can be extended. Katib's other way, FromVolume, wants a volume and starts the
            # service anew, which then draws from the seed's beginning.
            "resumePolicy": "LongRunning",
            "metricsCollectorSpec": {
                "collector": {"kind": "File"},
                "source": {
                    "fileSystemPath": {"path": METRICS_LOG, "kind": "File", "format": "TEXT"}
                },
            },
            "parameters": [parameter.as_katib() for parameter in parameters],
            "trialTemplate": _trial_template(run, parameters),
        },
    }


def labels(run: Run) -> dict[str, str]:
    return manifests.labels(run.id, "search", run.config.user)


def _objective(run: Run) -> dict[str, Any]:
    goal = {} if run.config.goal == NONE else {"goal": float(run.config.goal)}
    strategies = {OBJECTIVE: "min", **dict.fromkeys(ADDITIONAL_METRICS, "latest")}
    return {
        "type": "minimize",
        "objectiveMetricName": OBJECTIVE,
        **goal,
        "additionalMetricNames": list(ADDITIONAL_METRICS),
        "metricStrategies": [{"name": name, "value": value} for name, value in strategies.items()],
    }


def _algorithm_settings(run: Run, carried: int) -> list[dict[str, str]]:
    """The seed. Katib's Sobol sequence takes none (it is always the same one) and leaves the
    setting unread.
    """
    return (
        []
        if run.config.algorithm == "grid"
        else [{"name": "random_state", "value": str(run.config.seed + carried)}]
    )


def _early_stopping(run: Run, parameters: list[Parameter]) -> dict[str, Any]:
    """The part `earlyStopping` of the spec; none without it."""
    config = run.config
    if config.early_stopping == NONE:
        return {}
    settings = {
        "min_trials_required": config.early_stopping_min_trials,
        "start_step": start_step(run, parameters),
    }
    listed = [{"name": name, "value": str(value)} for name, value in settings.items()]
    return {"earlyStopping": {"algorithmName": config.early_stopping, "algorithmSettings": listed}}


def start_step(run: Run, parameters: list[Parameter]) -> int:
    """The epoch after which a trial is held against the others: every trial must live to see it.

    Raises InputError where none would.
    """
    searched = next(
        (parameter for parameter in parameters if parameter.name.replace("_", "-") == "num-epochs"),
        None,
    )
    epochs = round(searched.lowest) if searched else run.config.num_epochs
    asked = run.config.early_stopping_start_step
    step = max(2, epochs // 5) if asked == AUTO else int(asked)
    if step >= epochs:
        raise InputError(
            f"--early-stopping {run.config.early_stopping}: a trial of {epochs} epochs ends before"
            f" it is looked at, after epoch {step}; give more --num-epochs or a smaller"
            " --early-stopping-start-step, or leave early stopping out"
        )
    return step


def _trial_template(run: Run, parameters: list[Parameter]) -> dict[str, Any]:
    config = run.config
    references = [
        {"name": p.trial_name, "description": p.name, "reference": p.name} for p in parameters
    ]
    pod = manifests.pod_template(
        labels=labels(run),
        image=config.weaver_image,
        command=manifests.python_command("weaver.train", gpus=config.num_gpus),
        args=trial_args(run, parameters),
        env=training_environment(run),
        resources=resources(run),
        settings=pod_settings(run, gpus=config.num_gpus),
    )
    return {
        "primaryContainerName": "pytorch",
        "primaryPodLabels": {"training.kubeflow.org/job-role": "master"},
        "retain": True,  # or Katib removes the pods, and with them the logs, of finished trials
        "successCondition": 'status.conditions.#(type=="Succeeded")#|#(status=="True")#',
        "failureCondition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
        "trialParameters": [
            *references,
            {
                "name": TRIAL_NAME,
                "description": "name of the trial",
                "reference": "${trialSpec.Name}",
            },
        ],
        "trialSpec": {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"labels": labels(run)},
            "spec": manifests.pytorch_job_spec(
                pod,
                replicas=config.num_replicas,
                gpus=config.num_gpus,
                deadline=round(config.deadline_hours * 3600),
            ),
        },
    }


def trial_args(run: Run, parameters: list[Parameter]) -> list[str]:
    """Arguments of weaver.train.

    The test set is not among them: it must not reach the choice of a model.
    """
    config = run.config
    chosen = {parameter.name.replace("_", "-") for parameter in parameters}
    fixed = {
        name: getattr(config, name.replace("-", "_"))
        for name in ("num-epochs", "batch-size", "data-fraction", "precision")
    }
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
    """Environment of every pod of a run that trains, exports or evaluates: the C allocator's
    settings, unbuffered output, S3.
    """
    config = run.config
    env = manifests.environment(
        {**ALLOCATOR, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(config.num_cpus)}
    )
    if storage.is_s3(config.s3_bucket):
        env += manifests.s3_environment(
            None if config.s3_endpoint == AUTO else config.s3_endpoint, config.s3_secret
        )
    return env


def resources(run: Run) -> manifests.Resources:
    """What each pod of a trial asks for."""
    config = run.config
    disk = "" if config.ephemeral_storage == NONE else config.ephemeral_storage
    return manifests.Resources(
        cpus=config.num_cpus,
        memory=config.memory,
        gpus=config.num_gpus,
        gpu_resource=config.gpu_resource,
        shared_memory=config.shared_memory,
        disk=disk,
    )


def pod_settings(run: Run, *, gpus: int = 0) -> manifests.PodSettings:
    """Where the pods of a run may run and what they see of their nodes.

    The driver's folder is for pods with GPUs.
    """
    config = run.config
    folders = []
    if config.eos != NONE:
        folders.append(manifests.HostFolder(name="eos", path=config.eos, mount="/eos"))
    if config.nvidia_driver != NONE and gpus:
        folders.append(
            manifests.HostFolder(
                name="nvidia-driver", path=config.nvidia_driver, mount=config.nvidia_driver
            )
        )
    secret, _, key = config.kerberos_secret.partition("/")
    return manifests.PodSettings(
        node_selector=selector(config.node_selector),
        tolerations=tolerations(config.tolerations),
        priority_class="" if config.priority_class == NONE else config.priority_class,
        folders=tuple(folders),
        ticket=(
            None if secret == NONE else manifests.Ticket(secret=secret, key=key or "krb5cc_1000")
        ),
    )
