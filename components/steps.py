"""The table of the steps; every other list of steps derives from it.

A step is a KFP container component that runs the program `python -m components.<name>`. The table
has each step's inputs and outputs, the deadline of its pod, the folder of its logs and the rights
that it needs on a cluster. `component` makes the KFP component.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from common import form
from common.config import flag
from evaluating.evaluate_job import DEADLINE as EVALUATE_DEADLINE
from exporting.export_job import DEADLINE as EXPORT_DEADLINE

HOUR = 3600  # seconds
RETRIES = 2  # further attempts of a step after its first failure
# A pod's deadline is longer than the step's own ones, whose errors say what the step waited for.
MARGIN = HOUR // 4
SERVICE_DEADLINE = 1800.0  # limit for a start: a fresh node pulls Triton's large image first
GOLDEN_DEADLINE = 300.0  # limit for the answers to the golden requests

WEBHOOK = "JEC_WEBHOOK"
"""Variable with the URL that finish posts the run's summary to; WEBHOOK_FILE names a file with it.

With many services the URL is itself the secret. So it is no parameter, and never in an argument.
"""
WEBHOOK_FILE = "JEC_WEBHOOK_FILE"

REGISTRY_TOKEN = "JEC_MODEL_REGISTRY_TOKEN"  # noqa: S105 (a variable's name)
"""Variable with the token for the model registry."""

IMAGE_VARIABLE = "JEC_STEPS_IMAGE"
"""Variable by which prepare learns the image of the steps, which no pod knows of itself."""

Kind = Literal["parameter", "metrics", "markdown", "html", "dataset", "model"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the chain."""

    name: str
    title: str
    """Its name in Kubeflow's UI, which truncates names after about 22 characters."""
    inputs: Mapping[str, type]
    """KFP parameters -> their types; each is an argument of the program.

    The flag is that of the parameter's field (common.form), or else `--<name>`.
    """
    outputs: Mapping[str, Kind]
    """Outputs -> their kinds; a parameter is written to the file `--<name>-output`."""
    artifacts: tuple[str, ...] = ()
    """Artifacts of earlier steps that it takes, so that Kubeflow shows the lineage.

    The program does not read them, but the run's folder.
    """
    deadline: int
    """Seconds that the step's pod may live."""
    logs: str = ""
    """Folder below `<run>/local` with the logs of what it starts on one machine."""
    rights: tuple[str, ...] = ()
    """Resources that it needs on a cluster, by their names in clusters.permissions."""


_RUN = {"run": str}
_COMMON = {"storage_endpoint": str, "job_id": str}
_DIAGNOSTICS = ("pods", "pods/log", "events")

EVERY_STEP = ("configmaps", "workflowtaskresults.argoproj.io")
"""Rights that KFP and Argo need in the pod of every step."""

STEPS = (
    Step(
        name="prepare",
        title="1 prepare data",
        inputs={**form.TYPES, "job_id": str},
        outputs={"run": "parameter", "dataset": "dataset", "parameters": "markdown"},
        deadline=24 * HOUR,
        rights=("secrets", "serviceaccounts"),
    ),
    Step(
        name="search",
        title="2 search (Katib)",
        inputs={**_RUN, **_COMMON},
        outputs={
            "best_trial": "parameter",
            "search_metrics": "metrics",
            "trials": "markdown",
            "search_report": "html",
        },
        artifacts=("dataset",),
        deadline=14 * 24 * HOUR,
        logs="search",
        rights=("experiments.kubeflow.org", "trials.kubeflow.org", *_DIAGNOSTICS),
    ),
    Step(
        name="export",
        title="3 export to ONNX",
        inputs={**_RUN, "trial": str, **_COMMON},
        outputs={"model": "model"},
        artifacts=("dataset", "trials"),
        deadline=round(EXPORT_DEADLINE) + MARGIN,
        logs="jobs",
        rights=("pytorchjobs.kubeflow.org", *_DIAGNOSTICS),
    ),
    Step(
        name="evaluate",
        title="4 evaluate on test set",
        inputs={**_RUN, "trial": str, **_COMMON},
        outputs={"passed": "parameter", "test_metrics": "metrics", "report": "html"},
        artifacts=("dataset", "model"),
        deadline=round(EVALUATE_DEADLINE) + MARGIN,
        logs="jobs",
        rights=("pytorchjobs.kubeflow.org", *_DIAGNOSTICS),
    ),
    Step(
        name="deploy",
        title="5 deploy (KServe)",
        inputs={**_RUN, "passed": str, **_COMMON},
        outputs={"url": "parameter", "report_with_service": "html"},
        artifacts=("model",),
        # twice, because a new model is first tested beside the current service
        deadline=round(2 * (SERVICE_DEADLINE + 2 * GOLDEN_DEADLINE)) + MARGIN,
        logs="services",
        rights=(
            "inferenceservices.serving.kserve.io",
            "secrets",
            "serviceaccounts",
            "resourcequotas",
            "deployments.apps",
            *_DIAGNOSTICS,
        ),
    ),
    Step(
        name="finish",
        title="6 finish (summary)",
        inputs={
            "storage_bucket": str,
            "storage_run_id": str,
            "network_config": str,
            **_COMMON,
        },
        outputs={"summary": "markdown"},
        deadline=MARGIN,
        rights=(
            "experiments.kubeflow.org",
            "trials.kubeflow.org",
            "pytorchjobs.kubeflow.org",
            "workflows.argoproj.io",
            "pods",
        ),
    ),
)
NAMES = tuple(step.name for step in STEPS)


def step_of(name: str) -> Step:
    """Return the step with this name. Raises KeyError if there is none."""
    return {step.name: step for step in STEPS}[name]


def artifact_kind(name: str) -> Kind:
    """Return the kind of an artifact. Raises KeyError if no step produces it."""
    kinds = {name: kind for step in STEPS for name, kind in step.outputs.items()}
    return kinds[name]


def producer(name: str) -> str:
    """Return the name of the step that produces an artifact. Raises KeyError if none does."""
    return {name: step.name for step in STEPS for name in step.outputs}[name]


def component(step: Step, image: str) -> Any:
    """Return the KFP component of a step, whose container runs the step's program in `image`."""
    from kfp import dsl

    classes = {
        "metrics": dsl.Metrics,
        "markdown": dsl.Markdown,
        "html": dsl.HTML,
        "dataset": dsl.Dataset,
        "model": dsl.Model,
    }
    types: dict[str, Any] = dict(step.inputs)
    for name in step.artifacts:
        types[name] = dsl.Input[classes[artifact_kind(name)]]
    for name, kind in step.outputs.items():
        types[name] = dsl.OutputPath(str) if kind == "parameter" else dsl.Output[classes[kind]]

    def build(*placeholders: Any) -> dsl.ContainerSpec:
        """Return the container; KFP calls it with a placeholder for each input and output."""
        values = dict(zip(types, placeholders, strict=True))
        args = []
        for name in step.inputs:
            args += [f"--{flag(form.field_of(name))}", values[name]]
        for name, kind in step.outputs.items():
            if kind == "parameter":
                args += [f"--{flag(name)}-output", values[name]]
        # has the paths of the output artifacts
        args += ["--executor-input", "{{$}}"]
        command = ["python", "-m", f"components.{step.name}"]
        return dsl.ContainerSpec(image=image, command=command, args=args)

    # KFP reads the component's interface from the function's name and signature.
    build.__name__ = step.name
    build.__doc__ = None
    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # as inspect reads it
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for name, kind in types.items()
        ],
        return_annotation=dsl.ContainerSpec,
    )
    return dsl.container_component(build)
