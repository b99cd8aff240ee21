"""The steps as a KFP pipeline, which runs on a server and with kfp.local.

prepare -> search -> export -> evaluate -> deploy, and at the end finish, whether they succeed or
not. The gate is no task of its own: deploy ends at once if the gate refused the model.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clusters.manifests import CREDENTIALS, XROOTD_FOLDER
from clusters.protocol import STEP_LABEL
from common import form, tracking
from common.config import AUTO, NONE, SECRET_KEY, RunConfig, cpus, quantity
from common.storage.xrootd_login import SECRET_FOLDER
from components.server_support import Support
from components.steps import (
    HOUR,
    IMAGE_VARIABLE,
    REGISTRY_TOKEN,
    RETRIES,
    STEPS,
    WEBHOOK,
    component,
    producer,
    step_of,
)
from training.search_space import as_document, load

NAME = "jec-pipeline"
# KFP's UI shows the tasks of an exit handler as one box; a click opens the steps.
GROUP = "all steps (open me)"
DESCRIPTION = """\
Jet energy calibration: from ROOT files to a served, validated model.

**Change first**

* `data_train`, `data_val`, `data_test`: ROOT files, as `s3://bucket/train/*.root`, or `sample`,
  which generates jets
* `data_config`, `network_config`: Weaver's two files, as `s3://` addresses
* `search_space` (JSON editor), `search_max_trials`, `search_parallel_trials`, `search_num_epochs`
* `pods_num_gpus`: GPUs of each node of a trial

**All other parameters** are lines of `settings` (JSON editor). The first word of a name says what
it is for: `data_` jets and damaged files, `search_` algorithm, early stopping and batch size,
`pods_` memory, images and nodes, `gate_` conditions for a deployment, `report_` the model to
compare with, `serve_` the service, `tracking_` MLflow and the model registry, `kubeflow_` labels,
webhook and clean-up. Without its line a parameter has its default. `auto` and `none` are values.

**Storage of runs**: `storage_`. Leave `storage_run_id` at `auto` for a new run.

Of the form's other fields, choose an *Experiment*; *Service Account* may stay empty. All
parameters: `python pipeline.py --help`. Manual: `docs/kubeflow-runs.md` of the project.
"""
"""Markdown that Kubeflow's UI shows."""
STEPS_IMAGE = "jec-steps:latest"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
# Seconds between two attempts. Argo waits so long after every failure, also if the next attempt
# fails at once. Therefore a step itself waits for an API server or storage that does not answer
# (step.patient).
BACKOFF = 5
ANY_SERVER = Support()  # an IR that every supported server accepts

MLFLOW_STEPS = ("prepare", "search", "finish")
"""Steps that log to MLflow themselves; trials and the evaluation's job have pods of their own."""

REGISTRY_STEPS = ("prepare", "evaluate")
"""Steps that use the model registry; prepare only checks that it answers."""

# Limits of a step's pod, unless its requests are higher. prepare, which decodes the data, needs
# the most.
CPU_LIMIT = "2"
MEMORY_LIMIT = "4Gi"


def pipeline(config: RunConfig, image: str = STEPS_IMAGE, *, support: Support = ANY_SERVER) -> Any:
    """Return the KFP pipeline with the parameters of common.form.

    Args:
        config: the defaults of the parameters. If `s3_bucket` is 'auto', its parameter has no
            default, and the form in the UI requires it.
        image: image of the steps.
        support: features of the server; a server refuses an IR with fields that it does not know.

    Raises:
        InputError: the search space cannot be read.
    """
    from kfp import dsl

    components = {step.name: component(step, image) for step in STEPS}
    defaults = parameters(config)
    if config.s3_bucket == AUTO:
        defaults["storage_bucket"] = inspect.Parameter.empty
    # In Python parameters without a default come first.
    names = sorted(defaults, key=lambda name: defaults[name] is not inspect.Parameter.empty)

    def chain(*values: Any) -> None:
        """Wire the steps; KFP calls it once, with a placeholder for each parameter."""
        inputs = dict(zip(names, values, strict=True))
        job = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        common = {"storage_endpoint": inputs["storage_endpoint"], "job_id": job}

        tasks: dict[str, Any] = {}

        def task(name: str, **arguments: Any) -> Any:
            """Add a step with its artifacts and the settings of its pod."""
            artifacts = {
                artifact: tasks[producer(artifact)].outputs[artifact]
                for artifact in step_of(name).artifacts
            }
            task = components[name](**arguments, **artifacts)
            tasks[name] = task
            if support.display_names:
                task.set_display_name(step_of(name).title)
            return _on_the_cluster(task, config, inputs["storage_secret"], support)

        run_parameters = ("storage_bucket", "storage_run_id", "network_config")
        end = task("finish", **{name: inputs[name] for name in run_parameters}, **common)
        _with_webhook(end, config, support)
        with dsl.ExitHandler(end, name=GROUP):
            prepare = task("prepare", **inputs, job_id=job)
            prepare.set_env_variable(IMAGE_VARIABLE, image)
            run = prepare.outputs["run"]
            trial = task("search", run=run, **common).outputs["best_trial"]
            task("export", run=run, trial=trial, **common)
            evaluate = task("evaluate", run=run, trial=trial, **common)
            task("deploy", run=run, passed=evaluate.outputs["passed"], **common)

    # KFP reads the pipeline's parameters from the signature.
    chain.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect reads it
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=form.TYPES[name],
                default=defaults[name],
            )
            for name in names
        ]
    )
    result = dsl.pipeline(name=NAME, description=DESCRIPTION)(chain)
    for name, parameter in result.pipeline_spec.root.input_definitions.parameters.items():
        parameter.description = form.DESCRIPTIONS[name]
    return result


