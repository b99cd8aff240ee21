"""What prepare refuses or reports before any training: parameters, and jets that sets share."""

from __future__ import annotations

import re
import types

import pytest

from common import project, storage
from common.config import SERVED, RunConfig
from common.errors import InputError
from common.layout import RunFolder
from common.records import DataSet, RunRecord, StatusRecord, StepStatus
from common.run import Run
from components import inputs, prepare, step, steps
from tests.records import metrics_record, service_record
from weaver.prepared import shared_jets

JOB = "00000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("field", "value"), [("s3_bucket", "auto"), ("baseline", "elsewhere")], ids=["bucket", "run"]
)
def test_a_parameter_without_a_folder_behind_it_is_refused(tmp_path, field, value):
    values = {"s3_bucket": str(tmp_path / "runs"), field: value}
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')}.*{value}"):
        prepare.prepare(RunConfig(**values), JOB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["by --namespace", "by the pod"])
def test_a_service_that_kserve_would_never_make_is_refused(
    monkeypatch, s3_bucket, s3_server, source
):
    values = {"s3_bucket": s3_bucket, "s3_endpoint": s3_server, "service_name": "a" * 21}
    if source == "by --namespace":
        values["namespace"] = "n" * 32
    else:
        monkeypatch.setattr(inputs, "own_namespace", lambda: "n" * 32)
    with pytest.raises(
        InputError, match=f"has 21 characters; .*at most 20,.*--service-name {'a' * 20}$"
    ):
        prepare.prepare(RunConfig(**values), JOB)
    assert storage.entries(s3_bucket) == []
    longest = RunConfig(**{**values, "service_name": "a" * 20})
    assert inputs.check_service_name(inputs.Inputs(longest)).is_checked


@pytest.mark.faults
@pytest.mark.parametrize(("free", "warns"), [(10**12, False), (10**8, True)], ids=["room", "none"])
def test_the_size_of_a_run_is_reported_before_it_is_written(
    tmp_path, monkeypatch, capsys, free, warns
):
    """2,000 jets of 1 kB; two trials of 10**6 weights: 12 weights each, and 1 MB of records."""
    config = RunConfig(s3_bucket=str(tmp_path), run_id="pfn-1", max_trials=2, parallel_trials=1)
    needs = inputs.Inputs(config)
    files = [types.SimpleNamespace(bytes_per_entry=1000.0, num_used=1000)]
    for split in ("train", "test"):
        needs.file_checks[split] = types.SimpleNamespace(files=files)
    monkeypatch.setattr(prepare.space, "free_bytes", lambda path: free)
    prepare.say_disk_need(Run(config=config), needs)
    assert capsys.readouterr().out == ""  # without torch the network cannot be built
    needs.parameters = 10**6
    prepare.say_disk_need(Run(config=config), needs)
    line = capsys.readouterr().out
    assert ("warning" in line) is warns
    trial = 4 * 10**6 * (3 * 3 + 3) + 10**6
    parts = [2_000_000, 2 * trial, 8 * 4 * 10**6 + 30 * 10**6]
    for size in (sum(parts), *parts, free):
        assert prepare.space.size_text(size) in line
    assert str(tmp_path) in line


def test_a_service_name_is_checked_later_where_the_namespace_is_unknown():
    config = RunConfig(s3_bucket="s3://bucket/runs", service_name="a" * 40)
    result = inputs.check_service_name(inputs.Inputs(config))
    assert (result.is_checked, result.cure) == (False, "give --namespace")


@pytest.mark.parametrize("in_common", [0, 1, 200], ids=["none", "few", "many"])
def test_jets_that_two_sets_share_are_counted_reported_and_refused(monkeypatch, capsys, in_common):
    pairs = [("train", "test", in_common, 10_000)]
    monkeypatch.setattr(shared_jets, "shared_jets", lambda sets: pairs)
    if in_common > prepare.MAX_SHARED * 10_000:
        with pytest.raises(InputError, match=rf"\b{in_common}\b.*--data-test .*--data-train"):
            prepare.check_shared({})
        return
    assert prepare.check_shared({}) == {"train and test": in_common}
    match = re.search(rf"\b{in_common} .*--data-test .*--data-train", capsys.readouterr().out)
    assert bool(match) == (in_common > 0)


