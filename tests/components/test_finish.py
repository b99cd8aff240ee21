"""The end of a run in words: every way in which it can end, the page, the webhook; and steps that
are tried again.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading

import pytest

from common import storage
from common.config import RunConfig
from common.errors import (
    AccessError,
    ClusterError,
    DeadlineError,
    InputError,
    JecError,
    StorageError,
    UnreachableError,
)
from common.run import Run, make_run_id
from components import finish, prepare, step
from tests.records import metrics_record, service_record

METRICS = metrics_record()
JOB = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def run(tmp_path):
    return Run(config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id="pfn-00000000"))


@pytest.mark.parametrize(
    ("name", "state", "metrics", "expected", "message"),
    [
        ("deploy", "done", METRICS, "succeeded", ""),
        (
            "evaluate",
            "done",
            metrics_record(passed=False, reasons=["closure 3 %"]),
            "not deployed",
            "closure 3 %",
        ),
        ("evaluate", "done", METRICS, "failed", "next step"),
        ("search", "running", None, "failed", "does not tell why"),
        ("search", "failed", None, "failed", "no GPU"),
        ("search", "interrupted", None, "interrupted", "no GPU"),
        ("search", "done", None, "failed", "after search"),
        (None, None, None, "failed", "prepare wrote no status"),
    ],
)
def test_the_summary_of_every_end(run, name, state, metrics, expected, message):
    if name:
        step.write_status(run, name, state, "no GPU" if state in ("failed", "interrupted") else "")
    if metrics:
        metrics.save(run.folder.metrics)
    summary = finish.finish(run.uri, step.Artifacts(""))
    assert summary.state == expected
    assert message in summary.reason
    assert storage.exists(run.folder.summary) == bool(name), "what is not a run gets no folder"
    assert finish.as_markdown(summary).startswith(f"# pfn-00000000: {expected}\n")


def test_a_job_that_prepare_refused_does_not_report_an_earlier_jobs_success(
    run, capsys, monkeypatch
):
    """`--resume` with other inputs: the folder holds the earlier job's status."""
    for name in ("search", "evaluate", "deploy"):
        step.write_status(run, name, "done", job_id="earlier")
    METRICS.save(run.folder.metrics)
    summary = finish.summarise(run.uri, "earlier")
    assert (summary.state, summary.gate, summary.gain_percent) == (
        "succeeded",
        True,
        METRICS.gain,
    )
    summary = finish.summarise(run.uri, JOB)
    assert (summary.state, summary.gate, summary.gain_percent, summary.report) == (
        "failed",
        None,
        None,
        None,
    )
    arguments = [
        "--s3-bucket",
        run.config.s3_bucket,
        "--run-id",
        run.id,
        "--network-config",
        RunConfig().network_config,
        "--job-id",
        JOB,
    ]
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    assert finish.main(arguments) == 0
    assert re.search("failed: .*prepare", capsys.readouterr().out)
    monkeypatch.setenv(step.LOCAL_DIR, "runs")  # here prepare's own line stands above
    assert finish.main(arguments) == 0
    assert capsys.readouterr().out == ""


def test_a_job_that_failed_early_does_not_report_an_earlier_jobs_results(run):
    for name in ("search", "evaluate", "deploy"):
        step.write_status(run, name, "done", job_id="earlier")
    METRICS.save(run.folder.metrics)
    step.write_status(run, "prepare", "failed", "other inputs", job_id=JOB)
    summary = finish.summarise(run.uri, JOB)
    assert (summary.state, summary.step, summary.reason, summary.gain_percent) == (
        "failed",
        "prepare",
        "other inputs",
        None,
    )


