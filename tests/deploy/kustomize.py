"""Builds a kustomization without kustomize: the part of its language that deploy/ uses, and a
KeyError for anything else.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Objects = list[dict[str, Any]]
# the generators below add no suffix, which is the option that deploy/ sets
IGNORED = {"apiVersion", "kind", "generatorOptions"}


def build(folder: Path) -> Objects:
    """The objects of a kustomization, in order."""
    return _apply(folder, [])


def _apply(folder: Path, objects: Objects) -> Objects:
    """The objects with what the kustomization in a folder adds to them and changes in them, in
    kustomize's own order.
    """
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    steps = {
        "resources": _resources,
        "components": _components,
        "configMapGenerator": _config_maps,
        "secretGenerator": _secrets,
        "patches": _patches,
        "namespace": _namespace,
        "labels": _labels,
        "images": _images,
        "replacements": _replacements,
    }
    for key in content:
        if key not in steps and key not in IGNORED:
            raise KeyError(f"{folder}/kustomization.yaml: {key}")
    for key, step in steps.items():
        if key in content:
            objects = step(content[key], folder, objects)
    return objects


def _resources(names: list[str], folder: Path, objects: Objects) -> Objects:
    for name in names:
        path = folder / name
        objects = objects + (
            build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
        )
    return objects


def _components(names: list[str], folder: Path, objects: Objects) -> Objects:
    for name in names:
        objects = _apply(folder / name, objects)
    return objects


def _variables(entry: dict[str, Any], folder: Path) -> dict[str, str]:
    lines = [
        line
        for name in entry["envs"]
        for line in (folder / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return dict(line.split("=", 1) for line in lines)


def _config_maps(entries: list[dict], folder: Path, objects: Objects) -> Objects:
    config_maps = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": e["name"]},
            "data": _variables(e, folder),
        }
        for e in entries
    ]
    return objects + config_maps


def _secrets(entries: list[dict], folder: Path, objects: Objects) -> Objects:
    for entry in entries:
        data = {
            key: base64.b64encode(value.encode()).decode()
            for key, value in _variables(entry, folder).items()
        }
        objects = [
            *objects,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": entry["name"]},
                "type": "Opaque",
                "data": data,
            },
        ]
    return objects


def _patches(entries: list[dict], folder: Path, objects: Objects) -> Objects:
    objects = copy.deepcopy(objects)
    for entry in entries:
        for target in _select(objects, entry["target"]):
            for change in yaml.safe_load(entry["patch"]):
                assert change["op"] == "replace"
                *parents, last = change["path"].strip("/").split("/")
                place = target
                for part in parents:
                    place = place[part]
                assert last in place
                place[last] = change["value"]
    return objects


def _namespace(name: str, folder: Path, objects: Objects) -> Objects:
    """On every object, and on those subjects that are among the objects."""
    objects = copy.deepcopy(objects)
    accounts = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "ServiceAccount"}
    for thing in objects:
        thing["metadata"]["namespace"] = name
        for subject in thing.get("subjects", []):
            if subject["name"] in accounts:
                subject["namespace"] = name
    return objects


def _labels(entries: list[dict], folder: Path, objects: Objects) -> Objects:
    objects = copy.deepcopy(objects)
    for thing in objects:
        for entry in entries:
            thing["metadata"].setdefault("labels", {}).update(entry["pairs"])
    return objects


def _images(entries: list[dict], folder: Path, objects: Objects) -> Objects:
    objects = copy.deepcopy(objects)
    new = {entry["name"]: f"{entry['newName']}:{entry['newTag']}" for entry in entries}
    for container in (container for thing in objects for container in containers(thing)):
        container["image"] = new.get(container["image"], container["image"])
    return objects


def _replacements(entries: list[dict], folder: Path, objects: Objects) -> Objects:
    objects = copy.deepcopy(objects)
    for entry in entries:
        source = dict(entry["source"])
        place = source.pop("fieldPath")
        (source_value,) = _select(objects, source)
        for part in place.split("."):
            source_value = source_value[part]
        for target in entry["targets"]:
            (target_object,) = _select(objects, target["select"])
            for path in target["fieldPaths"]:
                _set(
                    target_object,
                    path,
                    source_value,
                    create=target.get("options", {}).get("create", False),
                )
    return objects


def _set(place: Any, path: str, value: str, *, create: bool) -> None:
    """Set a field by kustomize's path: parts with dots between, `[...]` around a key that has dots
    itself, numbers for lists.
    """
    head, bracket, rest = path.partition("[")
    parts = [part for part in head.split(".") if part] + ([rest.rstrip("]")] if bracket else [])
    for part in parts[:-1]:
        place = (
            place[int(part)]
            if isinstance(place, list)
            else place.setdefault(part, {})
            if create
            else place[part]
        )
    assert create or parts[-1] in place
    place[parts[-1]] = value


def _select(objects: Objects, selector: dict[str, str]) -> Objects:
    return [
        thing
        for thing in objects
        if thing["kind"] == selector["kind"] and thing["metadata"]["name"] == selector["name"]
    ]


def containers(value: Any) -> Iterator[dict[str, Any]]:
    """Every container below a value, wherever it is, as kustomize finds them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers"):
                yield from inner
            else:
                yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)
