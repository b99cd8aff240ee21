"""Check the cluster that the environment names, for `--check`.

The checks cover the APIs and their versions, permissions, Secrets and ServiceAccounts, the serving
runtime, Pod Security, quota and nodes, and a dry run of every object.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusters import keys, permissions
from clusters.api import (
    EXPERIMENT,
    INFERENCE_SERVICE,
    PYTORCHJOB,
    Connection,
    Kind,
    NoCluster,
    connect,
    namespace_of,
)
from clusters.survey import Survey
from common import tracking
from common.config import AUTO, NONE, RunConfig
from common.errors import InputError, JecError
from common.run import Run
from components.steps import EVERY_STEP, STEPS
from operations.check_capacity import check_capacity
from operations.check_pod_security import check_pod_security
from operations.render import objects, placeholder_run
from operations.server import MULTI_USER_ACCOUNT, SINGLE_USER_ACCOUNT
from operations.table import Line, State, error, not_seen, ok, warning
from serving.inference_service import RUNTIME

KINDS = (EXPERIMENT, PYTORCHJOB, INFERENCE_SERVICE)
KUBEFLOW = "kubeflow"  # namespace of Kubeflow's own installation
STEP_NAMESPACE_RIGHTS = (*EVERY_STEP, "workflows.argoproj.io")
"""Rights that a step needs in the namespace of its own pod, not in that of the run's objects."""
OVERLAY = "deploy/overlays/mine (a copy of deploy/overlays/example)"
UNCHECKED = (
    "API versions, permissions, Secret, ServiceAccount, serving runtime, Pod Security, quota,"
    " nodes, dry run"
)
"""What is not checked where no cluster answers."""
# trainer v1.9.3 pkg/config/config.go:28, cmd/training-operator.v1/main.go:104
INIT_IMAGE = "alpine:3.10"
INIT_IMAGE_FLAG = "pytorch-init-container-image"


def check_cluster(
    config: RunConfig, *, account: str, on_cluster: bool, single_user: bool = False
) -> Iterator[Line]:
    """Yield lines on the cluster that the environment names.

    If it names no cluster, or the cluster does not answer, one line says what was not checked.

    Args:
        config: configuration of the run.
        account: ServiceAccount of the steps' pods; 'auto' for Kubeflow's own.
        on_cluster: False for a run on this machine.
        single_user: Kubeflow Pipelines runs all steps in its own namespace.
    """
    cure = "set KUBECONFIG, or run this in a notebook of the cluster" if on_cluster else ""
    try:
        connection = connect()
        steps_namespace = server_namespace(connection, config.namespace) if single_user else ""
        namespace = (
            steps_namespace if steps_namespace and config.namespace == AUTO else config.namespace
        )
        survey = Survey(connection, namespace_of(connection, namespace))
        version = survey.version()
    except InputError as problem:
        reason = problem.short if isinstance(problem, NoCluster) else str(problem)
        yield not_seen("cluster", f"{reason}: {UNCHECKED}", cure)
        return
    except JecError as problem:
        # A run on this machine does not need the cluster.
        yield (error if on_cluster else not_seen)("cluster", str(problem), cure)
        return
    yield ok("cluster", f"Kubernetes {version} ({connection.source}), namespace {survey.namespace}")

    run = placeholder_run(config.replace(namespace=survey.namespace))
    served_kinds = [kind for kind in KINDS if survey.serves(kind)]
    yield from check_apis(survey, served_kinds)
    if account == AUTO:
        account = SINGLE_USER_ACCOUNT if single_user else MULTI_USER_ACCOUNT
    steps = Survey(connection, steps_namespace) if steps_namespace else survey
    yield from check_our_permissions(survey)
    if single_user and not steps_namespace:
        yield not_seen(
            "rights of the steps",
            f"no namespace that was checked has the ServiceAccount {SINGLE_USER_ACCOUNT}, as which"
            " the server runs the steps",
            "--namespace NAME, the server's own",
        )
    else:
        yield from check_steps_permissions(survey, account, steps)
    if steps.namespace != survey.namespace:
        yield check_steps_secret(steps, config.s3_secret)
    endpoint = "" if config.s3_endpoint == AUTO else config.s3_endpoint
    for finding in keys.findings(
        survey, secret=config.s3_secret, account=config.service_account, endpoint=endpoint
    ):
        yield Line(State(finding.state), finding.what, finding.result, finding.cure)
    # The form 'triton' names its own image and needs no serving runtime.
    if config.predictor_form == "model":
        yield check_runtime(survey)
    yield from check_logins(survey, config)
    yield from check_init_container(survey, run)
    yield from check_pod_security(survey, run)
    yield from check_capacity(survey, run, on_kubeflow=on_cluster)
    yield from check_dry_run(survey, run, served_kinds)


