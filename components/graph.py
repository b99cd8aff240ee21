"""The tasks of the compiled pipeline in topological order, with their inputs and outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from common.config import RunConfig
from components import chain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """An output of another task."""

    task: str
    output: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the compiled pipeline."""

    name: str
    parameters: Mapping[str, Source]
    """Its parameters that are outputs of other tasks."""
    artifacts: Mapping[str, Source]
    """Its artifacts that are outputs of other tasks."""
    outputs: tuple[str, ...]
    """Its output parameters."""
    after: tuple[str, ...]
    """The tasks that it waits for."""

    def values_from(self, name: str) -> list[str]:
        """Return the outputs of task `name` that it takes; empty if it only waits for the task."""
        sources = [*self.parameters.values(), *self.artifacts.values()]
        return sorted({source.output for source in sources if source.task == name})


@functools.cache
def tasks() -> tuple[Task, ...]:
    """Return the tasks of the pipeline in topological order.

    They are the same for every configuration. The task of the exit handler waits for all others.
    """
    from google.protobuf import json_format

    spec = json_format.MessageToDict(chain.pipeline(RunConfig()).pipeline_spec)
    components = spec["components"]
    inner: list[Task] = []
    outer: list[Task] = []
    for key, entry in spec["root"]["dag"]["tasks"].items():
        component = components[entry["componentRef"]["name"]]
        if "dag" in component:
            for name, part in component["dag"]["tasks"].items():
                inner.append(_task(name, part, components))
        else:
            outer.append(_task(key, entry, components))
    in_order = _topological_order(inner)
    names = tuple(task.name for task in in_order)
    return (*in_order, *(dataclasses.replace(task, after=names) for task in outer))


def _task(name: str, entry: Mapping[str, Any], components: Mapping[str, Any]) -> Task:
    """Convert a task of the IR."""
    inputs = entry.get("inputs", {})
    parameters = {}
    for parameter, value in inputs.get("parameters", {}).items():
        if source := value.get("taskOutputParameter"):
            parameters[parameter] = Source(
                task=source["producerTask"], output=source["outputParameterKey"]
            )
    artifacts = {}
    for artifact, value in inputs.get("artifacts", {}).items():
        if source := value.get("taskOutputArtifact"):
            artifacts[artifact] = Source(
                task=source["producerTask"], output=source["outputArtifactKey"]
            )
    outputs = components[entry["componentRef"]["name"]].get("outputDefinitions", {})
    return Task(
        name=name,
        parameters=parameters,
        artifacts=artifacts,
        outputs=tuple(sorted(outputs.get("parameters", {}))),
        after=tuple(sorted(entry.get("dependentTasks", []))),
    )


def _topological_order(tasks: list[Task]) -> list[Task]:
    """Sort tasks so that each comes after those that it waits for, and otherwise by name.

    The compiler ensures that there are no cycles.
    """
    remaining = sorted(tasks, key=lambda task: task.name)
    result: list[Task] = []
    while remaining:
        names = {task.name for task in result}
        task = next(task for task in remaining if names.issuperset(task.after))
        result.append(task)
        remaining.remove(task)
    return result
