"""Recurring runs, with kfp's real client against a server that answers as the KFP API does."""

from __future__ import annotations

import shlex
import sys

import pytest

import pipeline
from common import form
from common.config import RunConfig
from common.errors import InputError
from components import chain
from operations import schedules
from operations.server import connect

MONDAYS = "0 3 * * 1"


def flags(kfp, s3_bucket, *more) -> list[str]:
    data = [
        part
        for split in ("train", "val", "test")
        for part in (f"--data-{split}", f"s3://b/{split}")
    ]
    place = ["--host", kfp.url, "--s3-bucket", f"{s3_bucket}/jec", "--steps-image", "steps:1"]
    return [*place, *data, *more]


def test_a_schedule_makes_the_run_that_its_flags_would_make(kfp, s3_bucket, capsys):
    args = flags(kfp, s3_bucket, "--max-trials", "7")
    assert pipeline.main([*args, "--steps-account", "editor", "--schedule", MONDAYS]) == 0
    assert pipeline.main(args) == 0
    (schedule,), (run,) = kfp.recurring, kfp.runs
    assert schedule["runtime_config"]["parameters"] == run["runtime_config"]["parameters"]
    assert schedule["runtime_config"]["parameters"]["search_max_trials"] == 7
    assert schedule["runtime_config"]["parameters"]["storage_run_id"] == "auto"
    assert schedule["pipeline_version_reference"] == run["pipeline_version_reference"]
    assert schedule["experiment_id"] == run["experiment_id"]
    assert schedule["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert (schedule["max_concurrency"], schedule["no_catchup"], schedule["mode"]) == (
        1,
        True,
        "ENABLE",
    )
    assert schedule["service_account"] == "editor"
    assert schedule["description"].startswith(f"python pipeline.py --schedule '{MONDAYS}' --data-")
    assert f"schedule {schedule['display_name']}: 0 0 3 * * 1" in capsys.readouterr().out


def test_a_schedule_is_listed_paused_resumed_and_deleted_by_its_name(kfp, s3_bucket, capsys):
    assert pipeline.main(flags(kfp, s3_bucket, "--schedule", MONDAYS)) == 0
    # of another pipeline
    other = {"recurring_run_id": "x", "display_name": "other", "runtime_config": {"parameters": {}}}
    kfp.recurring.append(other)
    name = kfp.recurring[0]["display_name"]
    host = ["--host", kfp.url]
    states = []
    for command in ([], ["--pause-schedule", name], ["--resume-schedule", name]):
        capsys.readouterr()
        if command:
            assert pipeline.main([*host, *command]) == 0
            assert name in capsys.readouterr().out
        assert pipeline.main([*host, "--schedules"]) == 0
        (row,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
        states.append((row.split()[1], kfp.recurring[0]["status"]))
    assert states == [("on", "ENABLED"), ("paused", "DISABLED"), ("on", "ENABLED")]
    assert pipeline.main([*host, "--delete-schedule", kfp.recurring[0]["recurring_run_id"]]) == 0
    assert f"deleted {name}" in capsys.readouterr().out
    assert kfp.recurring == [other]
    assert pipeline.main([*host, "--schedules"]) == 0
    assert "no schedules" in capsys.readouterr().out


def test_an_unknown_schedule_is_refused_with_the_nearest(kfp, s3_bucket, capsys):
    assert pipeline.main(flags(kfp, s3_bucket, "--schedule", MONDAYS)) == 0
    name = kfp.recurring[0]["display_name"]
    assert pipeline.main(["--host", kfp.url, "--delete-schedule", name[:-1] + "x"]) == 2
    assert name in capsys.readouterr().err
    assert len(kfp.recurring) == 1


def test_the_same_schedule_is_not_made_twice(kfp, s3_bucket):
    server, image = connect(kfp.url), "steps:1"
    config = RunConfig(s3_bucket=f"{s3_bucket}/jec")
    first = schedules.create(config, server, MONDAYS, image)
    with pytest.raises(InputError, match=first.name):
        schedules.create(config, server, "0 0 3 * * 1", image)
    assert len(kfp.recurring) == 1
    others = {
        schedules.schedule_name(config, "0 0 4 * * 1"),
        schedules.schedule_name(config, "0 0 3 * * 1"),
        schedules.schedule_name(config.replace(max_trials=7), "0 0 3 * * 1"),
    }
    assert len(others) == 3


def test_a_multi_user_server_gets_the_namespace(kfp, s3_bucket):
    kfp.multi_user = True
    config = RunConfig(s3_bucket=f"{s3_bucket}/jec", namespace="physics")
    schedules.create(config, connect(kfp.url), MONDAYS, "steps:1")
    assert kfp.experiments[0]["namespace"] == "physics"
    settings = kfp.recurring[0]["runtime_config"]["parameters"][form.SETTINGS]
    assert settings["kubeflow_namespace"] == "auto"
    with pytest.raises(InputError, match="--namespace"):
        list(schedules.schedules(connect(kfp.url), "auto"))


@pytest.mark.parametrize(
    "more",
    [
        ["--schedule", "61 3 * * 1"],
        ["--schedule", MONDAYS, "--resume", "pfn-00000000"],
        ["--schedule", MONDAYS, "--follow"],
        ["--schedule", MONDAYS, "--check"],
        ["--schedules", "--rerun", "pfn-00000000"],
    ],
)
def test_contradictory_flags_end_with_2_and_make_nothing(kfp, s3_bucket, more, capsys):
    with pytest.raises(SystemExit) as exit_info:
        pipeline.main(flags(kfp, s3_bucket, *more))
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert kfp.recurring == kfp.runs == []


def test_on_one_machine_the_line_for_crontab_is_printed(tmp_path, capsys):
    words = ["--max-trials", "7", "--output", str(tmp_path / "100 %"), f"--schedule={MONDAYS}"]
    assert pipeline.main(words) == 2
    error = capsys.readouterr().err
    line = error[error.index("0 3 * * 1 cd ") :].strip()
    command = line.removeprefix("0 3 * * 1 ").replace("\\%", "%")
    assert "%" not in line.replace("\\%", "")
    assert shlex.split(command)[3:] == [
        *(sys.executable, "pipeline.py", *words[:4], ">>"),
        *(str(tmp_path / "100 %" / "cron.log"), "2>&1"),
    ]
    assert not (tmp_path / "100 %").exists()


@pytest.mark.parametrize("command", [["--schedules"], ["--pause-schedule", "x"]])
def test_schedules_need_an_endpoint(command, capsys):
    assert pipeline.main(command) == 2
    assert "--host" in capsys.readouterr().err


def test_the_name_is_short_enough_for_the_object_that_kubeflow_makes_of_it():
    config = RunConfig(network_config="networks/" + "x" * 80 + ".py")
    name = schedules.schedule_name(config, "0 0 3 * * 1")
    assert len(name) <= 40
    assert chain.parameters(config)["network_config"].startswith("networks/x")
