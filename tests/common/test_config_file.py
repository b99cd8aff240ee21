"""Flags from files: their precedence, errors of one line, and --write-config."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

import pipeline
from common.config import RunConfig
from common.config_file import Flags, keys
from common.errors import InputError
from images import digests


def flags_of(*words: str) -> Flags:
    return Flags(pipeline.build_parser(), keys(pipeline.RUNNER_FLAGS), list(words))


def write_file(tmp_path, text: str | bytes, name: str = "run.yaml") -> str:
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def config_printed_by(capsys, *words: str) -> dict[str, object]:
    """The flags that --write-config prints after these words."""
    assert pipeline.main([*words, "--write-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def no_site(monkeypatch):
    monkeypatch.delenv("JEC_CONFIG", raising=False)


def test_typed_flags_override_config_and_config_overrides_the_site(tmp_path, monkeypatch, capsys):
    site = write_file(
        tmp_path, "num_gpus: 1\nnum_cpus: 5\nmax_trials: 7\nfollow: true\n", "site.yaml"
    )
    monkeypatch.setenv("JEC_CONFIG", site)
    file = write_file(tmp_path, "num_cpus: 6\nmax_trials: 8\ndelete_export_job: true\n")
    values = config_printed_by(
        capsys, "--config", file, "--max-trials", "9", "--delete-export-job", "no"
    )
    assert (values["num_gpus"], values["num_cpus"], values["max_trials"]) == (1, 6, 9)
    assert (values["follow"], values["delete_export_job"]) == (True, False)
    assert config_printed_by(capsys)["num_cpus"] == 5


def test_write_config_prints_every_flag_and_its_output_is_a_config(tmp_path, capsys):
    space = "parameters:\n- {name: batch, min: 1}\n"
    words = ["--seed", "7", "--goal", "0.1", "--search-space", space, "--output", str(tmp_path)]
    words += ["--min-improvement", "0.00001"]
    words += ["--steps-image", "host.example/steps:1", "--weaver-image", "host.example/weaver:1"]
    values = config_printed_by(capsys, *words)
    fields = {field.name for field in dataclasses.fields(RunConfig)} - {"run_id"}
    assert set(values) == fields | set(pipeline.RUNNER_FLAGS)
    assert (values["seed"], values["search_space"]) == ("7", space)
    file = write_file(tmp_path, yaml.safe_dump(values))
    assert config_printed_by(capsys, "--config", file) == values


def test_images_that_were_never_pushed_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digests, "FILE", tmp_path / "digests.json")
    assert {"steps_image", "weaver_image"} & set(config_printed_by(capsys)) == set()
    image = "registry.example.org/jec/steps:1"
    assert config_printed_by(capsys, "--steps-image", image)["steps_image"] == image
    content = {"commit": "c", "images": {"weaver": "registry.example.org/jec/weaver@sha256:1"}}
    digests.FILE.write_text(json.dumps(content))
    values = config_printed_by(capsys)
    assert values["weaver_image"] == content["images"]["weaver"]
    assert "steps_image" not in values


def test_run_json_is_a_config_without_the_fields_of_one_run(tmp_path, capsys):
    run = RunConfig(
        run_id="pfn-00000001", user="anna", num_epochs=3, s3_bucket="/runs", min_improvement=1e-05
    )
    content = {"run_id": run.run_id, "versions": {}, "config": {**run.parameters(), "webhook": "x"}}
    values = config_printed_by(
        capsys, "--config", write_file(tmp_path, json.dumps(content), "run.json")
    )
    assert (values["num_epochs"], values["min_improvement"]) == (3, 1e-05)
    assert (values["user"], values["s3_bucket"]) == ("auto", "/runs")


def test_rerun_overrides_the_site_and_config_overrides_rerun(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "pfn-00000001"
    folder.mkdir(parents=True)
    run = RunConfig(
        run_id=folder.name, num_cpus=3, num_epochs=4, max_trials=5, s3_bucket=str(folder.parent)
    )
    (folder / "run.json").write_text(json.dumps({"run_id": run.run_id, "config": run.parameters()}))
    monkeypatch.setenv("JEC_CONFIG", write_file(tmp_path, "num_cpus: 9\n", "site.yaml"))
    file = write_file(tmp_path, f"num_epochs: 8\noutput: {folder.parent}\n")
    words = ["--config", file, "--rerun", folder.name]
    values = config_printed_by(capsys, *words, "--max-trials", "7")
    assert (values["num_cpus"], values["num_epochs"], values["max_trials"]) == (3, 8, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_gpu: 1", ["num_gpu", "num_gpus"]),
        ("num-gpus: 1", ["num_gpus"]),
        ("run_id: x", ["run_id"]),
        ("status: x", ["status"]),
        ("5: x", ["'5'"]),
        ("num_gpus: 1\nnum_gpus: 2", ["num_gpus", "line 2"]),
        ("num_gpus: many", ["num_gpus", "whole number"]),
        ("num_gpus: 1.5", ["num_gpus", "whole number"]),
        ("num_gpus: true", ["num_gpus"]),
        ("num_gpus: .inf", ["num_gpus"]),
        ("num_gpus:", ["num_gpus", "empty"]),
        ("seed: .nan", ["seed"]),
        ("goal: no", ["goal", "quotes"]),
        ("data_train: [a, b]", ["data_train", "list"]),
        ("memory: 2026-01-01", ["memory", "date"]),
        ("follow: 1", ["follow"]),
        ("runner: lokal", ["runner", "local"]),
        ("output: s3://bucket/runs", ["output"]),
        ("- num_gpus: 1", ["list"]),
        ("", ["empty"]),
        ("a: b: c", ["YAML"]),
        (b"\x00\xff\xfe binary", ["UTF-8"]),
        (b"\x00\x01", ["YAML"]),
        (b"a" * 1_000_001, ["larger"]),
    ],
)
def test_an_invalid_file_of_flags_is_refused_in_one_line_with_exit_code_2(
    tmp_path, capsys, text, words
):
    file = write_file(tmp_path, text)
    assert pipeline.main(["--config", file, "--write-config"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config {file}")
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words)


@pytest.mark.parametrize("path", ["none.yaml", "."])
def test_an_unreadable_file_is_refused_with_exit_code_2(tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEC_CONFIG", path)
    assert pipeline.main(["--write-config"]) == 2
    assert capsys.readouterr().err.startswith(f"error: JEC_CONFIG {path}")


def test_no_error_shows_a_value_that_may_be_a_secret(tmp_path, capsys):
    canary = "https://hooks.example.org/canary-7f3a"
    for text in (f"webhook: {canary}", f"num_gpus: {canary}", f"webhook_secret: {canary}"):
        assert pipeline.main(["--config", write_file(tmp_path, text), "--write-config"]) == 2
        assert "canary" not in capsys.readouterr().err


def test_an_error_about_a_value_names_its_file(tmp_path, monkeypatch, capsys):
    site = write_file(tmp_path, "parallel_trials: 9\n", "site.yaml")
    monkeypatch.setenv("JEC_CONFIG", site)
    file = write_file(tmp_path, "max_trials: 3\n")
    assert pipeline.main(["--config", file, "--write-config"]) == 2
    error = capsys.readouterr().err
    assert f"--parallel-trials is from JEC_CONFIG {site}" in error
    assert f"--max-trials is from --config {file}" in error
    assert pipeline.main(["--config", file, "--max-trials", "2", "--write-config"]) == 2
    assert "--max-trials is from" not in capsys.readouterr().err


def test_the_flags_of_how_to_run_are_keys_or_about_earlier_runs():
    group = next(g for g in pipeline.build_parser()._action_groups if g.title == "how to run")
    names = {action.dest for action in group._group_actions}
    assert names == {*pipeline.RUNNER_FLAGS, *pipeline.EARLIER_RUNS, "config", "start_at"}


def test_commands_about_runs_read_output_from_the_config(tmp_path, capsys):
    file = write_file(tmp_path, f"output: {tmp_path / 'elsewhere'}\n")
    assert pipeline.main(["--config", file, "--status", "pfn-00000001"]) == 2
    assert str(tmp_path / "elsewhere") in capsys.readouterr().err


def test_reading_an_unknown_key_raises_input_error(tmp_path):
    with pytest.raises(InputError, match="max_trials"):
        flags_of().read(write_file(tmp_path, "max_trial: 3"), "--config")