def test_the_page_of_a_run_has_its_results_first_and_the_reason_in_a_block(run):
    for name in ("evaluate", "deploy"):
        step.write_status(run, name, "done", job_id=JOB)
    METRICS.save(run.folder.metrics)
    service_record("pfn", url="http://pfn-predictor.physics.svc").save(run.folder.service)
    page = finish.as_markdown(finish.summarise(run.uri, JOB))
    first = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert first[2:8] == ["state", "resolution gain", "service", "report", "folder", "gate"]
    # no link: it leads nowhere outside the cluster
    assert "| service | `http://pfn-predictor.physics.svc` |" in page
    settings = METRICS.config
    assert f"{settings.gate} gate, limits: gain {settings.min_improvement:g} %" in page
    assert f"closure {100 * settings.max_closure:g} % or the standard JEC's own" in page
    assert "```" not in page

    reason = "5 of 5 trials failed\nlast lines of pod p:\n<class 'x'> | CUDA out of memory"
    step.write_status(run, "search", "failed", reason, job_id=JOB)
    page = finish.as_markdown(finish.summarise(run.uri, JOB))
    table, block, rest = page.split("```")
    assert "5 of 5" not in table
    assert block.strip().splitlines() == [line.replace("<", "‹") for line in reason.splitlines()]
    assert f"--status {run.id}" in rest
    assert "<" not in page


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.payloads.append(
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        )
        self.send_response(self.server.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("from_file", [False, True], ids=["variable", "file"])
@pytest.mark.parametrize("code", [204, 500])
def test_a_webhook_gets_the_summary_and_its_failure_does_not_fail_the_run(
    run, capsys, monkeypatch, tmp_path, code, from_file
):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.payloads, server.code = [], code
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        step.write_status(run, "search", "failed", "no GPU")
        url = f"http://127.0.0.1:{server.server_port}/secret-part"
        if from_file:
            (tmp_path / "url").write_text(url + "\n")
            monkeypatch.setenv("JEC_WEBHOOK_FILE", str(tmp_path / "url"))
        else:
            monkeypatch.setenv("JEC_WEBHOOK", url)
        finish.finish(run.uri, step.Artifacts(""))
    finally:
        server.shutdown()
        server.server_close()
    assert server.payloads[0]["state"] == "failed"
    message = capsys.readouterr().out
    assert ("warning: the webhook" in message) == (code == 500)
    assert "secret-part" not in message
    assert "secret-part" not in storage.read_text(run.folder.summary)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JEC_WEBHOOK", "hook.example.org/secret-part", "JEC_WEBHOOK is not an http"),
        ("JEC_WEBHOOK", "http://[secret-part", "did not get"),
        ("JEC_WEBHOOK_FILE", "nowhere/url", "nowhere/url cannot be read: No such file"),
        ("JEC_WEBHOOK_FILE", "/dev/null", "/dev/null is empty"),
    ],
)
def test_a_webhook_that_cannot_be_used_is_a_warning_without_its_url(
    run, capsys, monkeypatch, name, value, message
):
    monkeypatch.setenv(name, value)
    step.write_status(run, "search", "failed", "no GPU")
    assert finish.finish(run.uri, step.Artifacts("")).state == "failed"
    output = capsys.readouterr().out
    assert re.search(f"warning: the webhook .*{message}", output)
    assert "secret-part" not in output


def test_a_webhook_in_a_file_that_is_no_text_is_refused_without_its_content(tmp_path, monkeypatch):
    file = tmp_path / "url"
    file.write_bytes(b"https://hook.example.org/secret-part\xff")
    monkeypatch.setenv("JEC_WEBHOOK_FILE", str(file))
    with pytest.raises(InputError, match=re.escape(str(file))) as error:
        finish.webhook()
    assert "secret-part" not in str(error.value)
    assert "UnicodeDecodeError" not in str(error.value)


# Another try
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "tried_again"),
    [
        (InputError("no file a.root"), False),
        (ClusterError("3 of 3 trials failed"), False),
        (DeadlineError("experiment x did not end"), False),
        (StorageError("cannot reach s3://b"), True),
        (UnreachableError("the API server cannot be reached"), True),
        (MemoryError("out of memory"), True),
    ],
)
def test_a_repeated_attempt_ends_at_once_where_the_failure_is_not_retryable(
    run, capsys, monkeypatch, error, tried_again
):
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 0.0)
    run.save()
    tries = []

    def body(_):
        tries.append(1)
        if len(tries) == 1:
            raise error

    def attempt(job):
        arguments = step.parser("search", "").parse_args(["--run", run.uri, "--job-id", job])
        try:
            return step.main("search", arguments, body)
        except MemoryError:
            return 1

    assert attempt(JOB) != 0
    assert attempt(JOB) == (0 if tried_again else 1)
    assert len(tries) == 1 + tried_again
    if not tried_again:
        assert f"would repeat: {error}" in capsys.readouterr().err
        assert attempt("another") == 0, "a new run of the pipeline tries"


def test_a_steps_log_ends_with_its_result_without_the_parameters(run, capsys, monkeypatch):
    """Only prepare prints the parameters, because the UI shows the end of a log."""
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    Run(config=run.config.replace(num_gpus=2)).save()
    arguments = step.parser("search", "").parse_args(["--run", run.uri])
    assert step.main("search", arguments, lambda _: step.say_result("best trial t")) == 0
    assert capsys.readouterr().out == "result: best trial t\n"


