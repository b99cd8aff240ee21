"""The two backends behind the fixture `backend`, and a fake cluster.

Tests of the Kubernetes backend alone use the fixture `fake`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters.kubernetes import KubernetesCluster
from clusters.local import LocalCluster
from clusters.protocol import RUN_LABEL, Cluster
from common.errors import DeadlineError, UnreachableError
from tests.clusters.controllers import Katib, KServe, Node, ProcessNode, TrainingOperator
from tests.clusters.fake_api import FakeApi

POLL = 0.02
PODS_END_SECONDS = 5.0
"""How long pods may take to end when their wait has ended; the fake's need a tenth of it."""


@dataclasses.dataclass
class Backend:
    """A backend, and the lines that it has reported."""

    name: str
    cluster: Cluster
    folder: Path
    """Where the step would keep its files."""
    lines: list[str] = dataclasses.field(default_factory=list)
    leaves_pods: str = ""
    """Why pods of the run go on when the test ends. A wait that is cut short fills it."""

    def run_experiment(self, manifest: dict, deadline: float = 30):
        with self._wait():
            return self.cluster.run_experiment(
                manifest, deadline=deadline, report=self.lines.append
            )

    def run_job(self, manifest: dict, deadline: float = 30):
        with self._wait():
            return self.cluster.run_job(manifest, deadline=deadline, report=self.lines.append)

    def run_jobs(self, manifests: list[dict], parallel: int, deadline: float = 30) -> dict:
        """Name of each job that has ended, in their order -> why it failed."""
        ends: dict[str, str] = {}
        with self._wait():
            self.cluster.run_jobs(
                manifests,
                parallel=parallel,
                on_end=ends.__setitem__,
                deadline=deadline,
                report=self.lines.append,
            )
        return ends

    def deploy(self, manifest: dict, deadline: float = 30, check=lambda service: None):
        with self._wait():
            return self.cluster.deploy(
                manifest,
                check=check,
                backup=str(self.folder / "former_service.json"),
                deadline=deadline,
                report=self.lines.append,
            )

    @contextlib.contextmanager
    def _wait(self) -> Iterator[None]:
        """A wait that was cut short removes nothing: that is for the step that waited."""
        try:
            yield
        except (DeadlineError, UnreachableError, KeyboardInterrupt) as error:
            self.leaves_pods = type(error).__name__
            raise

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

    At the end no controller may have raised an error, no request may have asked for more than the
    Role of deploy/ allows, but for what the test granted or forbade, and no pod of a search or of a
    job may run, unless the test says in `leaves_pods` why one does.
    """
    backends: list[Fake] = []

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
        monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "kubeconfig")))
        backend = Fake(
            name="kubernetes",
            cluster=KubernetesCluster(poll=poll, **options),
            folder=tmp_path,
            api=api,
            node=node,
            katib=katib,
            operator=operator,
            kserve=kserve,
        )
        backends.append(backend)
        return backend

    yield start
    running = [[] if backend.leaves_pods else left_running(backend.api) for backend in backends]
    for backend in backends:
        backend.api.__exit__()
    assert not any(running), f"pods run on: {running}"
    for backend in backends:
        api = backend.api
        assert not api.controller_errors, api.controller_errors
        assert not api.exceeded, f"not in clusters/permissions.py: {sorted(api.exceeded)}"


def left_running(api: FakeApi) -> list[str]:
    """Names of pods of searches and jobs that run, although the controllers had time to end them.

    A service outlives its run.
    """
    end = time.monotonic() + PODS_END_SECONDS
    while True:
        with api.lock:
            pods = api.all("pods", f"{RUN_LABEL},!serving.kserve.io/inferenceservice")
            running = [
                pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"
            ]
        if not running or time.monotonic() > end:
            return running
        time.sleep(POLL)


@pytest.fixture(params=["kubernetes", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, fake: Callable[..., Fake]) -> Backend:
    """Each backend in turn; what its pods or processes run is real on both."""
    if request.param == "kubernetes":
        return fake(ProcessNode())
    return Backend(name="local", cluster=LocalCluster(tmp_path / "runs"), folder=tmp_path)
