"""Derive each image's lock from requirements.lock.

A lock has the packages of `<image>.in` and their dependencies, with the same pins and hashes.

    python -m images.locks            # writes images/steps.lock and images/weaver.lock (make lock)
    python -m images.locks --check    # exit code 1 if a lock is out of date

Dependencies are read from the installed packages (the environment of `make setup`), so that nothing
is resolved again and no index is asked: an image always has the versions that were tested.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.cli import run_main
from common.errors import InputError

HERE = Path(__file__).resolve().parent
MAIN = HERE.parent / "requirements.lock"
IMAGES = ("steps", "weaver")
SEPARATE = ("torch",)
"""Packages that are in no common lock; what they need is.

Each machine and each image takes its own build of torch.
"""


def read_lock(path: Path) -> dict[str, str]:
    """Package name -> its lines in a hash-pinned lock.

    They are "name==version", then "--hash=..." lines.
    """
    packages: dict[str, str] = {}
    # A block starts at each line that is not indented.
    for block in re.split(r"^(?=[A-Za-z0-9])", path.read_text(), flags=re.MULTILINE):
        if "==" in block:
            name = re.split(r"[=\[]", block, maxsplit=1)[0]
            packages[canonicalize_name(name)] = block
    return packages


def read_names(path: Path) -> list[str]:
    """Return the requirements of an .in file, without comments."""
    names = []
    for line in path.read_text().splitlines():
        name = line.split("#", maxsplit=1)[0].strip()
        if name:
            names.append(name)
    return names


def closure(requirements: list[str]) -> set[str]:
    """Return the names of the required packages and of all their dependencies on this machine.

    Raises InputError if one is not installed.
    """
    lock = read_lock(MAIN)
    visited: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        package = todo.pop()
        name = canonicalize_name(package.name)
        entry = (name, frozenset(package.extras))
        if entry in visited:
            continue
        visited.add(entry)
        for needed in needed_by(package):
            # A CUDA build of torch also needs nvidia's packages. They come with torch, from torch's
            # own lock.
            if name not in SEPARATE or canonicalize_name(needed.name) in lock:
                todo.append(needed)
    return {name for name, _ in visited}


def needed_by(package: Requirement) -> list[Requirement]:
    """Return the dependencies of an installed package with these extras on this machine.

    Raises InputError if it is not installed.
    """
    try:
        requirements = importlib.metadata.requires(package.name) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{package.name} is not installed here; run this with the project's environment (make"
            " setup)"
        ) from None
    needed = []
    for text in requirements:
        requirement = Requirement(text)
        # A marker holds for the package itself ("") or for one of its extras.
        for extra in package.extras or {""}:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed.append(requirement)
                break
    return needed


def derive(image: str) -> str:
    """Return the text of the image's lock.

    Raises InputError for a package that requirements.lock does not have.
    """
    lock = read_lock(MAIN)
    names = sorted(closure(read_names(HERE / f"{image}.in")) - set(SEPARATE))
    missing = [name for name in names if name not in lock]
    if missing:
        raise InputError(
            f"images/{image}.in needs {', '.join(missing)}, which requirements.lock does not have;"
            " add it to pyproject.toml"
        )
    return "".join(lock[name] for name in names)


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m images.locks`."""
    summary = "Derive each image's lock from requirements.lock."
    parser = argparse.ArgumentParser(prog="python -m images.locks", description=summary)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a lock is out of date"
    )
    args = parser.parse_args(argv)

    def body() -> int:
        stale = [image for image in IMAGES if not _is_current(image)]
        for image in stale:
            if args.check:
                print(f"images/{image}.lock is out of date; type: make lock", file=sys.stderr)
            else:
                (HERE / f"{image}.lock").write_text(derive(image))
        return 1 if args.check and stale else 0

    return run_main(body)


def _is_current(image: str) -> bool:
    path = HERE / f"{image}.lock"
    return path.exists() and path.read_text() == derive(image)


if __name__ == "__main__":
    sys.exit(main())
