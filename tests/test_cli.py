"""The command itself: help at once, nearest names, every flag of the original, one configuration
behind flags and parameters.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pipeline
from common import project
from common.config import RunConfig, flag
from common.errors import InputError
from operations import check, table

ROOT = Path(pipeline.__file__).parent

ORIGINAL = [
    "--namespace",
    "--experiment-name",
    "--num-replicas",
    "--num-gpus",
    "--num-cpus",
    "--memory",
    "--data-config",
    "--network-config",
    "--s3-bucket",
    "--data-train",
    "--data-val",
    "--data-test",
    "--delete-train-experiment",
    "--delete-export-job",
]


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "pipeline.py", *args],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_help_answers_in_under_a_second_and_knows_every_original_flag():
    # Without coverage's tracer, which `make test-all` starts in every process.
    environment = {k: v for k, v in os.environ.items() if k != "COVERAGE_PROCESS_CONFIG"}
    # Processor time, which other work on the machine does not lengthen.
    before = os.times()
    answer = command("--help", env=environment)
    after = os.times()
    user = after.children_user - before.children_user
    system = after.children_system - before.children_system
    assert user + system < 1.0
    assert answer.returncode == 0
    for name in [
        *ORIGINAL,
        "--runner",
        "--compile-to",
        "--render",
        "--seed",
        "--serve",
        "--output",
        "--resume",
    ]:
        assert name in answer.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num-gpu", "1"], "--num-gpus"),
        (["--data-trian", "x"], "--data-train"),
        (["--runner", "lokal"], "local"),
        (["--algorithm", "tpee"], "tpe"),
        (["--webhook", "https://hooks.example.org/canary-7f3a"], "--webhook-secret"),
        (["--webhook-secret", "https://hooks.example.org/canary-7f3a"], "--webhook-secret"),
        (["--num-epochs", "many"], "--num-epochs"),
    ],
)
def test_a_typing_error_ends_with_2_and_the_nearest_name(args, expected):
    answer = command(*args)
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "canary" not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_replicas": 0}, r"--num-replicas 0\b.*\b1\b"),
        ({"data_fraction": 1.5}, "--data-fraction"),
        (
            {"parallel_trials": 9, "max_trials": 3},
            "--parallel-trials 9 .*--max-trials 3",
        ),
        ({"memory": "12 GB"}, "--memory"),
        ({"service_name": "My_Model"}, "--service-name"),
        ({"algorithm": "randon"}, "random"),
        ({"rollout": "surgee"}, "--rollout: .*surge"),
        ({"serving_cpus": "half"}, "--serving-cpus 'half'"),
        ({"serving_cpus": "0"}, "--serving-cpus '0'"),
        ({"serving_memory": "4 GB"}, "--serving-memory"),
        ({"serving_gpus": -1}, "--serving-gpus -1"),
        ({"steps_cpus": "100mm"}, "--steps-cpus '100mm'"),
        ({"steps_memory": "much"}, "--steps-memory 'much'"),
    ],
)
def test_invalid_values_are_refused(values, expected):
    with pytest.raises(InputError, match=expected):
        RunConfig(**values)


@pytest.mark.parametrize(
    ("values", "gpus"),
    [({"num_gpus": 4}, 1), ({"num_gpus": 0}, 0), ({}, 0), ({"num_gpus": 4, "serving_gpus": 0}, 0)],
)
def test_an_earlier_run_that_trained_with_gpus_still_serves_with_one(values, gpus):
    assert RunConfig.from_dict(values).serving_gpus == gpus


def test_flags_and_fields_agree():
    args = pipeline.build_parser().parse_args(
        ["--num-gpus", "2", "--delete-export-job", "--delete-train-experiment", "false"]
    )
    config = RunConfig.from_args(args)
    assert (config.num_gpus, config.delete_export_job, config.delete_train_experiment) == (
        2,
        True,
        False,
    )
    assert RunConfig.from_dict(config.parameters()) == config
    text = pipeline.build_parser().format_help()
    assert all(
        f"--{flag(field.name)}" in text
        for field in dataclasses.fields(RunConfig)
        if field.name != "run_id"
    )


def test_a_seed_of_an_earlier_version_was_a_number():
    assert RunConfig.from_dict({"seed": 7}) == RunConfig(seed="7")
    assert (RunConfig().seed, RunConfig().seed_number, RunConfig(seed="7").seed_number) == (
        "auto",
        1,
        7,
    )


def test_no_field_is_optional_or_empty():
    """Kubeflow's UI shows an empty default as missing, and loses it in a clone."""
    for name, value in RunConfig().parameters().items():
        assert value is not None and value != "", name  # noqa: PT018


