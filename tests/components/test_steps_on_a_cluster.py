"""The programs of the steps, end to end before a fake cluster and a real S3: what each makes there,
reads, writes, and how it ends.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import math
import re
import threading
import types

import numpy as np
import pytest

from clusters import api as api_module
from clusters import kubernetes as home_module
from clusters import kubernetes_experiment as experiments
from clusters import kubernetes_job as clusters_jobs
from clusters.protocol import KFP_POD, Service
from common import storage
from common.config import RunConfig
from common.errors import GateError, InputError, InterruptedRun
from common.records import SearchRecord, StartRecord
from common.run import Run
from components import deploy, evaluate, export, finish, predictor, prepare, search, step
from components.steps import step_of
from reporting.headline import MAX_KUBEFLOW_METRICS, kubeflow_metrics_of_evaluation
from reporting.serving_section import section
from serving import golden
from tests.clusters import conftest as clusters_conftest
from tests.clusters.controllers import KServe, Node, Play
from tests.clusters.scripts import UP, later, loss, node_of
from tests.operations.test_check import create_needs
from tests.records import export_record, metrics_record
from tests.servers.handling import handling
from tests.training.trials_in_storage import write_trial

fake = clusters_conftest.fake
NAME = "pfn-regressor-open"
METRICS = metrics_record()
EXPORT = export_record(NAME, sha256=storage.digest(b"onnx"))
PASSED = ("--passed", "true")


@pytest.fixture
def run(s3_bucket, s3_server, monkeypatch):
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    init = home_module.KubernetesCluster.__init__
    monkeypatch.setattr(init, "__kwdefaults__", {"poll": 0.02, "patience": 600.0})
    monkeypatch.setattr(deploy, "GOLDEN_DEADLINE", 1.0)
    new_run = Run(
        config=RunConfig(
            s3_bucket=s3_bucket,
            s3_endpoint=s3_server,
            run_id=f"{NAME}-0123abcd",
            max_trials=2,
            parallel_trials=1,
        )
    )
    new_run.save()
    return new_run


@pytest.fixture
def model_server():
    """Answers as the exported models, unless a test spoils its answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = re.search(r"/models/([^/]+)/infer", self.path)[1]
            self.server.requests.append((name, body["inputs"][0]["shape"][0]))
            x = golden.arrays(body["inputs"])["x"]
            content = json.dumps(
                golden.response_body(name, {"output": 2 * x + self.server.off})
            ).encode()
            self.send_response(self.server.code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with handling(Handler, requests=[], off=np.float32(0), code=200) as server:
        yield server


def call(module, run, *args) -> int:
    return module.main(
        ["--run", run.uri, "--s3-endpoint", run.config.s3_endpoint, "--job-id", "job-1", *args]
    )


def as_the_pods_would(run) -> None:
    """What training, export and evaluation leave in the storage."""
    for name in (NAME, f"{NAME}-raw"):
        storage.write_bytes(run.path("model", name, "1", "model.onnx"), b"onnx")
        for size in golden.SIZES:
            x = np.linspace(-1, 1, size, dtype=np.float32).reshape(size, 1)
            golden.write(run.path("golden", name), {"x": x}, name, {"output": 2 * x})
    METRICS.save(run.folder.metrics)
    EXPORT.save(run.folder.export)
    storage.write_text(
        run.path("report.html"), f"<html>before {section(EXPORT, None, None)} after</html>"
    )


def outputs(folder, step_name: str) -> tuple[str, str]:
    """The flag that hands a step the KFP artifacts that it declares, below a folder."""
    names = [name for name, kind in step_of(step_name).outputs.items() if kind != "parameter"]
    artifacts = {name: {"artifacts": [{"name": name, "uri": str(folder / name)}]} for name in names}
    return "--executor-input", json.dumps(
        {"outputs": {"artifacts": artifacts, "outputFile": str(folder / "output.json")}}
    )


def check_artifacts(folder, step_name: str) -> None:
    """Each artifact that a step declares has a file; the UI shows an error in place of none."""
    output = folder / "output.json"
    artifacts = json.loads(output.read_text())["artifacts"] if output.exists() else {}
    for name, kind in step_of(step_name).outputs.items():
        if kind == "parameter":
            continue
        text = (folder / name).read_text()
        assert text, name
        if kind == "markdown":
            assert "<" not in text, name
        if kind == "metrics":
            assert len(text.splitlines()) == 3
            (artifact,) = artifacts[name]["artifacts"]
            # the launcher prints this file below the step's log
            assert list(artifact) == ["metadata"]
            assert 0 < len(artifact["metadata"]) <= MAX_KUBEFLOW_METRICS < 10
        elif kind not in ("dataset", "model"):
            assert name not in artifacts


def create_secrets(api, endpoint) -> None:
    create_needs(api, endpoint=endpoint.removeprefix("http://"))
    api.find("secrets", "s3-secret")["metadata"]["annotations"]["serving.kserve.io/s3-usehttps"] = (
        "0"
    )


def test_the_steps_of_a_run_end_to_end(fake, run, model_server, s3_server, tmp_path, capsys):
    backend = fake(
        node_of(loss(0.2), loss(0.1), Play(), Play(), UP), kserve=KServe(url=model_server.url)
    )
    create_secrets(backend.api, s3_server)
    kfp = outputs(tmp_path / "search", "search")
    assert call(search, run, "--best-trial-output", str(tmp_path / "best"), *kfp) == 0
    check_artifacts(tmp_path / "search", "search")
    best = (tmp_path / "best").read_text()
    assert storage.read_json(run.path("search.json"))["optimal"] == best
    as_the_pods_would(run)
    assert call(export, run, "--trial", best, *outputs(tmp_path / "export", "export")) == 0
    check_artifacts(tmp_path / "export", "export")
    kfp = outputs(tmp_path / "evaluate", "evaluate")
    assert (
        call(evaluate, run, "--trial", best, "--passed-output", str(tmp_path / "passed"), *kfp) == 0
    )
    assert (tmp_path / "passed").read_text() == "true"
    artifact = json.loads((tmp_path / "evaluate" / "output.json").read_text())["artifacts"][
        "test_metrics"
    ]["artifacts"][0]
    assert artifact["metadata"] == kubeflow_metrics_of_evaluation(METRICS)
    check_artifacts(tmp_path / "evaluate", "evaluate")
    assert "Not deployed yet" in (tmp_path / "evaluate" / "report").read_text()
    assert (
        call(
            deploy,
            run,
            *PASSED,
            "--url-output",
            str(tmp_path / "url"),
            *outputs(tmp_path / "deploy", "deploy"),
        )
        == 0
    )
    assert (tmp_path / "url").read_text() == model_server.url
    assert model_server.requests[:4] == [
        (NAME, 1),
        (NAME, 100),
        (f"{NAME}-raw", 1),
        (f"{NAME}-raw", 100),
    ]
    report = storage.read_text(run.path("report.html"))
    assert report == (tmp_path / "deploy" / "report_with_service").read_text()
    assert report.startswith("<html>before")
    assert report.endswith("after</html>")
    assert f"kserve at {model_server.url} gave" in report
    assert "Request of 100 jets" in report
    assert storage.read_json(run.path("service.json"))["others"][f"{NAME}-raw"] == {
        "1": 0.0,
        "100": 0.0,
    }
    check_artifacts(tmp_path / "deploy", "deploy")
    kfp = outputs(tmp_path / "finish", "finish")
    summary = finish.finish(run.uri, step.Artifacts(kfp[1]))
    check_artifacts(tmp_path / "finish", "finish")
    assert (summary.state, summary.best_trial, summary.service) == (
        "succeeded",
        best,
        model_server.url,
    )
    kinds = ("experiments", "pytorchjobs", "inferenceservices", "pods")
    labels = [
        labels_of_object["metadata"]["labels"]
        for kind in kinds
        for labels_of_object in backend.api.all(kind)
    ]
    assert {
        (labels_of_object["jec/run-id"], labels_of_object["jec/user"])
        for labels_of_object in labels
    } == {(run.id, "auto")}
    assert {labels_of_object["jec/step"] for labels_of_object in labels} == {
        "search",
        "export",
        "evaluate",
        "deploy",
    }


def test_an_ended_export_job_is_repeated_only_if_the_run_starts_at_export(fake, run):
    backend = fake(node_of(Play(), Play()))
    as_the_pods_would(run)
    job_uids = []
    for job_id in ("job-1", "job-2", "job-3"):
        if job_id == "job-3":
            StartRecord(step="export", job_id=job_id).save(run.folder.start)
        assert call(export, run, "--trial", f"{NAME}-0", "--job-id", job_id) == 0
        job_uids.append(backend.api.find("pytorchjobs", f"{run.id}-export")["metadata"]["uid"])
    assert job_uids[0] == job_uids[1] != job_uids[2]


def test_a_model_that_the_gate_refused_is_not_deployed_and_the_run_ends_as_evaluated(
    fake, run, tmp_path, capsys
):
    """Also where the results cannot be read: a verdict is an answer, and no reason to fail."""
    backend = fake()
    step.write_status(run, "evaluate", "done", job_id="job-1")
    before = storage.read_json(run.folder.status)
    arguments = ("--passed", "false", "--url-output", str(tmp_path / "url"))
    kfp = outputs(tmp_path / "deploy", "deploy")
    assert call(deploy, run, *arguments, *kfp) == 0
    assert (tmp_path / "deploy" / "report_with_service").read_text() == ""
    as_the_pods_would(run)
    metrics_record(passed=False, reasons=["closure 3 %"]).save(run.folder.metrics)
    assert call(deploy, run, *arguments, *kfp) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "result: not deployed: closure 3 %"
    assert (tmp_path / "url").read_text() == deploy.NOT_DEPLOYED
    check_artifacts(tmp_path / "deploy", "deploy")
    report = (tmp_path / "deploy" / "report_with_service").read_text()
    assert report == storage.read_text(run.folder.report)
    assert storage.read_json(run.folder.status) == before
    assert not storage.exists(run.folder.service)
    assert backend.api.all("inferenceservices") == []
    summary = finish.summarise(run.uri, "job-1")
    assert (summary.state, summary.step, summary.service) == ("not deployed", "evaluate", None)


def in_a_workflow(api, monkeypatch, tmp_path, name: str) -> None:
    """Let the steps be pods of this workflow, in the namespace of the objects."""
    workflow = api.create("workflows", {"metadata": {"name": name}})
    reference = {
        "apiVersion": workflow["apiVersion"],
        "kind": "Workflow",
        "name": name,
        "uid": workflow["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {"name": f"{name}-step", "ownerReferences": [reference]}
    api.create("pods", {"metadata": metadata, "spec": {"containers": [{"name": "main"}]}})
    (tmp_path / "namespace").write_text(api.namespace)
    monkeypatch.setattr(api_module, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv(KFP_POD, f"{name}-step")


def delete_workflow(api, name: str) -> None:
    with api.lock:
        api.delete("workflows", api.find("workflows", name))


def test_a_run_that_is_deleted_in_its_search_keeps_its_finished_trials(
    fake, run, monkeypatch, tmp_path, capsys
):
    """Two workflows go in the middle of the search, and the third one ends it."""
    run = Run(config=run.config.replace(max_trials=4, num_epochs=2))
    run.save()
    trained: list[str] = []
    hangs = {"pfn-regressor-open-0123abcd": 1, "pfn-regressor-open-0123abcd-1": 1}

    def play(pod: dict) -> Play:
        """What a trial's pod does: the first of some experiments ends, their second one hangs."""
        if pod["metadata"]["name"].endswith("-step"):
            return Play(seconds=math.inf)
        name = pod["metadata"]["name"].removesuffix("-master-0")
        trial = backend.api.find("trials", name)
        experiment = trial["metadata"]["labels"]["katib.kubeflow.org/experiment"]
        assignments = trial["spec"]["parameterAssignments"]
        point = {entry["name"]: entry["value"] for entry in assignments}
        end_count = sum(other.startswith(f"{experiment}-") for other in trained)
        if experiment in hangs and end_count == hangs[experiment]:
            write_trial(run, name, point, [0.01])
            return Play(seconds=math.inf)
        best = 0.5 - 0.1 * len(trained)
        trained.append(name)
        write_trial(run, name, point, [0.9, best], start=100.0 * len(trained))
        return Play(metrics=storage.read_text(run.path("trials", name, "metrics.log")))

    backend = fake(Node(play))
    for workflow in ("first", "second"):
        in_a_workflow(backend.api, monkeypatch, tmp_path, workflow)
        already = len(trained)
        losing = later(
            lambda workflow=workflow: backend.api.delete(
                "workflows", backend.api.find("workflows", workflow)
            ),
            # one more trial has ended, and the next one hangs
            lambda already=already: (
                len(trained) == already + 1
                and len(backend.api.all("trials", "katib.kubeflow.org/experiment")) == 2
                and len(backend.node.metrics) == already + 1
            ),
            backend.api,
        )
        assert call(search, run, "--job-id", workflow) == 1
        losing.join()
        assert not storage.exists(run.path("search.json"))
        backend.api.wait_for(lambda: not backend.api.all("pods", "jec/run-id"))
    in_a_workflow(backend.api, monkeypatch, tmp_path, "third")
    assert call(search, run, "--job-id", "third") == 0
    record = SearchRecord.load(run.folder.search)
    assert [trial.name for trial in record.trials] == trained
    assert [trial.status for trial in record.trials] == ["Succeeded"] * 4
    assert (record.experiment, record.carried) == (f"{run.id}-2", 2)
    assert (record.optimal, round(record.best_value, 6)) == (trained[-1], 0.2)
    delete_workflow(backend.api, "third")
    backend.api.wait_for(lambda: not backend.api.find("pods", "third-step"))
    assert [thing["metadata"]["name"] for thing in backend.api.all("experiments")] == [
        f"{run.id}-2"
    ]


class Training:
    """Pods of trials that train two epochs: some hang after the first one, with a checkpoint.

    A resumed one has no Trial, and continues after the epochs that its folder has.
    """

    def __init__(self, run: Run, hangs: int) -> None:
        self.run = run
        self.hangs = hangs
        """How many trials hang, the first ones of the first experiment."""
        self.fails: set[str] = set()
        self.resumed_trials: list[str] = []
        self.stuck: set[str] = set()
        """Resumed trials that hang again."""
        self.points: dict[str, dict[str, str]] = {}
        self.api = None

    def __call__(self, pod: dict) -> Play:
        if pod["metadata"]["name"].endswith("-step"):
            return Play(seconds=math.inf)
        name = pod["metadata"]["name"].removesuffix("-master-0")
        trial = self.api.find("trials", name)
        if trial is None:
            return self.resume(name)
        assignments = trial["spec"]["parameterAssignments"]
        self.points[name] = {entry["name"]: entry["value"] for entry in assignments}
        if len(self.points) <= self.hangs:
            write_trial(self.run, name, self.points[name], [0.5])
            storage.write_bytes(self.run.path("trials", name, "checkpoint.pt"), b"state")
            return Play(seconds=math.inf)
        write_trial(self.run, name, self.points[name], [0.5, 0.4])
        return Play(metrics=storage.read_text(self.run.path("trials", name, "metrics.log")))

    def resume(self, name: str) -> Play:
        self.resumed_trials.append(name)
        if name in self.stuck:
            return Play(seconds=math.inf)
        if name in self.fails:
            return Play(reason="OOMKilled")
        write_trial(self.run, name, self.points[name], [0.5, 0.1])
        return Play()


@pytest.fixture
def training(fake, run, monkeypatch, tmp_path):
    """A search with two trials under way, whose workflow `first` is deleted."""
    run = Run(config=run.config.replace(max_trials=4, num_epochs=2, parallel_trials=2))
    run.save()
    trained = Training(run, hangs=2)
    backend = fake(Node(trained))
    trained.api = backend.api
    in_a_workflow(backend.api, monkeypatch, tmp_path, "first")
    losing = later(
        lambda: backend.api.delete("workflows", backend.api.find("workflows", "first")),
        lambda: len(trained.points) == 2,
        backend.api,
    )
    assert call(search, run, "--job-id", "first") == 1
    losing.join()
    backend.api.wait_for(lambda: not backend.api.all("pods", "jec/run-id"))
    return trained


def test_trials_under_way_resume_as_jobs_with_the_present_settings(
    training, monkeypatch, tmp_path, capsys
):
    api = training.api
    run = Run(config=training.run.config.replace(memory="24Gi", weaver_image="jec-weaver:2"))
    run.save()
    hung = sorted(training.points)
    training.stuck = {hung[1]}
    in_a_workflow(api, monkeypatch, tmp_path, "second")
    states = {}

    def lose() -> None:
        states.update({job["metadata"]["name"]: job for job in api.all("pytorchjobs")})
        api.delete("workflows", api.find("workflows", "second"))

    losing = later(
        lose, lambda: len(training.resumed_trials) == 2 and has_ended_well(api, hung[0]), api
    )
    assert call(search, run, "--job-id", "second") == 1
    losing.join()
    assert sorted(states) == hung, "both at once, and no trial of another experiment beside them"
    for job in states.values():
        pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        container = pod["spec"]["containers"][0]
        assert container["image"] == "jec-weaver:2"
        assert container["resources"]["limits"]["memory"] == "24Gi"
        assert {"jec/run-id": run.id, "jec/step": "search"}.items() <= pod["metadata"][
            "labels"
        ].items()
    owners = {name: job["metadata"].get("ownerReferences") for name, job in states.items()}
    assert not owners[hung[0]], "it has ended well, and stays"
    assert [owner["name"] for owner in owners[hung[1]]] == ["second"]
    api.wait_for(lambda: not api.find("pytorchjobs", hung[1]))

    training.stuck = set()
    in_a_workflow(api, monkeypatch, tmp_path, "third")
    assert call(search, run, "--job-id", "third") == 0
    assert sorted(training.resumed_trials) == [hung[0], hung[1], hung[1]]
    record = SearchRecord.load(run.folder.search)
    assert sorted(trial.name for trial in record.trials[:2]) == hung
    for trial in record.trials:
        point = training.points[trial.name]
        assert trial.parameters | {"start-lr": ""} == point | {"start-lr": ""}
        assert float(trial.parameters["start-lr"]) == float(point["start-lr"])
    assert [trial.status for trial in record.trials] == ["Succeeded"] * 4
    assert (record.experiment, record.carried) == (f"{run.id}-2", 2)
    assert record.best_value == 0.1
    assert [experiment["metadata"]["name"] for experiment in api.all("experiments")] == [
        f"{run.id}-2"
    ]


def test_trials_of_an_experiment_that_still_runs_resume_once_it_is_replaced(
    fake, run, monkeypatch, capsys
):
    """Its step was killed and did not remove it; the run resumes with other memory."""
    run = Run(config=run.config.replace(max_trials=3, num_epochs=2, parallel_trials=2))
    run.save()
    training = Training(run, hangs=2)
    training.api = fake(Node(training)).api
    monkeypatch.setenv(KFP_POD, "first-step")  # a step that KFP kills removes nothing
    run_to_its_end = experiments.ExperimentRun.run

    def kill_step(self) -> None:
        self._submit()
        training.api.wait_for(lambda: len(training.points) == 2)
        raise InterruptedRun("told to stop")

    monkeypatch.setattr(experiments.ExperimentRun, "run", kill_step)
    assert call(search, run, "--job-id", "first") == 130
    monkeypatch.setattr(experiments.ExperimentRun, "run", run_to_its_end)
    hung = sorted(training.points)
    assert [experiment["metadata"]["name"] for experiment in training.api.all("experiments")] == [
        run.id
    ]

    Run(config=run.config.replace(memory="24Gi")).save()
    capsys.readouterr()
    assert call(search, run, "--job-id", "second") == 0
    assert sorted(training.resumed_trials) == hung
    record = SearchRecord.load(run.folder.search)
    assert sorted(trial.name for trial in record.trials[:2]) == hung
    assert (record.experiment, record.carried, len(record.trials)) == (f"{run.id}-2", 2, 3)
    lines = [line for line in capsys.readouterr().out.splitlines() if "--memory was 12Gi" in line]
    assert "checkpoints" in lines[0]


def has_ended_well(api, job: str) -> bool:
    """Whether a job has succeeded, and has no owner."""
    thing = api.find("pytorchjobs", job)
    conditions = thing["status"].get("conditions", []) if thing else []
    has_ended = any(
        condition["type"] == "Succeeded" and condition["status"] == "True"
        for condition in conditions
    )
    return has_ended and not thing["metadata"].get("ownerReferences")


def test_a_resumed_trial_that_fails_counts_as_failed(training, monkeypatch, tmp_path, capsys):
    run = training.run
    hung = sorted(training.points)
    training.fails = {hung[0]}
    in_a_workflow(training.api, monkeypatch, tmp_path, "second")
    assert call(search, run, "--job-id", "second") == 0
    record = SearchRecord.load(run.folder.search)
    assert record.trial(hung[0]).status == "Failed"
    assert "OOMKilled" in record.trial(hung[0]).reason
    assert (record.optimal, len(record.trials)) == (hung[1], 4)
    [experiment] = training.api.all("experiments")
    assert experiment["spec"]["maxTrialCount"] == 2
    assert training.api.find("pytorchjobs", hung[0]), "it stays to be looked at"


def test_resumed_trials_go_with_a_run_that_is_terminated(training, monkeypatch, tmp_path):
    """KFP kills the step at once, and finish removes what runs on."""
    api, run = training.api, training.run
    training.stuck = set(training.points)
    in_a_workflow(api, monkeypatch, tmp_path, "second")

    def watch(*_, **__) -> None:
        api.wait_for(lambda: len(training.resumed_trials) == 2)
        raise InterruptedRun("told to stop")

    monkeypatch.setattr(clusters_jobs, "run_jobs", after_submission(watch))
    assert call(search, run, "--job-id", "second") == 130
    assert len(api.all("pytorchjobs")) == 2
    assert finish.remove_unfinished(run.uri) == ""
    assert api.all("pytorchjobs") == []
    api.wait_for(lambda: not api.all("pods", "jec/run-id"))


def after_submission(watch):
    """run_jobs whose watching is something else, once all jobs have been submitted."""

    def run_jobs(objects, manifests, *, parallel, on_end, patience, deadline, report):
        assert parallel >= len(manifests)
        for manifest in manifests:
            clusters_jobs.JobRun(
                objects, manifest, patience=patience, deadline=deadline, report=report
            ).submit()
        watch()

    return run_jobs


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda server: setattr(server, "off", np.float32(0.001)),
            "another model",
        ),
        (lambda server: setattr(server, "code", 503), "no answer within"),
    ],
)
def test_a_run_whose_service_is_broken_fails(
    fake, run, model_server, s3_server, capsys, spoil, message
):
    backend = fake(
        node_of(Play(seconds=1e9, log="loading failed\n")),
        kserve=KServe(url=model_server.url),
    )
    create_secrets(backend.api, s3_server)
    as_the_pods_would(run)
    spoil(model_server)
    assert call(deploy, run, *PASSED) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "\n  | loading failed" in error
    assert not storage.exists(run.path("service.json"))
    assert finish.summarise(run.uri).state == "failed"
    assert backend.api.all("inferenceservices") == []


def test_golden_requests_are_repeated_while_the_former_model_may_still_answer(
    run, model_server, monkeypatch
):
    """Where neither pods nor Deployments may be read, the first answers may be the former's."""
    as_the_pods_would(run)
    monkeypatch.setattr(deploy, "GOLDEN_DEADLINE", 30.0)
    monkeypatch.setattr(deploy, "WRONG_ANSWER_PAUSE", 0.05)
    model_server.off = np.float32(0.001)
    threading.Timer(0.3, setattr, (model_server, "off", np.float32(0))).start()
    service = Service(name=NAME, url=model_server.url, kind="kserve", certain=False)
    assert set(deploy.golden_answers(run, service)) == {NAME, f"{NAME}-raw"}
    model_server.off = np.float32(0.001)
    with pytest.raises(GateError):
        deploy.golden_answers(run, dataclasses.replace(service, certain=True))


def test_a_new_model_is_checked_beside_the_former_one(fake, run, model_server, s3_server, capsys):
    backend = fake(node_of(UP), kserve=KServe(url=model_server.url))
    create_secrets(backend.api, s3_server)
    as_the_pods_would(run)
    assert call(deploy, run, *PASSED) == 0
    other = Run(config=run.config.replace(run_id=f"{NAME}-4567abcd"))
    other.save()
    as_the_pods_would(other)
    model_server.off = np.float32(0.001)
    assert call(deploy, other, *PASSED) == 1
    assert f"{NAME} still serves the previous model" in capsys.readouterr().err
    assert not storage.exists(other.path("service.json"))
    (service,) = backend.api.all("inferenceservices")
    assert service["metadata"]["labels"]["jec/run-id"] == run.id
    model_server.off = np.float32(0)
    assert call(deploy, other, *PASSED, "--job-id", "job-2") == 0
    (service,) = backend.api.all("inferenceservices")
    assert service["metadata"]["labels"]["jec/run-id"] == other.id
    assert service["spec"]["predictor"]["model"]["storageUri"] == other.path("model") + "/"


def test_no_service_is_created_without_the_predictors_keys(fake, run, model_server, capsys):
    backend = fake(node_of(UP), kserve=KServe(url=model_server.url))
    as_the_pods_would(run)
    assert call(deploy, run, *PASSED) == 2
    assert re.search("s3-secret .*physics; kubectl", capsys.readouterr().err)
    assert backend.api.all("inferenceservices") == []


@pytest.mark.parametrize(
    ("module", "args", "play", "message"),
    [
        (search, (), Play(exit_code=1, log="error: no jets\n"), "2 x exit code 1: .*no jets"),
        (
            export,
            ("--trial", "t"),
            Play(exit_code=1, log="error: parity\n"),
            "exit code 1: .*parity",
        ),
        (evaluate, ("--trial", "t"), Play(reason="OOMKilled"), "OOMKilled"),
    ],
)
def test_a_step_whose_pods_fail_ends_with_their_reason(
    fake, run, capsys, module, args, play, message
):
    fake(node_of(play))
    assert call(module, run, *args) == 1
    assert re.search(message, capsys.readouterr().err)
    assert finish.summarise(run.uri).state == "failed"


# Before the search
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def accepted_runs(monkeypatch):
    """Data and configurations that pass their checks."""
    inputs = types.SimpleNamespace(space=[])
    monkeypatch.setattr(prepare, "check_inputs", lambda config, copies_folder: inputs)
    new_runs = []
    monkeypatch.setattr(
        prepare, "fill_run_folder", lambda run, *_: new_runs.append(run) or run.save()
    )
    return new_runs


@pytest.mark.parametrize("wrong", ["secrets", "serviceaccounts"])
def test_prepare_refuses_a_run_whose_predictor_would_not_get_its_model(
    fake, run, s3_server, accepted_runs, wrong
):
    backend = fake()
    create_secrets(backend.api, s3_server)
    name = {"secrets": "s3-secret", "serviceaccounts": "default"}[wrong]
    backend.api.delete(wrong, backend.api.find(wrong, name))
    new_config = run.config.replace(run_id="pfn-11111111")
    with pytest.raises(InputError, match=f"could not load its model: .*{name}"):
        prepare.prepare(new_config, "job-1")
    assert accepted_runs == []
    assert storage.entries(Run(config=new_config).uri) == []


def test_prepare_shows_what_was_changed_first_and_the_space_as_json(
    fake, run, s3_server, accepted_runs, tmp_path, capsys
):
    backend = fake()
    create_secrets(backend.api, s3_server)
    new_config = run.config.replace(run_id="pfn-11111111", num_gpus=2, data_train="a|b/<c>/*.root")
    prepare.prepare(new_config, "job-1", "", step.Artifacts(outputs(tmp_path, "prepare")[1]))
    check_artifacts(tmp_path, "prepare")
    text = (tmp_path / "parameters").read_text()
    changes, rest = text.split("The defaults:")
    assert "| num-gpus | `2` |" in changes
    assert "| data-train | `a¦b/‹c>/*.root` |" in changes
    others, space = rest.split("Search space:")
    assert "| num-epochs |" in others
    assert json.loads(space.split("```json")[1].split("```")[0]) == {"parameters": []}
    assert capsys.readouterr().out.splitlines()[-1].startswith("result: pfn-11111111 is prepared")


def test_prepare_continues_if_the_predictors_keys_exist_or_are_unreadable(
    fake, run, s3_server, accepted_runs, capsys, monkeypatch
):
    backend = fake()
    create_secrets(backend.api, s3_server)
    prepare.prepare(run.config.replace(run_id="pfn-11111111"), "job-1")
    assert "not seen" not in capsys.readouterr().out
    monkeypatch.setattr(predictor, "connect", no_cluster)
    prepare.prepare(run.config.replace(run_id="pfn-22222222"), "job-2")
    assert "not seen: the predictor's Secret" in capsys.readouterr().out
    assert [accepted_run.id for accepted_run in accepted_runs] == ["pfn-11111111", "pfn-22222222"]


def no_cluster():
    raise api_module.NoCluster("no cluster")
