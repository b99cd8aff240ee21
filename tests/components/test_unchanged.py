"""--if-data-changed: what counts as the same, and how the steps of such a run end."""

from __future__ import annotations

import json
import types

import pytest

from common import storage
from common.config import RunConfig
from common.records import RunRecord, StatusRecord, StepStatus, SummaryRecord, UnchangedRecord
from common.run import Run
from common.storage import Entry
from components import deploy, evaluate, export, finish, search, step, unchanged
from components.steps import step_of
from tests.records import metrics_record

RUN_ID, EARLIER = "pfn-00000002", "pfn-00000001"


def inputs_of(data_config=b"data", digest="network", tag="1"):
    """What a run is made of; `tag` is that of its one training file."""
    files = {}
    for split in ("train", "val", "test"):
        files[split] = [Entry(uri=f"/data/{split}.root", size=1, tag=tag)]
    network = types.SimpleNamespace(digest=lambda: digest)
    return types.SimpleNamespace(data_config_text=data_config, network=network, files=files)


@pytest.fixture
def earlier(tmp_path):
    """A run whose chain came to its end, and finish has noted it."""
    config = RunConfig(s3_bucket=str(tmp_path), run_id=EARLIER)
    record = RunRecord(
        data_fingerprint=unchanged.data_fingerprint(inputs_of()),
        inputs_digest=unchanged.inputs_digest(config, inputs_of()),
    )
    run = Run(config=config, record=record)
    run.save()
    return run


def end_with(run: Run, step_name: str, state: str) -> SummaryRecord:
    entry = StepStatus(state=state, job_id="job-1")
    StatusRecord(step=step_name, state=state, steps={step_name: entry}).save(run.folder.status)
    return finish.finish(run.uri, step.Artifacts(""), "")


def success_of(run: Run, **values):
    """The earlier success that a run with other parameters would see."""
    config = run.config.replace(run_id=RUN_ID, if_data_changed=True, **values)
    return unchanged.earlier_success(config, unchanged.inputs_digest(config, inputs_of()))


def test_a_finished_run_is_the_last_success_of_its_inputs(earlier):
    assert success_of(earlier) is None
    assert end_with(earlier, "search", "failed").state == "failed"
    assert success_of(earlier) is None
    metrics_record(passed=False, reasons=["closure"]).save(earlier.folder.metrics)
    assert end_with(earlier, "evaluate", "done").state == "not deployed"
    assert success_of(earlier).state == "not deployed"
    end_with(earlier, "deploy", "done")
    success = success_of(earlier)
    assert (success.run_id, success.state) == (EARLIER, "succeeded")
    assert success.data_fingerprint == unchanged.data_fingerprint(inputs_of())
    # another search is another run, whatever the data are
    assert success_of(earlier, max_trials=7) is None
    assert success_of(earlier, experiment_name="other", baseline="/runs/pfn-00000000") == success
    assert success_of(earlier, mlflow="http://127.0.0.1:5000") == success
    # there are no results any more
    storage.delete(earlier.uri)
    assert success_of(earlier) is None


def test_files_configurations_and_networks_count_by_their_content():
    config = RunConfig(s3_bucket="/runs")
    same = unchanged.inputs_digest(config.replace(data_config="elsewhere.yaml"), inputs_of())
    assert same == unchanged.inputs_digest(config, inputs_of())
    assert same != unchanged.inputs_digest(config, inputs_of(data_config=b"other"))
    assert same != unchanged.inputs_digest(config, inputs_of(digest="other"))
    assert unchanged.data_fingerprint(inputs_of()) != unchanged.data_fingerprint(inputs_of(tag="2"))


@pytest.fixture
def run(earlier):
    """A run that prepare has ended for the earlier one's sake."""
    end_with(earlier, "deploy", "done")
    new_run = Run(config=earlier.config.replace(run_id=RUN_ID, if_data_changed=True))
    unchanged.end(new_run, success_of(earlier), None, "job-2")
    return new_run


STEPS = {
    "search": (search, []),
    "export": (export, ["--trial", "unchanged"]),
    "evaluate": (evaluate, ["--trial", "unchanged"]),
    "deploy": (deploy, ["--passed", "unchanged"]),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_unchanged_step_succeeds_at_once_and_its_outputs_name_the_reason(
    run, tmp_path, name, capsys
):
    module, more = STEPS[name]
    place, artifacts, output_files = tmp_path / "out", {}, {}
    for output, kind in step_of(name).outputs.items():
        output_files[output] = place / output
        if kind == "parameter":
            more = [*more, f"--{output.replace('_', '-')}-output", str(place / output)]
        else:
            artifacts[output] = {"artifacts": [{"name": output, "uri": str(place / output)}]}
    executor_input = json.dumps({"outputs": {"artifacts": artifacts}})
    before = storage.read_json(run.folder.status)
    arguments = ["--run", run.uri, "--job-id", "job-2", "--executor-input", executor_input, *more]
    assert module.main(arguments) == 0
    for output, path in output_files.items():
        text = path.read_text()
        assert text == "unchanged" or EARLIER in text, output
    assert storage.read_json(run.folder.status) == before
    assert capsys.readouterr().out.startswith("result: unchanged: ")


def test_the_run_ends_as_unchanged_and_does_not_count_as_a_success(run, earlier):
    summary = finish.finish(run.uri, step.Artifacts(""), "job-2")
    assert (summary.state, summary.resume) == ("unchanged", "")
    assert EARLIER in summary.reason
    assert success_of(earlier).run_id == EARLIER
    # a later job of the run that fails is not unchanged
    step.write_status(run, "prepare", "failed", "no data", job_id="job-3")
    assert finish.summarise(run.uri, "job-3").state == "failed"


def test_the_earlier_run_is_named(run, earlier):
    record = UnchangedRecord.load(run.folder.unchanged)
    assert (record.run_id, record.job_id, record.same_as) == (RUN_ID, "job-2", earlier.uri)
