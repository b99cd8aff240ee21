"""Runs that are stopped: by a user, with a step's pod, between two steps. Steps are processes that
are killed half a second after they were told to stop; the exit handler records how the run ended.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from types import SimpleNamespace

import pytest

import pipeline
from clusters import workflow
from clusters.protocol import STEP_LABEL, Stop
from common import storage
from common.config import RunConfig
from common.errors import DeadlineError, StorageError, UnreachableError
from common.records import TERMINATED, StatusRecord, StepStatus, SummaryRecord
from common.run import Run
from components import finish, prepare, step, steps
from exporting.export_job import export_job
from tests.clusters import conftest as clusters_conftest
from tests.clusters.controllers import Play
from tests.clusters.fake_api import has_condition, set_condition
from tests.clusters.scripts import loss, make_workflow, node_of
from tests.components.argo import TEMPLATE, Argo, Retries, node
from tests.records import metrics_record
from training.experiment import experiment

fake = clusters_conftest.fake
JOB = "00000000-0000-4000-8000-000000000001"
NAME = "pfn-regressor-open"
FOREVER = Play(seconds=math.inf)
WEBHOOK = (
    'Internal error occurred: failed calling webhook "mutator.pod.katib.kubeflow.org": failed to'
    " call webhook: context deadline exceeded"
)


@pytest.fixture
def run(s3_bucket, s3_server, monkeypatch, tmp_path):
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 0.0)
    new_run = Run(
        config=RunConfig(
            s3_bucket=s3_bucket,
            s3_endpoint=s3_server,
            run_id=f"{NAME}-0123abcd",
            max_trials=2,
            parallel_trials=2,
        )
    )
    new_run.save()
    return new_run


@pytest.fixture
def argo(run, compiled_pipeline):
    """`argo(api, search=[...])` makes a run of these steps. At its end no pod of it runs."""
    flows = []

    def start(api, pods_to_refuse=(), **arguments) -> Argo:
        common = ["--job-id", JOB, "--s3-endpoint", run.config.s3_endpoint]
        commands = {name: ["--run", run.uri, *common, *more] for name, more in arguments.items()}
        commands["finish"] = [*finish_arguments(run), *common]
        flow = Argo(api, compiled_pipeline.spec, JOB, commands)
        for name in pods_to_refuse:
            flow.refuse(name, WEBHOOK)
        flows.append(flow.start())
        return flow

    yield start
    for started_flow in flows:
        started_flow.join()
        with started_flow.api.lock:
            pods = started_flow.api.all("pods", f"jec/run-id={run.id},{STEP_LABEL}!=deploy")
            pods += started_flow.api.all("pods", f"{workflow.KFP_RUN_LABEL}={JOB}")
            running = [pod for pod in pods if pod["status"]["phase"] in ("Running", "Pending")]
        assert running == []


def finish_arguments(run) -> list[str]:
    about = {"s3-bucket": run.config.s3_bucket, "run-id": run.id}
    about["network-config"] = run.config.network_config
    return [part for name, value in about.items() for part in (f"--{name}", value)]


def names(api, plural: str) -> list[str]:
    with api.lock:
        return [thing["metadata"]["name"] for thing in api.all(plural)]


def ending(run) -> tuple[str, str]:
    """State and reason in status.json, which summary.json repeats."""
    status, summary = StatusRecord.load(run.folder.status), SummaryRecord.load(run.folder.summary)
    last = status.steps[status.step]
    assert (last.state, last.reason) == (status.state, status.reason)
    assert (summary.state, summary.reason) == (status.state, status.reason)
    return status.state, status.reason


# Stopped in the middle of a step
# ------------------------------------------------------------------------------------------------


def test_a_terminated_search_leaves_no_objects_and_its_record_says_interrupted(fake, run, argo):
    backend = fake(node_of(FOREVER))
    flow = argo(backend.api, search=[])
    backend.api.wait_for(lambda: len(backend.api.all("trials")) == 2, 30)
    flow.terminate()
    flow.join()
    assert flow.workflow["status"]["phase"] == "Failed"
    assert (flow.numbers("search"), flow.numbers("finish")) == (1, 1)
    assert names(backend.api, "experiments") + names(backend.api, "trials") == []
    assert ending(run) == ("interrupted", TERMINATED)
    resume = SummaryRecord.load(run.folder.summary).resume
    assert resume in flow.attempts[-1].output
    # true as it stands: what a pod cannot know is in a comment, and no flag
    words = shlex.split(resume, comments=True)
    assert words[:2] == ["python", "pipeline.py"]
    args = pipeline.build_parser().parse_args(words[2:])
    assert (args.resume, args.s3_bucket) == (run.id, run.config.s3_bucket)
    assert (args.s3_endpoint, args.host) == (run.config.s3_endpoint, "auto")
    assert "--host" in resume


def test_the_first_summary_has_no_reason_that_only_the_cluster_knows(fake, run, monkeypatch):
    fake()
    summaries = []

    def look(*_):
        summaries.append(SummaryRecord.load(run.folder.summary))
        return Stop(state="interrupted", reason=TERMINATED)

    def remove(_):
        summaries.append(SummaryRecord.load(run.folder.summary))
        return ""

    monkeypatch.setattr(finish, "why_stopped", look)
    monkeypatch.setattr(finish, "remove_unfinished", remove)
    for state, reason in (("running", ""), ("interrupted", "told to stop"), ("done", "")):
        summaries.clear()
        step.write_status(run, "search", state, reason, job_id=JOB)
        finish.main([*finish_arguments(run), "--job-id", JOB])
        before, during = summaries
        assert (before.state, before.resume) == (finish.ENDING, "")
        assert (during.state, during.reason) == ("interrupted", TERMINATED)
        assert during.resume
    # what the step has said itself is known at once
    summaries.clear()
    step.write_status(run, "search", "failed", "no GPU is free", job_id=JOB)
    finish.main([*finish_arguments(run), "--job-id", JOB])
    assert [(summary.state, summary.reason) for summary in summaries] == [
        ("failed", "no GPU is free")
    ] * 2


@pytest.mark.parametrize(
    ("pod_name", "name", "message"),
    [
        ("search-driver", "search", "the pod of its driver failed"),
        ("search", "search", "its pod could not be created"),
        ("export-driver", "export", "the pod of its driver failed"),
    ],
)
def test_a_pod_that_could_not_be_created_is_reported_with_argos_reason(
    fake, run, argo, pod_name, name, message
):
    backend = fake(node_of(loss(0.1)))
    flow = argo(backend.api, pods_to_refuse=[pod_name], search=[], export=["--trial", "t"])
    flow.join()
    assert ending(run) == ("failed", f"{message}: {WEBHOOK}")
    assert SummaryRecord.load(run.folder.summary).step == name
    assert StatusRecord.load(run.folder.status).steps[name].job_id == JOB
    assert SummaryRecord.load(run.folder.summary).resume


def test_the_refusal_of_a_runs_own_driver_counts_as_a_failure_of_prepare(fake, run):
    """As seen of jobs whose root-driver or exit-handler-1-driver was refused."""
    backend = fake()
    nodes = {
        "flow-1": node("root-driver", "Error", f"task 'flow.root-driver' errored: {WEBHOOK}"),
        "flow-2": node("root", "Omitted", "omitted: depends condition not met", kind="Skipped"),
    }
    finish_pod(backend.api, {"metadata": {"name": "flow"}, "spec": {}, "status": {"nodes": nodes}})
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    status = StatusRecord.load(run.folder.status)
    assert (status.step, status.state) == ("prepare", "failed")
    assert WEBHOOK in status.reason


def test_the_reason_is_printed_and_an_earlier_jobs_status_stays(fake, run, capsys):
    backend = fake()
    nodes = {"flow-1": node("root-driver", "Error", WEBHOOK)}
    finish_pod(backend.api, {"metadata": {"name": "flow"}, "spec": {}, "status": {"nodes": nodes}})
    StatusRecord(step="deploy", state="done", steps={"deploy": done_by("earlier")}).save(
        run.folder.status
    )
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    assert WEBHOOK in capsys.readouterr().out
    assert StatusRecord.load(run.folder.status).steps == {"deploy": done_by("earlier")}


def done_by(job_id: str) -> StepStatus:
    return StepStatus(state="done", job_id=job_id)


def finish_pod(api, flow: dict) -> None:
    """The pod of `finish`, by which it finds its Workflow; the test itself runs the program."""
    labels = {workflow.KFP_RUN_LABEL: JOB, STEP_LABEL: "finish"}
    with api.lock:
        workflow_object = api.create("workflows", flow)
        owner = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": "flow",
            "uid": workflow_object["metadata"]["uid"],
        }
        metadata = {"name": "flow-finish", "labels": labels, "ownerReferences": [owner]}
        pod = api.create("pods", {"metadata": metadata, "spec": {"containers": []}})
        pod["status"] = {"phase": "Succeeded"}  # so that no node of the fake runs it as well


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("TaintManagerEviction", "evicted or preempted: TaintManagerEviction: the message"),
        ("Preempted", "evicted or preempted: Preempted: the message"),
        # the eviction API leaves this alone (seen with Kubernetes 1.34.4), as a deletion does
        ("Killing", workflow.STOPPED),
    ],
)
def test_events_say_who_evicted_a_pod_that_is_gone(fake, run, reason, message):
    backend = fake()
    nodes = {"flow-1": node("root.exit-handler-1.search.executor(0)", "Error", "pod deleted")}
    finish_pod(backend.api, {"metadata": {"name": "flow"}, "spec": {}, "status": {"nodes": nodes}})
    with backend.api.lock:
        about = {"kind": "Pod", "metadata": {"name": f"flow-{TEMPLATE}-1", "uid": "1"}}
        backend.api.event(about, reason, "the message")
    step.write_status(run, "search", "running", job_id=JOB)
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    state, end_reason = ending(run)
    assert state == "interrupted"
    assert message in end_reason


def test_only_pods_that_could_not_run_are_refusals():
    nodes = [
        node("root.exit-handler-1.prepare.executor(0)", "Failed", "main: Error (exit code 1)"),
        node("root.exit-handler-1.search.executor(0)", "Error", "pod deleted"),
        node("root.exit-handler-1.search.executor", "Error", "pod deleted", kind="Retry"),
        node("root.exit-handler-1.export-driver", "Omitted", "omitted: ...", kind="Skipped"),
        node("root.exit-handler-1.evaluate.executor(2)", "Succeeded", ""),
    ]
    assert workflow.refusals({"status": {"nodes": dict(enumerate(nodes))}}) == {}
    refusal_node = node("root.exit-handler-1.onExit.finish-driver", "Error", WEBHOOK)
    refusals = workflow.refusals({"status": {"nodes": {"1": refusal_node}}})
    assert list(refusals) == ["finish"]
    assert WEBHOOK in refusals["finish"]


def test_a_lost_steps_job_is_removed_and_the_finished_experiment_stays(fake, run, argo):
    backend = fake(node_of(loss(0.2), loss(0.1), FOREVER))
    search = fake_search(backend, run)
    flow = argo(backend.api, export=["--trial", search])
    backend.api.wait_for(lambda: _running(backend.api, f"{run.id}-export-master-0"), 30)
    flow.delete_pod("export")
    flow.join()
    assert (flow.numbers("export"), flow.attempts[0].message) == (1, "pod deleted")
    assert ending(run) == ("interrupted", workflow.STOPPED)
    assert names(backend.api, "experiments") == [run.id]
    assert f"{run.id}-export" not in names(backend.api, "pytorchjobs")


def fake_search(backend, run) -> str:
    """Run the search of the run to its end; returns the best trial."""
    return backend.run_experiment(experiment(run)).optimal


def test_the_next_attempt_continues_after_the_kubelet_evicted_a_pod(fake, run, argo):
    long = Play(seconds=math.inf)
    backend = fake(node_of(long))
    flow = argo(backend.api, export=["--trial", "t"])
    backend.api.wait_for(lambda: _running(backend.api, f"{run.id}-export-master-0"), 30)
    uid = backend.api.find("pytorchjobs", f"{run.id}-export")["metadata"]["uid"]
    flow.evict("export")
    backend.api.wait_for(lambda: flow.numbers("export") == 1 and _watches(backend.api, run), 30)
    assert backend.api.find("pytorchjobs", f"{run.id}-export")["metadata"]["uid"] == uid
    flow.terminate()
    flow.join()
    assert flow.numbers("export") == 2
    assert ending(run) == ("interrupted", TERMINATED)
    assert names(backend.api, "pytorchjobs") == []


def _watches(api, run) -> bool:
    """Whether the newest attempt has read the run's job."""
    pods = [pod for pod in api.all("pods") if STEP_LABEL in pod["metadata"]["labels"]]
    requests = [path for _, path in api.requests if path.endswith(f"{run.id}-export")]
    return len(pods) > 1 and len(requests) > 2


