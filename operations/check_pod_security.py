"""Check which pods of a run the namespace's Pod Security level refuses, and who can change that.

We set the security contexts of the run's own pods. Katib, KServe, the training operator and
Kubeflow Pipelines add containers and pods of their own, which only an administrator can secure.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusters.pod_security import BASELINE, ENFORCE, PRIVILEGED, RESTRICTED, violations
from clusters.protocol import STEP_LABEL, Manifest
from clusters.survey import Survey
from common.config import NONE
from common.run import Run
from operations.render import objects
from operations.table import Line, error, not_seen, ok, warning
from serving.inference_service import RUNTIME

WHAT = "Pod Security"
SECURITY = (
    "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]},"
    " runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}"
)


def check_pod_security(survey: Survey, run: Run) -> Iterator[Line]:
    """Yield a line for each kind of pod that the namespace would refuse, or may refuse."""
    labels = survey.namespace_labels()
    if labels is None:
        yield not_seen(
            WHAT,
            f"we may not read the labels of namespace {survey.namespace}"
            f" ({survey.unseen.get(f'Namespace {survey.namespace}', 'there is none')})",
            f"ask its owner for {ENFORCE}, or for the right to get namespaces",
        )
        return
    level = labels.get(ENFORCE, PRIVILEGED)
    if level not in (BASELINE, RESTRICTED):
        yield ok(WHAT, f"namespace {survey.namespace} takes all pods ({ENFORCE}: {level})")
        return
    has_problem = False
    for line in [*own_lines(survey, run, level), *foreign_lines(survey, run, level)]:
        has_problem = True
        yield line
    if not has_problem:
        yield ok(WHAT, f"namespace {survey.namespace} enforces {level}, and takes every pod")


def own_lines(survey: Survey, run: Run, level: str) -> Iterator[Line]:
    """Yield a line for each reason to refuse pods of our objects, with the names of the objects."""
    runtime = survey.runtime(RUNTIME)
    objects_by_reason: dict[str, list[str]] = {}
    for manifest in objects(run).values():
        name = f"{manifest['kind']} ({manifest['metadata']['labels'][STEP_LABEL]})"
        for spec in pods_of(manifest, runtime):
            for reason in violations(spec, level):
                names = objects_by_reason.setdefault(reason, [])
                if name not in names:
                    names.append(name)
    for reason, names in objects_by_reason.items():
        yield error(
            WHAT, f"{level} refuses the pods of {', '.join(names)}: {reason}", cure_of(reason)
        )


def cure_of(reason: str) -> str:
    """Return what the user can do about a violation."""
    if reason.startswith("folders of the node"):
        return (
            f"--eos and --nvidia-driver need a namespace with {ENFORCE}: privileged; or copy the"
            " data to S3 and leave them out"
        )
    return f"have the administrator give the container of {RUNTIME} a {SECURITY}"


def pods_of(manifest: Manifest, runtime: Manifest | None) -> Iterator[Manifest]:
    """Yield the pod specs of an object; an InferenceService extends its runtime's container."""
    spec = manifest["spec"]
    if manifest["kind"] == "Experiment":
        spec = spec["trialTemplate"]["trialSpec"]["spec"]
    if "pytorchReplicaSpecs" in spec:
        for replica in spec["pytorchReplicaSpecs"].values():
            yield replica["template"]["spec"]
        return
    predictor = spec["predictor"]
    server = predictor.get("model") or predictor["triton"]
    runtime_container: Manifest = {}
    if runtime and runtime.get("containers"):
        runtime_container = runtime["containers"][0]
    context = {
        **(runtime_container.get("securityContext") or {}),
        **(server.get("securityContext") or {}),
    }
    container = {"name": "kserve-container", "securityContext": context}
    yield {**predictor, "containers": [container]}


def foreign_lines(survey: Survey, run: Run, level: str) -> Iterator[Line]:
    """Yield lines on the containers that the controllers add, which only `restricted` refuses."""
    if level != RESTRICTED:
        return
    yield from katib_lines(survey, run)
    if run.config.num_replicas > 1:
        yield warning(
            WHAT,
            f"{level} refuses workers whose init container (init-pytorch, of the training operator)"
            " has no security context, as its own template has none",
            "the operator's --pytorch-init-container-template-file names a template with a"
            f" {SECURITY}; or --num-replicas 1",
        )
    yield from storage_lines(survey, run)
    yield warning(
        WHAT,
        f"{level} refuses the pods of Kubeflow Pipelines (driver, launcher, Argo's init and wait),"
        " which have no security context unless Argo's configuration sets one",
        f"run the steps in a namespace with {ENFORCE}: {BASELINE}, or have the administrator set"
        " them in Argo's workflow-controller-configmap (executor, mainContainer, workflowDefaults)",
    )


def katib_lines(survey: Survey, run: Run) -> Iterator[Line]:
    """Yield lines on Katib's metrics collector, the algorithm's pod and early stopping."""
    algorithm, early_stopping = run.config.algorithm, run.config.early_stopping
    collector_cure = "init.controller.injectSecurityContext: true in KatibConfig (katib-config)"
    algorithm_cure = f"in KatibConfig, runtime.suggestions, {algorithm}: {SECURITY}"
    if early_stopping != NONE:
        # KatibConfig has no security context for it (katib v0.19.0 pkg/apis/config/v1beta1
        # types.go:112-117).
        yield error(
            WHAT,
            f"{RESTRICTED} refuses the algorithm's pod: Katib gives the container of"
            f" {early_stopping} no security context",
            "leave --early-stopping out, or take another namespace",
        )
    config = survey.katib_config()
    if config is None:
        why = survey.unseen.get("ConfigMap katib-config", "not found in kubeflow")
        yield not_seen(
            WHAT,
            f"{RESTRICTED} refuses Katib's metrics collector and the pod of {algorithm} unless"
            f" KatibConfig, which we may not read ({why}), sets their security contexts",
            f"ask the administrator to set {collector_cure} and, {algorithm_cure}",
        )
        return
    controller = (config.get("init") or {}).get("controller") or {}
    if controller.get("injectSecurityContext") is not True:
        yield error(
            WHAT,
            f"{RESTRICTED} refuses every trial: Katib's metrics collector has no security context",
            f"have the administrator set {collector_cure}",
        )
    for suggestion in (config.get("runtime") or {}).get("suggestions") or []:
        if suggestion.get("algorithmName") != algorithm:
            continue
        reasons = violations({"containers": [{**suggestion, "name": "suggestion"}]}, RESTRICTED)
        if reasons:
            yield error(
                WHAT,
                f"{RESTRICTED} refuses the pod of the algorithm: {'; '.join(reasons)}",
                f"have the administrator set, {algorithm_cure}",
            )


def storage_lines(survey: Survey, run: Run) -> Iterator[Line]:
    """Yield lines on KServe's storage initializer, in the predictor's pod."""
    cure = (
        "have the administrator set, in ClusterStorageContainer default, spec.container:"
        f" {SECURITY}"
    )
    container = survey.storage_container()
    if container is None:
        why = survey.unseen.get("ClusterStorageContainer default", "there is none")
        yield not_seen(
            WHAT,
            f"{RESTRICTED} refuses the predictor unless KServe's storage initializer, which we may"
            f" not read ({why}), has a security context",
            cure,
        )
        return
    predictor = objects(run)["inference_service.yaml"]["spec"]["predictor"]
    spec = {**predictor, "containers": [{**container, "name": "storage-initializer"}]}
    if reasons := violations(spec, RESTRICTED):
        yield error(WHAT, f"{RESTRICTED} refuses the predictor: {'; '.join(reasons)}", cure)
