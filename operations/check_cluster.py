"""The cluster, where one answers:

APIs and their versions, permissions, secrets and accounts, quota, and a dry run of every object.
"""

from __future__ import annotations

from collections.abc import Iterator

from clusters import keys, permissions
from clusters.api import (
    EXPERIMENT,
    INFERENCE_SERVICE,
    PYTORCHJOB,
    Kind,
    NoCluster,
    connect,
    namespace_of,
)
from clusters.survey import Survey
from common.config import AUTO, RunConfig
from common.errors import InputError, JecError
from common.run import Run
from operations.quantities import amount, shown
from operations.render import objects, rendered_run
from operations.table import Line, error, not_seen, ok, warning
from serving.inference_service import RUNTIME

KINDS = (EXPERIMENT, PYTORCHJOB, INFERENCE_SERVICE)
BLIND = (
    "API versions, permissions, Secret, ServiceAccount, serving runtime, quota, the webhooks' word"
)
# Kubeflow Pipelines runs steps as this account of a profile's namespace
STEPS_ACCOUNT = "default-editor"


def check_cluster(config: RunConfig, *, account: str, wanted: bool) -> Iterator[Line]:
    """Lines on the cluster that the environment names; one line on what was not seen where it names
    none or none answers.

    `account`: ServiceAccount of the steps' pods, 'auto' for Kubeflow's own. `wanted`: whether the
    run is for a cluster.
    """
    cure = "set KUBECONFIG, or run this in a notebook of the cluster" if wanted else ""
    try:
        connection = connect()
        survey = Survey(connection, namespace_of(connection, config.namespace))
        version = survey.version()
    except InputError as problem:
        yield not_seen(
            "cluster",
            f"{problem.short if isinstance(problem, NoCluster) else problem}: {BLIND}",
            cure,
        )
        return
    except JecError as problem:
        yield (error if wanted else not_seen)("cluster", str(problem), cure)
        return
    yield ok("cluster", f"Kubernetes {version} ({connection.source}), namespace {survey.namespace}")
    run = rendered_run(config.replace(namespace=survey.namespace))
    served = [kind for kind in KINDS if survey.serves(kind)]
    yield from _versions(survey, served)
    yield from _permissions(survey, STEPS_ACCOUNT if account == AUTO else account)
    endpoint = "" if config.s3_endpoint == AUTO else config.s3_endpoint
    found = keys.findings(
        survey, secret=config.s3_secret, account=config.service_account, endpoint=endpoint
    )
    yield from (Line(*finding) for finding in found)
    yield from _runtime(survey, config)
    yield from _quota(survey, run)
    yield from _dry_run(survey, run, served)


def _versions(survey: Survey, served: list[Kind]) -> Iterator[Line]:
    for kind in KINDS:
        name = f"{kind.name} API"
        if kind not in served:
            yield error(
                name, f"the cluster does not serve {kind.api_version}", f"install {kind.owner}"
            )
            continue
        version = survey.controller_version(kind.owner)
        yield ok(
            name, f"{kind.api_version}, {kind.owner} {version or '(its version may not be seen)'}"
        )


def _permissions(survey: Survey, account: str) -> Iterator[Line]:
    """What we may do, and what the account of the steps may: it is the steps that create the
    objects.
    """
    denied = [(one, verb) for one, verb in permissions.requests() if not survey.allowed(one, verb)]
    yield from _denied_lines(f"namespace {survey.namespace}", "we", denied, survey.namespace)
    answers = {
        (one, verb): survey.account_allowed(account, one, verb)
        for one, verb in _first_then_rest(survey, account)
    }
    if None in answers.values():
        why = survey.unseen.get(f"rights of ServiceAccount {account}", "")
        cure = (
            f"kubectl auth can-i create experiments.kubeflow.org -n {survey.namespace} --as ..., or"
            " run this in a notebook"
        )
        yield not_seen(
            "rights of the steps",
            f"ServiceAccount {account}: we may not ask for others ({why})",
            cure,
        )
        return
    yield from _denied_lines(
        "rights of the steps",
        f"ServiceAccount {account}",
        [key for key, yes in answers.items() if not yes],
        survey.namespace,
    )


def _first_then_rest(survey: Survey, account: str) -> Iterator[tuple[permissions.Permission, str]]:
    """All questions, or only the first where even that may not be asked."""
    for one, verb in permissions.requests():
        yield one, verb
        if f"rights of ServiceAccount {account}" in survey.unseen:
            return


