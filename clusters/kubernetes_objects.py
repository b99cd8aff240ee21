"""The objects of runs in one namespace of a cluster: create, read and delete them."""

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

# label of each pod of a PyTorchJob; the job of a trial has the name of the trial
JOB_LABEL = "training.kubeflow.org/job-name"
TRIALS_LABEL = "katib.kubeflow.org/experiment"
# label of the pod of the algorithm; its value is the name of the experiment
SUGGESTION_LABEL = "katib.kubeflow.org/suggestion"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
# digest of the spec of a job or service; KServe copies it to the pods of this spec
REVISION_LABEL = "jec/revision"
REMOVAL_SECONDS = 300.0  # limit of a removal: pods may take their whole grace period
QUIET_SECONDS = 4.0  # most removals end within this time


class Objects:
    """Create, read and delete the objects of one namespace."""

    def __init__(self, api: Api, *, poll: float, owner: Owner | None = None) -> None:
        """Use the objects of the API's namespace.

        Args:
            api: Access to the API server.
            poll: Seconds between two requests of the state.
            owner: Owner of the objects that `submit_with_owner` creates; ignored if it is in
                another namespace.
        """
        self.api = api
        self.namespace = api.namespace
        self.poll = poll
        self._why_no_owner = "this step is not a pod of a workflow"
        if owner and owner.namespace != self.namespace:
            self._why_no_owner = f"the run's workflow is in namespace '{owner.namespace}'"
            owner = None
        self._owner = owner

    def namespaced_copy(self, manifest: Manifest, kind: Kind) -> Manifest:
        """Return a copy of a manifest for this namespace.

        Raises:
            InputError: If it is not of this kind, or names another namespace.
            KeyError: If it has no run id.
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
        """Create an object; return the existing one if this run has created it before.

        Raises:
            ClusterError: If an existing object of this name belongs to another run.
        """
        name = name_of(manifest)
        while True:
            if self.api.create(kind, manifest, wait):
                wait.tell("submit", f"{kind.name} {name} created in namespace '{self.namespace}'")
                return None
            if existing := self.find(kind, name, wait):
                self._check_same_run(kind, existing, run_id_of(manifest))
                wait.tell(
                    "submit",
                    f"{kind.name} {name} of this run exists in namespace '{self.namespace}'; going"
                    " on with it",
                )
                return existing

    def submit_with_owner(self, kind: Kind, manifest: Manifest, wait: Wait) -> Manifest | None:
        """Create an object that the workflow of the run owns until `release`.

        An existing object may belong to an earlier workflow of the run; the new workflow becomes
        its owner, so that it is not deleted together with the earlier one.

        Returns:
            The existing object; None if it was created.
        """
        name = name_of(manifest)
        new_object = {**manifest, "metadata": {**manifest["metadata"]}}
        if self._owner:
            new_object["metadata"]["ownerReferences"] = [self._owner.reference]
        else:
            wait.tell(
                "owner",
                f"no workflow owns the {kind.name} {name} ({self._why_no_owner}): if the run is"
                f" deleted, `finish` or `pipeline.py --down {run_id_of(manifest)}` removes it",
            )
        if self.submit(kind, new_object, wait) is None:
            return None
        self._set_owner(kind, name, self._owner, wait)
        return self.existing(kind, name, wait)

    def release(self, kind: Kind, name: str, wait: Wait) -> None:
        """Remove the owner of an object that succeeded, so that it outlives its workflow.

        KFP deletes workflows after a day. A refusal is only reported, because the work is done.
        """
        self._set_owner(kind, name, None, wait)

    def _set_owner(self, kind: Kind, name: str, owner: Owner | None, wait: Wait) -> None:
        """Make `owner` the only workflow that owns an object, or none if it is None."""
        while thing := self.api.get(kind, name, wait):
            references = thing["metadata"].get("ownerReferences") or []
            new_references = [reference for reference in references if not is_workflow(reference)]
            if owner:
                new_references.append(owner.reference)
            if new_references == references:
                return
            metadata = {**thing["metadata"], "ownerReferences": new_references}
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
            wait.sleep(self.poll)  # it was changed between read and write

    def find(self, kind: Kind, name: str, wait: Wait) -> Manifest | None:
        """Return an object, None if there is none. Waits while it is being deleted."""
        while True:
            thing = self.api.get(kind, name, wait)
            if thing is None or not thing["metadata"].get("deletionTimestamp"):
                wait.obstacle(name, "")
                return thing
            wait.obstacle(name, f"a {kind.name} of this name is still being deleted")
            wait.sleep(self.poll)

    def existing(self, kind: Kind, name: str, wait: Wait) -> Manifest:
        """Return an object that must exist.

        Raises:
            ClusterError: If it was deleted.
        """
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
        wait_for_algorithm: bool = False,
    ) -> list[str]:
        """Delete objects and wait until they and their dependents are gone.

        Args:
            things: Kind and name of each object.
            wait: The wait that the removal belongs to; a new one by default.
            wait_for_algorithm: Also wait for the pod of an Experiment's algorithm, which takes
                30 s to end. Needed before an Experiment of the same name is created: it would
                otherwise get the assignments and the trial names of the deleted one (seen with
                Katib 0.19.0).

        Returns:
            'Kind/name' of the objects that existed.
        """
        names = ", ".join(f"{kind.name} {name}" for kind, name in things)
        wait = wait or Wait(f"removal of {names}", REMOVAL_SECONDS, ignore)
        deleted_things = [
            (kind, name) for kind, name in things if self.api.delete(kind, name, wait)
        ]
        remaining = self._still_there(deleted_things, wait)
        while remaining:
            wait.sleep(self.poll)
            remaining = self._still_there(remaining, wait)
        for kind, name in things:
            self.wait_for_dependents(kind, name, wait, wait_for_algorithm=wait_for_algorithm)
        return [f"{kind.name}/{name}" for kind, name in deleted_things]

    def wait_for_dependents(
        self, kind: Kind, name: str, wait: Wait, *, wait_for_algorithm: bool
    ) -> None:
        """Wait until all objects that a controller created for an object are gone.

        Without `wait_for_algorithm` the pod of an Experiment's algorithm does not count once it is
        being deleted, unless it has a GPU.
        """
        while self._dependents(kind, name, wait, wait_for_algorithm=wait_for_algorithm):
            wait.sleep(self.poll)

    def _dependents(self, kind: Kind, name: str, wait: Wait, *, wait_for_algorithm: bool) -> bool:
        """Return whether an object that a controller created for this one still exists."""
        selectors = {
            EXPERIMENT.name: [f"{TRIALS_LABEL}={name}"],
            PYTORCHJOB.name: [f"{JOB_LABEL}={name}"],
            INFERENCE_SERVICE.name: [f"{SERVICE_LABEL}={name}"],
        }[kind.name]
        if wait_for_algorithm and kind.name == EXPERIMENT.name:
            selectors.append(f"{SUGGESTION_LABEL}={name}")
        remaining = []
        if kind.name == EXPERIMENT.name:
            for dependent in (TRIAL, PYTORCHJOB):
                for thing in self.api.list_objects(dependent, selectors[0], wait):
                    remaining.append(f"{dependent.name} {name_of(thing)}")
        for selector in selectors:
            for pod in self.api.pods(selector, wait) or []:
                # the pod of an algorithm also has the label of trials
                if wait_for_algorithm or not (
                    _is_algorithm(pod) and _is_terminating_without_gpu(pod)
                ):
                    remaining.append(f"Pod {name_of(pod)}")
        remaining = list(dict.fromkeys(remaining))  # the pod of the algorithm has both labels
        topic = f"{kind.name} {name}"
        examples = ", ".join(remaining[:3]) + (
            f" and {len(remaining) - 3} more" if len(remaining) > 3 else ""
        )
        wait.obstacle(topic, f"deleted, but still there: {examples}" if remaining else "")
        return bool(remaining)

    def _still_there(self, things: list[tuple[Kind, str]], wait: Wait) -> list[tuple[Kind, str]]:
        remaining = []
        for kind, name in things:
            thing = self.api.get(kind, name, wait)
            if thing is not None:
                finalizers = ", ".join(thing["metadata"].get("finalizers") or []) or "none"
                wait.obstacle(
                    f"{kind.name} {name}", f"still there, waiting for its finalizers: {finalizers}"
                )
                remaining.append((kind, name))
        return remaining

    def find_run(self, run_id: str) -> list[str]:
        """Return 'Kind/name' of all objects that `delete_run` would delete."""
        wait = Wait(f"a look at run {run_id}", REMOVAL_SECONDS, ignore)
        return [f"{kind.name}/{name}" for kind, name in self._of_run(run_id, wait)]

    def delete_run(self, run_id: str, report: Report = ignore) -> list[str]:
        """Delete the Experiments, PyTorchJobs and InferenceServices of a run.

        Waits until they and their pods are gone, except for the pod of an algorithm that is already
        ending. `report` is called with what is waited for, if it takes long.

        Returns:
            'Kind/name' of each deleted object.
        """
        wait = Wait(f"removal of run {run_id}", REMOVAL_SECONDS, report, quiet=QUIET_SECONDS)
        names = self.remove(self._of_run(run_id, wait), wait)
        # pods may outlive their object during their grace period, and occupy GPUs
        while pods := self._remaining_pods(run_id, wait):
            for pod in pods:
                wait.obstacle(f"Pod {name_of(pod)}", "still there")
            wait.sleep(self.poll)
        return names

    def _remaining_pods(self, run_id: str, wait: Wait) -> list[Manifest]:
        """Return the pods of a run that a removal waits for.

        The pod of an algorithm is not among them: it ignores SIGTERM, takes 30 s to end (seen with
        Katib 0.19.0), and occupies nothing that others need.
        """
        pods = self.api.pods(f"{RUN_LABEL}={run_id},{STEP_LABEL}", wait) or []
        return [
            pod for pod in pods if not (_is_algorithm(pod) and _is_terminating_without_gpu(pod))
        ]

    def _of_run(self, run_id: str, wait: Wait) -> list[tuple[Kind, str]]:
        """Return the objects of a run in the order of their deletion.

        The experiment comes before the jobs, because Katib would create the jobs of its trials
        again.
        """
        things = []
        for kind in (EXPERIMENT, PYTORCHJOB, INFERENCE_SERVICE):
            for thing in self.api.list_objects(kind, f"{RUN_LABEL}={run_id}", wait):
                if not belongs_to_trial(thing):
                    things.append((kind, name_of(thing)))
        return things


def digest(spec: Manifest) -> str:
    """Return the value of REVISION_LABEL for a spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def _is_algorithm(pod: Manifest) -> bool:
    return SUGGESTION_LABEL in (pod["metadata"].get("labels") or {})


def _is_terminating_without_gpu(pod: Manifest) -> bool:
    """Return whether a pod is being deleted and has no GPU or other device."""
    limits = [
        container.get("resources", {}).get("limits") or {}
        for container in pod["spec"]["containers"]
    ]
    # only devices have a domain in their name, like nvidia.com/gpu
    devices = [name for resources in limits for name in resources if "/" in name]
    return bool(pod["metadata"].get("deletionTimestamp")) and not devices


def belongs_to_trial(thing: Manifest) -> bool:
    """Return whether a Katib Trial owns the object."""
    owners = thing["metadata"].get("ownerReferences") or []
    return any(owner.get("kind") == TRIAL.name for owner in owners)
