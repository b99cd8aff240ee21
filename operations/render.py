"""Render the Kubernetes objects that a run would create, as data and as YAML files.

None of them is created.
"""

from __future__ import annotations

from pathlib import Path

from clusters.protocol import Manifest
from common.config import AUTO, RunConfig
from common.run import Run, make_run_id
from evaluating.evaluate_job import evaluate_job
from exporting.export_job import export_job
from serving.inference_service import inference_service
from training.experiment import experiment

SOME_TRIAL = "best-trial"  # placeholder: the best trial is known only after the search


def placeholder_run(config: RunConfig) -> Run:
    """Return a run with a placeholder id and storage where the configuration says 'auto'."""
    if config.run_id == AUTO:
        # as long as the id that prepare will make of the KFP job
        config = config.replace(run_id=make_run_id(config.network_config, "rendered"))
    if config.s3_bucket == AUTO:
        config = config.replace(s3_bucket="s3://bucket/runs")
    return Run(config=config)


def objects(run: Run) -> dict[str, Manifest]:
    """Return every object of a run by the name of its file."""
    trial = f"{run.id}-{SOME_TRIAL}"
    return {
        "experiment.yaml": experiment(run),
        "export_job.yaml": export_job(run, trial),
        "evaluate_job.yaml": evaluate_job(run, trial),
        "inference_service.yaml": inference_service(run),
    }


def render(config: RunConfig, folder: Path) -> list[Path]:
    """Write a YAML file for each object; return their paths."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in objects(placeholder_run(config)).items():
        path = folder / name
        path.write_text(yaml.safe_dump(content, sort_keys=False, width=120))
        paths.append(path)
    return paths
