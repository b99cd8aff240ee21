"""What a run, its trials and its search log to MLflow; no failure of a server ends them."""

from __future__ import annotations

import http.server
import threading
from types import SimpleNamespace as Object

import pytest

from clusters import run_pods
from common import tracking
from common.config import RunConfig
from common.errors import InputError, InterruptedRun, UnreachableError
from common.records import Objective, Observation, SearchRecord, Trial
from common.run import Run
from common.storage import write_json
from components import tracked
from weaver.fit.mlflow_trial import MlflowTrial

pytest.importorskip("mlflow")


class Client:
    """MLflow's client with the runs in memory; like a server it lets no parameter change."""

    def __init__(self):
        self.runs: dict[str, Object] = {}
        self.down = False

    def create_run(self, experiment_id, run_name, tags):
        data = Object(params={}, tags=dict(tags), metrics=[], files={})
        run = Object(info=Object(run_id=str(len(self.runs)), status="RUNNING"), data=data)
        run.name = run_name
        self.runs[run.info.run_id] = run
        return run

    def search_runs(self, experiment_ids, words, max_results):
        if self.down:
            raise ConnectionError("the server is away")
        conditions = [part.split(" = ") for part in words.split(" and ")]
        tags = {name[6:-1]: value[1:-1] for name, value in conditions}
        return [run for run in self.runs.values() if tags.items() <= run.data.tags.items()]

    def get_run(self, run_id):
        return self.runs[run_id]

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.runs[run_id].data.metrics if metric.key == key]

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        if self.down:
            raise ConnectionError("the server is away")
        data = self.runs[run_id].data
        data.metrics += metrics
        for param in params:
            assert data.params.setdefault(param.key, param.value) == param.value
        data.tags |= {tag.key: tag.value for tag in tags}

    def log_metric(self, run_id, key, value):
        self.runs[run_id].data.metrics.append(Object(key=key, value=value, step=0))

    def log_text(self, run_id, text, name):
        self.runs[run_id].data.files[name] = text

    def update_run(self, run_id, status):
        self.runs[run_id].info.status = status

    set_terminated = update_run


@pytest.fixture(autouse=True)
def deadlines(monkeypatch):
    """Let the client find the deadlines that it would set, so that none are left behind."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@pytest.fixture
def client(monkeypatch):
    """A client in place of a server's; each caller of `of_run` has a tracker of its own."""
    client = Client()

    def connect(address, *, experiment, run_id):
        return tracking.Tracker(client, "1", run_id)

    monkeypatch.setattr(tracking, "connect", connect)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return client


def epochs(count: int, missing: float | None = float("nan")) -> list[dict]:
    """A history of epochs, which have no value for AvgMAE."""
    history = []
    for epoch in range(count):
        metrics = {"AvgLoss": 0.1 / (epoch + 1), "AvgMAE": missing}
        time = f"2026-01-01T00:00:0{epoch}.000Z"
        history.append({"epoch": epoch, "train_loss": 0.2, "time": time, "metrics": metrics})
    return history


def tracked_run(tmp_path) -> Run:
    config = RunConfig(
        s3_bucket=str(tmp_path), run_id="pfn-0a1b2c3d", mlflow="http://mlflow.example:5000"
    )
    run = Run(config=config)
    run.save()
    return run


def search_of(run: Run, statuses: list[str]) -> SearchRecord:
    trials = []
    for number, status in enumerate(statuses):
        name = f"{run.id}-{number:03}"
        metrics = {"AvgLoss": Observation(min=0.1, max=0.2, latest=0.1)}
        parameters = {"conv-dim": "8", "start-lr": "0.0010"}
        trials.append(Trial(name=name, status=status, parameters=parameters, metrics=metrics))
        write_json(run.folder.history(name), epochs(3, missing=None))
    return SearchRecord(
        experiment=run.id,
        objective=Objective(name="AvgLoss"),
        optimal=trials[0].name,
        trials=trials,
    )


