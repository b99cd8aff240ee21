"""Following, asking, reading and removing runs: on a fake Kubeflow, on a fake cluster, on this
machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline
from clusters import operator as operator_module
from clusters import orphans
from clusters.kubernetes_service import describe
from clusters.protocol import RUN_LABEL, STEP_LABEL
from common import pids, storage
from common.config import RunConfig
from common.errors import ClusterError, DeadlineError, InputError
from common.records import TERMINATED, StatusRecord
from common.run import Run, make_run_id
from components import finish, step
from components.steps import NAMES
from operations import down as down_module
from operations import follow as follow_module
from operations import previous_run
from operations import status as status_module
from tests.clusters import conftest as clusters_conftest
from tests.clusters.contract import RUN_ID, experiment, job, service
from tests.clusters.controllers import Play
from tests.clusters.scripts import loss, node_of
from tests.components.argo import container_status, node, task_details
from tests.records import metrics_record, service_record
from tests.serving import conftest as serving_conftest
from tests.waiting import wait_until

fake, repository = clusters_conftest.fake, serving_conftest.repository  # fixtures of other rooms

BEST = {
    "name": "t-1",
    "status": "Succeeded",
    "parameters": {"k": "1"},
    "metrics": {"AvgLoss": {"min": 0.1, "max": 0.2, "latest": 0.1}},
}
SEARCH = {
    "experiment": "t",
    "objective": {"name": "AvgLoss", "type": "minimize"},
    "optimal": "t-1",
    "trials": [BEST],
}
METRICS = metrics_record().as_json()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(
        follow_module.follow, "__kwdefaults__", {"quiet": False, "poll": 0.01, "deadline": 60.0}
    )
    monkeypatch.setattr(down_module, "STEP_SECONDS", 0.01)
    monkeypatch.setattr(down_module, "POLL", 0.01)
    monkeypatch.setattr(operator_module.Operator.__init__, "__kwdefaults__", {"poll": 0.02})


def kfp_run(kfp, *states: str | None, bucket: str = "s3://none/jec", **values) -> tuple[str, str]:
    """Add a run to the fake server; returns Kubeflow's id of the run, and ours.

    Each request for the run returns the next of `states`.
    """
    config = RunConfig(s3_bucket=bucket, namespace="physics", **values)
    number = "00000000-0000-4000-8000-00000000000" + str(len(kfp.runs))
    tasks = task_details({"prepare": "SUCCEEDED", "search": "RUNNING"})
    kfp.runs.append(
        {
            "run_id": number,
            "state": states[0],
            "runtime_config": {"parameters": config.parameters()},
            "run_details": {"task_details": tasks},
        }
    )
    kfp.states[number] = list(states)
    return number, make_run_id(config.network_config, number)


def local_run(tmp_path: Path, **files) -> Run:
    run = Run(config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id=RUN_ID))
    run.save()
    for name, content in files.items():
        (tmp_path / "runs" / RUN_ID / f"{name}.json").write_text(json.dumps(content))
    return run


def main(tmp_path: Path, *args: str) -> int:
    return pipeline.main([*args, "--output", str(tmp_path / "runs")])


# Following
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "code", "word"),
    [("SUCCEEDED", 0, "succeeded"), ("FAILED", 1, "failed"), ("CANCELED", 1, "terminated")],
)
def test_a_run_is_followed_to_its_end_through_temporary_errors(
    kfp, tmp_path, capsys, last, code, word
):
    _, run_id = kfp_run(kfp, "PENDING", "RUNNING", "RUNNING", last, bucket=str(tmp_path / "runs"))
    run = Run(config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id=run_id))
    run.save()
    folder = tmp_path / "runs" / run_id
    (folder / "search.json").write_text(json.dumps(SEARCH))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    assert main(tmp_path, "--status", run_id, "--follow", "--host", kfp.url) == code
    text = capsys.readouterr().out
    assert "[prepare] succeeded" in text
    assert text.count("[search] running") == 1
    assert f"run {run_id} {word}: " in text
    assert "\n1 trial, best t-1: AvgLoss 0.10000" in text
    assert "+3.0 % [2.0, 4.0]" in text


def test_an_unreachable_server_is_waited_for_up_to_a_limit(kfp, tmp_path, capsys, monkeypatch):
    _, run_id = kfp_run(kfp, "RUNNING", "RUNNING", "SUCCEEDED")
    monkeypatch.setattr(follow_module, "PATIENCE", 0.0)
    target = _target(kfp, tmp_path, run_id)
    kfp.failures = [500]
    with pytest.raises(
        DeadlineError, match=r"The run goes on; to follow it again: python pipeline.py --status"
    ):
        follow_module.follow(target, target.kubeflow)
    monkeypatch.setattr(follow_module, "PATIENCE", 60.0)
    kfp.failures = [500, 503]
    assert follow_module.follow(target, target.kubeflow) == 0
    assert "trying again" in capsys.readouterr().out


def _target(kfp, tmp_path, run_id):
    from operations.commands import locate

    args = pipeline.build_parser().parse_args(
        ["--host", kfp.url, "--output", str(tmp_path / "runs")]
    )
    return locate(run_id, args)


def test_a_run_that_does_not_end_is_not_followed_for_ever(kfp, tmp_path):
    _, run_id = kfp_run(kfp, "RUNNING")
    target = _target(kfp, tmp_path, run_id)
    with pytest.raises(DeadlineError, match=r"did not end within any deadline of its steps"):
        follow_module.follow(target, target.kubeflow, deadline=0.1)


# Asking
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "message"),
    [
        (
            {"namespace": "physics"},
            ("  was deployed as pfn at http://x (kserve); whether it still serves was not checked"),
        ),
        (
            {"pid": 2**22 + 1},
            (
                "  was served as pfn at http://x (kserve), which has ended; --resume with --serve"
                " starts it again"
            ),
        ),
    ],
)
def test_an_ended_service_is_not_shown_as_running(tmp_path, capsys, details, message):
    local_run(tmp_path, service=service_record("pfn", details=details).as_json())
    main(tmp_path, "--status", RUN_ID)
    assert message in capsys.readouterr().out.splitlines()


def test_the_status_of_a_run_here_says_where_it_was_killed(tmp_path, capsys):
    run = local_run(tmp_path, search=SEARCH)
    step.write_status(run, "prepare", "done")
    step.write_status(run, "search", "done")
    step.write_status(run, "export", "running")
    assert main(tmp_path, "--status", RUN_ID) == 0
    text = capsys.readouterr().out
    assert "was running when it was killed" in text
    assert "best t-1" in text
    assert "not seen: Kubeflow Pipelines: no --host" in text
    step.write_status(run, "export", "failed", "no such trial")
    assert main(tmp_path, "--status", RUN_ID) == 1
    assert "no such trial" in capsys.readouterr().out


def test_the_status_as_json_has_the_same_facts(tmp_path, capsys):
    run = local_run(tmp_path, search=SEARCH)
    step.write_status(run, "prepare", "done")
    step.write_status(run, "search", "failed", "no such trial\nand more")
    assert main(tmp_path, "--status", RUN_ID, "--json") == 1
    status_json = json.loads(capsys.readouterr().out)
    assert (status_json["run_id"], status_json["state"], status_json["failed"]) == (
        RUN_ID,
        "failed",
        True,
    )
    steps = [(entry["name"], entry["state"], entry["reason"]) for entry in status_json["steps"]]
    assert steps == [("prepare", "done", ""), ("search", "failed", "no such trial\nand more")]
    assert status_json["results"]["best_trial"] == "t-1"
    assert status_json["results"]["gate_passed"] is None
    assert any("Kubeflow" in reason for reason in status_json["not_seen"])


def test_the_status_on_a_cluster_names_waiting_pods_with_reasons(fake, kfp, tmp_path, capsys):
    backend = fake(node_of(loss(0.1), Play(pending="unschedulable")))
    with pytest.raises(DeadlineError):
        backend.run_experiment(experiment(["0.1", "0.2"]), deadline=0.5)
    assert main(tmp_path, "--status", RUN_ID) == 0
    text = capsys.readouterr().out
    assert "running: 1/2 trials, 1 running, best AvgLoss 0.1" in text
    assert (
        "waits: no node takes it: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu." in text
    )


def test_an_unknown_run_is_an_error(tmp_path, capsys):
    local_run(tmp_path)
    step.write_status(Run.load(str(tmp_path / "runs" / RUN_ID)), "prepare", "done")
    for command in (["--status"], ["--logs"]):
        assert main(tmp_path, *command, "pfn-0a1b2c3e") == 2
        assert f"did you mean '{RUN_ID}'?" in capsys.readouterr().err


def ended_run(kfp, tmp_path: Path, states: dict[str, str | None]) -> Run:
    """A run with a local folder that ended as FAILED on Kubeflow.

    states: step -> its final state on Kubeflow, None for an omitted one.
    """
    number, run_id = kfp_run(kfp, "FAILED", bucket=str(tmp_path / "runs"))
    kfp.runs[-1]["run_details"] = {"task_details": task_details(states)}
    run = Run(config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id=run_id))
    run.save()
    step.write_status(run, "prepare", "done", job_id=number)
    return run


def step_states(text: str) -> dict[str, str]:
    """Parse the section on steps in the output of --status: step -> the state shown."""
    section = text.split("\nsteps\n")[1].split("\n\n", maxsplit=1)[0]
    lines = [line for line in section.splitlines() if line.startswith("  ")]
    return {line.split()[0]: line.split()[1] for line in lines}


STATES = {"prepare": "SUCCEEDED", "search": "FAILED", "export": None, "finish": "SUCCEEDED"}


@pytest.mark.parametrize(
    ("state", "reason", "word", "step_state"),
    [
        # `finish` did not run, so that status.json still says "running"
        ("running", "", "failed", "failed"),
        ("interrupted", TERMINATED, "terminated", "interrupted"),
        ("interrupted", "the step's pod was evicted", "failed", "interrupted"),
        ("failed", "no GPU is free", "failed", "failed"),
    ],
)
@pytest.mark.parametrize("follow", [False, True])
def test_the_status_combines_kubeflow_and_the_runs_folder(
    kfp, tmp_path, capsys, follow, state, reason, word, step_state
):
    run = ended_run(kfp, tmp_path, STATES)
    job_id = kfp.runs[-1]["run_id"]
    step.write_status(run, "search", state, reason, job_id=job_id)
    flags = ["--follow"] if follow else []
    assert main(tmp_path, "--status", run.id, *flags, "--host", kfp.url) == 1
    text = capsys.readouterr().out
    if follow:
        assert f"run {run.id} {word}: " in text
        assert text.splitlines()[-1].startswith(f"search {step_state}: {reason}")
    else:
        assert step_states(text) == {
            "prepare": "done",
            "search": step_state,
            "export": "omitted",
            "finish": "done",
        }
        assert f"\n  {word}: http" in text
        assert reason in text


def test_the_last_line_is_the_command_that_resumes(kfp, tmp_path, capsys, monkeypatch):
    run = ended_run(kfp, tmp_path, STATES)
    job_id = kfp.runs[-1]["run_id"]
    step.write_status(run, "search", "running", job_id=job_id)
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    summary = finish.finish(run.uri, step.Artifacts(""), job_id)
    assert summary.resume
    for flags in ([], ["--follow"]):
        main(tmp_path, "--status", run.id, *flags, "--host", kfp.url)
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        (line,) = [line for line in lines if line.startswith("to resume it: ")]
        words = shlex.split(line.removeprefix("to resume it: "))
        assert words[:2] == ["python", "pipeline.py"]
        args = pipeline.build_parser().parse_args(words[2:])
        assert (args.host, args.resume) == (kfp.url, run.id)
        assert args.s3_bucket == str(tmp_path / "runs")
    assert lines[-1] == line
    # After Retry in the UI finish does not run again, and its summary is of the first end.
    record = StatusRecord.load(run.folder.status)
    dataclasses.replace(record, time="2099-01-01T00:00:00+00:00").save(run.folder.status)
    main(tmp_path, "--status", run.id, "--follow", "--host", kfp.url)
    assert f"--resume {run.id}" not in capsys.readouterr().out


@pytest.mark.parametrize("deployed", [False, True], ids=["refused", "deployed"])
def test_a_deployment_that_the_gate_refused_is_shown_as_omitted(kfp, tmp_path, capsys, deployed):
    """Its pod has run and ended well, as that of a deployment that was made."""
    run = ended_run(kfp, tmp_path, dict.fromkeys(NAMES, "SUCCEEDED"))
    number = kfp.runs[-1]["run_id"]
    kfp.runs[-1]["state"], kfp.states[number] = "SUCCEEDED", ["SUCCEEDED"]
    # a former job of this run has deployed
    step.write_status(run, "deploy", "done", job_id="earlier")
    for name in NAMES[1:4]:
        step.write_status(run, name, "done", job_id=number)
    if deployed:
        step.write_status(run, "deploy", "done", job_id=number)
    metrics_record(passed=deployed, reasons=["closure 3 %"]).save(run.folder.metrics)
    assert main(tmp_path, "--status", run.id, "--host", kfp.url) == 0
    text = capsys.readouterr().out
    states = {**dict.fromkeys(NAMES, "done"), "deploy": "done" if deployed else "omitted"}
    assert step_states(text) == states
    assert ("gate not passed: closure 3 %" in text) == (not deployed)
    assert main(tmp_path, "--status", run.id, "--follow", "--host", kfp.url) == 0
    text = capsys.readouterr().out
    assert ("[deploy] omitted" in text) == (not deployed)
    assert ("[deploy] succeeded" in text) == deployed


def test_after_a_retry_the_steps_are_updated_and_finish_is_from_the_first_attempt(
    kfp, tmp_path, capsys, monkeypatch
):
    """Retry in the UI keeps the run id, and does not run `finish` again (seen with KFP 2.15.0)."""
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    run = ended_run(kfp, tmp_path, {"prepare": "FAILED", "search": None, "finish": "SUCCEEDED"})
    number = kfp.runs[-1]["run_id"]
    step.write_status(run, "prepare", "failed", "no file a.root", job_id=number, retryable=False)
    finish.finish(run.uri, step.Artifacts(""), number)
    assert main(tmp_path, "--status", run.id, "--host", kfp.url) == 1
    assert "did not clean up" not in capsys.readouterr().out

    def status_after_retry(state: str, tasks: dict[str, str | None], name: str, own: str) -> str:
        """The output of --status a while after the retry.

        state, tasks: of the run and its steps on Kubeflow. name, own: a step, and the state that it
        writes into status.json.
        """
        kfp.runs[-1]["state"], kfp.states[number] = state, [state]
        details = task_details({**tasks, "finish": "SUCCEEDED"})
        kfp.runs[-1]["run_details"] = {"task_details": details}
        step.write_status(run, name, own, "no GPU" if own == "failed" else "", job_id=number)
        record = StatusRecord.load(run.folder.status)
        dataclasses.replace(record, time="2099-01-01T00:00:00+00:00").save(run.folder.status)
        code = main(tmp_path, "--status", run.id, "--host", kfp.url)
        assert code == (state == "FAILED")
        return capsys.readouterr().out

    text = status_after_retry("RUNNING", {"prepare": "RUNNING"}, "prepare", "running")
    assert step_states(text)["prepare"] == "running"
    assert "no file a.root" not in text
    text = status_after_retry("RUNNING", {"prepare": "SUCCEEDED"}, "prepare", "done")
    assert step_states(text)["prepare"] == "done"
    states = {"prepare": "SUCCEEDED", "search": "FAILED"}
    text = status_after_retry("FAILED", states, "search", "failed")
    assert step_states(text) == {"prepare": "done", "search": "failed", "finish": "done"}
    assert "no file a.root" not in text
    # `finish` did not run after the second failure, so the user must clean up
    (line,) = [line for line in text.splitlines() if "did not clean up" in line]
    assert f"--down {run.id}" in line
    text = status_after_retry("SUCCEEDED", dict.fromkeys(NAMES, "SUCCEEDED"), "deploy", "done")
    assert step_states(text) == dict.fromkeys(NAMES, "done")
    assert "\nreason\n" not in text


def test_a_placeholder_of_an_earlier_version_is_replaced():
    before = "python pipeline.py --host https://KUBEFLOW/pipeline --s3-bucket s3://b --resume r"
    after = "python pipeline.py --s3-bucket s3://b --resume r --host http://kfp"
    assert status_module.with_flags(before, ["--host", "http://kfp"]) == after
    now = "python pipeline.py --resume r --s3-bucket s3://b  # add --host as for the first run"
    after = "python pipeline.py --resume r --s3-bucket s3://b --host http://kfp"
    assert status_module.with_flags(now, ["--host", "http://kfp"]) == after


@pytest.mark.parametrize("finish_state", ["SUCCEEDED", "FAILED", None])
def test_a_run_that_lost_its_exit_handler_says_what_removes_its_objects(
    kfp, tmp_path, capsys, finish_state
):
    states = {"prepare": "SUCCEEDED", "search": "FAILED", "finish": finish_state}
    run = ended_run(kfp, tmp_path, states)
    flags = ["--host", kfp.url, "--steps-account", "runner"]
    assert main(tmp_path, "--status", run.id, *flags) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    removes = [line for line in lines if line.startswith("finish did not clean up")]
    assert bool(removes) == (finish_state != "SUCCEEDED")
    for line in removes:
        words = shlex.split(line.partition("python pipeline.py ")[2])
        args = pipeline.build_parser().parse_args(words)
        assert (args.down, args.host, args.steps_account) == (run.id, kfp.url, "runner")


REFUSED = "failed calling webhook mutator.pod.katib.kubeflow.org: context deadline exceeded"


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    ("path", "states", "name"),
    [
        # as seen with KFP 2.15.0 and Argo 3.7.3: no task of a step is listed at all
        ("root-driver", {}, "prepare"),
        ("root.exit-handler-1-driver", {}, "prepare"),
        ("root.exit-handler-1.search-driver", {"prepare": "SUCCEEDED", "search": None}, "search"),
        (
            "root.exit-handler-1.search.executor(0)",
            {"prepare": "SUCCEEDED", "search": "FAILED"},
            "search",
        ),
        (
            "root.exit-handler-1.condition-2-driver",
            dict.fromkeys(("prepare", "search", "export", "evaluate"), "SUCCEEDED"),
            "deploy",
        ),
        (
            "root.exit-handler-1.onExit.finish-driver",
            {"prepare": "SUCCEEDED", "search": "FAILED", "finish": None},
            "finish",
        ),
    ],
)
def test_kubeflow_alone_reports_a_pod_that_could_not_be_created(
    kfp, tmp_path, capsys, follow, path, states, name
):
    """Without a cluster, and without a word of the run's own."""
    number, run_id = kfp_run(kfp, "FAILED", bucket=str(tmp_path / "runs"))
    kfp.runs[-1]["run_details"] = {"task_details": task_details(states)}
    kfp.workflows[number] = {"spec": {}, "status": {"nodes": {"1": node(path, "Error", REFUSED)}}}
    flags = ["--follow"] if follow else []
    assert main(tmp_path, "--status", run_id, *flags, "--host", kfp.url) == 1
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line.startswith(f"{name} failed: ") and REFUSED in line]
    if not follow:
        assert step_states(text)[name] == "failed"


