"""The whole chain as an MLflow project, on a real MLflow server: its runs, its files, its models.

In an environment without the server it is skipped; tests/components/test_tracked.py is quick.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from common import storage
from jec_client.protocol import arrays
from serving.golden import SIZES, file_names
from tests.test_local_run import SMALL_SPACE
from tests.weaver.conftest import synthetic_jets, write_jets

pytest.importorskip("mlflow.server")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # MLflow warns of its own code when its models are imported.
    pytest.mark.filterwarnings("default"),
]

ROOT = Path(__file__).resolve().parents[1]
EASY_GATE = {
    "min-improvement": "-1000000",
    **dict.fromkeys(
        ("max-closure", "max-resolution-ratio", "max-tail-ratio", "max-flavour-ratio"), "1000"
    ),
    "max-coverage-points": "100",
    "gate-regions": "barrel",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server with its SQLite file; gives its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log = (folder / "server.log").open("w")
    # The server's jobs are those of its language models: a pool of processes that starts with it.
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 150
    try:
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < end, (folder / "server.log").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def project(server, tmp_path_factory):
    """The folder of a run that `mlflow run` made, on few jets, and what it printed."""
    folder = tmp_path_factory.mktemp("project")
    counts = {"train": 1200, "val": 300, "test": 1500}
    for seed, (split, count) in enumerate(counts.items(), start=11):
        write_jets(folder / split / "a.root", synthetic_jets(count, seed))
    (folder / "space.json").write_text(SMALL_SPACE)
    parameters = {
        "data_config": "data/jec_pfn_open.yaml",
        **{f"data_{split}": f"{folder}/{split}/a.root" for split in counts},
        "search_space": str(folder / "space.json"),
        "num_epochs": "2",
        "batch_size": "100",
        "output": str(folder / "runs"),
        **EASY_GATE,
    }
    command = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local"]
    command += ["--experiment-name", "jec"]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    answer = subprocess.run(
        command,
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": server,
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=480,
    )
    text = answer.stdout + answer.stderr
    assert answer.returncode == 0, text[-5000:]
    return (folder / "runs" / "latest").resolve(), text


@pytest.fixture(scope="module")
def client(server):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=server, registry_uri=server)


def test_a_run_of_four_trials_is_one_run_with_four_nested_ones(project, client):
    folder, _ = project
    experiment = client.get_experiment_by_name("jec").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 4
    record = storage.read_json(str(folder / "run.json"))
    assert parent.data.tags["jec.run_id"] == folder.name
    assert parent.data.tags["jec.data_fingerprint"] == record["data_fingerprint"]
    assert parent.data.tags["jec.commit"] == record["git_commit"]
    assert parent.data.tags["jec.state"] == "succeeded"
    assert parent.data.metrics["test_jets"] > 0
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "search.html", "run.json"} <= files
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert {"conv-dim", "start-lr"} <= set(child.data.params)
        history = client.get_metric_history(child.info.run_id, "AvgLoss")
        assert sorted(metric.step for metric in history) == [0, 1]
    assert [run.data.tags["jec.best"] for run in children].count("true") == 1


def test_the_models_come_back_and_give_the_golden_answers(project, client, server, monkeypatch):
    import mlflow.pyfunc

    folder, _ = project
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    export = storage.read_json(str(folder / "model" / "export.json"))
    mlflow.set_tracking_uri(server)
    try:
        for entry in (export, export["raw"]):
            name = entry["model"]
            (version,) = client.search_model_versions(f"name = '{name}'")
            assert version.tags["jec.gate"] == "passed"
            assert version.tags["jec.run_id"] == folder.name
            # as the server's page does, to show the signature
            artifact_url = f"{server}/model-versions/get-artifact?name={name}&path=MLmodel"
            with urllib.request.urlopen(
                f"{artifact_url}&version={version.version}", timeout=30
            ) as page:
                assert b"signature:" in page.read()
            model = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}")
            assert {tensor.name for tensor in model.metadata.signature.inputs} == set(
                entry["inputs"]
            )
            assert model.input_example is not None
            for size in SIZES:
                request, response = (
                    storage.read_json(str(folder / "golden" / name / file))
                    for file in file_names(size)
                )
                answers = model.predict(arrays(request["inputs"]))
                for output, values in arrays(response["outputs"]).items():
                    np.testing.assert_allclose(answers[output], values, rtol=1e-5, atol=1e-5)
    finally:
        mlflow.set_tracking_uri(None)
