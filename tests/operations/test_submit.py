"""Submitting, with kfp's real client against a server that answers as the KFP API does at the HTTP
edge.
"""

from __future__ import annotations

import json
import re
import shlex

import pytest

import pipeline
from common import storage
from common.config import RunConfig
from common.errors import ClusterError, InputError
from common.run import make_run_id
from components.server_support import OLDEST, losses
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
    made = submit.submit(
        config(s3_bucket, num_gpus=1, experiment_name="mine", namespace="physics"),
        server,
        "steps:1",
        account="editor",
    )
    run = kfp.runs[0]
    assert made.url == f"{kfp.url}/#/runs/details/{run['run_id']}"
    assert made.run_id == make_run_id("networks/pfn_regressor_open.py", run["run_id"])
    parameters = run["runtime_config"]["parameters"]
    assert set(parameters) == set(RunConfig().parameters())
    assert (parameters["num_gpus"], parameters["run_id"]) == (1, "auto")
    assert storage.read_text(parameters["data_config"]).startswith(
        "# Inputs of the particle flow network"
    )
    assert parameters["network_config"].startswith(f"{s3_bucket}/jec/inputs/")
    assert json.loads(parameters["search_space"])["parameters"]
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
    assert kfp.runs[1]["runtime_config"]["parameters"]["max_trials"] == 7


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
    given = config(s3_bucket, network_config=str(tmp_path / "net.py"))
    first = submit.with_uploaded_files(given).network_config
    assert submit.with_uploaded_files(given).network_config == first
    folder = first.rpartition("/")[0]
    names = {storage.name(entry.uri) for entry in storage.entries(folder)}
    assert names == {"net.py", "layers.py"}
    assert load_network(first).build(None, {})[0] == 3
    # another file beside it is another network
    (tmp_path / "layers.py").write_text("WIDTH = 4\n")
    second = submit.with_uploaded_files(given).network_config
    assert second != first
    assert [load_network(uri).build(None, {})[0] for uri in (second, first)] == [4, 3]


def test_pods_are_told_the_endpoint_that_this_machine_uses(s3_bucket, s3_server):
    assert submit.for_pods(config(s3_bucket)).s3_endpoint == s3_server
    assert (
        submit.for_pods(config(s3_bucket, s3_endpoint="https://other")).s3_endpoint
        == "https://other"
    )


def test_a_storage_that_pods_cannot_reach_is_refused():
    with pytest.raises(InputError, match="give s3://bucket/prefix"):
        submit.for_pods(RunConfig())


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.4.1", "server 2.4.1 is older than 2.5"),
        ("2.2.0", "older than 2.5"),
        ("1.8.5", "older than 2.5"),
        ("3.0.0", "newer generation"),
    ],
)
def test_a_server_of_the_wrong_version_gets_nothing(kfp, s3_bucket, version, said):
    kfp.version = version
    with pytest.raises(ClusterError, match=said):
        submit.submit(config(s3_bucket), connect(kfp.url), "steps:1")
    assert not kfp.pipelines + kfp.runs
    assert storage.entries(s3_bucket) == []


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_server_gets_an_ir_that_it_takes(kfp, s3_bucket, version, tmp_path, capsys):
    kfp.version = version
    server = connect(kfp.url)
    submit.submit(config(s3_bucket, s3_secret="s3-keys"), server, "steps:1")
    ir = tmp_path / "ir.yaml"
    ir.write_text(kfp.versions[0]["text"])
    assert Messages(version).refusals(ir) == []
    assert ("securityContext" in ir.read_text()) == server.support.non_root
    said = capsys.readouterr().out
    for sentence in losses(server.support, "s3-keys"):
        assert f"server {version}: {sentence}" in said


@pytest.mark.parametrize("version", ["", "unknown"])
def test_a_server_without_a_version_is_a_warning(kfp, s3_bucket, capsys, tmp_path, version):
    kfp.version = version
    submit.submit(config(s3_bucket), connect(kfp.url), "steps:1")
    assert "warning: the server does not say its version" in capsys.readouterr().out
    ir = tmp_path / "ir.yaml"
    ir.write_text(kfp.versions[0]["text"])
    for one in SUPPORTED:
        assert Messages(one).refusals(ir) == []


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


