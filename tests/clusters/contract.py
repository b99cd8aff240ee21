"""Small manifests that both backends run, and the program inside them.

The program is a few lines of Python: it writes the metrics file as a trial would and ends as it is
told, so that the same manifest runs as processes of this machine and, on the fake cluster, as the
containers of pods.
"""

from __future__ import annotations

from clusters.manifests import Resources, labels, pod_template, pytorch_job_spec

RUN_ID = "pfn-0a1b2c3d"
METRICS_PATH = "/var/log/katib/metrics.log"

TRIAL = """
import os, sys, time
path, text = sys.argv[1], sys.argv[2].removeprefix("--losses=")
os.makedirs(os.path.dirname(path), exist_ok=True)
if text.startswith("broken"):
    sys.exit("error: the loss is not finite")
if text == "silent":
    sys.exit(0)
if text == "endless":
    time.sleep(60)
with open(path, "w") as log:
    for second, value in enumerate(text.removeprefix("slow:").split("/")):
        if text.startswith("slow:") and second == 2:
            time.sleep(1.5)
        print(f"2026-01-01T00:00:{second:02d}Z AvgLoss={value}", file=log, flush=True)
"""


def pod(
    command: list[str], args: list[str] = (), step: str = "search", run_id: str = RUN_ID
) -> dict:
    resources = Resources(cpus=1, memory="1Gi")
    return pod_template(
        labels=labels(run_id, step),
        image="weaver:test",
        program=[*command, *args],
        env=[],
        resources=resources,
    )


def experiment(
    losses: list[str],
    *,
    name: str = "pfn-0a1b2c3d-search",
    objective: str = "minimize",
    failure_limit: int = 5,
    parallel: int = 2,
    run_id: str = RUN_ID,
    deadline: int = 600,
    **spec,
) -> dict:
    """An experiment of one trial for each text of `losses`.

    A text has values joined by '/', or is a word that TRIAL knows. After 'slow:' there is time
    between the second value and the third. `deadline` is that of each trial, in seconds.
    """
    command = ["python", "-c", TRIAL, METRICS_PATH, "--losses=${trialParameters.losses}"]
    job = pytorch_job_spec(
        pod(command, run_id=run_id), replicas=1, gpus=0, deadline=deadline, sidecars=1
    )
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": name, "labels": labels(run_id, "search")},
        "spec": {
            "objective": {"type": objective, "objectiveMetricName": "AvgLoss"},
            "algorithm": {"algorithmName": "grid"},
            "parallelTrialCount": min(parallel, len(losses)),
            "maxTrialCount": len(losses),
            "maxFailedTrialCount": min(failure_limit, len(losses)),
            "parameters": [
                {
                    "name": "losses",
                    "parameterType": "categorical",
                    "feasibleSpace": {"list": losses},
                }
            ],
            "metricsCollectorSpec": {
                "collector": {"kind": "File"},
                "source": {
                    "fileSystemPath": {"path": METRICS_PATH, "kind": "File", "format": "TEXT"}
                },
            },
            "trialTemplate": {
                "primaryContainerName": "pytorch",
                "retain": True,
                "successCondition": 'status.conditions.#(type=="Succeeded")#|#(status=="True")#',
                "failureCondition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
                "trialParameters": [{"name": "losses", "reference": "losses"}],
                "trialSpec": {
                    "apiVersion": "kubeflow.org/v1",
                    "kind": "PyTorchJob",
                    "metadata": {"labels": labels(run_id, "search")},
                    "spec": job,
                },
            },
            **spec,
        },
    }


def job(
    code: str,
    *args: str,
    name: str = "pfn-0a1b2c3d-export",
    replicas: int = 1,
    restart: str = "Never",
    deadline: int = 600,
    run_id: str = RUN_ID,
) -> dict:
    """A PyTorchJob whose replicas run this Python code."""
    template = pod(["python", "-c", code], list(args), step="export", run_id=run_id)
    spec = pytorch_job_spec(template, replicas=replicas, gpus=0, deadline=deadline)
    for replica in spec["pytorchReplicaSpecs"].values():
        replica["restartPolicy"] = restart
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "labels": labels(run_id, "export")},
        "spec": spec,
    }


def service(
    name: str = "jec-pfn",
    uri: str = "s3://models/pfn-0a1b2c3d/model",
    run_id: str = RUN_ID,
    **predictor,
) -> dict:
    """An InferenceService of Triton."""
    amounts = {"cpu": "1", "memory": "2Gi"}
    model = {
        "modelFormat": {"name": "onnx", "version": "1"},
        "runtime": "kserve-tritonserver",
        "protocolVersion": "v2",
        "storageUri": uri,
        "resources": {"requests": amounts, "limits": amounts},
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "labels": labels(run_id, "deploy")},
        "spec": {"predictor": {"model": model, **predictor}},
    }
