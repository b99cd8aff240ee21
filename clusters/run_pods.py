"""Resources, environment and placement of the pods of a run, from its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from clusters import manifests
from clusters.protocol import Manifest
from common import storage, tracking
from common.config import AUTO, NONE, selector, tolerations
from common.run import Run


def environment(run: Run, extra: Mapping[str, str]) -> list[Manifest]:
    """Return the environment of each pod that trains, exports or evaluates, with access to S3."""
    config = run.config
    env = manifests.environment(
        {
            **extra,
            "PYTHONUNBUFFERED": "1",  # otherwise the last lines of a killed pod are lost
            # By default OpenMP counts the cores of the node, not those of the pod's limit.
            "OMP_NUM_THREADS": str(config.num_cpus),
        }
    )
    if storage.is_s3(config.s3_bucket):
        endpoint = None if config.s3_endpoint == AUTO else config.s3_endpoint
        env += manifests.s3_environment(endpoint, config.s3_secret)
    return env


def tracking_environment(run: Run) -> list[Manifest]:
    """Return the environment of pods that log to MLflow; empty for a run without tracking.

    The login, and the address if --mlflow has none, come from the Secret by reference.
    """
    config = run.config
    if not tracking.is_tracked(config):
        return []
    values = {tracking.RUN: run.id, tracking.EXPERIMENT: config.experiment_name}
    keys = list(tracking.CREDENTIALS if config.mlflow_secret != NONE else ())
    if config.mlflow == AUTO:
        keys.insert(0, tracking.ADDRESS)
    else:
        values[tracking.ADDRESS] = config.mlflow
    return manifests.environment(values) + manifests.secret_environment(config.mlflow_secret, keys)


def resources(run: Run) -> manifests.Resources:
    """Return the resources of each pod of a trial."""
    config = run.config
    return manifests.Resources(
        cpus=config.num_cpus,
        memory=config.memory,
        gpus=config.num_gpus,
        gpu_resource=config.gpu_resource,
        shared_memory=config.shared_memory,
        disk="" if config.ephemeral_storage == NONE else config.ephemeral_storage,
    )


def settings(run: Run, *, gpus: int = 0, reads_data: bool = True) -> manifests.PodSettings:
    """Return where the pods of a run may run, and their folders and tickets.

    The folder of the GPU driver is mounted into pods with GPUs, EOS into pods that read data.
    """
    config = run.config
    folders = []
    if config.eos != NONE and reads_data:
        folders.append(manifests.HostFolder(name="eos", path=config.eos, mount="/eos"))
    if config.nvidia_driver != NONE and gpus:
        driver = config.nvidia_driver
        folders.append(manifests.HostFolder(name="nvidia-driver", path=driver, mount=driver))
    ticket = None
    if config.kerberos_secret != NONE and reads_data:
        secret, _, key = config.kerberos_secret.partition("/")
        # The name of MIT Kerberos for the ticket of uid 1000, the user of the pods.
        ticket = manifests.Ticket(secret=secret, key=key or "krb5cc_1000")
    return manifests.PodSettings(
        node_selector=selector(config.node_selector),
        tolerations=tolerations(config.tolerations),
        priority_class="" if config.priority_class == NONE else config.priority_class,
        folders=tuple(folders),
        ticket=ticket,
        xrootd_secret=config.xrootd_secret if config.xrootd_secret != NONE and reads_data else "",
    )


def job(
    run: Run,
    *,
    step: str,
    module: str,
    args: list[str],
    env: list[Manifest],
    deadline: float,
) -> Manifest:
    """Return a PyTorchJob of one pod without a GPU that runs a module on the run.

    Args:
        run: The run.
        step: Name of the step.
        module: The module: `python -m module --run URI --name MODEL ...`.
        args: Further arguments.
        env: Environment variables.
        deadline: Seconds that the job may take.
    """
    config = run.config
    labels = manifests.labels(run.id, step, config.user)
    pod = manifests.pod_template(
        labels=labels,
        image=config.weaver_image,
        program=["python", "-m", module, "--run", run.uri, "--name", run.model_name, *args],
        env=env,
        resources=dataclasses.replace(resources(run), gpus=0),
        settings=settings(run),
    )
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": f"{run.id}-{step}", **run.namespace, "labels": labels},
        "spec": manifests.pytorch_job_spec(pod, replicas=1, gpus=0, deadline=round(deadline)),
    }
