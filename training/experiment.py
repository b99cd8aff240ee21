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
# In a pod; Katib mounts its volume at this file's folder.
METRICS_LOG = "/var/log/katib/metrics.log"
NO_METRICS_LOG = "/dev/null"
"""In a pod without Katib's collector; the trial's folder has the same lines."""
TRIAL_NAME = "trialName"
PARAMETERS = "jec/parameters"
"""Annotation of an Experiment: the values of REPLACING that it was made with, as JSON."""
REPLACING = (
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
"""Parameters that may change while a search goes on, by another Experiment in place of the first.

Trials before and after the change can be compared. Katib lets nothing of an Experiment change but
its three numbers of trials.
"""
SEARCHABLE = ("num-epochs", "batch-size", "data-fraction", "precision")
"""Flags of weaver.train that are parameters of the run as well: fixed unless they are searched."""


def experiment(
    run: Run,
    *,
    carried: int = 0,
    failed: int = 0,
    name: str = "",
    reproducible: bool = False,
) -> Manifest:
    """The v1beta1 Experiment. Its name is the run id; trials write to `<run>/trials/<trial name>/`.

    carried: how many trials of earlier experiments of the run, which have been deleted, count
    among max_trials. The new experiment then has another name, so that no two trials share one, and
    another seed, or it would draw the same parameters again. failed: how many of the carried trials
    count among max_failed_trials, which are more than these. name: of an experiment that exists and
    goes on beside the carried trials. reproducible: set the algorithm's seed although the user gave
    none.

    Raises InputError where the search space does not parse or has nothing for the network.
    """
    config = run.config
    algorithm = algorithms.offered(config.algorithm)
    if carried and algorithm.plan == "sequence":
        # Katib's sequence is always the same and begins anew, at the points of the carried trials.
        algorithm = algorithms.offered("random")
    parameters = for_network(load(config.search_space), config.network_config)
    max_trials = max(1, config.max_trials - carried)  # Katib refuses none
    if algorithm.is_grid:
        max_trials = min(max_trials, grid_size(parameters))  # Katib refuses more

    settings = []
    # An algorithm whose pod restarts begins its seed anew, and repeats the points of the first
    # trials (seen with Katib 0.19.0). So the seed is set only where it was given, or where a second
    # experiment would repeat the first one's points without it.
    repeats = carried > 0 and algorithm.same_seed_by_default
    if algorithm.seed_setting and (config.seed != AUTO or reproducible or repeats):
        seed = str(config.seed_number + carried)
        settings.append({"name": algorithm.seed_setting, "value": seed})

    objective: Manifest = {"type": "minimize", "objectiveMetricName": OBJECTIVE}
    if config.goal != NONE:
        objective["goal"] = float(config.goal)
    objective["additionalMetricNames"] = list(ADDITIONAL_METRICS)
    # A trial is as good as its best epoch, whose weights are the ones kept; the other metrics are
    # shown only.
    strategies = [{"name": OBJECTIVE, "value": "min"}]
    for metric in ADDITIONAL_METRICS:
        strategies.append({"name": metric, "value": "latest"})
    objective["metricStrategies"] = strategies

    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {
            "name": name or (f"{run.id}-{carried}" if carried else run.id),
            **run.namespace,
            "labels": labels(run),
            "annotations": {PARAMETERS: json.dumps(replacing(run))},
        },
        "spec": {
            "objective": objective,
            "algorithm": {"algorithmName": algorithm.name, "algorithmSettings": settings},
            **_early_stopping(run, parameters),
            "parallelTrialCount": min(config.parallel_trials, max_trials),
            "maxTrialCount": max_trials,
            # Katib refuses more than there are trials
            "maxFailedTrialCount": min(config.max_failed_trials - failed, max_trials),
            # Katib removes the Deployment of the algorithm when the search ends (katib v0.19.0
            # pkg/controller.v1beta1/experiment/experiment_controller.go:190-197). With more trials
            # another experiment follows. LongRunning keeps the pod for ever, and one that is
            # started again (scaled down and up, or FromVolume) fails for cmaes, sobol and grid,
            # whose services know only the trials that they drew themselves
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
    """The PyTorchJob that goes on with a trial whose Experiment is gone, without Katib.

    It has the trial's name, parameters and folder, so that it resumes from the trial's checkpoint,
    and all else as the run asks for now. assignments: as Katib gave them, by parameter.
    """
    parameters = for_network(load(run.config.search_space), run.config.network_config)
    template = _trial_template(run, parameters, metrics_log=NO_METRICS_LOG, sidecars=0)
    owner = {"metadata": {"labels": labels(run)}, "spec": {"trialTemplate": template}}
    job = katib.substitute(owner, dict(assignments), name)
    job["metadata"] |= run.namespace
    return job


def replacing(run: Run) -> dict[str, str]:
    """The run's values of REPLACING, as text."""
    return {name: str(getattr(run.config, name)) for name in REPLACING}


def changes(run: Run, annotations: Mapping[str, str]) -> list[str]:
    """How the run differs from the Experiment of these annotations: '--memory was 12Gi, now 24Gi'.

    Only where Katib lets nothing change. Empty for an Experiment of an earlier version, which does
    not say what it was made with.
    """
    then = json.loads(annotations.get(PARAMETERS, "{}"))
    now = replacing(run)
    return [
        f"--{flag(name)} was {value}, now {now[name]}"
        for name, value in then.items()
        if now.get(name, value) != value
    ]


def labels(run: Run) -> dict[str, str]:
    """Labels of the Experiment and of all that belongs to it."""
    return manifests.labels(run.id, "search", run.config.user)


def _early_stopping(run: Run, parameters: list[Parameter]) -> Manifest:
    """The part `earlyStopping` of the spec; empty without early stopping."""
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
    """The epoch after which early stopping compares a trial with the others.

    Raises InputError where some trial would end before it.
    """
    epochs = run.config.num_epochs
    for parameter in parameters:
        if parameter.flag == "num-epochs":
            epochs = round(parameter.lowest)

    requested = run.config.early_stopping_start_step
    # A fifth of the epochs shows which way the loss goes; one epoch alone shows nothing.
    step = max(2, epochs // 5) if requested == AUTO else int(requested)
    if step >= epochs:
        raise InputError(
            f"--early-stopping {run.config.early_stopping}: a trial of {epochs} epochs ends before"
            f" it is looked at, after epoch {step}; give more --num-epochs or a smaller"
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
        "retain": True,  # or Katib removes the pods, and with them the logs, of finished trials
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
    """Arguments of weaver.train.

    The test set is not among them: it must not reach the choice of a model.
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
        # by itself it would follow --data-fraction, and trials with other searched fractions
        # would be compared on other jets
        "--data-fraction-val=1",
    ]
    searched = {parameter.flag for parameter in parameters}
    for name in SEARCHABLE:
        if name not in searched:
            args.append(f"--{name}={getattr(config, name.replace('-', '_'))}")
    for parameter in parameters:
        value = "${trialParameters." + parameter.trial_name + "}"
        if parameter.flag in TRAIN_FLAGS:
            args.append(f"--{parameter.flag}={value}")
        else:
            args.append(f"--network-option={parameter.option}:{value}")
    return args
