"""The chain as a KFP pipeline, compiled once, run anywhere.

prepare -> search -> export -> evaluate -> deploy, and finish however it ends. The gate is no
task of its own: deploy runs in any case, and ends at once where the gate refused the model.
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
# KFP draws what an exit handler guards as one box, with the steps a click below it.
GROUP = "all steps (open me)"
DESCRIPTION = """\
Jet energy calibration: from ROOT files to a served, validated model.

**Change first**

* `data_train`, `data_val`, `data_test`: ROOT files, as `s3://bucket/train/*.root`, or `sample`,
  which generates jets
* `data_config`, `network_config`: Weaver's two files, as `s3://` addresses
* `search_space` (JSON editor), `search_max_trials`, `search_parallel_trials`, `search_num_epochs`
* `pods_num_gpus`: GPUs of a trial's node

**Everything else** is a line of `settings` (JSON editor), by the first word of its name: `data_`
jets and damaged files, `search_` algorithm, early stopping and batch size, `pods_` memory, images
and nodes, `gate_` what a model must reach to be deployed, `report_` the model to compare with,
`serve_` the service, `tracking_` MLflow and the model registry, `kubeflow_` labels, webhook and
clean-up. A line that is removed has its default. `auto` and `none` are values.

**Where runs are kept**: `storage_`. Leave `storage_run_id` at `auto` for a new run.

The form's own fields: choose an *Experiment*; *Service Account* may stay empty. More of each
parameter: `python pipeline.py --help`; of the whole: `docs/kubeflow.md` of the project.
"""
"""Markdown, as Kubeflow shows it."""
STEPS_IMAGE = "jec-steps:latest"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
# Seconds between two attempts. Argo waits whatever the reason was, also where the next attempt ends
# at once; so the wait for an API server or a storage that is away is the step's own (step.patient).
BACKOFF = 5
ANY_SERVER = Support()  # an IR that every supported server takes

MLFLOW_STEPS = ("prepare", "search", "finish")
"""Steps that log to MLflow themselves; trials and the evaluation's job have pods of their own."""

REGISTRY_STEPS = ("prepare", "evaluate")
"""Steps that ask the model registry: prepare whether it is there."""

# of a step's pod, unless it asks for more: prepare decodes the data
CPU_LIMIT = "2"
MEMORY_LIMIT = "4Gi"


def pipeline(config: RunConfig, image: str = STEPS_IMAGE, *, support: Support = ANY_SERVER) -> Any:
    """The KFP pipeline whose parameters are those of common.form; `config` has the defaults.

    Without an address in `s3_bucket` its parameter has no default: the form then asks for it. The
    pipeline asks for what the server supports, because a server refuses fields that it does not
    know. Raises InputError for a search space that cannot be read.
    """
    from kfp import dsl

    made = {step.name: component(step, image) for step in STEPS}
    defaults = parameters(config)
    if config.s3_bucket == AUTO:
        defaults["storage_bucket"] = inspect.Parameter.empty
    # Python wants those without a default first.
    names = sorted(defaults, key=lambda name: defaults[name] is not inspect.Parameter.empty)

    def chain(*values: Any) -> None:
        inputs = dict(zip(names, values, strict=True))
        job = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        common = {"storage_endpoint": inputs["storage_endpoint"], "job_id": job}

        tasks: dict[str, Any] = {}

        def task(name: str, **arguments: Any) -> Any:
            """A step of the pipeline, with its artifacts and what it needs as a pod."""
            taken = {one: tasks[producer(one)].outputs[one] for one in step_of(name).artifacts}
            task = made[name](**arguments, **taken)
            tasks[name] = task
            if support.display_names:
                task.set_display_name(step_of(name).title)
            return _on_the_cluster(task, config, inputs["storage_secret"], support)

        about = ("storage_bucket", "storage_run_id", "network_config")
        end = task("finish", **{name: inputs[name] for name in about}, **common)
        _with_webhook(end, config, support)
        with dsl.ExitHandler(end, name=GROUP):
            prepared = task("prepare", **inputs, job_id=job)
            prepared.set_env_variable(IMAGE_VARIABLE, image)
            run = prepared.outputs["run"]
            trial = task("search", run=run, **common).outputs["best_trial"]
            task("export", run=run, trial=trial, **common)
            evaluated = task("evaluate", run=run, trial=trial, **common)
            task("deploy", run=run, passed=evaluated.outputs["passed"], **common)

    # KFP reads the pipeline's parameters from the signature.
    chain.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # as inspect reads it
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
    compiled = dsl.pipeline(name=NAME, description=DESCRIPTION)(chain)
    for name, parameter in compiled.pipeline_spec.root.input_definitions.parameters.items():
        parameter.description = form.DESCRIPTIONS[name]
    return compiled