def test_the_status_says_that_a_run_was_terminated_before_any_step(kfp, tmp_path, capsys):
    """Seen with KFP 2.15.0: terminate within 10 s; the exit handler does not run."""
    run = ended_run(kfp, tmp_path, {})
    step.write_status(run, "prepare", "failed", "of an earlier job", job_id="earlier")
    finish.summarise(run.uri, "earlier").save(run.folder.summary)
    driver = node("root.exit-handler-1-driver", "Failed", "Step exceeded its deadline")
    flow = {"spec": {"activeDeadlineSeconds": 0}, "status": {"nodes": {"1": driver}}}
    kfp.workflows[kfp.runs[-1]["run_id"]] = flow
    assert main(tmp_path, "--status", run.id, "--host", kfp.url) == 1
    text = capsys.readouterr().out
    assert "\n  terminated: http" in text
    reasons = text.split("\nreason\n")[1].split("\n\n")[0]
    assert TERMINATED in reasons
    assert "of an earlier job" not in reasons


CAUSES = "experiment x failed\n  1 x OOMKilled (exit code 137)\nlast lines of pod p:\n  | Killed"


def test_the_cause_of_a_failure_is_shown_below_its_first_line(kfp, tmp_path, capsys):
    run = ended_run(kfp, tmp_path, STATES)
    job_id = kfp.runs[-1]["run_id"]
    step.write_status(run, "search", "failed", CAUSES, job_id=job_id)
    for flags in ([], ["--follow"]):
        main(tmp_path, "--status", run.id, *flags, "--host", kfp.url)
        assert "1 x OOMKilled" in capsys.readouterr().out
    here = local_run(tmp_path)
    step.write_status(here, "search", "failed", "\n".join([CAUSES] * 20))
    assert main(tmp_path, "--status", RUN_ID) == 1
    text = capsys.readouterr().out
    assert "1 x OOMKilled" in text
    assert text.count("x OOMKilled") < 5, "a long log is cut"


