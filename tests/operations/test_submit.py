"""Submitting, with kfp's real client against a server that answers as the KFP API does at the HTTP edge."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from common import storage
from common.config import RunConfig
from common.errors import ClusterError, InputError
from components import submit


class KfpApi(http.server.BaseHTTPRequestHandler):
    """Enough of v2beta1 to make a run: health, experiments, runs. Keeps what was sent."""

    def do_GET(self):
        if self.path.endswith("/healthz"):
            return self._answer({"multi_user": False})
        if "/experiments" in self.path:
            return self._answer({"experiments": self.server.experiments})
        return self._answer({"code": 5, "message": "not found"}, 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append((self.path, body))
        if self.server.refuse:
            return self._answer({"code": 7, "message": "unauthenticated"}, 401)
        if self.path.endswith("/experiments"):
            self.server.experiments.append({"experiment_id": "e1", "display_name": body["display_name"]})
            return self._answer(self.server.experiments[-1])
        return self._answer({"run_id": "r1", "experiment_id": "e1", "display_name": body["display_name"], "state": "PENDING"})

    def _answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def api(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps its settings there
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), KfpApi)
    server.experiments, server.posted, server.refuse = [], [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def host(api):
    return f"http://127.0.0.1:{api.server_port}"


def config(s3_bucket, **values):
    data = {f"data_{split}": f"s3://b/{split}/*.root" for split in ("train", "val", "test")}
    return RunConfig(s3_bucket=f"{s3_bucket}/jec", **data, **values)


def test_the_run_is_made_with_every_parameter_and_the_users_files_are_uploaded(api, s3_bucket):
    url = submit.submit(config(s3_bucket, num_gpus=1, experiment_name="mine"), host(api), "steps:1")
    assert url == f"{host(api)}/#/runs/details/r1"
    run = next(body for path, body in api.posted if path.endswith("/runs"))
    parameters = run["runtime_config"]["parameters"]
    assert set(parameters) == set(RunConfig().parameters())
    assert parameters["num_gpus"] == 1
    assert parameters["run_id"] == "auto"
    assert storage.read_text(parameters["data_config"]).startswith("# Inputs of the particle flow network")
    assert parameters["network_config"].startswith(f"{s3_bucket}/jec/inputs/")
    assert json.loads(parameters["search_space"])["parameters"]
    assert api.experiments[0]["display_name"] == "mine"
    executors = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {"steps:1"}


def test_the_same_files_are_uploaded_once(s3_bucket):
    first = submit.with_uploaded_files(config(s3_bucket))
    assert submit.with_uploaded_files(config(s3_bucket)) == first
    assert len(storage.entries(f"{s3_bucket}/jec/inputs")) == 2


def test_a_refusal_is_one_sentence(api, s3_bucket):
    api.refuse = True
    with pytest.raises(ClusterError, match=r"did not take the run: .*401"):
        submit.submit(config(s3_bucket), host(api), "steps:1")


def test_nobody_there_is_one_sentence(s3_bucket):
    with pytest.raises(ClusterError, match="did not take the run"):
        submit.submit(config(s3_bucket), "http://127.0.0.1:9", "steps:1")


def test_a_storage_that_pods_cannot_reach_is_refused():
    with pytest.raises(InputError, match="give s3://bucket/prefix"):
        submit.submit(RunConfig(), "http://127.0.0.1:9", "steps:1")


@pytest.mark.parametrize(
    ("asked", "environment", "wanted"),
    [
        ("http://asked", {"KFP_ENDPOINT": "http://set"}, ("http://asked", "--host")),
        ("auto", {"KFP_ENDPOINT": "http://set"}, ("http://set", "KFP_ENDPOINT")),
        ("auto", {}, ("", "")),
    ],
)
def test_where_the_endpoint_comes_from(monkeypatch, asked, environment, wanted):
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert submit.endpoint(asked) == wanted


def test_a_notebooks_token_means_its_own_cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    (tmp_path / "token").write_text("t")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert submit.endpoint("auto")[0] == "in-cluster"
