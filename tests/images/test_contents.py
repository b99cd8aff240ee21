"""Each image holds what its programs import: the project's rooms, and packages of its lock."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterator

import pytest
from packaging.utils import canonicalize_name

from components import steps
from images import locks
from tests.images.dockerfile import IMAGES, NAMES, copy_sources

ROOT = IMAGES.parent
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
STEPS = sorted(f"components.{name}" for name in steps.NAMES)
COMMANDS = {  # what manifests, deploy/ and the chain run in each image
    "steps": ["clusters.ticket", *STEPS],
    "weaver": [
        "weaver.train",
        "weaver.prepared.prepare",
        "exporting.export",
        "evaluating.evaluate",
        *(f"components.{task}" for task in ("search", "export", "evaluate")),  # on REANA
    ],
}
SEARCH = {
    "clusters.local",
    "clusters.local_sampling",
    "clusters.local_search",
    "clusters.local_study",
    "clusters.local_trial",
}
LOCAL = {
    "serving.triton",
    "components.local_run",
    "components.host_runner",
    "jec_client.grpc_server",  # for addresses of gRPC, which no step has
}
APART = {
    "steps": {
        *LOCAL,
        *SEARCH,
        "weaver.onnx.raw_model",
        "weaver.feed.dataset",
        "weaver.network.forward_check",
    },
    "weaver": {*LOCAL, "clusters.kubernetes", "clusters.owner", "clusters.api"},
}
"""Modules that others import within functions which no program of the image calls: one machine's
home; in prepare, which only looks at the columns of raw jets, what feeds networks with them, and
what passes jets through a network where torch is installed; in the jobs of REANA, which has no
Kubernetes for them, the other home."""
LATER = {"steps": {"torch", "onnx", "onnxruntime", "google"}, "weaver": set()}
"""Packages that modules of the image import within functions that none of its programs calls, or
calls only where they are there.
"""
BY_FILE = {"networks", "data", "training"}
"""Network files, data configurations and search spaces of the project are named by path, and
network files import layers.
"""

OPTIONAL = {"tables"}
"""Packages that a user adds: PyTables reads HDF5, which no pod of a run is asked to do by default.

The error of weaver/read/hdf5.py names the package.
"""


def test_every_image_has_commands():
    assert all(_source(command) for image in NAMES for command in COMMANDS[image])


@pytest.mark.parametrize("image", NAMES)
def test_the_project_s_rooms_are_copied(image):
    project, _ = imports_of_image(image)
    rooms = {module.split(".")[0] for module in project}
    there = {source.rpartition("/")[2] for source in copy_sources(image)} & ROOMS
    assert rooms <= there, "imported by a program of the image and not in it"
    assert there - rooms <= BY_FILE, "in the image and never imported there"


@pytest.mark.parametrize("image", NAMES)
def test_every_package_that_is_imported_is_locked(image):
    _, packages = imports_of_image(image)
    locked_names = set(locks.read_lock(IMAGES / f"{image}.lock"))
    if image == "weaver":
        locked_names.add("torch")
    distributions = importlib.metadata.packages_distributions()
    missing = {}
    for package, importer in packages.items():
        if package in OPTIONAL:
            continue
        names = {canonicalize_name(name) for name in distributions.get(package, [package])}
        if not names & locked_names:
            missing[package] = importer
    assert not missing, f"add to images/{image}.in and type: make lock"


def test_the_steps_have_no_torch():
    assert not set(locks.read_lock(IMAGES / "steps.lock")) & {"torch", "onnxruntime", "tensorboard"}


def imports_of_image(image: str) -> tuple[set[str], dict[str, str]]:
    """The project's modules that the commands of an image import, at once or later; other packages,
    each with who imports it.
    """
    project, packages, todo = set(), {}, list(COMMANDS[image])
    while todo:
        module = todo.pop()
        if module in project or module in APART[image]:
            continue
        project.add(module)
        for name, later in imports(module):
            package = name.split(".")[0]
            if package in ROOMS:
                todo += [name] if _source(name) else []
            elif package not in sys.stdlib_module_names and not (later and package in LATER[image]):
                packages.setdefault(package, module)
    return project, packages


@functools.cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """What a module imports, and whether only later, within a function."""
    return frozenset(_imports(ast.parse(_source(module)), later=False))


def _imports(node: ast.AST, *, later: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name == "component":
            continue  # compiled where the pipeline is submitted
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, later) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module, later
            yield from (
                (f"{child.module}.{alias.name}", later)
                for alias in child.names
                if child.module.split(".")[0] in ROOMS
            )
        else:
            yield from _imports(child, later=later or isinstance(child, ast.FunctionDef))


def _source(module: str) -> str:
    """The text of a project's module; empty for another name, such as a function of a module."""
    path = ROOT / re.sub(r"\.", "/", module)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text() or "#" if file.exists() else ""