def test_a_run_that_kubeflow_no_longer_knows_is_not_shown_as_running(kfp, tmp_path, capsys):
    run = local_run(tmp_path)
    step.write_status(run, "prepare", "done", job_id="00000000-0000-4000-8000-000000000009")
    step.write_status(run, "search", "running", job_id="00000000-0000-4000-8000-000000000009")
    assert main(tmp_path, "--status", RUN_ID, "--host", kfp.url) == 1
    text = capsys.readouterr().out
    assert f"no run with this id at {kfp.url}" in text
    assert "search    running" not in text
    # one that has ended well may be deleted
    step.write_status(run, "search", "done", job_id="00000000-0000-4000-8000-000000000009")
    assert main(tmp_path, "--status", RUN_ID, "--host", kfp.url) == 0
    # a run of this machine was never there
    step.write_status(run, "prepare", "done")
    step.write_status(run, "search", "done")
    main(tmp_path, "--status", RUN_ID, "--host", kfp.url)
    assert "no run with this id" not in capsys.readouterr().out.split("run pfn")[-1]


def test_an_error_of_the_server_does_not_mean_an_unknown_run(kfp, tmp_path, capsys):
    number, _ = kfp_run(kfp, "RUNNING")
    kfp.failures = [500]
    assert main(tmp_path, "--status", number, "--host", kfp.url) == 2
    assert "500" in capsys.readouterr().err