def check_apis(survey: Survey, served_kinds: list[Kind]) -> Iterator[Line]:
    """Yield for each kind of object whether the cluster serves it, and the controller's version."""
    for kind in KINDS:
        name = f"{kind.name} API"
        if kind in served_kinds:
            version = survey.controller_version(kind.owner) or "(its version cannot be read)"
            yield ok(name, f"{kind.api_version}, {kind.owner} {version}")
        else:
            yield error(
                name, f"the cluster does not serve {kind.api_version}", f"install {kind.owner}"
            )


def server_namespace(connection: Connection, requested: str) -> str:
    """Return the namespace of a single-user server; empty if no namespace looks like it.

    The server does not tell its namespace. It is the first one with the ServiceAccount that such a
    server runs steps as, of: the requested one, that of the kubeconfig, and Kubeflow's own. If we
    may not read the last one, it is assumed.
    """
    for namespace in (requested, connection.namespace, KUBEFLOW):
        if namespace and namespace != AUTO:
            survey = Survey(connection, namespace)
            if survey.account_secrets(SINGLE_USER_ACCOUNT) is not None:
                return namespace
    return KUBEFLOW if survey.unseen else ""


def check_steps_secret(survey: Survey, name: str) -> Line:
    """Return whether the steps' own namespace, other than the run's, has the S3 Secret."""
    what = f"Secret {name} of the steps"
    if survey.secret(name) is not None:
        return ok(what, f"in namespace {survey.namespace}, where the steps run")
    if why := survey.unseen.get(f"Secret {name}"):
        return not_seen(what, why)
    return error(
        what,
        f"there is none in namespace {survey.namespace}, where the steps run",
        f"create it there as in the run's namespace: kubectl -n {survey.namespace} create secret"
        f" generic {name} ...",
    )


def check_our_permissions(survey: Survey) -> Iterator[Line]:
    """Yield the permissions that we lack; --status, --logs and --down need them.

    What only Argo and KFP in a step's pod need is not asked for.
    """
    namespace = survey.namespace
    ours = [
        (permission, verb)
        for permission, verb in permissions.requests()
        if permission.name not in STEP_NAMESPACE_RIGHTS
    ]
    denials = [
        (permission, verb) for permission, verb in ours if not survey.is_allowed(permission, verb)
    ]
    yield from denied_lines(
        f"namespace {namespace}",
        "we",
        denials,
        len(ours),
        f"have the owner of namespace {namespace} apply {OVERLAY} and bind you:"
        f" kubectl -n {namespace} create rolebinding NAME --role jec-launcher --user YOU",
    )


def check_steps_permissions(survey: Survey, account: str, steps: Survey) -> Iterator[Line]:
    """Yield the permissions that the steps' ServiceAccount lacks: the steps create the objects.

    `survey` is of the namespace of the objects, `steps` of the one that the steps run in.
    """
    namespace, steps_namespace = survey.namespace, steps.namespace
    what, unseen = "rights of the steps", f"rights of ServiceAccount {account}"
    who = f"ServiceAccount {account}" + (
        f" of {steps_namespace}" if steps_namespace != namespace else ""
    )
    denials = []
    for permission, verb in permissions.requests():
        place = steps if permission.name in STEP_NAMESPACE_RIGHTS else survey
        is_allowed = place.account_is_allowed(account, permission, verb, steps_namespace)
        if is_allowed is None:
            # The right to ask about another account covers all questions or none.
            yield not_seen(
                what,
                f"{who}: we may not ask for others ({place.unseen.get(unseen, '')})",
                f"kubectl auth can-i create experiments.kubeflow.org -n {namespace} --as"
                f" system:serviceaccount:{steps_namespace}:{account}, or run this in a notebook",
            )
            return
        if not is_allowed:
            denials.append((permission, verb))
    spaces = sorted({namespace, steps_namespace})
    yield from denied_lines(
        what,
        who,
        denials,
        sum(1 for _ in permissions.requests()),
        f"kubectl apply -k {OVERLAY} in namespace {' and '.join(spaces)}, then kubectl -n"
        f" {namespace} create rolebinding {account} --role jec-launcher --serviceaccount"
        f" {steps_namespace}:{account}",
    )


