"""What every Dockerfile of the project keeps to; hadolint knows more, and finds nothing in them
either.
"""

from __future__ import annotations

import fnmatch
import re

import pytest

from tests.images.dockerfile import IMAGES, NAMES, arguments, copy_sources, instructions

pytestmark = pytest.mark.parametrize("name", NAMES)
ROOT = IMAGES.parent


def test_the_base_is_an_argument_with_a_version_as_default(name):
    words = instructions(name)
    assert words[0][0] == "ARG"
    assert re.fullmatch(r"BASE=[\w./-]+:[\w.-]*\d[\w.-]*", words[0][1])
    assert [argument for word, argument in words if word == "FROM"] == ["${BASE}"]


def test_the_image_runs_as_a_numeric_user_and_no_later_instruction_as_root(name):
    words = instructions(name)
    last_user = max(index for index, (word, _) in enumerate(words) if word == "USER")
    assert words[last_user][1] == "1000:1000"
    assert not {word for word, _ in words[last_user:]} & {"RUN", "COPY"}


def test_only_apt_and_pip_with_hashes_download_anything(name):
    assert not arguments(name, "ADD")
    for run in arguments(name, "RUN"):
        assert not re.search(r"\b(curl|wget|git clone)\b", run)
        assert ("pip install" not in run) or all(
            flag in run for flag in ("--require-hashes", "--no-deps", "--no-cache-dir")
        )
    assert any("pip check" in run for run in arguments(name, "RUN")), (
        "a package without one that it needs would show at run time only"
    )


def test_apt_leaves_no_lists_and_brings_no_recommended_packages(name):
    for run in arguments(name, "RUN"):
        if "apt-get" in run:
            assert run.index("apt-get update") < run.index("apt-get install")
            assert run.count("apt-get install") == run.count("--no-install-recommends")
            assert "rm -rf /var/lib/apt/lists/*" in run


def test_no_secret_is_an_argument_or_a_variable(name):
    for word in ("ARG", "ENV"):
        assert not [
            argument
            for argument in arguments(name, word)
            if re.search(r"SECRET|PASSWORD|TOKEN|_KEY\b", argument, re.IGNORECASE)
        ]


def test_layers_that_change_often_come_last(name):
    """Otherwise the cache would never hold: locks before the project, the commit after everything
    that costs time.
    """
    words = instructions(name)
    places = {argument.split("=")[0].split()[0]: index for index, (_, argument) in enumerate(words)}
    installs = [
        index
        for index, (word, argument) in enumerate(words)
        if word == "RUN" and "pip install" in argument
    ]
    runs = [index for index, (word, _) in enumerate(words) if word in ("RUN", "COPY")]
    assert max(installs) < places["common"]
    assert places["COMMIT"] > max(runs)


def test_the_labels_describe_the_image(name):
    (labels,) = arguments(name, "LABEL")
    for key in ("title", "revision", "created"):
        assert f"org.opencontainers.image.{key}=" in labels
    assert "JEC_GIT_COMMIT=${COMMIT}" in arguments(name, "ENV"), "prepare writes it into run.json"


def test_the_build_context_holds_only_what_is_copied(name):
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    exceptions = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*", "everything is left out that is not named"
    for source in copy_sources(name):
        pattern = source.replace("${TORCH}", "cuda")
        assert (ROOT / pattern).exists()
        assert any(fnmatch.fnmatch(pattern, entry) for entry in exceptions), (
            f"{source} is not in .dockerignore"
        )