def test_a_run_without_a_state_is_reported_once(kfp, tmp_path, capsys, monkeypatch):
    """Seen with KFP 2.15.0 while its persistence agent is down: no state, no tasks."""
    number, run_id = kfp_run(kfp, None, None, None, None, None, None, None, "SUCCEEDED")
    kfp.runs[-1]["run_details"] = None
    assert main(tmp_path, "--status", run_id, "--host", kfp.url) == 0
    assert "  no state yet: http" in capsys.readouterr().out
    monkeypatch.setattr(follow_module, "SILENCE", 0.0)
    assert main(tmp_path, "--status", number, "--follow", "--host", kfp.url) == 0
    assert capsys.readouterr().out.count("no state for") == 1


def test_an_unreachable_server_is_reported_in_one_line(kfp, tmp_path, caplog, capsys):
    _, run_id = kfp_run(kfp, "RUNNING")
    target = _target(kfp, tmp_path, run_id)
    kfp._server.shutdown()
    kfp._server.server_close()
    with pytest.raises(ClusterError, match="no Kubeflow Pipelines answers"):
        target.kubeflow.refresh()
    assert [record for record in caplog.records if record.name.startswith("urllib3")] == []


@pytest.mark.parametrize(
    ("owner", "begins", "message"),
    [
        (RUN_ID, "served as jec-pfn at ", ""),
        ("other-00000000", "was served as jec-pfn at ", "other-00000000"),
        (None, "was served as jec-pfn at ", "removed"),
    ],
)
def test_the_status_shows_the_service_as_the_cluster_has_it(
    fake, tmp_path, capsys, owner, begins, message
):
    backend = fake(node_of(Play(seconds=math.inf)))
    record = service_record("jec-pfn", details={"namespace": "physics"})
    local_run(tmp_path, service=record.as_json())
    if owner:
        backend.deploy(service(run_id=owner))
    main(tmp_path, "--status", RUN_ID)
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "at http://x" in text]
    assert line.strip().startswith(begins)
    assert message in line
    backend.api.forbid("get", "inferenceservices")
    main(tmp_path, "--status", RUN_ID)
    assert "  was deployed as jec-pfn at http://x" in capsys.readouterr().out