def test_many_users_and_no_namespace_are_refused_before_anything_is_sent(kfp, s3_bucket):
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
def test_a_single_users_server_says_where_steps_run(kfp, s3_bucket, capsys, values, account, facts):
    submit.submit(config(s3_bucket, **values), connect(kfp.url), "steps:1", account=account)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert all(fact in note for fact in facts)
    parameters = kfp.runs[0]["runtime_config"]["parameters"]
    assert parameters["namespace"] == values.get("namespace", "auto")


@pytest.mark.parametrize(("count", "taken"), [(5_000, True), (20_000, False), (200_000, False)])
def test_a_search_space_that_no_pod_could_be_given_is_refused(kfp, s3_bucket, count, taken):
    """Linux starts no program with an argument of 128 KiB; etcd takes no run of 1.5 MB."""
    entry = {"name": "start-lr", "type": "discrete", "list": [i + 1 for i in range(count)]}
    long = config(s3_bucket, search_space=json.dumps([entry]))
    server = connect(kfp.url)
    if taken:
        submit.submit(long, server, "steps:1")
        assert len(json.dumps(kfp.runs[0]["runtime_config"]["parameters"])) < 131_072
        return
    with pytest.raises(InputError, match=r"--search-space alone .* 120,000") as refusal:
        submit.submit(long, server, "steps:1")
    sizes = re.findall(r"[\d,]{6,}", str(refusal.value))
    assert int(sizes[0].replace(",", "")) > int(sizes[1].replace(",", "")) > 120_000
    assert not kfp.pipelines + kfp.experiments + kfp.runs
    assert storage.entries(s3_bucket) == []


def test_a_refusal_of_the_server_is_one_sentence(kfp, s3_bucket):
    server = connect(kfp.url)
    kfp.failures = [409]
    with pytest.raises(ClusterError, match="did not create the run: 409 the fake was told to fail"):
        submit.submit(config(s3_bucket), server, "steps:1")


@pytest.mark.parametrize(
    ("asked", "environment", "wanted"),
    [
        ("http://asked/", {"KFP_ENDPOINT": "http://set"}, ("http://asked", "--host")),
        ("auto", {"KFP_ENDPOINT": "http://set"}, ("http://set", "KFP_ENDPOINT")),
        ("auto", {}, ("", "")),
    ],
)
def test_where_the_endpoint_comes_from(monkeypatch, asked, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert endpoint(asked) == wanted


def test_a_notebooks_token_means_its_own_cluster(tmp_path):
    (tmp_path / "no-token").write_text("t")
    assert endpoint("auto")[0] == "in-cluster"


def test_a_run_is_made_again_with_one_change(kfp, s3_bucket, capsys):
    common = ["--host", kfp.url, "--s3-bucket", f"{s3_bucket}/jec", "--steps-image", "steps:1"]
    data = [f"--data-{split}=s3://b/{split}/*.root" for split in ("train", "val", "test")]
    assert pipeline.main([*common, *data, "--max-trials", "9", "--batch-size", "256"]) == 0
    first = kfp.runs[0]
    run_id = make_run_id("networks/pfn_regressor_open.py", first["run_id"])
    assert run_id in capsys.readouterr().out
    assert pipeline.main([*common, "--rerun", run_id, "--batch-size", "1000"]) == 0
    before, after = (run["runtime_config"]["parameters"] for run in kfp.runs)
    assert after == {**before, "batch_size": 1000}
    assert "is there already" in capsys.readouterr().out
    before["seed"] = 7.0  # a number in earlier versions; JSON knows no whole numbers
    assert pipeline.main([*common, "--rerun", run_id, "--max-trials", "10"]) == 0
    assert kfp.runs[-1]["runtime_config"]["parameters"]["seed"] == "7"
    assert pipeline.main([*common, "--rerun", "pfn-regressor-open-00000000"]) == 2
    assert "unknown run" in capsys.readouterr().err


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


def test_runs_whose_steps_ask_for_less_have_a_version_of_their_own(kfp, s3_bucket):
    server = connect(kfp.url)
    usual = submit.submit(config(s3_bucket), server, "steps:1")
    small = submit.submit(config(s3_bucket, steps_cpus="100m"), server, "steps:1")
    again = submit.submit(config(s3_bucket, steps_cpus="100m", seed="7"), server, "steps:1")
    assert usual.version != small.version
    assert (small.new_version, again.version, again.new_version) == (True, small.version, False)