@pytest.fixture
def prepared_run(tmp_path):
    """A run that prepare has made, and what its files hold now."""
    run = Run(config=RunConfig(s3_bucket=str(tmp_path), run_id="pfn-00000000"))
    storage.write_text(run.path("config", "data.yaml"), "data")
    storage.write_text(run.path("config", "network.py"), "network")
    network = types.SimpleNamespace(source="network", siblings={})
    return run, types.SimpleNamespace(data_config_text=b"data", network=network, files={})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_account", "jec-predictor"),
        ("memory", "24Gi"),
        ("tolerations", "gpu:NoSchedule"),
        ("num_replicas", 2),
        ("max_replicas", 2),
        ("webhook_secret", "jec-webhook/url"),
        ("mlflow", "none"),
        ("model_registry_secret", "registry/token"),
        ("min_improvement", 1.5),
        ("max_closure", 0.5),
        ("weaver_image", "jec-weaver:2"),
    ],
)
def test_a_run_resumes_with_parameters_that_do_not_affect_its_trials(
    prepared_run, capsys, field, value
):
    run, inputs = prepared_run
    prepare.check_same(run, Run(config=run.config.replace(**{field: value})), inputs)
    assert f"--{field.replace('_', '-')} {value}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "local", "has_search", "is_replaced"),
    [
        ({"memory": "24Gi", "weaver_image": "jec-weaver:2"}, False, False, True),
        ({"max_trials": 50, "parallel_trials": 2}, False, False, False),
        ({"memory": "24Gi"}, True, False, False),
        ({"memory": "24Gi"}, False, True, False),
        ({}, False, False, False),
    ],
    ids=["pods", "numbers of trials", "one machine", "search has ended", "nothing"],
)
def test_a_change_that_needs_another_experiment_is_reported(
    prepared_run, capsys, monkeypatch, changes, local, has_search, is_replaced
):
    run, inputs = prepared_run
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    if local:
        monkeypatch.setenv(step.LOCAL_DIR, "runs")
    if has_search:
        storage.write_text(run.folder.search, "{}")
    prepare.check_same(run, Run(config=run.config.replace(**changes)), inputs)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(changes) + is_replaced
    if is_replaced:
        assert "--memory" in lines[-1]
        assert "--weaver-image" in lines[-1]
        assert "checkpoints" in lines[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_epochs", 7),
        ("algorithm", "tpe"),
        ("precision", "bf16"),
        ("seed", "3"),
        ("data_fraction", 0.5),
        ("data_train", "other/*.root"),
    ],
)
def test_a_run_does_not_resume_with_parameters_that_affect_its_trials(
    prepared_run, capsys, field, value
):
    run, inputs = prepared_run
    with pytest.raises(InputError, match=f"{field.replace('_', '-')} was "):
        prepare.check_same(
            run, Run(config=run.config.replace(memory="24Gi", **{field: value})), inputs
        )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("requested", ["auto", "other"])
def test_a_run_on_kubeflow_knows_its_namespace(monkeypatch, requested):
    """Commands that are printed for later name it; a clone elsewhere has its own."""
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setattr(prepare, "own_namespace", lambda: "physics")
    config = RunConfig(namespace=requested)
    assert prepare.namespace(config) == ("physics" if requested == "auto" else "other")
    monkeypatch.setenv(step.LOCAL_DIR, "runs")
    assert prepare.namespace(config) == requested


@pytest.mark.parametrize(("now", "same"), [("physics", True), ("other", False)])
def test_a_run_of_an_earlier_version_resumes_only_in_its_own_namespace(
    prepared_run, monkeypatch, now, same
):
    """It wrote down 'auto'."""
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setattr(prepare, "own_namespace", lambda: "physics")
    before, inputs = prepared_run
    run = Run(config=before.config.replace(namespace=now))
    if same:
        prepare.check_same(before, run, inputs)
        return
    with pytest.raises(InputError, match="namespace was 'physics', now 'other'"):
        prepare.check_same(before, run, inputs)


