"""The chain for REANA: the rules of the Snakefile, and both files as golden files.

reana-client and snakemake are no packages of the project. Where JEC_REANA names the folder with
their commands, reana-client validates the files and snakemake runs them.
"""

import ast
import os
import re
import subprocess
import types
from pathlib import Path

import pytest
import yaml

import pipeline
from common.config import RunConfig
from common.errors import InputError
from common.project import ROOT
from common.records import MetricsRecord, SearchRecord
from components import graph, steps
from operations import picture, reana
from tests.weaver.conftest import synthetic_jets, write_jets

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "reana"
SETTINGS = {
    "data_train": "root://eos.example.org//jets/train/*.root",
    "data_val": "root://eos.example.org//jets/val/*.root",
    "data_test": "jets/test/*.root",
    "max_trials": 4,
    "parallel_trials": 2,
    "goal": "0.07",
    "weaver_image": "registry.example.org/jec/weaver:1",
}
STEPS_IMAGE = "registry.example.org/jec/steps:1"


def render(folder, **settings):
    """Render a configuration; gives its reana.yaml and its rules, name -> text."""
    reana.render(RunConfig(**settings), folder, STEPS_IMAGE)
    parts = re.split(r"^rule (\w+):\n", (folder / "Snakefile").read_text(), flags=re.MULTILINE)
    rules = dict(zip(parts[1::2], parts[2::2], strict=True))
    return yaml.safe_load((folder / "reana.yaml").read_text()), rules


def command(rule):
    """The command line of a rule, before Snakemake puts its files in."""
    lines = rule.split("shell:\n")[1].split("\n\n")[0].splitlines()
    return "".join(ast.literal_eval(line.strip()) for line in lines)


def jets(folder, splits=("test",)):
    for seed, split in enumerate(splits, start=1):
        (folder / "jets" / split).mkdir(parents=True)
        write_jets(folder / "jets" / split / "a.root", synthetic_jets(300, seed))


def test_images_that_no_cluster_can_pull_are_warned_of():
    assert reana.unpullable([STEPS_IMAGE, SETTINGS["weaver_image"]]) == []
    texts = reana.unpullable(["jec-steps:latest", STEPS_IMAGE, "jec-weaver:latest"])
    assert ["jec-steps:latest" in texts[0], "jec-weaver:latest" in texts[1]] == [True, True]


def test_the_command_warns_of_images_and_still_writes_the_files(tmp_path, capsys):
    words = ["--render-reana", str(tmp_path), "--weaver-image", SETTINGS["weaver_image"]]
    assert pipeline.main([*words, "--steps-image", "jec-steps:latest"]) == 0
    printed = capsys.readouterr()
    assert "jec-steps:latest" in printed.err
    assert SETTINGS["weaver_image"] not in printed.err
    assert (tmp_path / "Snakefile").exists()


def test_the_files_equal_the_golden_ones(tmp_path, update_golden):
    jets(tmp_path)
    render(tmp_path, **SETTINGS)
    for name in ("reana.yaml", "Snakefile"):
        text = (tmp_path / name).read_text()
        if update_golden:
            GOLDEN.mkdir(exist_ok=True)
            (GOLDEN / name).write_text(text)
        assert text == (GOLDEN / name).read_text(), f"{name}; --update-golden writes it anew"


def test_each_step_up_to_the_evaluation_is_a_rule_that_runs_its_program(tmp_path):
    _, rules = render(tmp_path)
    names = steps.NAMES[: steps.NAMES.index("evaluate") + 1]
    assert tuple(rules) == ("all", *names)
    for name in names:
        assert f"python -m components.{name}" in rules[name]


def test_a_rules_inputs_are_those_of_the_compiled_pipeline(tmp_path):
    _, rules = render(tmp_path)
    for task in graph.tasks():
        for parameter, source in task.parameters.items():
            if task.name in rules:
                assert f"{parameter}='steps/{source.task}/{source.output}'" in rules[task.name]
    assert "'steps/export/done'" in rules["evaluate"].split("output:")[0]


