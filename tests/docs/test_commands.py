"""The commands, flags and files that the README and the pages of docs/ name exist."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from images import build
from serving import calibrate, serve
from weaver.fit import options as weaver_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
AUTOMATION = [".gitlab-ci.yml", ".github/workflows/ci.yml", ".ci/run"]
ROOMS = "|".join(
    ["images", "deploy", "docs", *(path.parent.name for path in ROOT.glob("*/__init__.py"))]
)
OTHER_PROGRAMS = {
    "docs/reliability.md": {"--shm-size"},  # of docker run
    "docs/storage.md": {"--cores"},  # of python -m benchmarks.remote
}
"""Page -> flags that it names of programs that the test below does not ask."""
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


@pytest.fixture(scope="module")
def flags():
    return set(pipeline.build_parser()._option_string_actions)


@pytest.fixture(scope="module")
def targets():
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def code(page: str) -> list[str]:
    """Lines of code blocks, with continued ones joined, and code within sentences; each without its
    comment.
    """
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [
        line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()
    ]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    pieces = [*lines, *re.findall(r"`([^`\n]+)`", outside)]
    return [re.sub(r"\s#\s.*", "", piece) for piece in pieces]


def test_the_pages_contain_commands():
    assert {"README.md", "docs/kubeflow.md", "docs/cern.md"} <= set(PAGES)
    assert sum(len(code(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES)
def test_flags_of_the_pipeline_exist(page, flags):
    words = {
        flag
        for line in code(page)
        if line.startswith("python pipeline.py")
        for flag in FLAG.findall(line)
    }
    assert words <= flags


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pipeline_are_parsed(page, capsys):
    parser = pipeline.build_parser()
    for line in code(page):
        if not line.startswith("python pipeline.py "):
            continue
        command = line.split(" > ")[0]
        words = [word for word in shlex.split(command) if word != "..."]
        if not {"--help", "--version"} & set(words):
            try:
                parser.parse_args(words[2:])
            except SystemExit:
                pytest.fail(f"{line}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES)
def test_flags_named_in_sentences_exist(page, flags, monkeypatch, capsys):
    for program in (build, calibrate, serve):
        with pytest.raises(SystemExit):
            program.main(["--help"])
    known_flags = flags | set(FLAG.findall(capsys.readouterr().out))
    known_flags |= OTHER_PROGRAMS.get(page, set())
    words = {flag for line in code(page) if line.startswith("--") for flag in FLAG.findall(line)}
    if page == "docs/coming-from-weaver.md":
        # abbreviations as well; tests/weaver/fit/test_options.py holds each row of its table
        of_train = set(weaver_options.parser()._option_string_actions)
        known_flags |= {
            flag for flag in words if any(train_flag.startswith(flag) for train_flag in of_train)
        }
    assert words <= known_flags


@pytest.mark.parametrize("page", [*PAGES, *AUTOMATION])
def test_targets_of_make_exist(page, targets):
    lines = code(page) if page in PAGES else (ROOT / page).read_text().splitlines()
    words = {
        name for line in lines for name in re.findall(r"(?:^|[-:] |exec )make ([a-z]\w*)", line)
    }
    assert words <= targets


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_their_flags_exist(page):
    for line in code(page):
        if match := re.match(r"python -m ([\w.]+)(.*)", line):
            module = ROOT / (match[1].replace(".", "/") + ".py")
            assert module.exists(), line
            if words := set(FLAG.findall(match[2])) - {"--help"}:
                assert words <= flags_of(match[1]), line


@functools.cache
def flags_of(module: str) -> set[str]:
    """The flags that a module's own --help shows."""
    command = [sys.executable, "-m", module, "--help"]
    return set(
        FLAG.findall(
            subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
            ).stdout
        )
    )


@pytest.mark.parametrize("page", PAGES)
def test_linked_and_named_files_exist(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [name for name in targets if not ((ROOT / page).parent / name).exists()] == []
    commands = [
        name for name in code(page) if re.fullmatch(rf"({ROOMS})/[\w./-]+\.(py|ya?ml|sh|md)", name)
    ]
    assert [name for name in commands if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", AUTOMATION[:2])
def test_automation_names_no_registry_and_no_secret(page):
    text = (ROOT / page).read_text()
    assert not re.search(r"\b[\w-]+\.(io|ch|com|org)/", text)
    assert "password-stdin" in text, "a password as an argument is there for everybody to read"
