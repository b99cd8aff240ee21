"""The commands for Kubeflow in README and docs/ make the runs that their flags describe."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

import pipeline
from common import form
from common.config import RunConfig
from common.project import ROOT
from tests.docs.test_commands import PAGES, code
from tests.operations.conftest import kfp, no_credentials  # noqa: F401 - both are fixtures

WITH_SITE_FILE = "docs/tutorial-kubeflow.md"
"""The page whose commands take address, bucket and namespace from a file of the site."""
WITHOUT_RUN = [
    f"--{name.replace('_', '-')}" for name in pipeline.COMMANDS if name != "schedule"
] + ["--rerun", "--resume", "--more-trials"]
"""Flags of commands that look at an earlier run or need one."""
DATA = [
    word for split in ("train", "val", "test") for word in (f"--data-{split}", f"s3://b/{split}")
]


def submissions(page: str) -> list[list[str]]:
    """Return the flags of each command on a page that creates a run or a schedule on Kubeflow."""
    lines = [line for line in code(page) if line.startswith("python pipeline.py ")]
    commands = [shlex.split(line)[2:] for line in dict.fromkeys(lines)]
    return [
        words
        for words in commands
        if ("--host" in words or page == WITH_SITE_FILE) and not set(words) & set(WITHOUT_RUN)
    ]


SUBMISSIONS = [
    pytest.param(page, words, id=f"{page}-{number}")
    for page in PAGES
    for number, words in enumerate(submissions(page))
]


def test_the_pages_show_runs_and_schedules():
    pages = {parameters.values[0] for parameters in SUBMISSIONS}
    assert {"README.md", "docs/kubeflow-runs.md", "docs/storage.md", WITH_SITE_FILE} <= pages
    assert any("--schedule" in parameters.values[1] for parameters in SUBMISSIONS)


@pytest.mark.parametrize(("page", "words"), SUBMISSIONS)
def test_a_command_for_kubeflow_makes_the_run_that_it_describes(
    page,
    words,
    kfp,  # noqa: F811
    s3_bucket,
    s3_server,
    monkeypatch,
    tmp_path,
):
    servers = {
        "https://KUBEFLOW/pipeline": kfp.url,
        "https://S3": s3_server,
        "s3://bucket/jec": f"{s3_bucket}/jec",
        "NAMESPACE": "physics",
    }
    # following a run is tested with the fake server's states; "..." stands for the data
    words = [servers.get(word, word) for word in words if word not in ("...", "--follow")]
    if "--data-test" not in words:
        words += DATA[2:] if "--data-train" in words else DATA
    arguments = list(words)
    if page == WITH_SITE_FILE:
        site = site_file(servers)
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
        monkeypatch.setenv("JEC_CONFIG", str(tmp_path / "site.yaml"))
        for key, value in site.items():
            arguments += [f"--{key.replace('_', '-')}", str(value)]
    kfp.multi_user = "--namespace" in arguments
    assert pipeline.main(words) == 0
    (run,) = kfp.recurring if "--schedule" in words else kfp.runs
    fields = form.fields(run["runtime_config"]["parameters"])
    args = vars(pipeline.build_parser().parse_args(arguments))
    # the namespace is the server's, not a parameter: a clone runs in another one
    expected = {
        name: value
        for name, value in args.items()
        if name in fields and name != "namespace" and value != getattr(RunConfig, name)
    }
    assert expected
    assert {name: fields[name] for name in expected} == expected
    assert kfp.experiments[0].get("namespace", "auto") == args["namespace"]


def site_file(servers: dict[str, str]) -> dict[str, object]:
    """Return the site's file that the tutorial shows, with the test's servers."""
    text = (ROOT / WITH_SITE_FILE).read_text()
    (block,) = re.findall(r"^```yaml\n(host: .*?)^```", text, re.MULTILINE | re.DOTALL)
    site = yaml.safe_load(block)
    return {key: servers.get(value, value) for key, value in site.items()}
