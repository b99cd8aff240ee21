"""Experiments and jobs belong to the run's Argo Workflow until they have ended well."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from clusters import api as api_module
from clusters.owner import Owner, workflow_of_this_pod
from clusters.protocol import KFP_POD
from common.errors import ClusterError
from tests.clusters.contract import experiment, job
from tests.clusters.controllers import Katib, Play
from tests.clusters.scripts import EXPORT, SEARCH, act_for, later, loss, make_workflow, node_of

KINDS = ("experiments", "trials", "pytorchjobs", "pods")


def delete_workflow(backend, owner: Owner) -> None:
    backend.api.delete("workflows", backend.api.find("workflows", owner.name, owner.namespace))


def owners(backend, plural: str, name: str) -> list[dict]:
    return backend.api.find(plural, name)["metadata"].get("ownerReferences") or []


@pytest.mark.parametrize(("plural", "name"), [("experiments", SEARCH), ("pytorchjobs", EXPORT)])
def test_running_objects_belong_to_the_workflow_and_are_deleted_with_it(fake, plural, name):
    backend = fake(node_of(Play(seconds=math.inf)))
    owner = make_workflow(backend)
    act_for(backend, owner)
    pods: list[dict] = []

    def lose_the_run() -> None:
        pods.extend(owners(backend, plural, name))
        delete_workflow(backend, owner)

    losing = later(lose_the_run, lambda: backend.api.all("pods"), backend.api)
    with pytest.raises(ClusterError, match="deleted"):
        run(backend, plural)
    losing.join()
    assert pods == [
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": owner.name,
            "uid": owner.uid,
        }
    ], "no controller and no blockOwnerDeletion, which needs rights on the owner's finalizers"
    backend.api.wait_for(lambda: not any(backend.api.all(kind) for kind in KINDS))


def run(backend, plural: str, deadline: float = 60) -> None:
    if plural == "experiments":
        backend.run_experiment(experiment(["0.1", "0.2"]), deadline=deadline)
    else:
        backend.run_job(job(""), deadline=deadline)


@pytest.mark.parametrize(("plural", "name"), [("experiments", SEARCH), ("pytorchjobs", EXPORT)])
def test_succeeded_objects_outlive_the_workflow(fake, plural, name):
    backend = fake(node_of(loss(0.1)))
    owner = make_workflow(backend)
    act_for(backend, owner)
    run(backend, plural)
    assert owners(backend, plural, name) == []
    delete_workflow(backend, owner)
    assert_stays(backend, plural, name)


def assert_stays(backend, plural: str, name: str) -> None:
    """No garbage is collected: another object whose owner is gone goes first."""
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "gone"}
    backend.api.create("events", {"metadata": {"name": "orphan", "ownerReferences": [reference]}})
    backend.api.wait_for(lambda: not backend.api.find("events", "orphan"))
    assert backend.api.find(plural, name) is not None


def test_a_search_that_failed_goes_with_the_workflow(fake):
    backend = fake(node_of(Play(exit_code=1)))
    owner = make_workflow(backend)
    act_for(backend, owner)
    with pytest.raises(ClusterError, match="failed"):
        backend.run_experiment(experiment(["1"], failure_limit=1))
    [reference] = owners(backend, "experiments", SEARCH)
    assert reference["uid"] == owner.uid
    delete_workflow(backend, owner)
    backend.api.wait_for(lambda: not any(backend.api.all(kind) for kind in KINDS))


@pytest.mark.parametrize("where", ["another namespace", "no workflow"])
def test_without_a_workflow_in_their_namespace_objects_get_no_owner(fake, where):
    """The garbage collector deletes an object whose owner is in another namespace."""
    backend = fake(node_of(loss(0.1)))
    owner = make_workflow(backend, namespace="kubeflow") if where == "another namespace" else None
    act_for(backend, owner)
    references: list[list[dict]] = []
    looking = later(
        lambda: references.append(owners(backend, "experiments", SEARCH)),
        lambda: backend.api.all("experiments"),
        backend.api,
    )
    backend.run_experiment(experiment(["0.1"]))
    looking.join()
    assert references == [[]]
    [line] = [line for line in backend.lines if "--down pfn-0a1b2c3d" in line]
    assert ("'kubeflow'" in line) == (owner is not None)


def test_the_fake_deletes_objects_whose_owner_is_in_another_namespace(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    owner = make_workflow(backend, namespace="kubeflow")
    manifest = experiment(["0.1"])
    manifest["metadata"]["ownerReferences"] = [owner.reference]
    with backend.api.lock:
        backend.api.create("experiments", manifest)
    backend.api.wait_for(lambda: not backend.api.all("experiments"))


@pytest.mark.parametrize("plural", ["experiments", "pytorchjobs"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_an_adopted_object_belongs_to_the_workflow_that_adopts_it(fake, plural, by_hand):
    name = SEARCH if plural == "experiments" else EXPORT
    play = loss(0.1, seconds=math.inf)
    backend = fake(node_of(play))
    first = make_workflow(backend, "jec-pipeline-first")
    act_for(backend, first)
    with pytest.raises(ClusterError, match="1 s"):
        run(backend, plural, deadline=0.6)

    second = None if by_hand else make_workflow(backend, "jec-pipeline-second")
    act_for(backend, second)
    expected = [] if second is None else [second.reference]

    def lose_the_first() -> None:
        delete_workflow(backend, first)
        play.seconds = 0.0

    losing = later(lose_the_first, lambda: owners(backend, plural, name) == expected, backend.api)
    uid = backend.api.find(plural, name)["metadata"]["uid"]
    run(backend, plural)
    losing.join()
    assert backend.api.find(plural, name)["metadata"]["uid"] == uid
    assert owners(backend, plural, name) == []


def test_owners_of_another_kind_are_kept(fake):
    backend = fake(node_of(loss(0.1)))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "theirs", "uid": "theirs"}
    backend.api.create("events", {"metadata": {"name": "theirs"}})
    other["uid"] = backend.api.find("events", "theirs")["metadata"]["uid"]
    manifest = experiment(["0.1"])
    manifest["metadata"]["ownerReferences"] = [other]
    with backend.api.lock:
        backend.api.create("experiments", manifest)
    act_for(backend, make_workflow(backend))
    backend.run_experiment(experiment(["0.1"]))
    assert owners(backend, "experiments", SEARCH) == [other]


def test_a_release_is_repeated_after_a_conflicting_change(fake):
    backend = fake(node_of(loss(0.1)))
    act_for(backend, make_workflow(backend))
    backend.api.fail("PUT", "pytorchjobs", times=2, code=409)
    backend.run_job(job(""))
    assert owners(backend, "pytorchjobs", EXPORT) == []


def test_a_succeeded_job_counts_without_the_right_to_update_it(fake):
    backend = fake(node_of(loss(0.1)))
    owner = make_workflow(backend)
    act_for(backend, owner)
    backend.api.forbid("update", "pytorchjobs")
    backend.run_job(job(""))
    assert owners(backend, "pytorchjobs", EXPORT) == [owner.reference]
    assert [line for line in backend.lines if EXPORT in line and "not allowed to update" in line]


def test_an_experiment_is_gone_before_one_of_its_name_is_created(fake, monkeypatch):
    """A new Experiment would take over the suggestion of the one that is being collected."""
    play = loss(0.1, seconds=math.inf)
    node = node_of(Play(seconds=math.inf), play)
    backend = fake(node, katib=Katib(node, suggestion_pod=True))
    owner = make_workflow(backend)
    act_for(backend, owner)
    with pytest.raises(ClusterError, match="1 s"):
        run(backend, "experiments", deadline=0.6)
    pids: list[int] = []
    create = backend.api.create

    def watched_create(plural: str, *arguments, **options):
        if plural == "experiments":
            pids.append(len(backend.api.all("trials") + backend.api.all("pods")))
        return create(plural, *arguments, **options)

    monkeypatch.setattr(backend.api, "create", watched_create)
    play.seconds = 0.0
    place = f"/apis/kubeflow.org/v1beta1/namespaces/physics/experiments/{SEARCH}"
    backend.api.handle("DELETE", place, {"propagationPolicy": "Background"})
    assert backend.api.all("pods"), "they go a moment later"
    run(backend, "experiments")
    assert pids == [0]


# The workflow of a step
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def in_pod(fake, monkeypatch, tmp_path: Path):
    """`in_pod(references)`: this process is that of a pod with these ownerReferences."""

    def enter(references: list[dict]):
        backend = fake()
        account = tmp_path / "account"
        account.mkdir()
        (account / "namespace").write_text("physics\n")
        monkeypatch.setattr(api_module, "SERVICE_ACCOUNT", account)
        monkeypatch.setenv(KFP_POD, "jec-pipeline-abcde-search-123")
        monkeypatch.setenv("HOSTNAME", "jec-pipeline-abcde-se")
        metadata = {"name": "jec-pipeline-abcde-search-123", "ownerReferences": references}
        spec = {"containers": [{"name": "main", "image": "steps:1"}]}
        with backend.api.lock:
            # an owner that exists, or the pod would be collected
            for reference in references:
                workflow = backend.api.create("workflows", {"metadata": {"name": "owner"}})
                reference["uid"] = workflow["metadata"]["uid"]
            backend.api.create("pods", {"metadata": metadata, "spec": spec})
        return backend

    return enter


WORKFLOW = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "jec-pipeline-abcde",
    "controller": True,
    "blockOwnerDeletion": True,
}


def test_a_step_finds_its_workflow_through_its_own_pod(in_pod):
    backend = in_pod([dict(WORKFLOW)])
    uid = backend.api.find("workflows", "owner")["metadata"]["uid"]
    assert workflow_of_this_pod(print) == Owner(
        api_version="argoproj.io/v1alpha1",
        name="jec-pipeline-abcde",
        uid=uid,
        namespace="physics",
    )


@pytest.mark.parametrize(
    "references", [[], [{**WORKFLOW, "apiVersion": "apps/v1", "kind": "StatefulSet"}]]
)
def test_a_pod_of_something_else_has_no_workflow(in_pod, references):
    in_pod([dict(reference) for reference in references])
    assert workflow_of_this_pod(print) is None


def test_a_pod_that_may_not_be_read_has_no_workflow_and_says_so(in_pod):
    in_pod([dict(WORKFLOW)]).api.forbid("get", "pods")
    lines: list[str] = []
    assert workflow_of_this_pod(lines.append) is None
    assert ["pods" in line for line in lines] == [True]


def test_a_process_outside_a_pod_has_no_workflow(fake, monkeypatch, tmp_path):
    backend = fake()
    monkeypatch.setattr(api_module, "SERVICE_ACCOUNT", tmp_path / "none")
    monkeypatch.setenv("HOSTNAME", "lxplus901")
    assert workflow_of_this_pod(print) is None
    assert backend.api.requests == []
