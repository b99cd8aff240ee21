"""The PyTorchJobs that follow a search: export of the best checkpoint, and its evaluation.

They run in the image of the training, because they need its libraries, and on one node without a
GPU: exporting proves parity for CPU kernels, and evaluating reads the exported model through ONNX
Runtime.
"""

from __future__ import annotations

import dataclasses

from clusters import manifests
from clusters.protocol import Manifest
from common.run import Run
from training.experiment import pod_settings, resources, training_environment

DEADLINE = 6 * 3600.0  # seconds; generous, for a slow network and a large test set on few cores


def export_job(run: Run, trial: str) -> Manifest:
    """Turns `<run>/trials/<trial>/best.pt` into a Triton model repository under `<run>/model`."""
    return _job(
        run,
        step="export",
        module="exporting.export",
        args=["--trial", trial, f"--raw-model={run.config.raw_model}"],
    )


def evaluate_job(run: Run, trial: str) -> Manifest:
    """Measures the exported model on the test set and writes metrics.json and report.html."""
    config = run.config
    gates = [
        f"--min-improvement={config.min_improvement}",
        f"--max-closure={config.max_closure}",
        f"--seed={config.seed}",
    ]
    return _job(
        run,
        step="evaluate",
        module="evaluating.evaluate",
        args=["--trial", trial, f"--baseline={config.baseline}", *gates],
    )


def _job(run: Run, *, step: str, module: str, args: list[str]) -> Manifest:
    config = run.config
    labels = manifests.labels(run.id, step, config.user)
    pod = manifests.pod_template(
        labels=labels,
        image=config.weaver_image,
        command=["python", "-m", module],
        args=["--run", run.uri, "--name", run.model_name, *args],
        env=training_environment(run),
        resources=dataclasses.replace(resources(run), gpus=0),
        settings=pod_settings(run),
    )
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": f"{run.id}-{step}", **run.namespace, "labels": labels},
        "spec": manifests.pytorch_job_spec(pod, replicas=1, gpus=0, deadline=round(DEADLINE)),
    }