def test_auto_without_an_endpoint_says_that_it_runs_here_and_why(tmp_path):
    answer = command("--data-config", "no_such.yaml", "--output", str(tmp_path / "runs"))
    assert "no Kubeflow endpoint" in answer.stdout
    assert answer.returncode == 2


def test_a_network_of_ones_own_is_not_compiled_to_a_path_that_no_pod_has(tmp_path):
    own = tmp_path / "net.py"
    own.write_text(
        "def get_model(data_config, **options): ...\ndef get_loss(data_config, **options): ...\n"
    )
    answer = command("--compile-to", str(tmp_path / "p.yaml"), "--network-config", str(own))
    assert answer.returncode == 2
    assert "--s3-bucket" in answer.stderr
    assert not (tmp_path / "p.yaml").exists()


def test_the_version_names_the_commit(capsys, monkeypatch):
    monkeypatch.setenv("JEC_GIT_COMMIT", "c0ffee")
    with pytest.raises(SystemExit) as end:
        pipeline.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"jec-pipeline {project.version()}, commit c0ffee\n"
    assert project.version() == "0.1.0"


@pytest.mark.parametrize(
    "args",
    [
        ["--json"],
        ["--json", "--down", "pfn-00000001"],
        ["--json", "--status", "pfn-00000001", "--follow"],
        ["--json", "--check", "--quiet"],
        ["--quiet", "--list"],
        ["--quiet", "--status", "pfn-00000001"],
    ],
)
def test_json_and_quiet_are_refused_where_they_change_nothing(args, capsys):
    with pytest.raises(SystemExit) as end:
        pipeline.main(args)
    assert end.value.code == 2
    assert args[0] in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_the_check_as_json_and_quietly(fails, tmp_path, capsys, monkeypatch):
    worst = table.error("train data", "there is none", "give --data-train")
    inputs = [table.ok("network", "built"), *([worst] if fails else [])]
    monkeypatch.setattr(check, "check_inputs", lambda config: inputs)
    monkeypatch.setattr(check, "check_objects", lambda config: [])
    here = ["--check", "--runner", "local", "--output", str(tmp_path)]
    assert pipeline.main([*here, "--json"]) == int(fails)
    status = json.loads(capsys.readouterr().out)
    assert status["fails"] is fails
    first = {"state": "ok", "what": "network", "finding": "built", "cure": ""}
    assert status["lines"][0] == first
    assert [line["state"] for line in status["lines"]].count("error") == int(fails)
    assert pipeline.main([*here, "--quiet"]) == int(fails)
    output = capsys.readouterr().out
    assert "built" not in output
    assert ("there is none" in output) is fails


def test_compiling_says_what_to_do_with_the_file(tmp_path):
    answer = command("--compile-to", str(tmp_path / "p.yaml"))
    assert answer.returncode == 0
    assert "upload it" in answer.stdout
    assert next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))["pipelineInfo"]


def test_kubeflow_without_an_endpoint_is_refused():
    answer = command("--runner", "kubeflow", "--s3-bucket", "s3://somewhere/jec")
    assert answer.returncode == 2
    assert "KFP_ENDPOINT" in answer.stderr