def _running(api, name: str) -> bool:
    pod = api.find("pods", name)
    return bool(pod) and pod["status"]["phase"] == "Running"


def test_the_command_that_removes_leftover_objects_is_printed(fake, run, monkeypatch, capsys):
    monkeypatch.setattr(finish, "REMOVAL_SECONDS", 0.3)
    backend = fake(node_of(FOREVER))
    backend.why_pods_remain = "a finalizer that nobody takes off keeps the job"
    with backend.api.lock:
        job = export_job(run, "trial")
        job["metadata"]["finalizers"] = ["example.org/never"]
        backend.api.create("pytorchjobs", job)
    step.write_status(run, "export", "running", job_id=JOB)
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    summary = SummaryRecord.load(run.folder.summary)
    assert summary.state == "interrupted"
    assert "example.org/never" in summary.reason
    bucket = run.uri.rsplit("/", 1)[0]
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    down = f"python pipeline.py --down {run.id} --s3-bucket {bucket} --s3-endpoint {endpoint}"
    assert f"{down} removes them" in summary.reason


@pytest.mark.parametrize("kind", ["Failed", "Succeeded"])
def test_running_trials_of_an_ended_experiment_are_deleted_and_it_stays(fake, run, kind):
    """Katib 0.19.0 lets them run on (seen); a search that was killed could not remove them."""
    backend = fake(node_of(loss(0.1), FOREVER))
    with pytest.raises(DeadlineError):
        backend.run_experiment(experiment(run), deadline=1)
    backend.api.wait_for(
        lambda: any(has_condition(trial, "Succeeded") for trial in backend.api.all("trials")), 30
    )
    with backend.api.lock:
        searched = backend.api.find("experiments", run.id)
        set_condition(searched, kind, reason="ExperimentGoalReached")
        lasting = [
            trial for trial in backend.api.all("trials") if not has_condition(trial, "Succeeded")
        ]
        running = {trial["metadata"]["name"] for trial in lasting}
    assert running
    deleted_names = backend.cluster.delete_unfinished(
        run.id, deadline=10, report=backend.lines.append
    )
    assert set(deleted_names) == {f"Trial/{name}" for name in running}
    assert names(backend.api, "experiments") == [run.id]
    assert not running & set(names(backend.api, "trials"))
    assert len(names(backend.api, "trials")) == 1, "the trial that has succeeded stays"