def test_an_earlier_jobs_status_is_not_followed_before_it_changes(fake, kfp, tmp_path, capsys):
    _, run_id = kfp_run(kfp, "RUNNING", bucket=str(tmp_path / "runs"))
    backend = fake(node_of(loss(0.1), loss(0.2), Play(seconds=math.inf)))
    about = {"name": run_id, "run_id": run_id, "resumePolicy": "LongRunning", "parallel": 1}
    losses = ["0.1", "0.2", "0.3"]
    first = experiment(losses, maxTrialCount=1, failure_limit=1, **about)
    backend.run_experiment(first)
    target = _target(kfp, tmp_path, run_id)
    screen = follow_module.Screen()

    def look(states) -> str:
        kfp.runs[-1]["run_details"] = {"task_details": task_details(states)}
        target.kubeflow.refresh()
        follow_module.show_changes(target, target.kubeflow, screen)
        return capsys.readouterr().out

    assert "Experiment" not in look({"prepare": "RUNNING"})
    # Katib takes a moment until it reports that the search runs again
    assert "Experiment" not in look({"prepare": "SUCCEEDED", "search": "RUNNING"})
    more = experiment(losses, **about)
    with pytest.raises(DeadlineError):
        backend.run_experiment(more, deadline=1.0)
    assert f"Experiment {run_id}: running: " in look({"prepare": "SUCCEEDED", "search": "RUNNING"})