def test_the_user_s_own_files_are_copied_and_uploaded(tmp_path):
    network, space = tmp_path / "mine" / "own_net.py", tmp_path / "mine" / "space.yaml"
    network.parent.mkdir()
    network.write_text((ROOT / "networks/pfn_regressor_open.py").read_text())
    space.write_text((ROOT / "training/search_space_small.yaml").read_text())
    folder = tmp_path / "reana"
    content, rules = render(folder, network_config=str(network), search_space=str(space))
    assert {"inputs/own_net.py", "inputs/space.yaml"} <= set(content["inputs"]["files"])
    assert all((folder / name).is_file() for name in content["inputs"]["files"])
    assert "--network-config inputs/own_net.py" in rules["prepare"]
    assert "--search-space inputs/space.yaml" in rules["prepare"]
    assert str(tmp_path) not in rules["prepare"]


def test_data_in_the_folder_is_uploaded(tmp_path):
    jets(tmp_path)
    content, rules = render(tmp_path, data_test="jets/test/*.root")
    assert content["inputs"]["directories"] == ["jets"]
    assert "--data-test 'jets/test/*.root'" in command(rules["prepare"])


def test_braces_and_quotes_reach_the_command_unchanged(tmp_path):
    space = '{"parameters": [{"name": "conv-dim", "type": "discrete", "list": [8, 16]}]}'
    _, rules = render(tmp_path, search_space=space)
    words = command(rules["prepare"]).format(output=types.SimpleNamespace(run="out"))
    assert f"--search-space '{space}'" in words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"s3_bucket": "s3://bucket/x"}, ["--s3-bucket s3://bucket/x"], id="bucket"),
        pytest.param({"data_val": "/data/val/*.root"}, ["--data-val /data/val/*.root"], id="disk"),
        pytest.param({"data_val": "no/*.root"}, ["--data-val no/*.root", "copy"], id="not there"),
        pytest.param({"baseline": "runs/a"}, ["--baseline runs/a"], id="baseline"),
        pytest.param({"num_gpus": 1}, ["--num-gpus 1"], id="gpu"),
    ],
)
def test_options_that_reana_does_not_support_are_refused(tmp_path, settings, words):
    with pytest.raises(InputError) as error:
        render(tmp_path / "reana", **settings)
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tmp_path / "reana").exists()


def test_the_picture_in_the_docs_is_up_to_date():
    current = picture.svg(graph.tasks())
    committed = (ROOT / "docs/pipeline.svg").read_text()
    assert current == committed, "type: python -m operations.picture docs/pipeline.svg"


def test_the_picture_has_an_arrow_for_each_value_that_a_step_takes():
    tasks = graph.tasks()
    image = picture.svg(tasks)
    for task in tasks:
        assert steps.step_of(task.name).title in image
        for source in task.parameters.values():
            assert re.search(rf">[^<]*\b{source.output}\b[^<]*</text>", image)


@pytest.fixture
def reana_commands():
    """The folder with the commands of reana-client and snakemake."""
    folder = os.environ.get("JEC_REANA", "")
    if not folder:
        pytest.skip("JEC_REANA names no folder with reana-client and snakemake")
    return Path(folder)


def run(folder, *command):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
    }
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_reana_validates_the_files_and_snakemake_runs_them(tmp_path, reana_commands):
    jets(tmp_path, ("train", "val", "test"))
    data = {f"data_{split}": f"jets/{split}/*.root" for split in ("train", "val", "test")}
    render(
        tmp_path,
        **data,
        search_space='{"parameters": [{"name": "conv-dim", "type": "discrete", "list": [8, 16]}]}',
        max_trials=2,
        parallel_trials=2,
        num_epochs=1,
        batch_size=64,
    )
    answer = run(tmp_path, reana_commands / "reana-client", "validate")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "WARNING:" not in answer.stdout
    assert answer.stdout.count("SUCCESS") == 4
    answer = run(tmp_path, reana_commands / "snakemake", "--cores", "2")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    results = tmp_path / "results" / "pfn-regressor-open"
    assert len(SearchRecord.load(str(results / "search.json")).trials) == 2
    metrics = MetricsRecord.load(str(results / "metrics.json"))
    verdict = (tmp_path / "steps/evaluate/passed").read_text()
    assert verdict == str(metrics.passed).lower()
    assert (results / "report.html").is_file()