def test_trials_are_nested_and_logged_once_by_trial_and_search(tmp_path, client, monkeypatch):
    """A trial logs two epochs itself and loses the server; the search, twice, logs the rest."""
    run = tracked_run(tmp_path)
    tracked.begin(tracked.connect(run.config, is_resumed=False), run)
    monkeypatch.setenv(tracking.ADDRESS, run.config.mlflow)
    monkeypatch.setenv(tracking.RUN, run.id)
    monkeypatch.setenv(tracking.EXPERIMENT, "jec")
    name = f"{run.id}-000"
    with MlflowTrial(run.folder.trial(name) + "/", {"start-lr": 0.001}, is_active=True) as trial:
        trial.epochs(epochs(1))
        trial.epochs(epochs(2))
        client.down = True
        trial.epochs(epochs(3))
        client.down = False

    search = search_of(run, ["Succeeded", "Failed", "EarlyStopped", "Killed"])
    tracked.log_search(run, search)
    tracked.log_search(run, search)
    parent, *children = client.runs.values()
    assert parent.data.tags["jec.run_id"] == run.id
    assert [child.data.tags["mlflow.parentRunId"] for child in children] == ["0"] * 4
    assert [child.info.status for child in children] == ["FINISHED", "FAILED", "FINISHED", "KILLED"]
    for child in children:
        logged = [(metric.key, metric.step) for metric in child.data.metrics]
        assert sorted(logged) == sorted(
            (name, epoch) for name in ("AvgLoss", "train_loss") for epoch in range(3)
        ), "each epoch once, and no NaN"
        assert child.data.params["conv-dim"] == "8"
    assert children[0].data.params["start-lr"] == "0.001", "as the trial said first"
    assert "search_space" not in parent.data.params
    assert [child.data.tags["jec.best"] for child in children] == ["true"] + ["false"] * 3


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (InterruptedRun, "KILLED")],
)
def test_a_trial_says_how_it_ended(client, monkeypatch, error, status):
    monkeypatch.setenv(tracking.ADDRESS, "http://mlflow.example")
    monkeypatch.setenv(tracking.RUN, "pfn-0a1b2c3d")
    monkeypatch.setenv(tracking.EXPERIMENT, "jec")
    trial = MlflowTrial("s3://b/pfn/trials/pfn-000/", {}, is_active=True)
    if error is None:
        with trial:
            pass
    else:
        with pytest.raises(error), trial:
            raise error("x")
    assert client.runs["1"].info.status == status
    assert client.runs["1"].data.tags[tracking.TRIAL] == "pfn-000"


def test_a_failing_mlflow_server_causes_one_warning_and_the_training_continues(
    client, monkeypatch, capsys
):
    monkeypatch.setenv(tracking.ADDRESS, "http://mlflow.example")
    monkeypatch.setenv(tracking.RUN, "pfn-0a1b2c3d")
    monkeypatch.setenv(tracking.EXPERIMENT, "jec")
    client.down = True
    with MlflowTrial("trials/pfn-000/", {}, is_active=True) as trial:
        trial.epochs(epochs(1))
        trial.epochs(epochs(2))
    assert capsys.readouterr().err.count("warning") == 1


def test_a_pod_without_a_tracked_run_logs_nothing(client, monkeypatch):
    monkeypatch.setenv(tracking.ADDRESS, "http://mlflow.example")
    monkeypatch.delenv(tracking.RUN, raising=False)
    with MlflowTrial("trials/pfn-000/", {}, is_active=True) as trial:
        trial.epochs(epochs(1))
    assert client.runs == {}


def test_a_stop_is_not_reported_as_a_failure_of_tracking():
    with pytest.raises(InterruptedRun), tracking.tolerate_failures(print, "x"):
        raise InterruptedRun("told to stop")


