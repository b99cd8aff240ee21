"""Building and pushing, with engines that only record their command lines and answer as the real
ones do.
"""

from __future__ import annotations

import json
import subprocess

import pytest

import pipeline
from common.errors import InputError
from images import build, digests

SHA = {"steps": "a" * 64, "weaver": "b" * 64}
ENGINE = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$*" in *fail*) exit 3;; esac
for last; do :; done
case "$last" in *jec-steps*) sha={steps};; *) sha={weaver};; esac
case "$1 $2" in
    "push --digestfile") printf 'sha256:%s' "$sha" > "$3";;
    "image inspect") echo '["mirror/other@sha256:{other}", "'"${{last%:*}}"'@sha256:'"$sha"'"]';;
esac
"""


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Which engines are installed, by calling it; their command lines, by `.calls()`; digests.json
    goes to a folder of its own.
    """
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    log.write_text("")

    def install(*names):
        for name in names:
            (folder / name).write_text(ENGINE.format(log=log, other="c" * 64, **SHA))
            (folder / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(
        build.shutil, "which", lambda name: str(folder / name) if (folder / name).exists() else None
    )
    monkeypatch.setattr(
        build,
        "source",
        lambda: build.Source(
            commit="0123456789abcdef" * 2 + "01234567", created="2030-01-01T00:00:00Z"
        ),
    )
    monkeypatch.setattr(digests, "FILE", tmp_path / "digests.json")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "images").mkdir()
    for torch in ("cuda", "cpu"):
        (tmp_path / "images" / f"torch-{torch}.lock").write_text("")
    install.calls = lambda: log.read_text().splitlines()
    return install


@pytest.mark.parametrize("engine", build.ENGINES)
def test_images_are_pushed_and_used_by_digest(engines, engine, capsys):
    engines(engine)
    assert build.main(["--registry", "registry.example/jets"]) == 0
    for name, sha in SHA.items():
        assert digests.image(name) == f"registry.example/jets/jec-{name}@sha256:{sha}"
    assert digests.commit().startswith("0123456789abcdef")
    builds = [line for line in engines.calls() if line.startswith(f"{engine} build ")]
    assert ["images/steps.Dockerfile" in builds[0], "images/weaver.Dockerfile" in builds[1]] == [
        True,
        True,
    ]
    assert all(f"COMMIT={digests.commit()}" in line and line.endswith(" .") for line in builds)
    assert "pipeline.py uses these" in capsys.readouterr().out


def test_a_run_uses_the_pushed_images_unless_flags_name_others(engines):
    engines("podman")
    assert build.main(["--registry", "registry.example/jets"]) == 0
    args = pipeline.build_parser().parse_args([])
    assert (args.steps_image, args.weaver_image) == (
        digests.image("steps"),
        digests.image("weaver"),
    )
    assert "@sha256:" in args.weaver_image
    assert pipeline.build_parser().parse_args(["--weaver-image", "mine:1"]).weaver_image == "mine:1"


def test_without_a_push_the_images_keep_their_local_tags(engines):
    engines("podman")
    assert digests.image("weaver") == "jec-weaver:latest"
    assert build.main(["--no-push"]) == 0
    assert not [line for line in engines.calls() if "push" in line]
    assert digests.image("weaver") == "jec-weaver:latest"
    assert digests.commit() == ""


def test_options_reach_the_engine(engines):
    engines("buildah")
    options = [
        "--torch",
        "cpu",
        "--weaver-base",
        "debian:12",
        "--pip-conf",
        "pip.conf",
        "--build-option=--isolation=chroot",
    ]
    assert build.main(["--registry", "r/p/", "--only", "weaver", *options]) == 0
    (line,) = [line for line in engines.calls() if " build " in line]
    parts = (
        "--tag r/p/jec-weaver:0123456789ab-cpu",
        "BASE=debian:12",
        "TORCH=cpu",
        "id=pip,src=pip.conf",
        "--isolation=chroot",
    )
    assert [part for part in (*parts, "--layers") if part not in line] == []


def test_one_image_pushed_again_keeps_the_other_only_if_it_is_of_the_same_commit(engines):
    engines("docker")
    digests.FILE.write_text(
        json.dumps({"commit": "older", "images": {"steps": "r/p/jec-steps@sha256:1"}})
    )
    assert build.main(["--registry", "r/p", "--only", "weaver"]) == 0
    assert digests.image("steps") == "jec-steps:latest"
    assert build.main(["--registry", "r/p", "--only", "steps"]) == 0
    assert "@sha256:" in digests.image("steps")
    assert "@sha256:" in digests.image("weaver")


def test_the_first_installed_engine_is_used(engines):
    engines("buildah", "podman")
    assert build.main(["--no-push"]) == 0
    assert {line.split()[0] for line in engines.calls()} == {"podman"}


@pytest.mark.parametrize(
    ("installed", "arguments", "code", "message"),
    [
        pytest.param(
            [], ["--no-push"], 2, "none of docker, podman, buildah is installed", id="no engine"
        ),
        pytest.param(
            ["podman"],
            ["--engine", "docker", "--no-push"],
            2,
            "none of docker is installed",
            id="another engine",
        ),
        pytest.param(["docker"], [], 2, "make images REGISTRY=", id="no registry"),
        pytest.param(
            ["docker"],
            ["--no-push", "--torch", "rocm"],
            2,
            "there is no images/torch-rocm.lock",
            id="no such torch",
        ),
        pytest.param(
            ["docker"],
            ["--no-push", "--build-option=--fail"],
            1,
            "docker build ended with exit code 3",
            id="a build that fails",
        ),
    ],
)
def test_an_impossible_build_is_an_error(engines, capsys, installed, arguments, code, message):
    engines(*installed)
    assert build.main(arguments) == code
    assert message in capsys.readouterr().err
    assert not digests.FILE.exists()


def test_the_commit_says_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    with pytest.raises(InputError, match="not a git checkout"):
        build.source()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    clean = build.source()
    assert len(clean.commit) == 40
    assert clean.tag == clean.commit[:12]
    (tmp_path / "file").write_text("two")
    assert build.source().commit == clean.commit + "+"
    assert build.source().tag == f"{clean.tag}-changed"
