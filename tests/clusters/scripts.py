"""What pods of the fake cluster do: short scripts that several test modules use."""

from __future__ import annotations

import math
import threading

from clusters.kubernetes import KubernetesCluster
from clusters.owner import Owner
from tests.clusters.controllers import Node, Play

SEARCH = "pfn-0a1b2c3d-search"
EXPORT = "pfn-0a1b2c3d-export"
POLL = 0.02  # seconds between two looks
UP = Play(seconds=math.inf)
CRASH = Play(
    exit_code=1,
    log=(
        "I0101 loading: jec-pfn:1\nfailed to load 'jec-pfn': unexpected shape for input"
        " 'pf_features'\n"
    ),
)


def node_of(*scripts: Play | list[Play]) -> Node:
    """A node that gives these scripts to the pods in the order in which their names appear.

    The last script is for all pods that follow. A list is for a pod's attempts, its last entry for
    all attempts that follow.
    """
    later_scripts = list(scripts)
    plays = {}

    def play(pod: dict) -> Play:
        name = pod["metadata"]["name"]
        if name not in plays:
            script = later_scripts.pop(0) if len(later_scripts) > 1 else later_scripts[0]
            plays[name] = list(script) if isinstance(script, list) else [script]
        return plays[name].pop(0) if len(plays[name]) > 1 else plays[name][0]

    return Node(play)


def loss(value: float | str, **how) -> Play:
    return Play(metrics=f"2026-01-01T00:00:00Z AvgLoss={value}\n", **how)


def later(action, when, api) -> threading.Thread:
    """Do something to the fake API once a condition holds there, while the test's thread waits."""

    def act() -> None:
        api.wait_for(when)
        with api.lock:
            action()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def make_workflow(backend, name: str = "jec-pipeline-abcde", namespace: str = "physics") -> Owner:
    """A Workflow on the fake cluster."""
    thing = {"metadata": {"name": name}, "spec": {}}
    uid = backend.api.create("workflows", thing, namespace)["metadata"]["uid"]
    return Owner(api_version="argoproj.io/v1alpha1", name=name, uid=uid, namespace=namespace)


def act_for(backend, owner: Owner | None) -> None:
    """Let the backend be that of a step of this workflow."""
    backend.cluster = KubernetesCluster(owner=owner, poll=POLL)
