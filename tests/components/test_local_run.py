"""How a run on this machine ends: its exit code, and what it says to do next."""

from __future__ import annotations

import json
import time

import pytest

from common import storage
from common.config import RunConfig
from common.errors import ClusterError, InputError, InterruptedRun, JecError
from common.measurements import Interval
from common.records import ServiceRecord, StatusRecord
from common.run import Run
from components import host_runner
from components.local_run import LocalRun, _gain_text
from serving import restarts, triton
from serving.triton import Server
from tests.records import service_record

RUN_ID = "pfn-00000000"


@pytest.fixture
def local_run(tmp_path):
    """A run whose preparation has ended."""
    new_run = LocalRun(RunConfig(run_id=RUN_ID), tmp_path / "runs", serve=True)
    new_run.run = Run(config=new_run.config)
    new_run.run.save()
    new_run.uri_file = tmp_path / "uri"
    new_run.uri_file.write_text(new_run.run.uri)
    return new_run


@pytest.mark.parametrize(
    ("error", "code", "resumable"),
    [
        (InterruptedRun("told to stop"), 130, True),
        (host_runner.StepError("search", 1), 1, True),
        (host_runner.StepError("prepare", 2), 2, False),
        (ClusterError("no GPU"), 1, True),
        (InputError("no jets"), 2, False),
    ],
    ids=["stopped", "failed step", "refused in a step", "failed", "refused"],
)
def test_an_error_is_the_exit_code_and_names_the_run_to_resume(
    local_run, monkeypatch, capsys, error, code, resumable
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(host_runner, "run_pipeline", fail)
    monkeypatch.setattr("components.local_run.chain.compile_to", lambda path, config: path)
    monkeypatch.setattr(host_runner, "stop_signals", list)
    assert local_run() == code
    assert (f"--resume {RUN_ID}" in capsys.readouterr().err) == resumable
    interrupted = storage.exists(local_run.run.folder.status)
    assert interrupted == isinstance(error, InterruptedRun)


def test_a_run_whose_preparation_did_not_end_has_no_parameters_to_resume_with(local_run, capsys):
    local_run.run = None
    assert local_run._ended_badly(ClusterError("no GPU")) == 1
    assert f"the same command with --resume {RUN_ID}" in capsys.readouterr().err


def test_a_model_server_that_ends_too_often_ends_the_serving(local_run, monkeypatch):
    monkeypatch.setattr(restarts, "MAX_RESTARTS", 0)
    folder = local_run.output / RUN_ID / "local" / "services" / local_run.run.model_name
    folder.mkdir(parents=True)
    # Beyond the largest process id that Linux gives.
    (folder / "service.json").write_text(json.dumps({"pid": 2**22 + 1}))
    (folder / "server.log").write_text("it starts\nthe GPU is gone\n")
    start = time.monotonic()
    with pytest.raises(JecError, match=r"the GPU is gone"):
        local_run._keep_serving()
    assert time.monotonic() - start < 10
    status = StatusRecord.load(local_run.run.folder.status)
    assert (status.step, status.state) == ("pipeline", "failed")
    assert "the GPU is gone" in status.reason


def test_a_model_server_that_ends_is_started_again_and_the_records_say_so(
    local_run, monkeypatch, capsys
):
    run = local_run.run
    folder = local_run.output / RUN_ID / "local" / "services" / run.model_name
    folder.mkdir(parents=True)
    dead_server = {"pid": 2**22 + 1, "url": "http://127.0.0.1:8123"}
    (folder / "service.json").write_text(json.dumps(dead_server))
    service_record(
        run.model_name, url=dead_server["url"], details={"pid": dead_server["pid"]}
    ).save(run.folder.service)

    def start(repository, **options):
        assert (repository, options["model_name"]) == (run.folder.models, run.model_name)
        assert options["http_port"] == 8123
        return Server(pid=2**22 + 2, url=dead_server["url"], kind="triton", log="")

    monkeypatch.setattr(triton, "start", start)
    local_run._ensure_service()
    assert ServiceRecord.load(run.folder.service).details["pid"] == 2**22 + 2
    assert json.loads((folder / "service.json").read_text())["pid"] == 2**22 + 2
    assert dead_server["url"] in capsys.readouterr().out


def test_small_results_on_s3_are_copied_beside_the_logs(s3_bucket, tmp_path):
    local_run = LocalRun(
        RunConfig(run_id=RUN_ID, s3_bucket=f"{s3_bucket}/jec"), tmp_path, serve=False
    )
    local_run.run = Run(config=local_run.config)
    local_run.run.save()
    local_run._collect()
    assert [path.name for path in (tmp_path / RUN_ID).iterdir()] == ["run.json"]


def test_an_unmeasured_gain_is_not_printed_as_a_number():
    assert not any(character.isdigit() for character in _gain_text(None))
    assert "3.0" in _gain_text(Interval(value=3.0, low=2.0, high=4.0))