def test_the_objects_of_a_job_that_began_later_are_kept(fake, run):
    """The user resumed the run before the exit handler of the stopped job was there."""
    backend = fake(node_of(FOREVER))
    backend.why_pods_remain = "they are the other job's, which goes on"
    with backend.api.lock:
        backend.api.create("experiments", experiment(run))
    step.write_status(run, "search", "running", job_id=JOB)
    step.write_status(run, "prepare", "done", job_id="another")
    before = StatusRecord.load(run.folder.status)
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    assert names(backend.api, "experiments") == [run.id]
    assert StatusRecord.load(run.folder.status) == before


def test_a_run_that_is_terminated_between_two_steps_is_interrupted(fake, run):
    backend = fake()
    labels = {workflow.KFP_RUN_LABEL: JOB, STEP_LABEL: "finish"}
    with backend.api.lock:
        reference = make_workflow(backend, "flow").reference
        backend.api.find("workflows", "flow")["spec"]["activeDeadlineSeconds"] = 0
        metadata = {"name": "flow-finish", "labels": labels, "ownerReferences": [reference]}
        backend.api.create(
            "pods", {"metadata": metadata, "spec": {"containers": [{"name": "main"}]}}
        )
    step.write_status(run, "search", "done", job_id=JOB)
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    summary = SummaryRecord.load(run.folder.summary)
    assert (summary.state, summary.reason) == ("interrupted", TERMINATED)


