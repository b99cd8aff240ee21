"""Manifests on a Kubernetes cluster with Katib, the training operator and KServe: sent through the
published client, watched by polling.

Polling, not the watch API: one list of trials and pods every few seconds is all there is to see, it
needs no resuming after a cut, and an object that is read anew can never be out of date. Every wait
ends: done, failed with the reason of the pod that failed, or out of time with what it waited for.
Nothing here catches KeyboardInterrupt; removing what was started when a step is told to stop is its
caller's part (`delete_experiment`, `delete_job`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from urllib.parse import urlsplit

from clusters.api import (
    EXPERIMENT,
    INFERENCE_SERVICE,
    PYTORCHJOB,
    TRIAL,
    Api,
    Kind,
    connect,
    namespace_of,
)
from clusters.pods import LOG_LINES, PodStory
from clusters.protocol import (
    RUN_LABEL,
    STEP_LABEL,
    ExperimentResult,
    Manifest,
    Report,
    Service,
    Trial,
    run_id_of,
)
from clusters.reasons import (
    condition,
    crash_loops,
    crash_of,
    is_true,
    lives,
    name_of,
    phase_of,
    ready,
    short,
)
from clusters.trials import (
    COUNTED,
    FAILED,
    UNFINISHED,
    best_trial,
    common_reasons,
    optimal_trial,
    progress_line,
    status_of,
    trial_of,
)
from clusters.waiting import Wait, ignore
from common.errors import ClusterError, DeadlineError, InputError

# on every pod of a PyTorchJob; a trial's job has the trial's name
JOB_LABEL = "training.kubeflow.org/job-name"
TRIALS_LABEL = "katib.kubeflow.org/experiment"
# on the pod of the algorithm; its value is the experiment's name
SUGGESTION_LABEL = "katib.kubeflow.org/suggestion"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
# digest of a job's or a service's spec; KServe copies it to the pods of that very spec
REVISION_LABEL = "jec/revision"
PREDICTOR = "kserve-container"
STORY_SECONDS = 30.0  # for reading why a service does not answer
REMOVAL_SECONDS = 300.0  # pods may take their grace period to go
SHOWN_TRIALS = 3  # failed trials whose last lines an error shows
# what Katib lets be changed of an experiment
EDITABLE = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
OVERTAKEN = "the goal was reached"


class KubernetesCluster:
    """The home of manifests that is a cluster; see clusters.protocol.Cluster.

    `namespace` None or 'auto' means the pod's own, or the kubeconfig context's. `poll` is the time
    between two looks, in seconds, `patience` how long a pod may want for an image or a secret
    before its wait is given up. Raises InputError if no cluster or no namespace is configured.
    """

    resumes = False  # an experiment that nobody watches would go on, and hold its GPUs

    def __init__(
        self, namespace: str | None = None, *, poll: float = 5.0, patience: float = 600.0
    ) -> None:
        connection = connect()
        self.namespace = namespace_of(connection, namespace)
        self._inside, self._poll, self._patience = connection.inside, poll, patience
        self._api = Api(connection, self.namespace, pause=min(1.0, poll))

    # Experiment
    # --------------------------------------------------------------------------------------------

    def run_experiment(
        self, manifest: Manifest, *, deadline: float, report: Report
    ) -> ExperimentResult:
        """Run a Katib Experiment to its end, or go on watching the one of this run that exists."""
        manifest = self._checked(manifest, EXPERIMENT)
        name = name_of(manifest)
        wait = Wait(f"experiment {name}", deadline, report)
        story = PodStory(self._api, wait, JOB_LABEL, patience=self._patience)
        suggestions = PodStory(
            self._api, wait, SUGGESTION_LABEL, patience=self._patience, topic="the algorithm of "
        )
        existing = self._submit(EXPERIMENT, manifest, wait)
        # Katib cannot restart it; resuming a run means to try again
        if existing and is_true(existing, "Failed"):
            report(f"experiment {name} failed before; it is removed and run again")
            self._remove([(EXPERIMENT, name)], wait)
            self._submit(EXPERIMENT, manifest, wait)
        elif existing:
            self._extend(existing, manifest, wait)
        while True:
            experiment = self._existing(EXPERIMENT, name, wait)
            trials = self._trials(name, story, wait)
            waiting = self._watch_trials(trials, story)
            self._watch_suggestions(name, trials, suggestions)
            _tell_trials(experiment, trials, story, wait)
            wait.tell("state", progress_line(experiment, trials, waiting))
            if is_true(experiment, "Failed"):
                raise ClusterError(_experiment_failure(experiment, trials, story))
            if is_true(experiment, "Succeeded") and not _goes_on(experiment):
                return _experiment_result(experiment, self._without_unfinished(trials, wait), story)
            wait.sleep(self._poll)

    def _extend(self, existing: dict, manifest: Manifest, wait: Wait) -> None:
        """Let an experiment go on to a larger number of trials.

        Katib takes changes of three fields only.
        """
        while existing["spec"].get("maxTrialCount", 0) < manifest["spec"].get("maxTrialCount", 0):
            before, name = existing["spec"]["maxTrialCount"], name_of(existing)
            if not extensible(existing):
                said = short((condition(existing, "Succeeded") or {}).get("message", ""))
                raise ClusterError(
                    f"experiment {name} takes no more trials: {said or 'its resumePolicy is Never'}"
                )
            asked = {key: manifest["spec"][key] for key in EDITABLE if key in manifest["spec"]}
            if self._api.replace(
                EXPERIMENT, {**existing, "spec": {**existing["spec"], **asked}}, wait
            ):
                wait.tell(
                    "submit",
                    f"experiment {name} goes on from {before} to {asked['maxTrialCount']} trials",
                )
                return
            # it was changed between our reading and writing
            existing = self._existing(EXPERIMENT, name, wait)

    def _without_unfinished(self, trials: list[Trial], wait: Wait) -> list[Trial]:
        """The trials of an experiment that is over.

        Katib lets those run on that the goal overtook: they are removed, for their GPUs.
        """
        kept = []
        for trial in trials:
            if trial.status in UNFINISHED:
                self._api.delete(TRIAL, trial.name, wait)
                wait.tell(f"killed {trial.name}", f"trial {trial.name} is removed: {OVERTAKEN}")
                trial = dataclasses.replace(trial, status="Killed", reason=OVERTAKEN)
            kept.append(trial)
        return kept

    def can_continue(self, name: str) -> bool:
        """See clusters.protocol.Cluster."""
        found = self._settled(EXPERIMENT, name, Wait(f"experiment {name}", REMOVAL_SECONDS, ignore))
        return found is not None and not is_true(found, "Failed") and extensible(found)

    def _trials(self, experiment: str, story: PodStory, wait: Wait) -> list[Trial]:
        """The trials by creation, the failed ones with the reason their pods gave (which stays
        known when the pods go).
        """
        listed = self._api.list(TRIAL, f"{TRIALS_LABEL}={experiment}", wait)
        listed.sort(
            key=lambda trial: (trial["metadata"].get("creationTimestamp", ""), name_of(trial))
        )
        story.look_back(name_of(trial) for trial in listed if status_of(trial) == "Failed")
        return [trial_of(trial, _told(story, trial)) for trial in listed]

    def _watch_trials(self, trials: list[Trial], story: PodStory) -> int:
        """Explain trials whose pods have not started; the number of them that Katib
        calls running.
        """
        active = [trial for trial in trials if trial.status in UNFINISHED]
        pods = story.look([trial.name for trial in active])
        for trial in trials:
            if trial.status not in UNFINISHED:
                story.settle(trial.name)
        if pods is None:
            return 0
        held_up = [trial for trial in active if story.explain(trial.name, pods[trial.name])]
        return sum(trial.status == "Running" for trial in held_up)

    def _watch_suggestions(
        self, experiment: str, trials: list[Trial], suggestions: PodStory
    ) -> None:
        """While no trial is under way, explain the pod that proposes them: without it Katib waits
        and says nothing.
        """
        if any(trial.status in UNFINISHED for trial in trials):
            suggestions.settle(experiment)
        elif pods := suggestions.look([experiment]):
            suggestions.explain(experiment, pods[experiment])

    def delete_experiment(self, name: str) -> None:
        """Remove an Experiment and its trials; no error if it is gone already."""
        self._remove([(EXPERIMENT, name)])

    # Job
    # --------------------------------------------------------------------------------------------

    def run_job(self, manifest: Manifest, *, deadline: float, report: Report) -> None:
        """Run a PyTorchJob to its end.

        One of this run and this spec that runs or has succeeded is adopted, any other is run anew.
        """
        manifest = self._checked(manifest, PYTORCHJOB)
        name = name_of(manifest)
        wait = Wait(f"job {name}", deadline, report)
        story = PodStory(self._api, wait, JOB_LABEL, patience=self._patience)
        manifest["metadata"]["labels"][REVISION_LABEL] = _digest(manifest["spec"])
        existing = self._submit(PYTORCHJOB, manifest, wait)
        if existing and (why := _stale_job(existing, manifest)):
            report(f"job {name} {why} before; it is removed and run again")
            self._remove([(PYTORCHJOB, name)], wait)
            self._submit(PYTORCHJOB, manifest, wait)
        while True:
            job = self._existing(PYTORCHJOB, name, wait)
            pods = story.look([name])
            if is_true(job, "Failed"):
                raise _job_failure(job, story)
            if is_true(job, "Succeeded"):
                wait.tell("state", f"job {name}: succeeded")
                return
            if pods is not None:
                story.explain(name, pods[name])
            wait.tell("state", f"job {name}: {replicas_line(job)}")
            wait.sleep(self._poll)

    def delete_job(self, name: str) -> None:
        """Remove a PyTorchJob; no error if it is gone already."""
        self._remove([(PYTORCHJOB, name)])

    # Service
    # --------------------------------------------------------------------------------------------

    def deploy(self, manifest: Manifest, *, deadline: float, report: Report) -> Service:
        """Create an InferenceService, or update the one of this name, and wait until this very spec
        is ready.
        """
        manifest = self._checked(manifest, INFERENCE_SERVICE)
        name, revision = name_of(manifest), _digest(manifest["spec"])
        manifest["metadata"]["labels"][REVISION_LABEL] = revision
        wait = Wait(f"service {name}", deadline, report)
        story = PodStory(self._api, wait, SERVICE_LABEL, patience=self._patience)
        older = self._put_service(manifest, wait)
        looks_broken, ready_before = 0, None
        while True:
            service = self._existing(INFERENCE_SERVICE, name, wait)
            pods = self._revision_pods(story, name, revision, older)
            looping = next((pod for pod in pods or [] if crash_loops(pod)), None)
            broken = _model_failure(service)
            looks_broken = looks_broken + 1 if broken else 0
            # KServe's status may still be that of the spec before: it is believed when it says the
            # same three times.
            if looping or looks_broken >= 3:
                raise ClusterError(_service_failure(service, broken, story))
            # Ready once may be the moment before a crash: the same pods have to be so twice, not
            # restarted in between.
            ready_now = lives(pods or []) if _service_ready(service, pods) else None
            if ready_now is not None and ready_now == ready_before:
                wait.tell("state", f"service {name}: ready")
                return self._service(service)
            ready_before = ready_now
            if pods is not None:
                story.explain(name, pods)
            wait.tell(
                "state",
                f"service {name}:"
                f" {service_line(service) if ready_now is None else 'ready, looking once more'}",
            )
            wait.sleep(self._poll)

    def _put_service(self, manifest: Manifest, wait: Wait) -> set[str]:
        """Create or update; the uids of the pods that belong to the spec before."""
        name, labels = name_of(manifest), manifest["metadata"]["labels"]
        while True:
            if self._api.create(INFERENCE_SERVICE, manifest, wait):
                wait.tell(
                    "submit", f"InferenceService {name} created in namespace '{self.namespace}'"
                )
                return set()
            older = {
                pod["metadata"]["uid"]
                for pod in self._api.pods(f"{SERVICE_LABEL}={name}", wait) or []
            }
            existing = self._settled(INFERENCE_SERVICE, name, wait)
            if existing and self._api.replace(
                INFERENCE_SERVICE, _updated(existing, manifest), wait
            ):
                wait.tell(
                    "submit", f"InferenceService {name} updated in namespace '{self.namespace}'"
                )
                same = (
                    existing["metadata"].get("labels", {}).get(REVISION_LABEL)
                    == labels[REVISION_LABEL]
                )
                return set() if same else older
            # It was changed or removed between our reading and writing.

    def _revision_pods(
        self, story: PodStory, name: str, revision: str, older: set[str]
    ) -> list[dict] | None:
        """The service's pods of this spec, by their label; a pod without it counts if it is new.

        KServe says nothing reliable of which spec its status means: its observedGeneration is a
        child's (kserve#6081), and Ready stays true for a while after an update (kserve#4626).
        """

        def mine(pod: dict) -> bool:
            label = pod["metadata"]["labels"].get(REVISION_LABEL)
            return label == revision or (label is None and pod["metadata"]["uid"] not in older)

        found = story.look([name], mine)
        return None if found is None else found[name]

    def _service(self, service: dict) -> Service:
        """Inside the cluster its own address answers without the gateway's log-in; outside only the
        public one does.
        """
        name, status = name_of(service), service.get("status", {})
        public = _base(status.get("url") or "")
        local = _base(
            (status.get("address") or {}).get("url")
            or f"http://{name}-predictor.{self.namespace}.svc.cluster.local"
        )
        details = {"namespace": self.namespace, "public_url": public, "cluster_url": local}
        return Service(
            name=name,
            url=local if self._inside or not public else public,
            kind="kserve",
            details=details,
        )

    # All
    # --------------------------------------------------------------------------------------------

    def find(self, run_id: str) -> list[str]:
        """'Kind/name' of everything that `delete` would remove."""
        wait = Wait(f"a look at run {run_id}", REMOVAL_SECONDS, ignore)
        return [f"{kind.name}/{name}" for kind, name in self._of_run(run_id, wait)]

    def delete(self, run_id: str) -> list[str]:
        """Remove every Experiment, PyTorchJob and InferenceService of the run, and wait until they
        and their pods are gone.
        """
        wait = Wait(f"removal of run {run_id}", REMOVAL_SECONDS, ignore)
        removed = self._remove(self._of_run(run_id, wait), wait)
        while pods := self._api.pods(f"{RUN_LABEL}={run_id},{STEP_LABEL}", wait):
            # an object may be gone while its pods take their grace period, and hold their GPUs
            for pod in pods:
                wait.obstacle(f"Pod {name_of(pod)}", "still there")
            wait.sleep(self._poll)
        return removed

    def _of_run(self, run_id: str, wait: Wait) -> list[tuple[Kind, str]]:
        """The objects of a run in the order of their removal: the experiment before jobs, or Katib
        would make its trials' jobs anew.
        """
        return [
            (kind, name_of(thing))
            for kind in (EXPERIMENT, PYTORCHJOB, INFERENCE_SERVICE)
            for thing in self._api.list(kind, f"{RUN_LABEL}={run_id}", wait)
            if not _belongs_to_trial(thing)
        ]

    def service_story(self, name: str) -> str:
        """The conditions of a service that are not true, and the last lines of its pods: what to
        read when it does not answer.
        """
        wait = Wait(f"a look at service {name}", STORY_SECONDS, ignore)
        service = self._api.get(INFERENCE_SERVICE, name, wait)
        if service is None:
            return f"InferenceService {name} is gone"
        lines = [f"service {name}: {service_line(service)}"]
        for pod in self._api.pods(f"{SERVICE_LABEL}={name}", wait) or []:
            crash = crash_of(pod)
            container = crash.container if crash and crash.container else PREDICTOR
            written = self._api.log(
                name_of(pod),
                container,
                wait,
                lines=LOG_LINES,
                previous=bool(crash and crash.previous),
            )
            lines.append(
                f"last lines of pod {name_of(pod)}, container {container}"
                f" ({crash.reason if crash else phase_of(pod)}):"
            )
            lines += [f"  | {line}" for line in written or ["(no log to be had)"]]
        return "\n".join(lines)

    def _remove(self, things: list[tuple[Kind, str]], wait: Wait | None = None) -> list[str]:
        """Ask for the removal of all, wait until they are gone;

        'Kind/name' of those that were there.
        """
        names = ", ".join(f"{kind.name} {name}" for kind, name in things)
        wait = wait or Wait(f"removal of {names}", REMOVAL_SECONDS, ignore)
        removed = [(kind, name) for kind, name in things if self._api.delete(kind, name, wait)]
        left = removed
        while left := [
            (kind, name, found)
            for kind, name, *_ in left
            if (found := self._api.get(kind, name, wait))
        ]:
            for kind, name, found in left:
                finalizers = ", ".join(found["metadata"].get("finalizers") or []) or "none"
                wait.obstacle(
                    f"{kind.name} {name}", f"still there, waiting for its finalizers: {finalizers}"
                )
            wait.sleep(self._poll)
        return [f"{kind.name}/{name}" for kind, name in removed]

    def _submit(self, kind: Kind, manifest: Manifest, wait: Wait) -> dict | None:
        """Create the object; if one of this run exists already, return it.

        Raises ClusterError if it is another run's.
        """
        name = name_of(manifest)
        while True:
            if self._api.create(kind, manifest, wait):
                wait.tell("submit", f"{kind.name} {name} created in namespace '{self.namespace}'")
                return None
            if existing := self._settled(kind, name, wait):
                _check_same_run(kind, existing, run_id_of(manifest), self.namespace)
                wait.tell(
                    "submit",
                    f"{kind.name} {name} of this run exists in namespace '{self.namespace}'; going"
                    " on with it",
                )
                return existing

    def _settled(self, kind: Kind, name: str, wait: Wait) -> dict | None:
        """The object as it is, None if it is gone; while it is being deleted that is waited for."""
        while (found := self._api.get(kind, name, wait)) and found["metadata"].get(
            "deletionTimestamp"
        ):
            wait.obstacle(name, f"a {kind.name} of this name is still being deleted")
            wait.sleep(self._poll)
        wait.obstacle(name, "")
        return found

    def _existing(self, kind: Kind, name: str, wait: Wait) -> dict:
        found = self._api.get(kind, name, wait)
        if found is None or found["metadata"].get("deletionTimestamp"):
            raise ClusterError(f"{kind.name} {name} was deleted by somebody while we waited for it")
        return found

    def _checked(self, manifest: Manifest, kind: Kind) -> Manifest:
        """A copy for this namespace.

        Raises InputError if the manifest is not of this kind or names another namespace.
        """
        found = f"{manifest.get('apiVersion')} {manifest.get('kind')}"
        if found != f"{kind.api_version} {kind.name}":
            raise InputError(
                f"this manifest is a {found}, and not a {kind.api_version} {kind.name}"
            )
        run_id_of(manifest)
        manifest = copy.deepcopy(manifest)
        asked = manifest["metadata"].setdefault("namespace", self.namespace)
        if asked != self.namespace:
            raise InputError(
                f"the {kind.name} {name_of(manifest)} is made for namespace '{asked}'; this run"
                f" works in '{self.namespace}'"
            )
        return manifest


def _check_same_run(kind: Kind, existing: dict, run_id: str, namespace: str) -> None:
    theirs = existing["metadata"].get("labels", {}).get(RUN_LABEL)
    if theirs != run_id:
        whose = f"run '{theirs}'" if theirs else "no run of this pipeline"
        raise ClusterError(
            f"a {kind.name} named {name_of(existing)} exists in namespace '{namespace}' and belongs"
            f" to {whose}, not to run '{run_id}'; it is left alone. Use another run id, or type:"
            f" kubectl -n {namespace} delete {kind.plural}.{kind.group} {name_of(existing)}"
        )


def _stale_job(existing: dict, manifest: Manifest) -> str:
    """Why a job of this name says nothing of the one that is wanted; empty if it does.

    One without our label is as good as ours.
    """
    if is_true(existing, "Failed"):
        return "failed"
    ours = manifest["metadata"]["labels"][REVISION_LABEL]
    return (
        ""
        if existing["metadata"].get("labels", {}).get(REVISION_LABEL, ours) == ours
        else "did something else"
    )


def _belongs_to_trial(thing: dict) -> bool:
    return any(
        owner.get("kind") == TRIAL.name for owner in thing["metadata"].get("ownerReferences") or []
    )


def _digest(spec: dict) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def _told(story: PodStory, trial: dict) -> str:
    ending = story.ending(name_of(trial))
    return ending.reason() if ending and status_of(trial) == "Failed" else ""


def extensible(experiment: dict) -> bool:
    """Whether Katib lets an experiment go on with more trials: while it runs, or if it ended
    because it had all of them.
    """
    if not is_true(experiment, "Succeeded"):
        return True
    return experiment["spec"].get("resumePolicy", "Never") != "Never" and _had_all_trials(
        experiment
    )


def _had_all_trials(experiment: dict) -> bool:
    return condition(experiment, "Succeeded").get("reason") == "ExperimentMaxTrialsReached"


def _goes_on(experiment: dict) -> bool:
    """Whether an experiment that says it has succeeded was only just asked for more trials, and
    Katib has not seen it yet.

    By its own count, which is as old as its conditions: the trials that are listed a moment later
    may include new ones.
    """
    return _had_all_trials(experiment) and experiment["status"].get("trials", 0) < experiment[
        "spec"
    ].get("maxTrialCount", 0)


def _tell_trials(experiment: dict, trials: list[Trial], story: PodStory, wait: Wait) -> None:
    """A new best trial with its parameters; each trial that failed, with the last lines
    of its log.
    """
    if best := best_trial(experiment, trials):
        wait.tell(
            "best",
            f"best so far: {best.name}:"
            f" {', '.join(f'{name} {value}' for name, value in best.parameters.items())}",
        )
    for trial in trials:
        ending = story.ending(trial.name) if trial.status == "Failed" else None
        if trial.status in FAILED:
            wait.tell(
                f"failed {trial.name}",
                "\n".join(
                    [f"trial {trial.name}: {trial.reason}", *([ending.text()] if ending else [])]
                ),
            )


def _experiment_failure(experiment: dict, trials: list[Trial], story: PodStory) -> str:
    """Katib's word, the most common reasons, and the last lines of some trials that failed for
    different ones.
    """
    said = short(condition(experiment, "Failed").get("message", ""))
    failed = [trial for trial in trials if trial.status in FAILED]
    limit = experiment["spec"].get("maxFailedTrialCount")
    count = f"{len(failed)} of {len(trials)} trials failed" + (
        f", the limit is {limit}" if limit is not None else ""
    )
    return "\n".join(
        [
            f"experiment {name_of(experiment)} failed: {said} ({count})",
            *_trial_reasons(trials, story),
        ]
    )


def _experiment_result(experiment: dict, trials: list[Trial], story: PodStory) -> ExperimentResult:
    optimal = optimal_trial(experiment, trials)
    if optimal is None:
        head = (
            f"experiment {name_of(experiment)} ended without one successful trial (of"
            f" {len(trials)})"
        )
        raise ClusterError("\n".join([head, *_trial_reasons(trials, story)]))
    return ExperimentResult(name=name_of(experiment), trials=trials, optimal=optimal.name)


def _trial_reasons(trials: list[Trial], story: PodStory) -> list[str]:
    """The three most common reasons, then the last lines of one trial for each of the first few
    different reasons.
    """
    examples = {
        trial.reason: story.ending(trial.name)
        for trial in reversed(trials)
        if trial.status not in COUNTED
    }
    endings = [ending.text() for ending in examples.values() if ending]
    return [f"  {line}" for line in common_reasons(trials)] + endings[-SHOWN_TRIALS:]


def _job_failure(job: dict, story: PodStory) -> ClusterError:
    ending, said = story.ending(name_of(job)), short(condition(job, "Failed").get("message", ""))
    kind = DeadlineError if "active longer than specified deadline" in said else ClusterError
    if ending is None:
        return kind(
            f"job {name_of(job)} failed: {said} (its pods are gone, and nothing is known of their"
            " last lines)"
        )
    return kind(f"job {name_of(job)} failed: {ending.reason()} ({said})\n{ending.text()}")


def replicas_line(job: dict) -> str:
    """'Master: 1 running; Worker: 1 running, 1 succeeded', or that nothing has started."""
    if is_true(job, "Suspended"):
        return "suspended, until a queue lets it start"
    words = {"active": "running", "succeeded": "succeeded", "failed": "failed"}
    parts = []
    for role, counts in sorted((job.get("status", {}).get("replicaStatuses") or {}).items()):
        told = [f"{counts[key]} {word}" for key, word in words.items() if counts.get(key)]
        if told:
            parts.append(f"{role}: {', '.join(told)}")
    return "; ".join(parts) or "not started yet"


def _updated(existing: dict, manifest: Manifest) -> Manifest:
    """Our spec, labels and annotations over an existing object, whose others stay (KServe keeps its
    deployment mode there).
    """
    manifest, metadata = copy.deepcopy(manifest), copy.deepcopy(existing["metadata"])
    for place in ("labels", "annotations"):
        metadata[place] = {**metadata.get(place, {}), **manifest["metadata"].get(place, {})}
    metadata.pop("managedFields", None)
    return {**manifest, "metadata": metadata}


def _base(url: str) -> str:
    """The address without its path: some versions append that of the old protocol, and all REST
    paths start at the root.
    """
    return urlsplit(url)._replace(path="", query="").geturl()


def _service_ready(service: dict, pods: list[dict] | None) -> bool:
    """Whether KServe says Ready and a pod of this spec bears it out; without pods, only if it may
    scale to zero and has settled.
    """
    if not is_true(service, "Ready"):
        return False
    if pods:
        return any(ready(pod) for pod in pods)
    revisions = (service["status"].get("components") or {}).get("predictor") or {}
    settled = revisions.get("latestReadyRevision") == revisions.get("latestCreatedRevision")
    return settled and (pods is None or service["spec"]["predictor"].get("minReplicas") == 0)


def _model_failure(service: dict) -> str:
    """What KServe says is wrong with the model, empty if it has no complaint (yet)."""
    model = service.get("status", {}).get("modelStatus") or {}
    if model.get("transitionStatus") not in ("InvalidSpec", "BlockedByFailedLoad"):
        return ""
    info = model.get("lastFailureInfo") or {}
    return (
        f"{model['transitionStatus']}: {info.get('reason', '')}: {short(info.get('message', ''))}"
    )


def _service_failure(service: dict, broken: str, story: PodStory) -> str:
    """Why a service will not come up: its predictor's crash, KServe's complaint, its conditions."""
    name, ending = name_of(service), story.ending(name_of(service))
    head = f"service {name} failed: {ending.reason() if ending else broken}"
    lines = [
        head,
        *(f"  {line}" for line in (service_line(service), broken) if line and line not in head),
    ]
    return "\n".join([*lines, ending.text()] if ending else lines)


def service_line(service: dict) -> str:
    """The conditions that are not yet true, as 'not ready:

    PredictorReady: MinimumReplicasUnavailable'.
    """
    conditions = service.get("status", {}).get("conditions") or []
    missing = [
        ": ".join(
            filter(None, (one["type"], one.get("reason"), short(one.get("message", ""), 200)))
        )
        for one in conditions
        if one.get("status") != "True" and one.get("severity") != "Info" and one["type"] != "Ready"
    ]
    if missing:
        return f"not ready: {'; '.join(missing)}"
    return (
        "KServe says ready, its pods are not yet"
        if is_true(service, "Ready")
        else "not ready: KServe has not looked at it yet"
    )