def _denied_lines(
    what: str, who: str, denied: list[tuple[permissions.Permission, str]], namespace: str
) -> Iterator[Line]:
    total = sum(1 for _ in permissions.requests())
    if not denied:
        yield ok(what, f"{who} may do all {total} things that a run does")
    for one in dict.fromkeys(permission for permission, _ in denied):
        verbs = ", ".join(verb for permission, verb in denied if permission is one)
        cure = (
            f"kubectl apply -k deploy/ in namespace {namespace}, or have its owner bind the Role of"
            " deploy/"
        )
        yield (error if one.needed else warning)(
            what, f"{who} may not {verbs} {one.name} ({one.why})", cure
        )


def _runtime(survey: Survey, config: RunConfig) -> Iterator[Line]:
    if config.predictor_form != "model":
        return
    spec, what = survey.runtime(RUNTIME), "serving runtime"
    if spec is None:
        blind = [
            why for name, why in survey.unseen.items() if name.endswith(f"ServingRuntime {RUNTIME}")
        ]
        cure = "install KServe's runtimes, or --predictor-form triton"
        yield not_seen(what, blind[0]) if blind else error(what, f"there is no {RUNTIME}", cure)
    elif spec.get("disabled"):
        yield error(what, f"{RUNTIME} is disabled", "enable it")
    elif "v2" not in spec.get("protocolVersions", ["v2"]):
        yield error(
            what,
            f"{RUNTIME} speaks {', '.join(spec['protocolVersions'])}, not v2",
            "have its protocolVersions name v2",
        )
    else:
        image = next((container.get("image", "") for container in spec.get("containers", [])), "")
        yield ok(what, f"{RUNTIME}: {image.rsplit('/', 1)[-1]}")


def _quota(survey: Survey, run: Run) -> Iterator[Line]:
    """What is left in the namespace against one trial, and so how many run at once; and against the
    service.
    """
    quotas = survey.quotas()
    if quotas is None:
        yield not_seen("quota", survey.unseen.get("ResourceQuotas", "not readable"))
        return
    limits = [
        (name, resource, amount(hard) - amount(used.get(resource, "0")), amount(hard))
        for name, hards, used in quotas
        for resource, hard in hards.items()
    ]
    if not limits:
        yield ok("quota", "the namespace has none")
        return
    yield from _fitting(run, limits)


def _fitting(run: Run, limits: list[tuple[str, str, float, float]]) -> Iterator[Line]:
    trial, config = _needs_of_a_trial(run), run.config
    fits, tightest = config.parallel_trials, None
    for name, resource, left, hard in limits:
        need = trial.get(resource, 0.0)
        if need > hard:
            yield error(
                "quota",
                f"a trial asks for {resource} {shown(need)}, {name} allows {shown(hard)} in all",
                "ask for less (--num-gpus, --num-cpus, --memory, --num-replicas) or for a larger"
                " quota",
            )
            return
        if need and left // need < fits:
            fits, tightest = (
                int(left // need),
                (
                    f"{resource}: {shown(left)} of {shown(hard)} left in {name}, a trial asks for"
                    f" {shown(need)}"
                ),
            )
    if fits == 0:
        yield warning(
            "quota",
            f"no trial fits now ({tightest})",
            "the search will wait; --status tells for what",
        )
    elif tightest:
        yield warning(
            "quota",
            f"{fits} of {config.parallel_trials} parallel trials fit ({tightest})",
            f"--parallel-trials {fits}",
        )
    else:
        yield ok("quota", f"{config.parallel_trials} trials fit at once")


def _needs_of_a_trial(run: Run) -> dict[str, float]:
    """What a trial's pods ask for, by the names that a ResourceQuota uses."""
    job = objects(run)["experiment.yaml"]["spec"]["trialTemplate"]["trialSpec"]["spec"]
    needs: dict[str, float] = {}
    for replica in job["pytorchReplicaSpecs"].values():
        for container in replica["template"]["spec"]["containers"]:
            for kind, amounts in container["resources"].items():
                for resource, value in amounts.items():
                    needs[f"{kind}.{resource}"] = needs.get(f"{kind}.{resource}", 0) + replica[
                        "replicas"
                    ] * amount(value)
        needs["pods"] = needs.get("pods", 0) + replica["replicas"]
    return needs | {
        key.removeprefix("requests."): value
        for key, value in needs.items()
        if key in ("requests.cpu", "requests.memory")
    }


def _dry_run(survey: Survey, run: Run, served: list[Kind]) -> Iterator[Line]:
    """Whether the cluster's own webhooks and schemas would take each object."""
    kinds = {kind.name: kind for kind in served}
    for manifest in objects(run).values():
        if kind := kinds.get(manifest["kind"]):
            refusal = survey.would_take(kind, manifest)
            what = (
                "dry run"
                f" {manifest['metadata']['name'].removeprefix(run.id).strip('-') or 'experiment'}"
            )
            yield (
                error(what, f"the cluster would refuse it: {refusal}")
                if refusal
                else ok(what, f"the cluster takes the {kind.name}")
            )
