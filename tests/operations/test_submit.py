"""Submitting, with kfp's real client against a server that answers as the KFP API does at the HTTP
edge.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex

import pytest
import yaml

import pipeline
from common import form, storage
from common.config import RunConfig
from common.errors import ClusterError, InputError
from common.records import Objective, RunRecord, SearchRecord, StartRecord
from common.run import Run, make_run_id
from components import chain, finish, prepare, step
from components.server_support import OLDEST, limitations
from operations import submit
from operations.endpoint import endpoint
from operations.server import connect, version_numbers
from tests.components.server_messages import VERSIONS, Messages
from weaver.network.network_file import load_network

SUPPORTED = [version for version in VERSIONS if version_numbers(version) >= OLDEST]


def config(s3_bucket, **values):
    data = {f"data_{split}": f"s3://b/{split}/*.root" for split in ("train", "val", "test")}
    return RunConfig(s3_bucket=f"{s3_bucket}/jec", **data, **values)


def test_the_run_is_made_with_every_parameter_and_the_users_files_are_uploaded(kfp, s3_bucket):
    kfp.multi_user = True
    server = connect(kfp.url)
    submission = submit.submit(
        config(s3_bucket, num_gpus=1, experiment_name="mine", namespace="physics"),
        server,
        "steps:1",
        account="editor",
    )
    run = kfp.runs[0]
    assert submission.url == f"{kfp.url}/#/runs/details/{run['run_id']}"
    assert submission.run_id == make_run_id("networks/pfn_regressor_open.py", run["run_id"])
    parameters = run["runtime_config"]["parameters"]
    assert set(parameters) == set(form.TYPES)
    assert (parameters["pods_num_gpus"], parameters["storage_run_id"]) == (1, "auto")
    assert storage.read_text(parameters["data_config"]).startswith(
        "# Inputs of the particle flow network"
    )
    assert parameters["network_config"].startswith(f"{s3_bucket}/jec/inputs/")
    assert parameters["search_space"]["parameters"]
    # another user clones the run in another namespace
    assert parameters["settings"]["kubeflow_namespace"] == "auto"
    assert kfp.experiments[0] == {
        "display_name": "mine",
        "namespace": "physics",
        "experiment_id": "e0",
    }
    assert run["service_account"] == "editor"
    assert "image: steps:1" in kfp.versions[0]["text"]
    assert run["pipeline_version_reference"] == {"pipeline_id": "p0", "pipeline_version_id": "v0"}


def test_a_version_is_uploaded_only_when_the_pipeline_changed(kfp, s3_bucket):
    server = connect(kfp.url)
    first = submit.submit(config(s3_bucket), server, "steps:1")
    second = submit.submit(config(s3_bucket, max_trials=7, num_gpus=2), server, "steps:1")
    third = submit.submit(config(s3_bucket), server, "steps:2")
    assert (first.new_version, second.new_version, third.new_version) == (True, False, True)
    assert first.version == second.version != third.version
    assert (len(kfp.pipelines), len(kfp.versions), len(kfp.experiments), len(kfp.runs)) == (
        1,
        2,
        1,
        3,
    )
    assert kfp.runs[1]["runtime_config"]["parameters"]["search_max_trials"] == 7


def test_a_version_says_commit_and_date_first_and_a_digest_last(kfp, s3_bucket, monkeypatch):
    monkeypatch.setattr(submit, "git_commit", lambda: "0123456789abcdef+")
    submission = submit.submit(config(s3_bucket), connect(kfp.url), "registry/steps@sha256:42")
    assert re.fullmatch(r"01234567-changed-\d{4}-\d\d-\d\d-[0-9a-f]{12}", submission.version)
    # KFP may keep it as an object of Kubernetes
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", submission.version)
    # found again on another day, of another commit that compiles to the same
    monkeypatch.setattr(submit, "git_commit", lambda: "fedcba98")
    kfp.versions[0]["display_name"] = submission.version.replace(
        submission.version[17:27], "2020-01-01"
    )
    again = submit.submit(config(s3_bucket), connect(kfp.url), "registry/steps@sha256:42")
    assert (again.version, again.new_version) == (kfp.versions[0]["display_name"], False)


def test_run_names_differ_by_data_and_time():
    first = RunConfig(data_train="s3://bucket/jec/2025/train/*.root")
    second = first.replace(data_train="s3://bucket/jec/2026/train/*.root,more/*.root")
    noon = datetime.datetime(2026, 11, 29, 12, 0, 0)
    later = noon + datetime.timedelta(seconds=1)
    names = {
        submit.run_name(run_config, time)
        for run_config in (first, second)
        for time in (noon, later)
    }
    assert len(names) == 4
    assert all(len(name) <= 255 for name in names)
    long = first.replace(data_train="/".join(["x" * 300] * 3))
    assert len(submit.run_name(long, noon)) <= 255


def test_a_run_s_description_is_its_id_and_its_command_without_secrets(kfp, s3_bucket):
    ours = config(s3_bucket).replace(num_gpus=2, data_test="root://host//test.root")
    submit.submit(ours, connect(kfp.url), "steps:1")
    assert kfp.runs[0]["description"].startswith("run id: pfn-regressor-open-")
    description = submit.run_description(ours.replace(data_val="sample", experiment_name="mine"))
    flags = shlex.split(description.partition("python pipeline.py ")[2])
    args = pipeline.build_parser().parse_args(flags)
    assert (args.num_gpus, args.data_train) == (2, "s3://b/train/*.root")
    assert args.s3_bucket == f"{s3_bucket}/jec"
    assert args.experiment_name == "mine"
    assert args.data_test == "root://host//test.root"
    with pytest.raises(InputError, match="--s3-endpoint") as refusal:
        RunConfig(s3_endpoint="http://user:canary-7f3a@host:9000")
    assert "canary-7f3a" not in str(refusal.value)


def test_a_run_s_description_is_not_longer_than_a_server_takes():
    """The column is VARCHAR(255); MySQL refuses the run otherwise."""
    long = RunConfig(data_train="s3://b/" + "x" * 500, search_space="[" + " " * 500 + "]")
    text = submit.run_description(long.replace(run_id="pfn-1"))
    assert text.startswith("run id: pfn-1;")
    assert len(text) <= 255
    assert "search-space" not in submit.run_description(long.replace(data_train="sample"))


def defaults_of(kfp) -> dict:
    """The parameters of a run that is created in the form of the newest version."""
    spec = next(yaml.safe_load_all(kfp.versions[-1]["text"]))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    return {name: parameter["defaultValue"] for name, parameter in parameters.items()}


def arguments_of(kfp, step: str, values: dict) -> list[str]:
    """The arguments that KFP gives a step; JSON knows no whole numbers (structpb)."""
    spec = next(yaml.safe_load_all(kfp.versions[-1]["text"]))
    container = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    arguments = []
    for argument in container["args"]:
        placeholder = re.fullmatch(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", argument)
        if placeholder:
            value = values[placeholder[1]]
            whole = isinstance(value, float) and value == int(value)
            text = str(int(value)) if whole else json.dumps(value)
            arguments.append(value if isinstance(value, str) else text)
        elif argument.startswith("--"):
            arguments.append(argument)
        else:
            arguments.append("")  # outputs
    return arguments


@pytest.fixture
def on_kubeflow(monkeypatch):
    """prepare writes run.json in place of decoding data."""
    monkeypatch.delenv(step.LOCAL_DIR, raising=False)
    monkeypatch.setattr(step, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(prepare, "fill_run_folder", lambda run, inputs, job_id: run.save())


def test_a_run_that_is_created_from_the_form_with_its_defaults_works(
    kfp, s3_bucket, s3_server, on_kubeflow
):
    """The defaults of the site are in the form, and prepare takes them all."""
    site = {
        "s3_bucket": f"{s3_bucket}/jec",
        "s3_endpoint": s3_server,
        "s3_secret": "s3-keys",
        "weaver_image": "registry/weaver@sha256:42",
        "service_account": "jec-predictor",
    }
    ours = {"num_gpus": 2, "max_trials": 7, "parallel_trials": 2, "memory": "24Gi"}
    submit.submit(config(s3_bucket).replace(**site, **ours), connect(kfp.url), "steps:1")
    values = {**defaults_of(kfp), "job_id": "00000000-0000-4000-8000-000000000001"}
    assert prepare.main(arguments_of(kfp, "prepare", values)) == 0
    uri = f"{s3_bucket}/jec/{make_run_id(RunConfig().network_config, values['job_id'])}"
    now = storage.read_json(f"{uri}/run.json")["config"]
    assert {name: now[name] for name in site} == site
    defaults = RunConfig().parameters()
    for name in ours:
        assert now[name] == defaults[name]
        assert type(now[name]) is type(defaults[name])
    assert now["data_train"] == "sample"


@pytest.mark.parametrize(
    ("settings", "fact"),
    [({"pods_memori": "2Gi"}, "pods_memory"), ({"search_batch_size": 0}, "--batch-size 0")],
    ids=["name", "value"],
)
def test_a_wrong_setting_is_printed_once_and_recorded_in_the_status(
    kfp, s3_bucket, s3_server, on_kubeflow, capsys, settings, fact
):
    submit.submit(config(s3_bucket), connect(kfp.url), "steps:1")
    values = {**defaults_of(kfp), "job_id": "00000000-0000-4000-8000-000000000002"}
    values["settings"] = {**values["settings"], **settings}
    assert prepare.main(arguments_of(kfp, "prepare", values)) == 2
    assert fact in capsys.readouterr().err
    assert prepare.main(arguments_of(kfp, "prepare", values)) == 1
    run_id = make_run_id(RunConfig().network_config, values["job_id"])
    record = storage.read_json(f"{s3_bucket}/jec/{run_id}/status.json")
    assert fact in record["reason"]


def test_a_form_without_a_bucket_fails_the_first_attempt_with_one_line(
    kfp, s3_bucket, on_kubeflow, monkeypatch, capsys, tmp_path
):
    """Nothing can be written down then, neither by prepare nor by the exit handler."""
    monkeypatch.chdir(tmp_path)
    submit.submit(config(s3_bucket), connect(kfp.url), "steps:1")
    monkeypatch.setattr(step.time, "sleep", lambda seconds: pytest.fail("it waited"))
    values = {**defaults_of(kfp), "job_id": "00000000-0000-4000-8000-000000000003"}
    values["storage_bucket"] = "auto"
    assert prepare.main(arguments_of(kfp, "prepare", values)) == 2
    message = capsys.readouterr().err
    assert "storage_bucket" in message
    assert "s3://bucket/prefix" in message
    assert finish.main(arguments_of(kfp, "finish", values)) == 0
    message = capsys.readouterr().out
    assert "storage_bucket" in message
    assert str(tmp_path) not in message
    assert list(tmp_path.iterdir()) == []


def test_a_version_is_found_behind_many_others(kfp, s3_bucket):
    server = connect(kfp.url)
    submit.submit(config(s3_bucket), server, "steps:1")
    kfp.versions += [
        {"pipeline_id": "p0", "pipeline_version_id": f"x{i}", "display_name": f"x{i}"}
        for i in range(150)
    ]
    assert not submit.submit(config(s3_bucket), server, "steps:1").new_version


def test_the_same_files_are_uploaded_once(s3_bucket):
    first = submit.with_uploaded_files(config(s3_bucket))
    assert submit.with_uploaded_files(config(s3_bucket)) == first
    assert len(storage.entries(f"{s3_bucket}/jec/inputs")) == 2


def test_a_network_file_is_uploaded_with_the_files_beside_it(s3_bucket, tmp_path):
    (tmp_path / "net.py").write_text(
        "import layers\ndef get_model(d): return layers.WIDTH, {}\ndef get_loss(d): return None\n"
    )
    (tmp_path / "layers.py").write_text("WIDTH = 3\n")
    run_config = config(s3_bucket, network_config=str(tmp_path / "net.py"))
    first = submit.with_uploaded_files(run_config).network_config
    assert submit.with_uploaded_files(run_config).network_config == first
    folder = first.rpartition("/")[0]
    names = {storage.name(entry.uri) for entry in storage.entries(folder)}
    assert names == {"net.py", "layers.py"}
    assert load_network(first).build(None, {})[0] == 3
    # another file beside it is another network
    (tmp_path / "layers.py").write_text("WIDTH = 4\n")
    second = submit.with_uploaded_files(run_config).network_config
    assert second != first
    assert [load_network(uri).build(None, {})[0] for uri in (second, first)] == [4, 3]


def test_pods_get_the_endpoint_that_this_machine_uses(s3_bucket, s3_server):
    assert submit.for_pods(config(s3_bucket)).s3_endpoint == s3_server
    assert (
        submit.for_pods(config(s3_bucket, s3_endpoint="https://other")).s3_endpoint
        == "https://other"
    )


def test_a_storage_that_pods_cannot_reach_is_refused():
    with pytest.raises(InputError, match="give s3://bucket/prefix"):
        submit.for_pods(RunConfig())


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2.4.1", "server 2.4.1 is older than 2.5"),
        ("2.2.0", "older than 2.5"),
        ("1.8.5", "older than 2.5"),
        ("3.0.0", "newer major version"),
    ],
)
def test_nothing_is_uploaded_to_a_server_of_an_unsupported_version(
    kfp, s3_bucket, version, message
):
    kfp.version = version
    with pytest.raises(ClusterError, match=message):
        submit.submit(config(s3_bucket), connect(kfp.url), "steps:1")
    assert not kfp.pipelines + kfp.runs
    assert storage.entries(s3_bucket) == []


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_server_gets_an_ir_that_it_accepts(kfp, s3_bucket, version, tmp_path, capsys):
    kfp.version = version
    server = connect(kfp.url)
    submit.submit(config(s3_bucket, s3_secret="s3-keys"), server, "steps:1")
    ir = tmp_path / "ir.yaml"
    ir.write_text(kfp.versions[0]["text"])
    assert Messages(version).refusals(ir) == []
    assert ("securityContext" in ir.read_text()) == server.support.non_root
    message = capsys.readouterr().out
    for sentence in limitations(server.support, "s3-keys"):
        assert f"server {version}: {sentence}" in message


@pytest.mark.parametrize("version", ["", "unknown"])
def test_a_server_without_a_version_is_a_warning(kfp, s3_bucket, capsys, tmp_path, version):
    kfp.version = version
    submit.submit(config(s3_bucket), connect(kfp.url), "steps:1")
    assert "warning: the server does not tell its version" in capsys.readouterr().out
    ir = tmp_path / "ir.yaml"
    ir.write_text(kfp.versions[0]["text"])
    for supported_version in SUPPORTED:
        assert Messages(supported_version).refusals(ir) == []


@pytest.mark.parametrize("version", ["2.14.4", "2.17.0"])
def test_the_ir_in_a_file_is_for_the_server_that_is_named(kfp, tmp_path, version):
    kfp.version = version
    file = tmp_path / "ir.yaml"
    assert pipeline.main(["--compile-to", str(file), "--host", kfp.url]) == 0
    assert Messages(version).refusals(file) == []
    assert ("securityContext" in file.read_text()) == (version == "2.17.0")
    assert not kfp.pipelines


def test_no_file_is_written_for_a_server_that_is_too_old(kfp, tmp_path, capsys):
    kfp.version = "2.4.1"
    file = tmp_path / "ir.yaml"
    assert pipeline.main(["--compile-to", str(file), "--host", kfp.url]) == 1
    assert "server 2.4.1 is older than 2.5" in capsys.readouterr().err
    assert not file.exists()


def test_a_multi_user_server_without_a_namespace_is_refused_before_any_upload(kfp, s3_bucket):
    """Such a server would share the pipeline with everybody, and then refuse the run."""
    kfp.multi_user = True
    server = connect(kfp.url)
    with pytest.raises(InputError, match="--namespace"):
        submit.submit(config(s3_bucket), server, "steps:1")
    assert not kfp.pipelines + kfp.versions + kfp.experiments + kfp.runs
    assert storage.entries(s3_bucket) == []


def test_a_notebooks_own_namespace_is_used(kfp, s3_bucket, monkeypatch):
    kfp.multi_user = True
    server = connect(kfp.url)
    monkeypatch.setattr(server.client, "get_user_namespace", lambda: "mine")
    submit.submit(config(s3_bucket), server, "steps:1")
    assert kfp.pipelines[0]["namespace"] == kfp.experiments[0]["namespace"] == "mine"


@pytest.mark.parametrize(
    ("values", "account", "facts"),
    [
        ({}, "auto", ["pipeline-runner", "objects there as well"]),
        ({"namespace": "physics"}, "auto", ["pipeline-runner", "namespace physics"]),
        ({"namespace": "physics"}, "mine", ["ServiceAccount mine", "namespace physics"]),
    ],
)
def test_with_a_single_user_server_the_note_names_where_steps_run(
    kfp, s3_bucket, capsys, values, account, facts
):
    submit.submit(config(s3_bucket, **values), connect(kfp.url), "steps:1", account=account)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert all(fact in note for fact in facts)
    parameters = kfp.runs[0]["runtime_config"]["parameters"]
    assert parameters["settings"]["kubeflow_namespace"] == values.get("namespace", "auto")


@pytest.mark.parametrize(
    ("count", "is_accepted"), [(5_000, True), (20_000, False), (200_000, False)]
)
def test_a_search_space_too_long_for_an_argument_is_refused(kfp, s3_bucket, count, is_accepted):
    """Linux starts no program with an argument of 128 KiB; etcd takes no run of 1.5 MB."""
    entry = {"name": "start-lr", "type": "discrete", "list": [i + 1 for i in range(count)]}
    long = config(s3_bucket, search_space=json.dumps([entry]))
    server = connect(kfp.url)
    if is_accepted:
        submit.submit(long, server, "steps:1")
        assert len(json.dumps(kfp.runs[0]["runtime_config"]["parameters"])) < 131_072
        return
    with pytest.raises(InputError, match=r"--search-space alone .* 120,000") as refusal:
        submit.submit(long, server, "steps:1")
    sizes = re.findall(r"[\d,]{6,}", str(refusal.value))
    assert int(sizes[0].replace(",", "")) > int(sizes[1].replace(",", "")) > 120_000
    assert not kfp.pipelines + kfp.experiments + kfp.runs
    assert storage.entries(s3_bucket) == []


def test_a_refusal_of_the_server_is_an_error_of_one_line(kfp, s3_bucket):
    server = connect(kfp.url)
    kfp.failures = [409]
    with pytest.raises(ClusterError, match="did not create the run: 409 the fake was told to fail"):
        submit.submit(config(s3_bucket), server, "steps:1")


@pytest.mark.parametrize(
    ("requested", "environment", "expected"),
    [
        ("http://asked/", {"KFP_ENDPOINT": "http://set"}, ("http://asked", "--host")),
        ("auto", {"KFP_ENDPOINT": "http://set"}, ("http://set", "KFP_ENDPOINT")),
        ("auto", {}, ("", "")),
    ],
)
def test_the_endpoint_comes_from_flag_or_environment(monkeypatch, requested, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert endpoint(requested) == expected


def test_a_notebooks_token_means_its_own_cluster(tmp_path):
    (tmp_path / "no-token").write_text("t")
    assert endpoint("auto")[0] == "in-cluster"


def test_rerun_submits_a_run_with_changed_parameters(kfp, s3_bucket, capsys):
    common = ["--host", kfp.url, "--s3-bucket", f"{s3_bucket}/jec", "--steps-image", "steps:1"]
    data = [f"--data-{split}=s3://b/{split}/*.root" for split in ("train", "val", "test")]
    assert pipeline.main([*common, *data, "--max-trials", "9", "--batch-size", "256"]) == 0
    first = kfp.runs[0]
    run_id = make_run_id("networks/pfn_regressor_open.py", first["run_id"])
    assert run_id in capsys.readouterr().out
    assert pipeline.main([*common, "--rerun", run_id, "--batch-size", "1000"]) == 0
    before, after = (run["runtime_config"]["parameters"] for run in kfp.runs)
    assert after == {**before, "settings": {**before["settings"], "search_batch_size": 1000}}
    assert "is there already" in capsys.readouterr().out
    # a number in earlier versions; JSON knows no whole numbers
    before["settings"]["search_seed"] = 7.0
    assert pipeline.main([*common, "--rerun", run_id, "--max-trials", "10"]) == 0
    assert kfp.runs[-1]["runtime_config"]["parameters"]["settings"]["search_seed"] == "7"
    assert pipeline.main([*common, "--rerun", "pfn-regressor-open-00000000"]) == 2
    assert "unknown run" in capsys.readouterr().err


def test_start_at_is_submitted_with_the_run(kfp, s3_bucket):
    bucket = f"{s3_bucket}/jec"
    run = Run(config=config(s3_bucket).replace(s3_bucket=bucket, run_id="pfn-00000001"))
    run.save()
    words = ["--host", kfp.url, "--s3-bucket", bucket, "--resume", run.id, "--start-at", "export"]
    assert pipeline.main(words) == 2
    assert (kfp.runs, StartRecord.find(run.folder.start)) == ([], None)
    SearchRecord(
        experiment=run.id, objective=Objective(name="AvgLoss"), optimal="t", trials=[]
    ).save(run.folder.search)
    storage.write_text(run.folder.weights("t"), "weights")
    assert pipeline.main(words) == 0
    assert kfp.runs[0]["runtime_config"]["parameters"]["storage_run_id"] == run.id
    assert StartRecord.load(run.folder.start) == StartRecord(step="export")
    # without --start-at the run continues as it is
    assert pipeline.main(words[:-2]) == 0
    assert StartRecord.find(run.folder.start) is None


def test_rerun_submits_a_run_of_an_earlier_version(kfp, s3_bucket):
    """Its parameters have the names of the fields, and its search space is text."""
    space = json.dumps([{"name": "start-lr", "type": "double", "min": 0.001, "max": 0.01}])
    earlier = config(
        s3_bucket, max_trials=9, parallel_trials=3, batch_size=256, search_space=space
    ).parameters()
    earlier["webhook"] = "none"
    number = "00000000-0000-4000-8000-000000000009"
    kfp.runs.append({"run_id": number, "runtime_config": {"parameters": earlier}})
    assert pipeline.main(["--host", kfp.url, "--rerun", number, "--num-gpus", "1"]) == 0
    now = kfp.runs[-1]["runtime_config"]["parameters"]
    assert set(now) == set(form.TYPES)
    assert (now["search_max_trials"], now["search_parallel_trials"]) == (9, 3)
    assert (now["settings"]["search_batch_size"], now["pods_num_gpus"]) == (256, 1)
    assert [entry["name"] for entry in now["search_space"]["parameters"]] == ["start-lr"]
    assert now["storage_bucket"] == f"{s3_bucket}/jec"


def test_rerun_keeps_experiment_and_namespace(kfp, s3_bucket):
    """Both are no parameters of a run: the server says them."""
    kfp.multi_user = True
    values = {"experiment_name": "mine", "namespace": "physics"}
    submission = submit.submit(config(s3_bucket, **values), connect(kfp.url), "steps:1")
    again = ["--host", kfp.url, "--rerun", submission.kfp_run]
    assert pipeline.main(again) == 0
    assert kfp.runs[1]["experiment_id"] == kfp.runs[0]["experiment_id"]
    assert kfp.experiments[0]["namespace"] == "physics"
    # as well where run.json is read, which does not know the experiment
    bucket = f"{s3_bucket}/jec"
    run = Run(config=config(s3_bucket).replace(s3_bucket=bucket, run_id=submission.run_id))
    Run(config=run.config, record=RunRecord(kfp_run=submission.kfp_run)).save()
    again = ["--host", kfp.url, "--namespace", "physics", "--s3-bucket", bucket]
    assert pipeline.main([*again, "--rerun", submission.run_id]) == 0
    assert kfp.runs[2]["experiment_id"] == kfp.runs[0]["experiment_id"]


def test_the_next_command_names_server_bucket_endpoint_and_namespace(
    kfp, s3_bucket, s3_server, capsys
):
    """The endpoint is in the environment of this shell, which another one does not have."""
    kfp.multi_user = True
    common = ["--host", kfp.url, "--s3-bucket", f"{s3_bucket}/jec", "--namespace", "physics"]
    data = [f"--data-{split}=s3://b/{split}/*.root" for split in ("train", "val", "test")]
    assert pipeline.main([*common, *data, "--steps-image", "steps:1"]) == 0
    next_line = capsys.readouterr().out.splitlines()[-1]
    args = pipeline.build_parser().parse_args(shlex.split(next_line)[3:])
    assert args.status == make_run_id("networks/pfn_regressor_open.py", kfp.runs[0]["run_id"])
    assert (args.host, args.namespace) == (kfp.url, "physics")
    assert (args.s3_bucket, args.s3_endpoint) == (f"{s3_bucket}/jec", s3_server)


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"data_config": "data/no.yaml"}, "data/no.yaml"),
        ({"network_config": "networks/no.py"}, "networks/no.py"),
        (
            {"search_space": '[{"name": "nothing", "type": "int", "min": 1, "max": 2}]'},
            "nothing",
        ),
        ({"algorithm": "grid"}, "grid"),
        ({"service_name": "jec-of-the-small-jets", "namespace": "n" * 32}, "at most 20,"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_before_anything_is_sent(
    kfp, s3_bucket, values, fact
):
    server = connect(kfp.url)
    with pytest.raises(InputError, match=fact):
        submit.submit(config(s3_bucket, **values), server, "steps:1")
    assert not kfp.pipelines + kfp.experiments + kfp.runs
    assert storage.entries(s3_bucket) == []


def test_runs_with_other_resources_of_steps_have_their_own_version(kfp, s3_bucket):
    server = connect(kfp.url)
    usual = submit.submit(config(s3_bucket), server, "steps:1")
    small = submit.submit(config(s3_bucket, steps_cpus="100m"), server, "steps:1")
    again = submit.submit(config(s3_bucket, steps_cpus="100m", seed="7"), server, "steps:1")
    assert usual.version != small.version
    assert (small.new_version, again.version, again.new_version) == (True, small.version, False)


def test_a_submitted_pipeline_equals_the_one_compiled_to_a_file(kfp, s3_bucket, tmp_path):
    """The steps of a submitted run once had no login for XRootD: it was compiled without it."""
    fixed = {
        "steps_cpus": "100m",
        "steps_memory": "3Gi",
        "webhook_secret": "hook/url",
        "mlflow_secret": "mlflow-login",
        "model_registry": "http://registry:8080",
        "model_registry_secret": "registry/token",
        "xrootd_secret": "grid-login",
    }
    server = connect(kfp.url)
    run = config(s3_bucket, **fixed)
    submit.submit(run, server, "steps:1")
    path = chain.compile_to(tmp_path / "p.yaml", run, "steps:1", support=server.support)
    submitted_documents = list(yaml.safe_load_all(kfp.versions[0]["text"]))
    compiled = list(yaml.safe_load_all(path.read_text()))
    assert submitted_documents[0]["deploymentSpec"] == compiled[0]["deploymentSpec"]
    assert submitted_documents[1] == compiled[1]