def test_the_commit_is_the_images_where_there_is_no_checkout(monkeypatch):
    monkeypatch.setenv("JEC_GIT_COMMIT", "c0ffee")
    assert project.git_commit() == "c0ffee"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(prepare, "PACKAGES", ("numpy", "no-such-package-of-jets"))
    versions = prepare.versions()
    assert versions["no-such-package-of-jets"] == "none"
    assert versions["numpy"] != "none"


@pytest.fixture
def make_deployed_run(tmp_path):
    """Make the folder of a run that was evaluated and deployed."""

    def make(run_id: str, name: str, time: str) -> str:
        folder = RunFolder(str(tmp_path / run_id))
        service_record(name).save(folder.service)
        steps = {"deploy": StepStatus(state="done", time=time)}
        StatusRecord(steps=steps).save(folder.status)
        metrics_record(run_id=run_id).save(folder.metrics)
        return folder.uri

    return make


def test_the_served_model_is_that_of_the_run_that_was_deployed_last(tmp_path, make_deployed_run):
    config = RunConfig(
        s3_bucket=str(tmp_path), baseline=SERVED, service_name="jets", run_id="pfn-00000009"
    )
    with pytest.raises(InputError, match=rf"--baseline {SERVED}.*\bjets\b"):
        prepare.baseline_folder(config)
    make_deployed_run("pfn-00000001", "jets", "2026-11-01T10:00:00+00:00")
    newest = make_deployed_run("pfn-00000002", "jets", "2026-11-02T10:00:00+00:00")
    make_deployed_run("pfn-00000003", "others", "2026-11-03T10:00:00+00:00")
    make_deployed_run("pfn-00000009", "jets", "2026-11-04T10:00:00+00:00")  # the run itself
    assert prepare.baseline_folder(config) == newest


@pytest.mark.parametrize("same", [True, False])
def test_a_baseline_of_other_test_files_is_reported_before_any_training(tmp_path, same):
    earlier = RunFolder(str(tmp_path / "earlier"))
    metrics_record().save(earlier.metrics)
    file = tmp_path / "test.root"
    file.write_bytes(b"jets")
    config = RunConfig(s3_bucket=str(tmp_path), baseline=earlier.uri)
    run_inputs = inputs.Inputs(config)
    run_inputs.files["test"] = storage.entries(str(file))
    fingerprint = storage.fingerprint(run_inputs.files["test"]) if same else "00ff"
    data = DataSet(dataset="", jets=1, read=1, files=1, fingerprint=fingerprint)
    RunRecord(data={"test": data}).save(earlier.run)
    assert ("--data-test" in inputs.check_baseline(run_inputs).warning) == (not same)


def test_a_run_on_kubeflow_records_both_images_and_their_digests(monkeypatch):
    digest = "sha256:" + "0a" * 32
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setenv(steps.IMAGE_VARIABLE, f"registry.example.org/jec/steps@{digest}")
    config = RunConfig(weaver_image="jec-weaver:latest")
    assert prepare.images(config) == {
        "steps": f"registry.example.org/jec/steps@{digest}",
        "weaver": "jec-weaver:latest",
    }
    assert prepare.image_digests(config) == {"steps": digest, "weaver": None}
    record = RunRecord(images=prepare.images(config), image_digests=prepare.image_digests(config))
    assert RunRecord.from_json(record.as_json(), "run.json") == record


def test_a_run_on_one_machine_has_no_images(monkeypatch):
    """The compiled pipeline names the image here too, and nothing asks a registry."""
    monkeypatch.setenv(step.LOCAL_DIR, "runs")
    monkeypatch.setenv(steps.IMAGE_VARIABLE, "registry.example.org/jec/steps:1")
    monkeypatch.setattr(prepare, "digest_of", lambda *_, **__: pytest.fail("asked"))
    assert set(prepare.images(RunConfig()).values()) == {"none"}
    assert prepare.image_digests(RunConfig()) == {}