class NotMlflow(http.server.BaseHTTPRequestHandler):
    """A web server that knows nothing of MLflow."""

    def do_GET(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("status", [404, 401])
def test_another_server_is_refused_before_a_run_begins(status):
    server = http.server.HTTPServer(("127.0.0.1", 0), NotMlflow)
    server.status = status
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    config = RunConfig(mlflow=f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(InputError, match="--mlflow"):
            tracked.connect(config, is_resumed=False)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_unreachable_mlflow_server_is_an_error_at_the_start_and_a_warning_on_resume(capsys):
    config = RunConfig(mlflow="http://127.0.0.1:1")
    with pytest.raises(UnreachableError, match="--mlflow none"):
        tracked.connect(config, is_resumed=False)
    assert tracked.connect(config, is_resumed=True) is None
    assert "warning: --mlflow" in capsys.readouterr().out


def test_the_servers_address_comes_from_the_configuration_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    auto, none = RunConfig(), RunConfig(mlflow="none")
    secret = RunConfig(mlflow_secret="mlflow-login")
    monkeypatch.delenv(tracking.ADDRESS, raising=False)
    assert tracking.with_server_address(auto, on_this_machine=True) == auto
    monkeypatch.setenv(tracking.ADDRESS, "https://mlflow.example")
    assert (
        tracking.with_server_address(auto, on_this_machine=True).mlflow == "https://mlflow.example"
    )
    assert tracking.with_server_address(none, on_this_machine=True) == none
    assert tracking.with_server_address(secret, on_this_machine=False) == secret, (
        "it stays in the Secret"
    )
    monkeypatch.setenv(tracking.ADDRESS, "sqlite:///mlflow.db")
    here = tracking.with_server_address(auto, on_this_machine=True).mlflow
    assert here == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(InputError, match="no pod"):
        tracking.with_server_address(auto, on_this_machine=False)


def test_a_login_is_in_no_address(monkeypatch):
    with pytest.raises(InputError, match="--mlflow") as refusal:
        RunConfig(mlflow="https://me:canary@mlflow.example")
    assert "canary" not in str(refusal.value)
    monkeypatch.setenv(tracking.ADDRESS, "https://me:canary@mlflow.example")
    for config in (RunConfig(), RunConfig(mlflow_secret="mlflow-login")):
        with pytest.raises(InputError, match=tracking.ADDRESS) as refusal:
            tracking.with_server_address(config, on_this_machine=False)
        assert "canary" not in str(refusal.value)


def test_pods_get_the_login_by_reference_alone():
    fixed = {"s3_bucket": "s3://jec", "run_id": "pfn-0a1b2c3d"}
    assert run_pods.tracking_environment(Run(config=RunConfig(**fixed))) == []
    run_config = RunConfig(**fixed, mlflow="https://mlflow.example", mlflow_secret="mlflow-login")
    entries = {
        entry["name"]: entry for entry in run_pods.tracking_environment(Run(config=run_config))
    }
    assert entries[tracking.ADDRESS]["value"] == "https://mlflow.example"
    of_secret = RunConfig(**fixed, mlflow_secret="mlflow-login")
    entries |= {e["name"]: e for e in run_pods.tracking_environment(Run(config=of_secret))}
    for name in tracking.SECRET_KEYS:
        reference = entries[name]["valueFrom"]["secretKeyRef"]
        assert (reference["name"], reference["key"]) == ("mlflow-login", name)
    assert entries[tracking.RUN]["value"] == "pfn-0a1b2c3d"


def test_a_package_of_mlflow_that_cannot_open_the_address_says_what_to_install(monkeypatch):
    """mlflow-skinny 3.17 has no store for SQLite, and fails when the client is made."""
    import mlflow.exceptions
    import mlflow.tracking

    def refuse(**_):
        raise mlflow.exceptions.MlflowException("unsupported URI")

    monkeypatch.setattr(mlflow.tracking, "MlflowClient", refuse)
    with pytest.raises(InputError) as error_info:
        tracking.connect("sqlite:////tmp/mlflow.db", experiment="jec", run_id="r")
    assert tracking.INSTALL_WHOLE in str(error_info.value)