def parameters(config: RunConfig) -> dict[str, Any]:
    """The pipeline's parameters for a configuration, as a run is made with them.

    Raises InputError for a search space that cannot be read.
    """
    return form.parameters(config, as_document(load(config.search_space)))


def compile_to(
    path: Path | str,
    config: RunConfig,
    image: str = STEPS_IMAGE,
    *,
    support: Support = ANY_SERVER,
) -> Path:
    """Write the pipeline's IR as YAML, for a server of this support; returns the path.

    The same pipeline gives the same bytes: by them its version is found again on a server.
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
    """Of kfp, which compiles the pipeline."""
    return importlib.metadata.version("kfp")


def secret_as_env(task: Any, secret: Any, variables: Mapping[str, str], support: Support) -> None:
    """Give a step keys of a Secret as environment variables.

    `variables` maps keys to variables. The step starts without the Secret where the server knows an
    optional one, and elsewhere waits for it.
    """
    from kfp import kubernetes

    kubernetes.use_secret_as_env(
        task, secret_name=secret, secret_key_to_env=dict(variables), optional=True
    )
    if not support.optional_secret:
        # kfp-kubernetes 2.17 writes the field whatever its value is
        del task.platform_config["kubernetes"]["secretAsEnv"][-1]["optional"]


def _with_xrootd_login(task: Any, config: RunConfig) -> None:
    """Give a step the Secret with the login for root:// data, whose name is fixed in the IR.

    Were its name a parameter, the Secret would be mounted in every run, and servers before 2.15
    start no step without it. Of a Secret that is not there the step says what is missing.
    """
    from kfp import kubernetes

    if config.xrootd_secret != NONE:
        kubernetes.use_secret_as_volume(task, config.xrootd_secret, XROOTD_FOLDER, optional=True)
        task.set_env_variable(SECRET_FOLDER, XROOTD_FOLDER)


def _with_webhook(task: Any, config: RunConfig, support: Support) -> None:
    """Give finish the webhook's URL, which is a secret, in its environment.

    The Secret's name and key are fixed in the IR: KFP takes no key from a parameter.
    """
    match = SECRET_KEY.fullmatch(config.webhook_secret)
    if match:
        name, key = match.groups()
        secret_as_env(task, name, {key: WEBHOOK}, support)


def _with_tracking_login(task: Any, config: RunConfig, support: Support) -> None:
    """Give a step the login for the server that it logs to, by Secrets that are fixed in the IR."""
    if config.mlflow_secret != NONE and task.name in MLFLOW_STEPS:
        keys = {key: key for key in tracking.SECRET_KEYS}
        secret_as_env(task, config.mlflow_secret, keys, support)
    match = SECRET_KEY.fullmatch(config.model_registry_secret)
    if match and task.name in REGISTRY_STEPS:
        name, key = match.groups()
        secret_as_env(task, name, {key: REGISTRY_TOKEN}, support)


def _on_the_cluster(task: Any, config: RunConfig, secret: Any, support: Support) -> Any:
    """Give a step what its pod needs: S3 keys, its label, small limits, a deadline, retries.

    The requests are those of `config`, fixed in the IR: a server takes them as parameters only
    since KFP 2.4, and a clone in the UI has no use for them.

    KFP's cache is off, because every step acts on the outside. The steps know what they may reuse:
    decoded data, a finished search.
    """
    from kfp import kubernetes

    secret_as_env(task, secret, {key: key for key in CREDENTIALS}, support)
    _with_xrootd_login(task, config)
    _with_tracking_login(task, config, support)
    if support.step_labels:
        kubernetes.add_pod_label(task, STEP_LABEL, task.name)
    # A pod that is moved is lost: Argo 3.7.3 retries no pod that was deleted.
    kubernetes.add_pod_annotation(task, SAFE_TO_EVICT, "false")
    kubernetes.set_timeout(task, step_of(task.name).deadline)
    # the image's user is 1000 either way
    if support.non_root:
        kubernetes.set_security_context(task, run_as_non_root=True)
    task.set_caching_options(False)
    # Argo counts the longest duration from the start of the first attempt, and makes it the
    # deadline of the later ones (seen with Argo 3.7.3). So it must hold all attempts; a retry that
    # began after it would not begin at all.
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