def test_a_failed_trial_is_shown_with_its_own_error(fake, tmp_path, capsys):
    backend = fake()
    local_run(tmp_path)
    containers = [container_status("pytorch", 1)]
    labels = {RUN_LABEL: RUN_ID, STEP_LABEL: "search"}
    with backend.api.lock:
        spec = {"containers": [{"name": "pytorch"}]}
        pod = {"metadata": {"name": "t-1-master-0", "labels": labels}, "spec": spec}
        stored_pod = backend.api.create("pods", pod)
        stored_pod["status"] = {"phase": "Failed", "containerStatuses": containers}
        log = "epoch 1\nerror: the loss is not finite\n"
        backend.api.logs[stored_pod["metadata"]["uid"], "pytorch", False] = log
    main(tmp_path, "--status", RUN_ID)
    assert "exit code 1: error: the loss is not finite" in capsys.readouterr().out


def test_a_failed_attempt_is_shown_while_kubeflow_makes_the_next(kfp, tmp_path, capsys):
    run = ended_run(kfp, tmp_path, {"prepare": "RUNNING"})
    job_id = kfp.runs[-1]["run_id"]
    kfp.states[job_id] = ["RUNNING"]
    step.write_status(run, "prepare", "failed", "no file a.root", job_id=job_id)
    assert main(tmp_path, "--status", run.id, "--host", kfp.url) == 0
    text = capsys.readouterr().out
    assert step_states(text) == {"prepare": "running"}
    assert "no file a.root" in text


def test_an_earlier_jobs_records_are_not_shown_for_this_job(kfp, tmp_path, capsys):
    run = ended_run(kfp, tmp_path, {"prepare": "SUCCEEDED", "search": "FAILED"})
    step.write_status(run, "search", "interrupted", TERMINATED, job_id="another")
    main(tmp_path, "--status", run.id, "--host", kfp.url)
    text = capsys.readouterr().out
    assert step_states(text)["search"] == "failed"
    assert "terminated" not in text


# Logs
# ------------------------------------------------------------------------------------------------


def test_logs_of_pods_are_shown_by_step_and_by_trial(fake, tmp_path, capsys):
    backend = fake(
        node_of(loss(0.1, log="epoch 1\n"), loss(0.2, log="epoch 2\n"), Play(log="exported\n"))
    )
    backend.run_experiment(experiment(["0.1", "0.2"], parallel=1))
    backend.run_job(job("pass"))
    assert main(tmp_path, "--logs", RUN_ID) == 0
    assert {"epoch 1", "epoch 2", "exported"} <= set(capsys.readouterr().out.splitlines())
    assert main(tmp_path, "--logs", RUN_ID, "export") == 0
    assert "epoch" not in capsys.readouterr().out
    assert main(tmp_path, "--logs", RUN_ID, backend.api.all("trials")[1]["metadata"]["name"]) == 0
    assert "epoch 2" in capsys.readouterr().out
    assert main(tmp_path, "--logs", RUN_ID, "exprot") == 2
    assert "did you mean 'export'" in capsys.readouterr().err


def test_logs_of_this_machine_are_shown(tmp_path, capsys):
    local_run(tmp_path)
    folder = tmp_path / "runs" / RUN_ID / "local"
    texts = {
        "jobs/a-export/master-0.log": "exported",
        "search/x/t-1/master-0.log": "epoch 1",
        "services/m/server.log": "up",
    }
    for place, text in texts.items():
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_text(text + "\n")
    assert main(tmp_path, "--logs", RUN_ID, "export") == 0
    text = capsys.readouterr().out
    assert "exported" in text
    assert "epoch" not in text
    assert main(tmp_path, "--logs", RUN_ID, "t-1") == 0
    assert "epoch 1" in capsys.readouterr().out
    assert main(tmp_path, "--logs", RUN_ID) == 0
    assert "up" in capsys.readouterr().out


# Removal
# ------------------------------------------------------------------------------------------------


def test_down_ends_the_run_on_kubeflow_then_removes_its_objects_and_may_be_repeated(
    fake, kfp, tmp_path, capsys
):
    number, run_id = kfp_run(kfp, "RUNNING")
    backend = fake(node_of(Play(seconds=math.inf)))
    with pytest.raises(DeadlineError):
        backend.run_experiment(experiment(["0.1", "0.2"], name=run_id, run_id=run_id), deadline=0.4)
    backend.deploy(service(run_id=run_id))
    backend.deploy(service(name="other", run_id="other-00000000"))
    assert main(tmp_path, "--down", number, "--yes", "--host", kfp.url) == 0
    text = capsys.readouterr().out
    order = [
        "terminated on Kubeflow Pipelines",
        f"removed Experiment/{run_id}",
        "removed InferenceService/jec-pfn",
    ]
    assert [text.index(line) for line in order] == sorted(text.index(line) for line in order)
    assert kfp.runs[0]["state"] == "CANCELING"
    assert not backend.api.all("experiments") + backend.api.all("pytorchjobs")
    assert [thing["metadata"]["name"] for thing in backend.api.all("inferenceservices")] == [
        "other"
    ]
    assert main(tmp_path, "--down", run_id, "--yes", "--host", kfp.url) == 0
    assert f"nothing of run {run_id} is left" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--status"], ["--status", "--json"], ["--down", "--yes"]])
def test_a_run_is_not_reported_as_removed_if_no_place_could_be_asked(
    tmp_path, capsys, monkeypatch, flags
):
    def no_credentials(*_):
        raise InputError("no S3 credentials")

    monkeypatch.setattr(previous_run, "run_folder", no_credentials)
    command, *others = flags
    where = ["--host", "http://127.0.0.1:9", "--s3-bucket", "s3://none/jec"]
    assert main(tmp_path, command, "pfn-0123abcd", *others, *where) == 1
    text = capsys.readouterr().out
    assert "no S3 credentials" in text
    assert "is left" not in text