def test_prepare_notes_a_refusal_where_the_exit_handler_finds_it(s3_bucket, monkeypatch, capsys):
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    arguments = [
        "--s3-bucket",
        f"{s3_bucket}/jec",
        "--data-config",
        "no_such.yaml",
        "--job-id",
        JOB,
    ]
    assert prepare.main(arguments) == 2
    assert prepare.main(arguments) == 1
    assert "would repeat" in capsys.readouterr().err
    assert (
        finish.main(
            [
                "--s3-bucket",
                f"{s3_bucket}/jec",
                "--run-id",
                "auto",
                "--network-config",
                RunConfig().network_config,
                "--job-id",
                JOB,
            ]
        )
        == 0
    )
    assert "no_such.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (AccessError("root://x refused access. There is no token"), "There is no token"),
        (UnreachableError("MLflow is away"), "MLflow is away"),
        (ValueError("a fault of ours"), "ValueError: a fault of ours"),
    ],
    ids=["access", "unreachable", "unexpected"],
)
def test_finish_reports_a_retryable_failure_of_prepare(
    s3_bucket, monkeypatch, capsys, failure, reason
):
    """On KFP 2.15.0 a run without a login for its data had "left no trace"."""

    def fail(*_):
        raise failure

    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(prepare, "prepare", fail)
    place = ["--s3-bucket", f"{s3_bucket}/jec", "--job-id", JOB]
    for _ in range(2):
        with contextlib.suppress(ValueError):
            prepare.main(place)
    name = ["--run-id", "auto", "--network-config", RunConfig().network_config]
    assert finish.main([*place, *name]) == 0
    assert reason in capsys.readouterr().out
    entry = step.read_status(f"{s3_bucket}/jec/{make_run_id(name[-1], JOB)}").steps["prepare"]
    assert (entry.state, entry.retryable) == ("failed", True)


@pytest.mark.parametrize("name", ["run-id", "network-config"])
def test_an_empty_field_of_the_form_does_not_stop_finish(s3_bucket, monkeypatch, name):
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    values = {
        "s3-bucket": f"{s3_bucket}/jec",
        "run-id": "auto",
        "network-config": RunConfig().network_config,
        name: "",
        "job-id": JOB,
    }
    words = [word for flag, value in values.items() for word in (f"--{flag}", value)]
    assert finish.main(words) == 0


def test_after_finish_prepare_does_its_work_under_the_same_job_id(s3_bucket, monkeypatch, tmp_path):
    """Retry in the UI keeps the job id, and comes after what was missing has been put there."""
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 0.0)
    data = tmp_path / "mine.yaml"
    contents = []
    monkeypatch.setattr(prepare, "prepare", lambda config, *_: contents.append(check_file(config)))
    arguments = ["--s3-bucket", f"{s3_bucket}/jec", "--data-config", str(data), "--job-id", JOB]
    about = ["--run-id", "auto", "--network-config", RunConfig().network_config]
    for _ in range(2):  # a retry may fail again
        assert [prepare.main(arguments) for _ in range(3)] == [2, 1, 1]
        assert finish.main([*arguments[:2], *about, "--job-id", JOB]) == 0
    # after a Retry finish does not run again
    assert [prepare.main(arguments) for _ in range(3)] == [2, 1, 1]
    data.write_text("there now")
    assert prepare.main(arguments) == 0
    assert contents == ["there now"]


def check_file(config: RunConfig) -> str:
    """What prepare does first, as far as this test needs it."""
    if not storage.exists(config.data_config):
        raise InputError(f"{config.data_config} is missing")
    return storage.read_text(config.data_config)


def test_a_failed_record_does_not_hide_why_a_step_failed(run, monkeypatch):
    def away(*_, **__):
        raise StorageError("away")

    def body():
        monkeypatch.setattr(storage, "write_json", away)
        raise ClusterError("no GPU")

    with pytest.raises(JecError, match="no GPU"):
        step.with_status("search", run, body)


def test_the_user_of_a_run_is_the_namespaces_on_a_cluster_and_the_login_here(run, monkeypatch):
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    assert step.user(run.config.replace(namespace="kubeflow-user-jane")) == "kubeflow-user-jane"
    assert step.user(run.config.replace(user="jane")) == "jane"
    monkeypatch.setenv(step.LOCAL_DIR, "runs")
    monkeypatch.setattr(step.getpass, "getuser", lambda: "jane doe@home")
    assert step.user(run.config) == "jane-doe-home"
