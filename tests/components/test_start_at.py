"""--start-at: what a run has to have, what a job keeps, and that --start-at ends with its job."""

from __future__ import annotations

import pytest

import pipeline
from common import storage
from common.config import RunConfig
from common.errors import InputError
from common.records import Objective, SearchRecord, StartRecord
from common.run import Run
from components import evaluate, export, start_at, step
from components.steps import NAMES
from tests.records import export_record, metrics_record

BEST = "pfn-00000000-001"


class Jobs:
    """A backend whose jobs end well at once."""

    resumes = True

    def __init__(self):
        self.runs, self.deletions = [], []

    def run_job(self, manifest, *, deadline, report):
        self.runs.append(manifest["metadata"]["name"])

    def delete_job(self, name):
        self.deletions.append(name)


@pytest.fixture
def run(tmp_path):
    """A run that has been searched, exported and evaluated."""
    new_run = Run(config=RunConfig(s3_bucket=str(tmp_path), run_id="pfn-00000000"))
    new_run.save()
    search = SearchRecord(
        experiment=new_run.id, objective=Objective(name="AvgLoss"), optimal=BEST, trials=[]
    )
    search.save(new_run.folder.search)
    storage.write_text(new_run.folder.weights(BEST), "weights")
    export_record(new_run.model_name, trial=BEST).save(new_run.folder.export)
    storage.write_text(new_run.folder.onnx(new_run.model_name), "onnx")
    metrics_record(trial=BEST).save(new_run.folder.metrics)
    storage.write_text(new_run.folder.report, "<html></html>")
    return new_run


@pytest.fixture
def jobs(monkeypatch):
    backend = Jobs()
    monkeypatch.setattr(step, "backend", lambda _: backend)
    return backend


def do_steps(run: Run, job_id: str) -> None:
    """What a job of Kubeflow or of one machine does from prepare to evaluate."""
    start_at.claim(run, job_id)
    for name, do in (("export", export.export), ("evaluate", evaluate.evaluate)):
        step.write_status(run, name, "running", job_id=job_id)
        do(run, BEST, step.Artifacts(""), job_id)


@pytest.mark.parametrize(
    ("name", "steps"), [("export", ["export", "evaluate"]), ("evaluate", ["evaluate"])]
)
def test_a_job_repeats_the_step_and_all_later_ones(run, jobs, name, steps):
    start_at.request(run, name)
    do_steps(run, "job-2")
    assert jobs.runs == jobs.deletions == [f"{run.id}-{step_name}" for step_name in steps]


def test_a_run_that_starts_at_deploy_keeps_the_earlier_verdict(run, jobs):
    metrics_record(trial=BEST, passed=False, reasons=["too wide"]).save(run.folder.metrics)
    start_at.request(run, "deploy")
    start_at.claim(run, "job-2")
    assert evaluate.evaluate(run, BEST, step.Artifacts(""), "job-2") is False
    assert jobs.runs == []


def test_a_later_attempt_adopts_the_existing_job(run, jobs):
    start_at.request(run, "evaluate")
    do_steps(run, "job-2")
    do_steps(run, "job-2")
    assert jobs.deletions == [f"{run.id}-evaluate"]
    assert len(jobs.runs) == 2


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["a clone", "a resumed run"])
def test_start_at_ends_with_its_job(run, jobs, is_forgotten):
    start_at.request(run, "deploy")
    if is_forgotten:
        start_at.forget(run)
    else:
        do_steps(run, "job-2")
    assert jobs.runs == []
    do_steps(run, "job-3")
    assert jobs.runs == [f"{run.id}-export", f"{run.id}-evaluate"]
    assert jobs.deletions == []
    assert StartRecord.find(run.folder.start) is None


def test_results_of_another_trial_are_replaced(run, jobs):
    start_at.request(run, "deploy")
    export_record(run.model_name, trial="another").save(run.folder.export)
    do_steps(run, "job-2")
    assert jobs.runs == [f"{run.id}-export"]


@pytest.mark.parametrize(
    ("name", "missing", "step_before"),
    [
        ("export", "search.json", "search"),
        ("export", f"trials/{BEST}/best.pt", "search"),
        ("evaluate", "model/export.json", "export"),
        ("evaluate", "model/pfn-regressor-open/1/model.onnx", "export"),
        ("deploy", "metrics.json", "evaluate"),
        ("deploy", "trials", "search"),
    ],
)
def test_a_run_without_the_results_of_earlier_steps_is_refused(
    run, capsys, name, missing, step_before
):
    assert storage.delete(run.path(missing))
    words = ["--output", run.config.s3_bucket, "--resume", run.id, "--runner", "local"]
    assert pipeline.main([*words, "--start-at", name]) == 2
    error = capsys.readouterr().err
    assert f"of step {step_before}" in error
    assert run.id in error
    assert len(error.splitlines()) == 1
    assert StartRecord.find(run.folder.start) is None


@pytest.mark.parametrize("name", ["evaluate", "deploy"])
def test_results_of_another_trial_do_not_count(run, name):
    if name == "evaluate":
        export_record(run.model_name, trial="another").save(run.folder.export)
    else:
        metrics_record(trial=None).save(run.folder.metrics)
    with pytest.raises(InputError, match=f"{BEST}; give --start-at export"):
        start_at.request(run, name)


@pytest.mark.parametrize(
    "words", [["--start-at", "export"], ["--start-at", "export", "--rerun", "r"], []]
)
def test_start_at_needs_resume_and_a_repeatable_step(words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        pipeline.main(words or ["--start-at", "exprot", "--resume", "r"])
    assert exit_info.value.code == 2
    assert ("--resume" if words else "export") in capsys.readouterr().err


def test_the_choices_of_start_at_are_steps_in_order():
    assert [name for name in NAMES if name in pipeline.START_STEPS] == list(pipeline.START_STEPS)
