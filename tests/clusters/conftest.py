"""The two backends behind the fixture `backend`, and a fake cluster.

Tests of the Kubernetes backend alone use the fixture `fake`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters.kubernetes import KubernetesCluster
from clusters.local import LocalCluster
from clusters.protocol import Cluster
from tests.clusters.controllers import Katib, KServe, Node, ProcessNode, TrainingOperator
from tests.clusters.fake_api import FakeApi

POLL = 0.02


@dataclasses.dataclass
class Backend:
    """A backend, and the lines that it has reported."""

    name: str
    cluster: Cluster
    lines: list[str] = dataclasses.field(default_factory=list)

    def run_experiment(self, manifest: dict, deadline: float = 30):
        return self.cluster.run_experiment(manifest, deadline=deadline, report=self.lines.append)

    def run_job(self, manifest: dict, deadline: float = 30):
        return self.cluster.run_job(manifest, deadline=deadline, report=self.lines.append)

    def deploy(self, manifest: dict, deadline: float = 30):
        return self.cluster.deploy(manifest, deadline=deadline, report=self.lines.append)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclasses.dataclass
class Fake(Backend):
    """The Kubernetes backend before a fake API server, whose parts a test may script."""

    api: FakeApi | None = None
    node: Node | None = None
    katib: Katib | None = None
    operator: TrainingOperator | None = None
    kserve: KServe | None = None


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fake]]:
    """`fake(node, ...)` starts a server and gives the backend before it.

    At the end no controller may have raised an error, and no request may have asked for more than
    the Role of deploy/ allows, but for what the test granted or forbade.
    """
    started = []

    def start(
        node: Node | None = None,
        *,
        katib: Katib | None = None,
        kserve: KServe | None = None,
        poll: float = POLL,
        **options,
    ) -> Fake:
        node = node or Node()
        katib, kserve, operator = katib or Katib(node), kserve or KServe(), TrainingOperator()
        api = FakeApi([katib, operator, kserve, node])
        api.__enter__()
        started.append(api)
        monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "kubeconfig")))
        cluster = KubernetesCluster(poll=poll, **options)
        return Fake(
            name="kubernetes",
            cluster=cluster,
            api=api,
            node=node,
            katib=katib,
            operator=operator,
            kserve=kserve,
        )

    yield start
    for api in started:
        api.__exit__()
        assert not api.controller_errors, api.controller_errors
        assert not api.exceeded, f"not in clusters/permissions.py: {sorted(api.exceeded)}"


@pytest.fixture(params=["kubernetes", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, fake: Callable[..., Fake]) -> Backend:
    """Each backend in turn; what its pods or processes run is real on both."""
    if request.param == "kubernetes":
        return fake(ProcessNode())
    return Backend(name="local", cluster=LocalCluster(tmp_path / "runs"))
