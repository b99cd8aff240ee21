"""The chain as a KFP pipeline: prepare -> search -> export -> evaluate -> gate -> deploy. Compiled once, run anywhere."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from common.config import RunConfig
from components import deploy, evaluate, export, prepare, search

NAME = "jec-pipeline"
STEPS_IMAGE = "jec-steps:latest"


def pipeline(config: RunConfig, image: str = STEPS_IMAGE) -> Any:
    """The KFP pipeline whose parameters are the fields of RunConfig, with the values of `config` as defaults."""
    from kfp import dsl

    steps = {module: module.component(image) for module in (prepare, search, export, evaluate, deploy)}

    names = [field.name for field in dataclasses.fields(RunConfig)]

    def chain(*values: Any) -> None:
        parameters = dict(zip(names, values, strict=True))
        endpoint = parameters["s3_endpoint"]

        def task(made: Any) -> Any:
            return _on_the_cluster(made, parameters["s3_secret"])

        prepared = task(steps[prepare](**parameters, job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER))
        run = prepared.outputs["run"]
        searched = task(steps[search](run=run, s3_endpoint=endpoint))
        trial = searched.outputs["best_trial"]
        exported = task(steps[export](run=run, trial=trial, s3_endpoint=endpoint))
        evaluated = task(steps[evaluate](run=run, trial=trial, s3_endpoint=endpoint).after(exported))
        with dsl.If(evaluated.outputs["passed"] == "true", name="gate"):
            task(steps[deploy](run=run, s3_endpoint=endpoint))

    chain.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=type(getattr(config, name)), default=getattr(config, name)
            )
            for name in names
        ]
    )
    return dsl.pipeline(name=NAME, description="Jet energy calibration: from ROOT files to a served, validated model.")(chain)


def compile_to(path: Path | str, config: RunConfig, image: str = STEPS_IMAGE) -> Path:
    """Write the pipeline's IR as YAML; returns the path."""
    from kfp import compiler

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline(config, image), str(path))
    return path


def _on_the_cluster(task: Any, secret: Any) -> Any:
    """What a step needs as a pod: S3 keys from the Secret, small limits, and no cache of KFP's, as every step acts on the outside."""
    from kfp import kubernetes

    keys = {"AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY"}
    kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=keys, optional=True)
    task.set_caching_options(False)
    return task.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("1Gi").set_memory_limit("4Gi")
