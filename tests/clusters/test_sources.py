"""Each rule of a fake controller says where it is from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

from tests.clusters import admission, katib_wrap
from tests.clusters.controllers import Katib, Node, TrainingOperator
from tests.components.argo import Retries

# 'katib v0.19.0 pkg/x.go:12', 'seen with Katib 0.19.0', 'seen: "topic"', documentation by its page
SOURCE = re.compile(
    r"v?\d+\.\d+\.\d+\s+\S+\.(go|py|yaml):\d+|[Ss]een with \w+ \d+\.\d+|[Ss]een: \""
    r"|Kubernetes\s+documentation, [A-Z]|\.\.\. validator\.go:\d+"
)
HARNESS = {
    "Node.__init__",
    "Node.__call__",
    "Node._advance",
    "Node._start",
    "Node._restart",
    "Node.partial_metrics",
    "TrainingOperator.__init__",
    "TrainingOperator.__call__",
    "Katib.__init__",
    "Katib.__call__",
    "Katib._reconcile",
    "Retries.__init__",
    "admission.Refused",
    "admission.admit",
    "admission._schema",
    "admission._katib",
}
"""What calls the rules, and has none of its own; the rules of a class stand in its docstring."""


def rules() -> list[tuple[str, Callable]]:
    """The functions of the fakes that are rules, with their names."""
    functions = []
    for owner in (Node, TrainingOperator, Katib, Retries, admission, katib_wrap):
        name = owner.__name__.rpartition(".")[2]
        for key, member in vars(owner).items():
            if (
                inspect.isfunction(member)
                and member.__module__ == inspect.getmodule(owner).__name__
            ):
                functions.append((f"{name}.{key}", member))
    return [(name, rule) for name, rule in functions if name not in HARNESS]


@pytest.mark.parametrize("rule", [pytest.param(rule, id=name) for name, rule in rules()])
def test_every_rule_names_its_source(rule):
    assert SOURCE.search(inspect.getsource(rule)), "name a project, its version, a file and a line"