@pytest.fixture
def no_shared_s3_client():
    """Forget the S3 client after the test, because it was made with this test's AWS variables."""
    yield
    storage.forget_client()


@pytest.mark.usefixtures("no_shared_s3_client")
@pytest.mark.parametrize("storage_too", [False, True])
def test_down_waits_for_the_end_of_a_run_only_if_it_removes_the_folder(
    fake, kfp, tmp_path, capsys, monkeypatch, s3_bucket, s3_server, storage_too
):
    """A terminated run ends a minute later (seen with KFP 2.15.0).

    Until then a step may create objects, which --down must remove too.
    """
    bucket = f"{s3_bucket}/jec"
    number, run_id = kfp_run(kfp, "RUNNING", bucket=bucket, s3_endpoint=s3_server)
    Run(config=RunConfig(s3_bucket=bucket, s3_endpoint=s3_server, run_id=run_id)).save()
    kfp.canceling_looks = 50
    backend = fake(node_of(Play(seconds=math.inf)))
    sleeps = []

    def step_makes_a_job(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 1:
            manifest = experiment(["0.1"], name=run_id, run_id=run_id)
            with pytest.raises(DeadlineError):
                backend.run_experiment(manifest, deadline=0.2)

    clock = SimpleNamespace(sleep=step_makes_a_job, monotonic=time.monotonic)
    monkeypatch.setattr(down_module, "time", clock)
    flags = ["--storage"] if storage_too else []
    assert main(tmp_path, "--down", number, "--yes", "--host", kfp.url, *flags) == 0
    assert not backend.api.all("experiments") + backend.api.all("pytorchjobs")
    assert (len(sleeps) > 40) == storage_too
    assert ("finish" in capsys.readouterr().out.splitlines()[-1]) != storage_too


@pytest.mark.usefixtures("no_shared_s3_client")
@pytest.mark.parametrize("set_here", [None, "http://127.0.0.1:9"])
def test_commands_use_the_endpoint_of_the_run(
    kfp, tmp_path, capsys, monkeypatch, s3_bucket, s3_server, set_here
):
    """Not Amazon's, and not another one that this machine is set to."""
    bucket = f"{s3_bucket}/jec"
    number, run_id = kfp_run(kfp, "SUCCEEDED", bucket=bucket, s3_endpoint=s3_server)
    run = Run(config=RunConfig(s3_bucket=bucket, s3_endpoint=s3_server, run_id=run_id))
    run.save()
    step.write_status(run, "prepare", "done")

    def elsewhere():
        for name in ("AWS_ENDPOINT_URL", "S3_ENDPOINT"):
            monkeypatch.delenv(name, raising=False)
        if set_here:
            monkeypatch.setenv("AWS_ENDPOINT_URL", set_here)
        storage.forget_client()

    elsewhere()
    assert main(tmp_path, "--status", number, "--host", kfp.url) == 0
    text = capsys.readouterr().out
    assert f"run {run_id} in {bucket}/{run_id}" in text
    assert "not seen: storage" not in text
    elsewhere()
    assert main(tmp_path, "--down", run_id, "--storage", "--yes", "--host", kfp.url) == 0
    assert f"files of {bucket}/{run_id}" in capsys.readouterr().out
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    storage.forget_client()
    assert storage.entries(f"{bucket}/{run_id}") == []


def test_the_command_that_follows_again_names_every_address_of_the_run(
    kfp, tmp_path, s3_bucket, s3_server
):
    bucket = f"{s3_bucket}/jec"
    _, run_id = kfp_run(kfp, "RUNNING", bucket=bucket, s3_endpoint=s3_server)
    target = _target(kfp, tmp_path, run_id)
    with pytest.raises(DeadlineError) as late:
        follow_module.follow(target, target.kubeflow, deadline=0.1)
    again = shlex.split(str(late.value).split("to follow it again: ")[1])
    args = pipeline.build_parser().parse_args(again[2:])
    assert (args.status, args.host, args.follow) == (run_id, kfp.url, True)
    assert (args.s3_bucket, args.s3_endpoint) == (bucket, s3_server)
    assert args.namespace == "physics"


def test_down_lists_remaining_objects_and_then_keeps_the_folder(
    fake, tmp_path, capsys, monkeypatch
):
    from clusters import kubernetes_objects

    local_run(tmp_path)
    monkeypatch.setattr(kubernetes_objects, "REMOVAL_SECONDS", 0.3)
    backend = fake()
    manifest = job("pass")
    manifest["metadata"]["finalizers"] = ["example.org/never"]
    backend.run_job(manifest)
    assert main(tmp_path, "--down", RUN_ID, "--yes", "--storage") == 1
    output = capsys.readouterr()
    assert "waiting for its finalizers: example.org/never" in output.err
    assert "kept, because something of the run may still write to it" in output.err
    assert (tmp_path / "runs" / RUN_ID / "run.json").exists()


def test_down_without_the_right_is_an_error(fake, tmp_path, capsys):
    backend = fake(node_of(loss(0.1)))
    backend.run_experiment(experiment(["0.1"]))
    backend.api.forbid("delete", "experiments")
    assert main(tmp_path, "--down", RUN_ID, "--yes") == 1
    assert "not allowed to delete experiments.kubeflow.org" in capsys.readouterr().err


def test_down_asks_once_and_no_answer_means_no(tmp_path, capsys, monkeypatch):
    local_run(tmp_path)
    assert main(tmp_path, "--down", RUN_ID, "--storage") == 2
    assert "repeat the command with --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert main(tmp_path, "--down", RUN_ID, "--storage") == 1
    assert (tmp_path / "runs" / RUN_ID).exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    (tmp_path / "runs" / "latest").symlink_to(RUN_ID)
    assert main(tmp_path, "--down", RUN_ID, "--storage") == 0
    assert not (tmp_path / "runs" / RUN_ID).exists()
    assert not (tmp_path / "runs" / "latest").is_symlink()
    assert main(tmp_path, "--down", RUN_ID, "--storage") == 0


def test_down_finds_processes_that_a_killed_run_left(tmp_path, capsys):
    """A step that was started by a run and whose starter was killed: nothing but its environment
    tells whose it is.
    """
    run = local_run(tmp_path)
    step.write_status(run, "search", "running")
    code = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time;"
        " time.sleep(60)']); time.sleep(60)"
    )
    marks = {orphans.RUN_VARIABLE: RUN_ID, orphans.FOLDER_VARIABLE: str(tmp_path / "runs")}
    process_of_run = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **marks}, start_new_session=True
    )
    others = {**os.environ, **marks, orphans.RUN_VARIABLE: "other-00000000"}
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=others)
    try:
        wait_until(lambda: len(orphans.processes_of(RUN_ID, tmp_path / "runs")) == 2)
        assert main(tmp_path, "--status", RUN_ID) == 0
        assert f"{process_of_run.pid}" in capsys.readouterr().out
        assert main(tmp_path, "--down", RUN_ID, "--yes") == 0
        assert orphans.processes_of(RUN_ID, tmp_path / "runs") == {}
        assert other.poll() is None
    finally:
        for process in (process_of_run, other):
            process.kill()
            process.wait()


