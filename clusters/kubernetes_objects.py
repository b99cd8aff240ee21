"""The objects of runs in one namespace of a cluster: submit, read and remove them."""

from __future__ import annotations

import copy
import hashlib
import json

from clusters.api import EXPERIMENT, INFERENCE_SERVICE, PYTORCHJOB, TRIAL, Api, Kind
from clusters.owner import Owner, is_workflow
from clusters.protocol import RUN_LABEL, STEP_LABEL, Manifest, Report, run_id_of
from clusters.reasons import name_of
from clusters.waiting import Wait, ignore
from common.errors import ClusterError, InputError

# on every pod of a PyTorchJob; a trial's job has the trial's name
JOB_LABEL = "training.kubeflow.org/job-name"
TRIALS_LABEL = "katib.kubeflow.org/experiment"
# on the pod of the algorithm; its value is the experiment's name
SUGGESTION_LABEL = "katib.kubeflow.org/suggestion"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
# digest of a job's or a service's spec; KServe copies it to the pods of that very spec
REVISION_LABEL = "jec/revision"
REMOVAL_SECONDS = 300.0  # pods may take their grace period to go
QUIET_SECONDS = 4.0  # of a removal: most are over by then


class Objects:
    """Submit, read and remove the objects of one namespace.

    `poll` is the time between two looks, in seconds. `owner` owns what is submitted by
    `submit_owned`; one in another namespace is left out.
    """

    def __init__(self, api: Api, *, poll: float, owner: Owner | None = None) -> None:
        """Objects get an ownerReference to `owner` where it is in the same namespace."""
        self.api = api
        self.namespace = api.namespace
        self.poll = poll
        self._unowned = "this step is no pod of a workflow"
        if owner and owner.namespace != self.namespace:
            self._unowned = f"the run's workflow is in namespace '{owner.namespace}'"
            owner = None
        self._owner = owner

    def checked(self, manifest: Manifest, kind: Kind) -> Manifest:
        """A copy for this namespace.

        Raises InputError if the manifest is not of this kind or names another namespace, and
        KeyError if it carries no run id.
        """
        is_a = f"{manifest.get('apiVersion')} {manifest.get('kind')}"
        if is_a != f"{kind.api_version} {kind.name}":
            raise InputError(f"this manifest is a {is_a}, and not a {kind.api_version} {kind.name}")
        run_id_of(manifest)
        manifest = copy.deepcopy(manifest)
        namespace = manifest["metadata"].setdefault("namespace", self.namespace)
        if namespace != self.namespace:
            raise InputError(
                f"the {kind.name} {name_of(manifest)} is made for namespace '{namespace}'; this run"
                f" works in '{self.namespace}'"
            )
        return manifest

    # Submit and read
    # --------------------------------------------------------------------------------------------

    def submit(self, kind: Kind, manifest: Manifest, wait: Wait) -> Manifest | None:
        """Create the object. If one of this run exists already, return it.

        Raises ClusterError if the existing object belongs to another run.
        """
        name = name_of(manifest)
        while True:
            if self.api.create(kind, manifest, wait):
                wait.tell("submit", f"{kind.name} {name} created in namespace '{self.namespace}'")
                return None
            if existing := self.settled(kind, name, wait):
                self._check_same_run(kind, existing, run_id_of(manifest))
                wait.tell(
                    "submit",
                    f"{kind.name} {name} of this run exists in namespace '{self.namespace}'; going"
                    " on with it",
                )
                return existing

    def submit_owned(self, kind: Kind, manifest: Manifest, wait: Wait) -> Manifest | None:
        """Submit an object that the run's workflow owns until `release`.

        An object that exists may have been made by an earlier workflow of the run, which must not
        take it along when it is removed: it belongs to the new one.
        """
        name = name_of(manifest)
        owned = {**manifest, "metadata": {**manifest["metadata"]}}
        if self._owner:
            owned["metadata"]["ownerReferences"] = [self._owner.reference]
        else:
            wait.tell(
                "owner",
                f"no workflow owns the {kind.name} {name} ({self._unowned}): if the run is deleted,"
                f" `finish` or `pipeline.py --down {run_id_of(manifest)}` removes it",
            )
        if self.submit(kind, owned, wait) is None:
            return None
        self._set_owner(kind, name, self._owner, wait)
        return self.existing(kind, name, wait)

    def release(self, kind: Kind, name: str, wait: Wait) -> None:
        """Keep an object that has ended well when its workflow goes: KFP removes that after a day.

        A refusal is reported, as the work is done.
        """
        self._set_owner(kind, name, None, wait)

    def _set_owner(self, kind: Kind, name: str, owner: Owner | None, wait: Wait) -> None:
        """Make a workflow, or none, the only workflow that owns an object."""
        while thing := self.api.get(kind, name, wait):
            references = thing["metadata"].get("ownerReferences") or []
            changed = [reference for reference in references if not is_workflow(reference)]
            if owner:
                changed.append(owner.reference)
            if changed == references:
                return
            metadata = {**thing["metadata"], "ownerReferences": changed}
            try:
                if self.api.replace(kind, {**thing, "metadata": metadata}, wait):
                    return
            except ClusterError as error:
                wait.tell(
                    "owner",
                    f"{kind.name} {name} keeps its owner, and goes when its workflow is removed:"
                    f" {error}",
                )
                return
            wait.sleep(self.poll)  # it was changed between our reading and writing

    def settled(self, kind: Kind, name: str, wait: Wait) -> Manifest | None:
        """The object as it is, None if there is none. Waits while it is being deleted."""
        while True:
            thing = self.api.get(kind, name, wait)
            if thing is None or not thing["metadata"].get("deletionTimestamp"):
                wait.obstacle(name, "")
                return thing
            wait.obstacle(name, f"a {kind.name} of this name is still being deleted")
            wait.sleep(self.poll)

    def existing(self, kind: Kind, name: str, wait: Wait) -> Manifest:
        """The object as it is. Raises ClusterError if somebody has deleted it."""
        thing = self.api.get(kind, name, wait)
        if thing is None or thing["metadata"].get("deletionTimestamp"):
            raise ClusterError(f"{kind.name} {name} was deleted by somebody while we waited for it")
        return thing

    def _check_same_run(self, kind: Kind, existing: Manifest, run_id: str) -> None:
        theirs = existing["metadata"].get("labels", {}).get(RUN_LABEL)
        if theirs != run_id:
            whose = f"run '{theirs}'" if theirs else "no run of this pipeline"
            name = name_of(existing)
            raise ClusterError(
                f"a {kind.name} named {name} exists in namespace '{self.namespace}' and belongs"
                f" to {whose}, not to run '{run_id}'; it is left alone. Use another run id, or"
                f" type: kubectl -n {self.namespace} delete {kind.plural}.{kind.group} {name}"
            )

    # Remove
    # --------------------------------------------------------------------------------------------

    def remove(
        self,
        things: list[tuple[Kind, str]],
        wait: Wait | None = None,
        *,
        to_make_again: bool = False,
    ) -> list[str]:
        """Delete objects and wait until they and what runs for them are gone.

        `to_make_again`: wait for the pod of an Experiment's algorithm as well, which takes its
        30 s to end. A new Experiment of the same name would take over the assignments and the
        trial names of the deleted one (seen with Katib 0.19.0). Returns 'Kind/name' of those that
        existed.
        """
        names = ", ".join(f"{kind.name} {name}" for kind, name in things)
        wait = wait or Wait(f"removal of {names}", REMOVAL_SECONDS, ignore)
        removed = [(kind, name) for kind, name in things if self.api.delete(kind, name, wait)]
        left = self._still_there(removed, wait)
        while left:
            wait.sleep(self.poll)
            left = self._still_there(left, wait)
        for kind, name in things:
            self.wait_for_dependents(kind, name, wait, suggestion=to_make_again)
        return [f"{kind.name}/{name}" for kind, name in removed]

    def wait_for_dependents(self, kind: Kind, name: str, wait: Wait, *, suggestion: bool) -> None:
        """Wait until nothing is left of what an object's controller made for it."""
        while self._dependents(kind, name, wait, suggestion=suggestion):
            wait.sleep(self.poll)

    def _dependents(self, kind: Kind, name: str, wait: Wait, *, suggestion: bool) -> bool:
        """Whether anything that an object's controller made for it still exists."""
        selectors = {
            EXPERIMENT.name: [f"{TRIALS_LABEL}={name}"],
            PYTORCHJOB.name: [f"{JOB_LABEL}={name}"],
            INFERENCE_SERVICE.name: [f"{SERVICE_LABEL}={name}"],
        }[kind.name]
        if suggestion and kind.name == EXPERIMENT.name:
            selectors.append(f"{SUGGESTION_LABEL}={name}")
        left = []
        if kind.name == EXPERIMENT.name:
            for dependent in (TRIAL, PYTORCHJOB):
                for thing in self.api.list_objects(dependent, selectors[0], wait):
                    left.append(f"{dependent.name} {name_of(thing)}")
        for selector in selectors:
            for pod in self.api.pods(selector, wait) or []:
                # an algorithm's pod carries the trials' label as well
                if suggestion or not (_is_algorithm(pod) and _is_going(pod)):
                    left.append(f"Pod {name_of(pod)}")
        left = list(dict.fromkeys(left))  # the algorithm's pod carries both labels
        topic = f"{kind.name} {name}"
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        wait.obstacle(topic, f"deleted, but {shown} of it still there" if left else "")
        return bool(left)

    def _still_there(self, things: list[tuple[Kind, str]], wait: Wait) -> list[tuple[Kind, str]]:
        left = []
        for kind, name in things:
            thing = self.api.get(kind, name, wait)
            if thing is not None:
                finalizers = ", ".join(thing["metadata"].get("finalizers") or []) or "none"
                wait.obstacle(
                    f"{kind.name} {name}", f"still there, waiting for its finalizers: {finalizers}"
                )
                left.append((kind, name))
        return left

    def find_run(self, run_id: str) -> list[str]:
        """'Kind/name' of everything that `delete_run` would remove."""
        wait = Wait(f"a look at run {run_id}", REMOVAL_SECONDS, ignore)
        return [f"{kind.name}/{name}" for kind, name in self._of_run(run_id, wait)]

    def delete_run(self, run_id: str, report: Report = ignore) -> list[str]:
        """Remove every Experiment, PyTorchJob and InferenceService of a run.

        Waits until they and their pods are gone, but for an algorithm's pod that is on its way.
        `report` gets what is waited for, once that takes long. Returns 'Kind/name' of what was
        removed.
        """
        wait = Wait(f"removal of run {run_id}", REMOVAL_SECONDS, report, quiet=QUIET_SECONDS)
        removed = self.remove(self._of_run(run_id, wait), wait)
        # an object may be gone while its pods take their grace period, and hold their GPUs
        while pods := self._pods_left(run_id, wait):
            for pod in pods:
                wait.obstacle(f"Pod {name_of(pod)}", "still there")
            wait.sleep(self.poll)
        return removed

    def _pods_left(self, run_id: str, wait: Wait) -> list[Manifest]:
        """The pods of a run that are worth a wait.

        That of an algorithm ignores SIGTERM, takes its 30 s to end (seen with Katib 0.19.0), and
        holds nothing that others wait for.
        """
        pods = self.api.pods(f"{RUN_LABEL}={run_id},{STEP_LABEL}", wait) or []
        return [pod for pod in pods if not (_is_algorithm(pod) and _is_going(pod))]

    def _of_run(self, run_id: str, wait: Wait) -> list[tuple[Kind, str]]:
        """The objects of a run in the order of their removal.

        The experiment goes before the jobs, or Katib would make its trials' jobs anew.
        """
        things = []
        for kind in (EXPERIMENT, PYTORCHJOB, INFERENCE_SERVICE):
            for thing in self.api.list_objects(kind, f"{RUN_LABEL}={run_id}", wait):
                if not belongs_to_trial(thing):
                    things.append((kind, name_of(thing)))
        return things


def digest(spec: Manifest) -> str:
    """The value of REVISION_LABEL for a spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def _is_algorithm(pod: Manifest) -> bool:
    return SUGGESTION_LABEL in (pod["metadata"].get("labels") or {})


def _is_going(pod: Manifest) -> bool:
    """Whether a pod is being deleted, and holds no GPU meanwhile."""
    limits = [one.get("resources", {}).get("limits") or {} for one in pod["spec"]["containers"]]
    # devices alone have a domain in their name, as in nvidia.com/gpu
    devices = [name for resources in limits for name in resources if "/" in name]
    return bool(pod["metadata"].get("deletionTimestamp")) and not devices


def belongs_to_trial(thing: Manifest) -> bool:
    """Whether a Katib Trial owns the object."""
    owners = thing["metadata"].get("ownerReferences") or []
    return any(owner.get("kind") == TRIAL.name for owner in owners)