def test_a_run_that_ended_well_asks_the_cluster_nothing(fake, run):
    backend = fake()
    metrics_record().save(run.folder.metrics)
    for name in ("search", "evaluate", "deploy"):
        step.write_status(run, name, "done", job_id=JOB)
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    assert SummaryRecord.load(run.folder.summary).state == "succeeded"
    assert backend.api.requests == []


def test_finish_without_its_rights_succeeds_and_says_what_it_could_not_do(fake, run, capsys):
    backend = fake()
    for resource in ("workflows", "experiments", "pytorchjobs", "pods"):
        backend.api.forbid("*", resource)
    step.write_status(run, "search", "running", job_id=JOB)
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    summary = SummaryRecord.load(run.folder.summary)
    assert summary.state == "interrupted"
    assert "experiments.kubeflow.org" in summary.reason
    assert f"--down {run.id}" in summary.reason


def test_finish_has_time_for_its_clean_up_and_the_summary():
    seconds = finish.LOOK_SECONDS + finish.REMOVAL_SECONDS + finish.WEBHOOK_SECONDS
    assert 2 * seconds < steps.step_of("finish").deadline


# Why
# ------------------------------------------------------------------------------------------------


def pod_of(reason: str = "", exit_code: int = 0, **status) -> dict:
    end = {"exitCode": exit_code, "reason": reason or "Error", "finishedAt": "2026-01-01T00:00:00Z"}
    containers = [
        {"name": "wait", "state": {"terminated": {"exitCode": 2, "finishedAt": "2025"}}},
        {"name": "main", "state": {"terminated": end} if exit_code else {"running": {}}},
    ]
    return {
        "metadata": {"name": "p"},
        "status": {"phase": "Failed", "containerStatuses": containers, **status},
    }


