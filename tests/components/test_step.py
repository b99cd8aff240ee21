"""What all steps share: artifacts as KFP's launcher takes them, status.json, the end of a step."""

from __future__ import annotations

import json

import pytest

from common import storage
from common.config import RunConfig
from common.errors import ClusterError, InterruptedRun
from common.run import Run
from components import step


@pytest.fixture
def run(tmp_path):
    return Run(config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id="pfn-00000000"))


def test_artifacts_keep_the_uri_that_kfp_gave_them(tmp_path):
    """The launcher refuses an artifact outside the pipeline root, after the step's work
    was done. It takes the one that it gave where the step names none (kfp 2.15.0
    backend/src/v2/component/launcher_v2.go:956).
    """
    place = {
        "name": "model",
        "uri": str(tmp_path / "root" / "model"),
        "type": {"schemaTitle": "system.Model"},
    }
    executor_input = {
        "outputs": {
            "artifacts": {"model": {"artifacts": [place]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        }
    }
    step.Artifacts(json.dumps(executor_input)).set(
        "model", metadata={"repository": "s3://elsewhere/model"}, content="{}"
    )
    artifact = json.loads((tmp_path / "executor_output.json").read_text())["artifacts"]["model"][
        "artifacts"
    ][0]
    assert artifact == {"metadata": {"repository": "s3://elsewhere/model"}}
    assert (tmp_path / "root" / "model").read_text() == "{}"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/root/model", "/s3/bucket/root/model"),
        ("minio://bucket/root/model", "/minio/bucket/root/model"),
        ("gs://bucket/root/model", "/gcs/bucket/root/model"),
        ("/runs/root/model", "/runs/root/model"),
    ],
)
def test_artifacts_are_written_where_the_launcher_mounts_them(uri, path):
    assert step._local_path(uri) == path


def test_a_step_without_kfp_writes_no_artifacts():
    step.Artifacts("").set("model", content="{}")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "done", ""),
        (ClusterError("no GPU"), "failed", "no GPU"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (InterruptedRun("stop"), "interrupted", "stopped by a signal"),
        (KeyboardInterrupt(), "interrupted", "stopped by a signal"),
    ],
)
def test_the_status_says_how_a_step_ended(run, error, state, reason):
    def body():
        assert storage.read_json(run.path("status.json"))["state"] == "running"
        if error:
            raise error

    if error:
        with pytest.raises(type(error)):
            step.with_status("search", run, body)
    else:
        step.with_status("search", run, body)
    status = storage.read_json(run.path("status.json"))
    assert (status["step"], status["state"], status["reason"]) == ("search", state, reason)


def test_a_folder_without_run_json_is_no_run(tmp_path, capsys):
    arguments = step.parser("search", "").parse_args(["--run", str(tmp_path)])
    assert step.main("search", arguments, lambda run: None) == 2
    assert "is not a run" in capsys.readouterr().err
