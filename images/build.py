"""Build the two images with docker, podman or buildah, and push them.

    python -m images.build --registry registry/project                 # what `make images` runs
    python -m images.build --registry registry/project --torch cpu     # for a cluster without GPUs
    python -m images.build --no-push                                   # build only

After a push, images/digests.json names both images by digest, and `python pipeline.py` uses them by
default. Log in to the registry first, with the engine's own `login`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common.cli import Parser, require, run_main
from common.errors import ClusterError, InputError
from images import digests

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("docker", "podman", "buildah")
NAMES = ("steps", "weaver")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The commit that an image is built from."""

    commit: str
    """The checkout's commit, with '+' behind it where files differ."""
    created: str
    """The commit's date (RFC 3339)."""

    @property
    def tag(self) -> str:
        """The commit in short, as a tag may hold it."""
        return self.commit[:12] + ("-changed" if self.commit.endswith("+") else "")


def source() -> Source:
    """Return the checkout's commit.

    Raises InputError outside of a git checkout: an image must be able to say what it holds.
    """
    git = ["git", "-C", str(ROOT)]
    # `describe` alone can tell in one word that files differ; --exclude leaves out all tags.
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        commit = _output([*git, *describe])
        return Source(commit=commit, created=_output([*git, "log", "-1", "--format=%cI"]))
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"images are labelled with their commit, but {ROOT} is not a git checkout ({error});"
            " build them in a clone"
        ) from None


def find_engine(name: str) -> str:
    """Return the engine of this name, or for `auto` the first installed one.

    Raises InputError where there is none.
    """
    engines = ENGINES if name == "auto" else (name,)
    for engine in engines:
        if shutil.which(engine):
            return engine
    raise InputError(
        f"none of {', '.join(engines)} is installed; on Debian: apt-get install buildah"
    )


def build_command(
    engine: str, name: str, tag: str, made_from: Source, args: argparse.Namespace
) -> list[str]:
    """Return the command that builds one image, with the whole project as context.

    .dockerignore excludes all files that the Dockerfiles do not copy.
    """
    settings = {"COMMIT": made_from.commit, "CREATED": made_from.created}
    base = getattr(args, f"{name}_base")
    if base:
        settings["BASE"] = base
    if name == "weaver":
        settings["TORCH"] = args.torch
    command = [engine, "build", "--file", f"images/{name}.Dockerfile", "--tag", tag]
    if engine != "docker":
        command.append("--layers")  # podman's default; buildah would build every layer anew
    for key, value in settings.items():
        command += ["--build-arg", f"{key}={value}"]
    if args.pip_conf:
        command += ["--secret", f"id=pip,src={args.pip_conf}"]
    return [*command, *args.build_option, "."]


def push(engine: str, tag: str) -> str:
    """Push an image; returns its reference by digest.

    Raises ClusterError where the engine does not tell the digest.
    """
    repository = tag.rsplit(":", 1)[0]
    if engine == "docker":
        _run([engine, "push", tag])
        inspect = [engine, "image", "inspect", "--format", "{{json .RepoDigests}}", tag]
        # An image has a digest in each repository that it was pushed to.
        references = json.loads(_output(inspect))
        text = next((one for one in references if one.startswith(f"{repository}@")), "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "digest"
            _run([engine, "push", "--digestfile", str(file), tag])
            text = file.read_text()
    digest = DIGEST.search(text)
    if not digest:
        raise ClusterError(f"{engine} pushed {tag} and did not tell its digest")
    return f"{repository}@{digest[0]}"


def record(made_from: Source, references: dict[str, str]) -> None:
    """Write images/digests.json atomically.

    The entry of an image that was not pushed now is kept if it was built from the same commit.
    """
    earlier = digests.read_digests()
    other_images = earlier["images"] if earlier["commit"] == made_from.commit else {}
    # In the order of NAMES, so that the file does not depend on which image was pushed first.
    images = {name: other_images[name] for name in NAMES if name in other_images} | references
    temporary = digests.FILE.with_suffix(".tmp")
    content = {"commit": made_from.commit, "images": images}
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, digests.FILE)


def build(args: argparse.Namespace) -> None:
    """Build the images of --only; push and record them, except with --no-push."""
    locks = sorted((ROOT / "images").glob("torch-*.lock"))
    torch_builds = [lock.stem.removeprefix("torch-") for lock in locks]
    require(
        bool(args.registry) or args.no_push,
        "no --registry to push to; type: make images REGISTRY=registry/project, or, to build only:"
        " python -m images.build --no-push",
    )
    require(
        args.torch in torch_builds,
        f"--torch {args.torch}: there is no images/torch-{args.torch}.lock; give one of"
        f" {', '.join(torch_builds)}",
    )
    engine, made_from = find_engine(args.engine), source()
    names = NAMES if args.only == "all" else (args.only,)
    tags = {}
    for name in names:
        # Only the image with torch differs by torch's build.
        suffix = f"-{args.torch}" if name == "weaver" and args.torch != "cuda" else ""
        tag = f"{args.registry.rstrip('/')}/jec-{name}:{made_from.tag}{suffix}"
        tags[name] = tag.lstrip("/")  # without --registry
    for name, tag in tags.items():
        print(f"building {tag} with {engine}", flush=True)
        _run(build_command(engine, name, tag, made_from, args))
    if args.no_push:
        return
    references = {name: push(engine, tag) for name, tag in tags.items()}
    record(made_from, references)
    for reference in references.values():
        print(f"pushed {reference}")
    print(f"noted in {digests.FILE.relative_to(ROOT)}: pipeline.py uses these")


def _run(command: list[str]) -> None:
    # Docker before 23 needs it for --secret.
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if code:
        raise ClusterError(
            f"{' '.join(command[:2])} ended with exit code {code}; its last lines above say why"
        )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m images.build`."""
    parser = Parser(prog="python -m images.build", description=__doc__)
    parser.add_argument(
        "--registry",
        type=str,  # make gives an empty one
        default="",
        metavar="REGISTRY",
        help="where to push: host and project; the images' names follow it",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        default="auto",
        help="what builds (default: the first one installed)",
    )
    parser.add_argument(
        "--only", choices=("all", *NAMES), default="all", help="build one of the two (default: all)"
    )
    parser.add_argument(
        "--torch",
        default="cuda",
        metavar="NAME",
        help="take torch from images/torch-NAME.lock: cuda, cpu (default: cuda)",
    )
    parser.add_argument(
        "--steps-base",
        default="",
        metavar="IMAGE",
        help="base of the steps' image (default: see its Dockerfile)",
    )
    parser.add_argument(
        "--weaver-base",
        default="",
        metavar="IMAGE",
        help="base of the training's image (default: see its Dockerfile)",
    )
    parser.add_argument(
        "--pip-conf",
        default="",
        metavar="FILE",
        help="pip.conf with the site's index; a build secret, in no layer",
    )
    parser.add_argument(
        "--build-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed to the engine's build, as --build-option=--no-cache",
    )
    parser.add_argument("--no-push", action="store_true", help="build only")
    args = parser.parse_args(argv)
    return run_main(lambda: build(args))


if __name__ == "__main__":
    sys.exit(main())