def preempted_pod() -> dict:
    pod = pod_of()
    set_condition(pod, "DisruptionTarget", "True", "PreemptionByScheduler", "higher priority")
    return pod


@pytest.mark.parametrize(
    ("spec", "pod", "state", "message"),
    [
        ({"activeDeadlineSeconds": 0}, pod_of("Error", 143), "interrupted", f"^{TERMINATED}$"),
        ({"shutdown": "Terminate"}, None, "interrupted", f"^{TERMINATED}$"),
        ({"activeDeadlineSeconds": 9}, None, "interrupted", "deleted"),
        (None, None, "interrupted", "deleted"),
        ({}, preempted_pod(), "interrupted", "PreemptionByScheduler: higher priority"),
        ({}, pod_of(reason="Error", exit_code=137), "failed", "exit code 137"),
        ({}, pod_of(reason="OOMKilled", exit_code=137), "failed", "OOMKilled"),
    ],
)
def test_the_reason_of_a_stopped_step(spec, pod, state, message):
    stop = workflow.stop_of(None if spec is None else {"spec": spec}, pod)
    assert stop.state == state
    assert re.search(message, stop.reason)


@pytest.mark.parametrize(
    ("reason", "state"), [("Evicted", "interrupted"), ("DeadlineExceeded", "failed")]
)
def test_a_pod_that_ended_as_a_whole_is_reported_with_its_own_reason(reason, state):
    pod = pod_of("Error", 137)
    pod["status"] |= {"reason": reason, "message": "the message"}
    stop = workflow.stop_of({"spec": {}}, pod)
    assert stop.state == state
    assert f"{reason}: the message" in stop.reason