def parameters(config: RunConfig) -> dict[str, Any]:
    """Return the values of the pipeline's parameters for a configuration.

    Raises InputError if the search space cannot be read.
    """
    return form.parameters(config, as_document(load(config.search_space)))


def compile_to(
    path: Path | str,
    config: RunConfig,
    image: str = STEPS_IMAGE,
    *,
    support: Support = ANY_SERVER,
) -> Path:
    """Write the pipeline's IR as YAML, for servers with these features; return the path.

    The same pipeline gives the same bytes, because its version on a server is found by them. Raises
    InputError as `pipeline`.
    """
    from kfp import compiler

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline(config, image, support=support), str(path))
    # kfp begins the file with comments that repeat the parameters. The defaults of a dict stand
    # there in an order that differs from one process to the next.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("#")))
    return path


def sdk_version() -> str:
    """Return the version of kfp, which compiles the pipeline."""
    return importlib.metadata.version("kfp")


def secret_as_env(task: Any, secret: Any, variables: Mapping[str, str], support: Support) -> None:
    """Give a step keys of a Secret as environment variables.

    `variables` maps keys to variables. If the Secret does not exist, the step starts without it;
    on servers without optional Secrets its pod waits for it.
    """
    from kfp import kubernetes

    kubernetes.use_secret_as_env(
        task, secret_name=secret, secret_key_to_env=dict(variables), optional=True
    )
    if not support.optional_secret:
        # kfp-kubernetes 2.17 always writes the field, which such servers refuse
        del task.platform_config["kubernetes"]["secretAsEnv"][-1]["optional"]


def _with_xrootd_login(task: Any, config: RunConfig) -> None:
    """Mount the Secret with the login for root:// data into a step; the IR has its name.

    With the name as a parameter the Secret would be mounted in every run, and servers before 2.15
    start no step without it. If the Secret does not exist, the step's error says so.
    """
    from kfp import kubernetes

    if config.xrootd_secret != NONE:
        kubernetes.use_secret_as_volume(task, config.xrootd_secret, XROOTD_FOLDER, optional=True)
        task.set_env_variable(SECRET_FOLDER, XROOTD_FOLDER)


def _with_webhook(task: Any, config: RunConfig, support: Support) -> None:
    """Give finish the webhook's URL, which is a secret, in its environment.

    The IR has the Secret's name and key, because KFP takes no key from a parameter.
    """
    match = SECRET_KEY.fullmatch(config.webhook_secret)
    if match:
        name, key = match.groups()
        secret_as_env(task, name, {key: WEBHOOK}, support)


def _with_tracking_login(task: Any, config: RunConfig, support: Support) -> None:
    """Give a step the logins for MLflow and the model registry, if it uses them.

    The IR has the names of the Secrets.
    """
    if config.mlflow_secret != NONE and task.name in MLFLOW_STEPS:
        keys = {key: key for key in tracking.SECRET_KEYS}
        secret_as_env(task, config.mlflow_secret, keys, support)
    match = SECRET_KEY.fullmatch(config.model_registry_secret)
    if match and task.name in REGISTRY_STEPS:
        name, key = match.groups()
        secret_as_env(task, name, {key: REGISTRY_TOKEN}, support)


def _on_the_cluster(task: Any, config: RunConfig, secret: Any, support: Support) -> Any:
    """Set up a step's pod: S3 keys, logins, label, requests and limits, a deadline, retries.

    The IR has the requests of `config`: only servers since KFP 2.4 accept them as parameters, and a
    clone in the UI need not change them.

    KFP's cache is off, because every step has effects outside of its outputs. The steps decide
    themselves what to reuse: decoded data, a finished search.
    """
    from kfp import kubernetes

    secret_as_env(task, secret, {key: key for key in CREDENTIALS}, support)
    _with_xrootd_login(task, config)
    _with_tracking_login(task, config, support)
    if support.step_labels:
        kubernetes.add_pod_label(task, STEP_LABEL, task.name)
    # Do not let the autoscaler evict the pod: Argo 3.7.3 does not retry a deleted pod.
    kubernetes.add_pod_annotation(task, SAFE_TO_EVICT, "false")
    kubernetes.set_timeout(task, step_of(task.name).deadline)
    # without the field the image's own user, 1000, is used as well
    if support.non_root:
        kubernetes.set_security_context(task, run_as_non_root=True)
    task.set_caching_options(False)
    # Argo measures backoff_max_duration from the start of the first attempt and starts no attempt
    # after it (observed with Argo 3.7.3), so it must be longer than all attempts together.
    longest = (RETRIES + 1) * step_of(task.name).deadline + HOUR
    task.set_retry(
        RETRIES,
        backoff_duration=f"{BACKOFF}s",
        backoff_factor=1.0,
        backoff_max_duration=f"{longest}s",
    )
    return (
        task.set_cpu_request(config.steps_cpus)
        .set_cpu_limit(max(config.steps_cpus, CPU_LIMIT, key=lambda text: cpus("steps_cpus", text)))
        .set_memory_request(config.steps_memory)
        .set_memory_limit(
            max(config.steps_memory, MEMORY_LIMIT, key=lambda text: quantity("steps_memory", text))
        )
    )
