"""The Katib Experiment of a run: a search whose trials are PyTorchJobs that run weaver.train."""

from __future__ import annotations

import json
from collections.abc import Mapping

from clusters import katib, manifests, run_pods
from clusters.protocol import Manifest
from common import algorithms
from common.config import AUTO, NONE, flag
from common.errors import InputError
from common.run import Run
from training.search_space import Parameter, for_network, grid_size, load
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR
from weaver.fit.options import TRAIN_FLAGS

OBJECTIVE = "AvgLoss"
ADDITIONAL_METRICS = ("AvgMSE", "AvgMAE", "learning_rate", "jets_per_second")
METRICS_LOG = "/var/log/katib/metrics.log"
"""Metrics file in a pod with Katib's collector. Katib mounts a volume at its folder."""
NO_METRICS_LOG = "/dev/null"
"""Metrics file in a pod without Katib's collector. The folder of the trial has the same lines."""
TRIAL_NAME = "trialName"
PARAMETERS = "jec/parameters"
"""Annotation of an Experiment: its values of CHANGEABLE_PARAMETERS, as JSON."""
CHANGEABLE_PARAMETERS = (
    "goal",
    "num_replicas",
    "num_gpus",
    "num_cpus",
    "memory",
    "shared_memory",
    "ephemeral_storage",
    "gpu_resource",
    "node_selector",
    "tolerations",
    "priority_class",
    "nvidia_driver",
    "eos",
    "kerberos_secret",
    "xrootd_secret",
    "weaver_image",
    "s3_endpoint",
    "s3_secret",
)
"""Parameters that may change between Experiments of one search.

They do not affect the comparison of trials before and after the change. The changed search is a new
Experiment that replaces the first, because Katib forbids changes to an Experiment other than to its
three numbers of trials.
"""
SEARCHABLE = ("num-epochs", "batch-size", "data-fraction", "precision")
"""Flags of weaver.train that are also parameters of the run: fixed unless the space has them."""