# Other attempts
# ------------------------------------------------------------------------------------------------


def test_a_missing_data_config_fails_within_seconds_with_its_message(fake, run, compiled_pipeline):
    """200 s were seen, of which Argo's waits were 90 s."""
    backend = fake()
    parameters = ["--s3-bucket", run.config.s3_bucket, "--data-config", "no_such.yaml"]
    network = ["--network-config", run.config.network_config, "--job-id", JOB]
    commands = {
        "prepare": [*parameters, *network, "--s3-endpoint", run.config.s3_endpoint],
        "finish": ["--s3-bucket", run.config.s3_bucket, "--run-id", "auto", *network],
    }
    flow = Argo(backend.api, compiled_pipeline.spec, JOB, commands).start()
    flow.join(120)
    assert flow.numbers("prepare") == 1 + steps.RETRIES
    assert flow.omitted == ["search", "export", "evaluate", "deploy"]
    assert flow.waits == [5, 5]
    assert "no_such.yaml" in flow.attempts[-1].output
    # without run.json --resume would not know the parameters
    assert " --rerun " in flow.attempts[-1].output


def prepare_arguments(run) -> list[str]:
    config = run.config
    return ["--s3-bucket", config.s3_bucket, "--data-config", "no_such.yaml", "--job-id", JOB]


def test_a_retry_in_the_ui_runs_the_step_again(run, capsys):
    """It keeps the job id, and its exit handler does not run again."""
    auto = ["--s3-bucket", run.config.s3_bucket, "--run-id", "auto", "--job-id", JOB]
    codes = [prepare.main(prepare_arguments(run)) for _ in range(1 + steps.RETRIES)]
    assert codes == [2, 1, 1], "a refusal, then attempts that end at once"
    assert finish.main([*auto, "--network-config", run.config.network_config]) == 0
    codes = [prepare.main(prepare_arguments(run)) for _ in range(1 + steps.RETRIES)]
    assert codes == [2, 1, 1], "Retry checks the inputs again"
    codes = [prepare.main(prepare_arguments(run)) for _ in range(1 + steps.RETRIES)]
    assert codes == [2, 1, 1], "and so does the next Retry, after which finish does not run"


def test_an_attempt_with_a_retryable_failure_waits_before_the_next(run, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 45.0)
    monkeypatch.setattr(step.time, "sleep", waits.append)

    def body():
        raise StorageError("away")

    for job_id, last, expected in ((JOB, False, [45.0]), ("", False, []), (JOB, True, [])):
        waits.clear()
        with pytest.raises(StorageError):
            step.patient(body, job_id, lambda: last)()  # noqa: B023
        assert waits == expected


