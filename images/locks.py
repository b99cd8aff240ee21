"""Derives each image's lock from requirements.lock: the packages of `<image>.in` and all that they
need, with the same pins and hashes.

    python -m images.locks            # writes images/steps.lock and images/weaver.lock; `make lock`
        runs it
    python -m images.locks --check    # exit code 1 if they are not what requirements.lock and the
        .in files give

Dependencies are read from the packages installed beside this program (the environment that `make
setup` makes), so nothing is resolved a second time and no index is asked: an image never holds
another version than the tests ran with.
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
"""Each machine and each image takes its own build of it, so it is in no common lock; what it needs
is.
"""


def read_lock(path: Path) -> dict[str, str]:
    """Package name -> its lines in a hash-pinned lock ("name==version \\", then "--hash=..."
    lines).
    """
    blocks = re.split(r"^(?=[A-Za-z0-9])", path.read_text(), flags=re.MULTILINE)
    return {
        canonicalize_name(re.split(r"[=\[]", block, maxsplit=1)[0]): block
        for block in blocks
        if "==" in block
    }


def read_names(path: Path) -> list[str]:
    """The requirements of an .in file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def closure(requirements: list[str]) -> set[str]:
    """The packages named and all that they need on this machine.

    Raises InputError for one that is not installed.
    """
    locked = read_lock(MAIN)
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        asked = todo.pop()
        entry = (canonicalize_name(asked.name), frozenset(asked.extras))
        if entry not in seen:
            seen.add(entry)
            needed = _needed_by(asked)
            if entry[0] in SEPARATE:
                # A CUDA build of torch also needs nvidia's packages. They come with torch, from
                # torch's own lock.
                needed = [one for one in needed if canonicalize_name(one.name) in locked]
            todo += needed
    return {name for name, _ in seen}


def _needed_by(asked: Requirement) -> list[Requirement]:
    try:
        declared = importlib.metadata.requires(asked.name) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{asked.name} is not installed here; run this with the project's environment (make"
            " setup)"
        ) from None
    extras = asked.extras or {""}
    found = [Requirement(text) for text in declared]
    return [
        one
        for one in found
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def derive(image: str) -> str:
    """The text of the image's lock.

    Raises InputError for a package that requirements.lock does not have.
    """
    locked = read_lock(MAIN)
    names = sorted(closure(read_names(HERE / f"{image}.in")) - set(SEPARATE))
    missing = [name for name in names if name not in locked]
    if missing:
        raise InputError(
            f"images/{image}.in needs {', '.join(missing)}, which requirements.lock does not have;"
            " add it to pyproject.toml"
        )
    return "".join(locked[name] for name in names)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m images.locks", description=__doc__.split("\n")[0]
    )
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