def experiment(
    run: Run,
    *,
    earlier_trials: int = 0,
    earlier_failures: int = 0,
    name: str = "",
    reproducible: bool = False,
) -> Manifest:
    """Return the Katib Experiment (v1beta1) of a run.

    Its name is the run id by default; trials write to `<run>/trials/<trial name>/`.

    Args:
        run: The run.
        earlier_trials: Number of trials of earlier, deleted experiments of the run that count among
            max_trials. The new experiment then gets another name, so that no two trials share one,
            and another seed, since it would otherwise draw the same parameters again.
        earlier_failures: Number of earlier trials that count among max_failed_trials; must be less.
        name: Name of an existing experiment that continues beside the earlier trials.
        reproducible: Set the seed of the algorithm although the user set none.

    Raises:
        InputError: If the search space does not parse, has no parameter for the network, or its
            trials are too short for early stopping.
    """
    config = run.config
    algorithm = algorithms.find_offered(config.algorithm)
    if earlier_trials and algorithm.plan == "sequence":
        # Katib always draws the same sequence, so that it would repeat the points of the earlier
        # trials.
        algorithm = algorithms.find_offered("random")
    parameters = for_network(load(config.search_space), config.network_config)
    max_trials = max(1, config.max_trials - earlier_trials)  # Katib refuses 0
    if algorithm.is_grid:
        max_trials = min(max_trials, grid_size(parameters))  # Katib refuses more than there are

    settings = []
    # With a seed, an algorithm whose pod restarts repeats the points of the first trials (seen with
    # Katib 0.19.0). So it is set only if the user set one, or if a second experiment would repeat
    # the points of the first without it.
    would_repeat = earlier_trials > 0 and algorithm.same_seed_by_default
    if algorithm.seed_setting and (config.seed != AUTO or reproducible or would_repeat):
        seed = str(config.seed_number + earlier_trials)
        settings.append({"name": algorithm.seed_setting, "value": seed})

    objective: Manifest = {"type": "minimize", "objectiveMetricName": OBJECTIVE}
    if config.goal != NONE:
        objective["goal"] = float(config.goal)
    objective["additionalMetricNames"] = list(ADDITIONAL_METRICS)
    # A trial counts with its best epoch, whose weights are stored; the other metrics are only
    # shown.
    strategies = [{"name": OBJECTIVE, "value": "min"}]
    for metric in ADDITIONAL_METRICS:
        strategies.append({"name": metric, "value": "latest"})
    objective["metricStrategies"] = strategies

    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {
            "name": name or (f"{run.id}-{earlier_trials}" if earlier_trials else run.id),
            **run.namespace,
            "labels": labels(run),
            "annotations": {PARAMETERS: json.dumps(changeable_parameters(run))},
        },
        "spec": {
            "objective": objective,
            "algorithm": {"algorithmName": algorithm.name, "algorithmSettings": settings},
            **_early_stopping(run, parameters),
            "parallelTrialCount": min(config.parallel_trials, max_trials),
            "maxTrialCount": max_trials,
            # Katib refuses more than there are trials
            "maxFailedTrialCount": min(config.max_failed_trials - earlier_failures, max_trials),
            # Katib removes the Deployment of the algorithm when the search ends (katib v0.19.0
            # pkg/controller.v1beta1/experiment/experiment_controller.go:190-197). With more trials
            # another experiment follows. LongRunning keeps the pod for ever. A pod that is started
            # again (scaled down and up, or FromVolume) fails for cmaes, sobol and grid, whose
            # services only accept trials that they drew themselves
            # (pkg/suggestion/v1beta1/goptuna/service.go:111, optuna/base_service.py:101).
            "resumePolicy": "Never",
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


def trial_job(run: Run, name: str, assignments: Mapping[str, str]) -> Manifest:
    """Return the PyTorchJob that resumes a trial without Katib, after its Experiment is gone.

    It has the name, the parameters and the folder of the trial, so that it resumes from the
    checkpoint there. All else is as the run asks for now.

    Args:
        run: The run.
        name: Name of the trial.
        assignments: Parameter values of the trial as text, as Katib assigned them.
    """
    parameters = for_network(load(run.config.search_space), run.config.network_config)
    template = _trial_template(run, parameters, metrics_log=NO_METRICS_LOG, sidecars=0)
    owner = {"metadata": {"labels": labels(run)}, "spec": {"trialTemplate": template}}
    job = katib.substitute(owner, dict(assignments), name)
    job["metadata"] |= run.namespace
    return job


def changeable_parameters(run: Run) -> dict[str, str]:
    """Return the values of CHANGEABLE_PARAMETERS of a run, as text."""
    return {name: str(getattr(run.config, name)) for name in CHANGEABLE_PARAMETERS}


def changes(run: Run, annotations: Mapping[str, str]) -> list[str]:
    """Return how a run differs from an Experiment, like '--memory was 12Gi, now 24Gi'.

    Only parameters that cannot change within an Experiment are compared. Empty for an Experiment of
    an earlier version, which has no such annotation.

    Args:
        run: The run.
        annotations: Annotations of the Experiment.
    """
    values = json.loads(annotations.get(PARAMETERS, "{}"))
    own_values = changeable_parameters(run)
    return [
        f"--{flag(name)} was {value}, now {own_values[name]}"
        for name, value in values.items()
        if own_values.get(name, value) != value
    ]


def labels(run: Run) -> dict[str, str]:
    """Return the labels of the Experiment and of all its objects."""
    return manifests.labels(run.id, "search", run.config.user)


def _early_stopping(run: Run, parameters: list[Parameter]) -> Manifest:
    """Return the part `earlyStopping` of the spec; empty without early stopping."""
    config = run.config
    if config.early_stopping == NONE:
        return {}
    min_trials = str(config.early_stopping_min_trials)
    settings = [
        {"name": "min_trials_required", "value": min_trials},
        {"name": "start_step", "value": str(start_step(run, parameters))},
    ]
    return {
        "earlyStopping": {"algorithmName": config.early_stopping, "algorithmSettings": settings}
    }


def start_step(run: Run, parameters: list[Parameter]) -> int:
    """Return the epoch after which early stopping compares a trial with the others.

    Raises:
        InputError: If a trial can end before that epoch.
    """
    epochs = run.config.num_epochs
    for parameter in parameters:
        if parameter.flag == "num-epochs":
            epochs = round(parameter.lowest)

    requested = run.config.early_stopping_start_step
    # A fifth of the epochs shows the trend of the loss; a single epoch shows none.
    step = max(2, epochs // 5) if requested == AUTO else int(requested)
    if step >= epochs:
        raise InputError(
            f"--early-stopping {run.config.early_stopping}: a trial of {epochs} epochs ends before"
            f" it is compared with others, after epoch {step}; give more --num-epochs or a smaller"
            " --early-stopping-start-step, or leave early stopping out"
        )
    return step


def _trial_template(
    run: Run,
    parameters: list[Parameter],
    *,
    metrics_log: str = METRICS_LOG,
    sidecars: int = 1,  # Katib's metrics collector
) -> Manifest:
    config = run.config
    trial_parameters = []
    for parameter in parameters:
        name = parameter.name
        trial_parameters.append(
            {"name": parameter.trial_name, "description": name, "reference": name}
        )
    trial_parameters.append(
        {
            "name": TRIAL_NAME,
            "description": "name of the trial",
            "reference": "${trialSpec.Name}",
        }
    )
    pod = manifests.pod_template(
        labels=labels(run),
        image=config.weaver_image,
        program=[
            *manifests.python_command("weaver.train", gpus=config.num_gpus),
            *trial_args(run, parameters, metrics_log),
        ],
        env=run_pods.environment(run, ALLOCATOR) + run_pods.tracking_environment(run),
        resources=run_pods.resources(run),
        settings=run_pods.settings(run, gpus=config.num_gpus),
    )
    return {
        "primaryContainerName": "pytorch",
        "primaryPodLabels": {"training.kubeflow.org/job-role": "master"},
        "retain": True,  # otherwise Katib removes the pods and the logs of finished trials
        "successCondition": 'status.conditions.#(type=="Succeeded")#|#(status=="True")#',
        "failureCondition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
        "trialParameters": trial_parameters,
        "trialSpec": {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"labels": labels(run)},
            "spec": manifests.pytorch_job_spec(
                pod,
                replicas=config.num_replicas,
                gpus=config.num_gpus,
                deadline=round(config.deadline_hours * 3600),
                sidecars=sidecars,
            ),
        },
    }


def trial_args(run: Run, parameters: list[Parameter], metrics_log: str) -> list[str]:
    """Return the arguments of weaver.train, with placeholders for the parameters of a trial.

    The test set is not among them, because it must not affect the choice of a model.
    """
    config = run.config
    folder = run.folder
    args = [
        f"--data-train={folder.data('train')}",
        f"--data-val={folder.data('val')}",
        f"--data-config={folder.data_config}",
        f"--network-config={folder.network}",
        f"--model-prefix={folder.trial('${trialParameters.' + TRIAL_NAME + '}')}/",
        f"--metrics-log={metrics_log}",
        "--regression-mode",
        "--gpus=auto",
        "--backend=auto",
        f"--seed={config.seed_number}",
        # The default follows --data-fraction; trials with different fractions would then be
        # compared on different jets.
        "--data-fraction-val=1",
    ]
    flags_in_space = {parameter.flag for parameter in parameters}
    for name in SEARCHABLE:
        if name not in flags_in_space:
            args.append(f"--{name}={getattr(config, name.replace('-', '_'))}")
    for parameter in parameters:
        value = "${trialParameters." + parameter.trial_name + "}"
        if parameter.flag in TRAIN_FLAGS:
            args.append(f"--{parameter.flag}={value}")
        else:
            args.append(f"--network-option={parameter.option}:{value}")
    return args