SERVE = """
import sys, time
from clusters.local import LocalCluster
from serving import triton
from tests.clusters.contract import service
from tests.serving.conftest import NAME
manifest = service(NAME, uri=sys.argv[2])
LocalCluster(sys.argv[1], servers=triton).deploy(
    manifest, check=lambda service: None, backup="", deadline=60, report=print
)
print("up", flush=True)
time.sleep(60)
"""


def test_down_ends_a_model_server_that_its_killed_run_had_not_recorded(tmp_path, repository):
    local_run(tmp_path)
    runs = tmp_path / "runs"
    environment = {
        **os.environ,
        orphans.RUN_VARIABLE: RUN_ID,
        orphans.FOLDER_VARIABLE: str(runs),
        "PYTHONPATH": os.getcwd(),
    }
    command = [sys.executable, "-c", SERVE, str(runs), str(repository / "model")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as deploying:
        assert any(line == "up\n" for line in deploying.stdout)
        deploying.kill()
    (record,) = runs.glob("*/local/services/*/service.json")
    record.unlink()
    remaining = orphans.processes_of(RUN_ID, runs)
    assert any("triton" in command or "kserve" in command for command in remaining.values())
    assert main(tmp_path, "--down", RUN_ID, "--yes") == 0
    assert orphans.processes_of(RUN_ID, runs) == {}
    assert not [pid for pid in remaining if pids.is_alive(pid)]


# A service that is broken
# -----------------------------------------------------------------------------------------------


def test_a_service_that_says_ready_and_does_not_answer_fails_with_its_last_lines(
    fake, tmp_path, monkeypatch
):
    from components import deploy

    backend = fake(
        node_of(Play(seconds=math.inf, log="UNAVAILABLE: Internal: unable to load model\n"))
    )
    run = Run(
        config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id="pfn-regressor-open-0123abcd")
    )
    run.save()
    monkeypatch.setattr(step, "backend", lambda _: backend.cluster)

    def nobody_answers(*_, **__):
        raise DeadlineError("model pfn-regressor-open gave no answer within 300 s")

    monkeypatch.setattr(deploy, "golden_check", nobody_answers)
    with pytest.raises(
        DeadlineError,
        match=(
            r"(?s)gave no answer within 300 s\n.*kserve-container.*\n  \| UNAVAILABLE: .*unable to"
            r" load"
        ),
    ):
        deploy.deploy(run, step.Artifacts(""))
    assert not (tmp_path / "runs" / run.id / "service.json").exists()


def test_a_service_that_crashes_after_ready_is_reported_with_its_last_lines(fake):
    crash = Play(exit_code=1, log="signal 11 (SIGSEGV)\n", seconds=math.inf)
    backend = fake(node_of([crash, Play(exit_code=1, log=crash.log)]))
    backend.deploy(service())
    with backend.api.lock:
        crash.seconds = 0
    backend.api.wait_for(
        lambda: any(
            container.get("restartCount", 0)
            for pod in backend.api.all("pods")
            for container in pod["status"]["containerStatuses"]
        )
    )
    story = describe(backend.cluster._api, "jec-pfn")
    assert "exit code 1" in story
    assert "  | signal 11 (SIGSEGV)" in story
    assert describe(backend.cluster._api, "nothing") == "InferenceService nothing is gone"
