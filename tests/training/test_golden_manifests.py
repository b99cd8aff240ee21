"""The manifests of some runs, as text, in tests/golden.

A change of a manifest shows in the diff of its file; `pytest --update-golden` writes all anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clusters.protocol import Manifest
from common.config import RunConfig
from common.run import Run
from evaluating.evaluate_job import evaluate_job
from exporting.export_job import export_job
from serving.inference_service import inference_service
from training.experiment import experiment, trial_job

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

POINT = {
    "num-conv-layers": "3",
    "conv-dim": "100",
    "num-fc-layers": "2",
    "fc-dim": "50",
    "dropout": "0.05",
    "start-lr": "0.001",
    "optimizer": "ranger",
}


class PlainDumper(yaml.SafeDumper):
    """Write an object that stands in two places twice, rather than once with an alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def run_with(**values: object) -> Run:
    fixed = {"s3_bucket": "s3://jec/runs", "run_id": "pfn-regressor-open-0123abcd"}
    return Run(config=RunConfig(**fixed, **values))


def manifests() -> dict[str, Manifest]:
    """Name of a golden file -> the manifest as it is rendered now."""
    pfn = run_with()
    particle_net = run_with(
        network_config="networks/particle_net_regressor_open.py",
        data_config="data/jec_particle_net_open.yaml",
    )
    replicas = run_with(
        num_gpus=1,
        num_replicas=2,
        namespace="physics",
        algorithm="tpe",
        early_stopping="medianstop",
        goal="0.07",
        s3_endpoint="https://s3.example",
    )
    mig = run_with(
        num_gpus=1,
        gpu_resource="nvidia.com/mig-1g.5gb",
        node_selector="pool=gpu",
        tolerations="nvidia.com/gpu=present:NoSchedule,spot:NoExecute",
        priority_class="high",
        ephemeral_storage="20Gi",
        eos="/var/eos",
        kerberos_secret="krb-secret",
        xrootd_secret="grid-login",
        nvidia_driver="/opt/nvidia-driver",
    )
    old_form = run_with(
        num_gpus=1, serving_gpus=1, predictor_form="triton", min_replicas=0, max_replicas=3
    )
    logging = run_with(mlflow="https://mlflow.example", mlflow_secret="mlflow-login")
    mig_service = mig.config.replace(
        serving_gpus=1, serving_cpus="500m", serving_memory="2Gi", rollout="recreate"
    )
    return {
        "experiment-pfn": experiment(pfn),
        "experiment-particle-net": experiment(particle_net),
        "experiment-2-replicas-of-1-gpu": experiment(replicas),
        "experiment-mig-tolerations-eos": experiment(mig),
        "resumed-trial": trial_job(pfn, f"{pfn.id}-abcd1234", POINT),
        "export-job": export_job(pfn, "trial-7"),
        "export-job-mig-tolerations-eos": export_job(mig, "trial-7"),
        "evaluate-job": evaluate_job(pfn, "trial-7"),
        "experiment-mlflow": experiment(logging),
        "evaluate-job-mlflow": evaluate_job(logging, "trial-7"),
        "inference-service": inference_service(pfn),
        "inference-service-mig-tolerations": inference_service(Run(config=mig_service)),
        "inference-service-gpu-old-form": inference_service(old_form, "trial-7"),
    }


@pytest.mark.parametrize("name", manifests())
def test_the_manifest_equals_the_golden_one(name: str, update_golden: bool) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.dump(manifests()[name], Dumper=PlainDumper, sort_keys=False, width=100)
    if update_golden:
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; --update-golden writes it anew"


def test_every_golden_file_belongs_to_a_manifest() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(manifests())