def test_the_last_attempt_does_not_wait(run, monkeypatch):
    """After a Retry in the UI, which keeps the job id, all attempts begin again."""
    waits = []
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 45.0)
    monkeypatch.setattr(step.time, "sleep", waits.append)
    arguments = step.parser("search", "").parse_args(["--run", run.uri, "--job-id", JOB])

    def attempts(count: int) -> list[int]:
        """How often each of `count` attempts waits that finds no API server."""

        def body(_):
            raise UnreachableError("the API server cannot be reached")

        counts = []
        for _ in range(count):
            waits.clear()
            assert step.main("search", arguments, body) == 1
            counts.append(waits.count(45.0))
        return counts

    assert attempts(1 + steps.RETRIES) == [1, 1, 0]
    assert attempts(2) == [1, 1], "a Retry after which finish does not run"
    assert finish.main([*finish_arguments(run), "--job-id", JOB]) == 0
    assert attempts(1 + steps.RETRIES) == [1, 1, 0], "a Retry after it"


def test_the_last_attempt_of_prepare_does_not_wait(run, monkeypatch):
    waits = []
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 45.0)
    monkeypatch.setattr(step.time, "sleep", waits.append)

    def fill(*_):
        raise StorageError("away")

    monkeypatch.setattr(prepare, "fill_run_folder", fill)
    monkeypatch.setattr(prepare, "check_inputs", lambda *_, **__: SimpleNamespace(space={}))
    monkeypatch.setattr(prepare, "to_json", lambda _: "{}")
    bucket = f"{run.config.s3_bucket}/other"
    arguments = ["--s3-bucket", bucket, "--s3-endpoint", run.config.s3_endpoint, "--job-id", JOB]
    for expected in (1, 1, 0):
        waits.clear()
        assert prepare.main(arguments) == 1
        assert waits.count(45.0) == expected


@pytest.mark.parametrize(
    ("lives", "ends"),
    [
        # seconds that each attempt would live, and what Argo made of them; seen with Argo 3.7.3
        ([3, 3, 3], [3, 3, 3]),
        ([70], [70]),
        ([3, 300], [3, 55]),
    ],
)
def test_the_fake_retries_as_argo_does(lives, ends):
    policy = {"maxRetryCount": 2, "backoffDuration": "2s", "backoffFactor": 1.0}
    assert play(Retries({**policy, "backoffMaxDuration": "60s"}), lives) == ends


def play(retries: Retries, lives: list[float]) -> list[float]:
    """How long each attempt of a step lives that fails after these times; the last may be cut."""
    now, ends = 0.0, []
    for life in lives:
        start = now
        now = min(start + life, retries.deadline)
        ends.append(now - start)
        wait = retries.wait(start, now, "Failed", terminated=False)
        if wait is None:
            break
        now += wait
    return ends


def test_every_retried_step_may_live_as_long_as_a_first_attempt(compiled_pipeline):
    from tests.components.argo import _policies

    policies = _policies(compiled_pipeline.spec)
    assert set(policies) == set(steps.NAMES)
    for name, policy in policies.items():
        deadline = steps.step_of(name).deadline
        lives = [float(deadline)] * (1 + steps.RETRIES)
        assert play(Retries(policy), lives) == lives, name


def test_a_deleted_pod_and_a_terminated_run_are_not_retried():
    policy = {"maxRetryCount": 2, "backoffDuration": "5s", "backoffFactor": 1.0}
    policy["backoffMaxDuration"] = "3600s"
    assert Retries(policy).wait(0, 1, "Error", terminated=False) is None
    assert Retries(policy).wait(0, 1, "Failed", terminated=True) is None
    assert Retries(policy).wait(0, 1, "Failed", terminated=False) == 5


def test_the_field_of_an_earlier_version_is_read_as_its_opposite(run):
    entry = {"state": "failed", "reason": "no file", "job_id": JOB}
    steps_before = {"prepare": {**entry, "repeats": True}, "search": {**entry, "repeats": False}}
    storage.write_json(run.folder.status, {"step": "prepare", "steps": steps_before})
    status = StatusRecord.load(run.folder.status)
    assert {name: step_status.retryable for name, step_status in status.steps.items()} == {
        "prepare": False,
        "search": True,
    }