def denied_lines(
    what: str,
    who: str,
    denials: list[tuple[permissions.Permission, str]],
    total: int,
    cure: str,
) -> Iterator[Line]:
    """Yield a line for each permission with a denied verb, or one line if none of `total` is.

    The cure is the same for all lines and is printed with the first.
    """
    if not denials:
        yield ok(what, f"{who} may do all {total} things that a run does")
    verbs_of: dict[permissions.Permission, list[str]] = {}
    for permission, verb in denials:
        verbs_of.setdefault(permission, []).append(verb)
    for permission, verbs in verbs_of.items():
        line = error if permission.is_needed else warning
        yield line(
            what,
            f"{who} may not {', '.join(verbs)} {permission.name} ({permission.why};"
            f" {steps_that_need(permission)})",
            cure,
        )
        cure = ""


def steps_that_need(permission: permissions.Permission) -> str:
    """Return the steps that need a permission, in words."""
    names = [step.name for step in STEPS if permission.name in step.rights]
    return f"needed by {', '.join(names)}" if names else "needed by every step"


def check_runtime(survey: Survey) -> Line:
    """Return whether KServe's runtime for Triton exists, is enabled, and speaks protocol v2."""
    spec, what = survey.runtime(RUNTIME), "serving runtime"
    if spec is None:
        cure = "install KServe's runtimes, or --predictor-form triton"
        # A runtime may be in the namespace or in the cluster; we may lack the right to read either.
        for name, why in survey.unseen.items():
            if name.endswith(f"ServingRuntime {RUNTIME}"):
                return not_seen(what, why, cure)
        return error(what, f"there is no {RUNTIME}", cure)
    if spec.get("disabled"):
        return error(what, f"{RUNTIME} is disabled", "enable it")
    if "v2" not in spec.get("protocolVersions", ["v2"]):
        return error(
            what,
            f"{RUNTIME} speaks {', '.join(spec['protocolVersions'])}, not v2",
            "add v2 to its protocolVersions",
        )
    image = next((container.get("image", "") for container in spec.get("containers", [])), "")
    return ok(what, f"{RUNTIME}: {image.rsplit('/', 1)[-1]}")


def check_logins(survey: Survey, config: RunConfig) -> Iterator[Line]:
    """Yield whether the Secrets of the webhook, MLflow and the model registry have their keys."""
    keys = {"webhook": config.webhook_secret, "model registry": config.model_registry_secret}
    if config.mlflow_secret != NONE and config.mlflow == AUTO:
        keys["MLflow"] = f"{config.mlflow_secret}/{tracking.ADDRESS}"
    for subject, name_and_key in keys.items():
        if name_and_key != NONE:
            name, _, key = name_and_key.partition("/")
            yield check_key(survey, subject, name, key)


def check_key(survey: Survey, subject: str, name: str, key: str) -> Line:
    """Return whether a Secret has a key; its value is not shown."""
    what = f"Secret {name}"
    secret = survey.secret(name)
    make = f"kubectl -n {survey.namespace} create secret generic {name} --from-file={key}=FILE"
    if secret is None:
        if why := survey.unseen.get(what):
            return not_seen(subject, why)
        return error(subject, f"there is no {what} in namespace {survey.namespace}", make)
    if not secret.values.get(key):
        return error(subject, f"{what} has no {key}", make)
    return ok(subject, f"{what} has {key}")


def check_init_container(survey: Survey, run: Run) -> Iterator[Line]:
    """Yield a line on the init container that the training operator adds to worker pods."""
    if run.config.num_replicas < 2:
        return
    arguments = survey.operator_arguments()
    image = f"{INIT_IMAGE} of a public registry"
    for argument in arguments or []:
        flag, _, value = argument.lstrip("-").partition("=")
        if flag == INIT_IMAGE_FLAG:
            image = value
    unless_flags = (
        "" if arguments is not None else ", unless its own flags, which we may not read, differ"
    )
    what = "init container"
    workers = f"the training operator starts the workers of {run.config.num_replicas} replicas"
    if INIT_IMAGE in image:
        yield warning(
            what,
            f"{workers} with {image}{unless_flags}",
            f"where nodes cannot pull it: --{INIT_IMAGE_FLAG}=REGISTRY/IMAGE of the operator, an"
            " image with sh and nslookup",
        )
    else:
        yield ok(what, f"{workers} with {image}")


def check_dry_run(survey: Survey, run: Run, served_kinds: list[Kind]) -> Iterator[Line]:
    """Yield whether the cluster's own webhooks and schemas accept each object (server dry run)."""
    kinds = {kind.name: kind for kind in served_kinds}
    for manifest in objects(run).values():
        kind = kinds.get(manifest["kind"])
        if kind is None:
            continue  # its API has a line already
        name = manifest["metadata"]["name"].removeprefix(run.id).strip("-") or "experiment"
        refusal = survey.dry_run_refusal(kind, manifest)
        if refusal:
            yield error(f"dry run {name}", f"the cluster would refuse it: {refusal}")
        else:
            yield ok(f"dry run {name}", f"the cluster takes the {kind.name}")
