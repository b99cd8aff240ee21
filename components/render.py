"""Writes every Kubernetes object that a run would create as YAML, and creates none."""

from __future__ import annotations

from pathlib import Path

from common.config import AUTO, RunConfig
from common.run import Run, make_run_id
from exporting.export_job import evaluate_job, export_job
from serving.inference_service import inference_service
from training.experiment import experiment

SOME_TRIAL = "best-trial"  # which trial is exported is known after the search


def render(config: RunConfig, folder: Path) -> list[Path]:
    """One file an object; returns their paths. A run id that is 'auto' becomes that of a job that does not exist."""
    import yaml

    if config.run_id == AUTO:
        config = config.replace(run_id=make_run_id(config.network_config, "rendered"))
    if config.s3_bucket == AUTO:
        config = config.replace(s3_bucket="s3://bucket/runs")
    run = Run(config=config)
    trial = f"{run.id}-{SOME_TRIAL}"
    objects = {
        "experiment.yaml": experiment(run),
        "export_job.yaml": export_job(run, trial),
        "evaluate_job.yaml": evaluate_job(run, trial),
        "inference_service.yaml": inference_service(run),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in objects.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False, width=120))
    return [folder / name for name in objects]
