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
    why_pods_remain: str = ""
    """Why pods of the run may still run at the end of the test; empty if they may not."""

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
        """Let pods run on if the block's wait is interrupted or reaches its deadline.

        The backend then leaves its objects, because removing them is up to the step that called it.
        """
        try:
            yield
        except (DeadlineError, UnreachableError, KeyboardInterrupt) as error:
            self.why_pods_remain = type(error).__name__
            raise

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclasses.dataclass
class Fake(Backend):
    """The Kubernetes backend, connected to a fake API server with scripted controllers."""

    api: FakeApi | None = None
    node: Node | None = None
    katib: Katib | None = None
    operator: TrainingOperator | None = None
    kserve: KServe | None = None


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fake]]:
    """A function: `fake(node, ...)` starts a fake API server and returns a backend connected to it.

    At its end the test fails if a controller raised an error, if a request needed a right that
    neither the Role of deploy/ nor the test granted, or if a pod of a search or a job still runs.
    A test that leaves pods on purpose says why in `why_pods_remain`.
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
    running = [[] if backend.why_pods_remain else left_running(backend.api) for backend in backends]
    for backend in backends:
        backend.api.__exit__()
    assert not any(running), f"pods still run: {running}"
    for backend in backends:
        api = backend.api
        assert not api.controller_errors, api.controller_errors
        assert not api.exceeded, f"not in clusters/permissions.py: {sorted(api.exceeded)}"


def left_running(api: FakeApi) -> list[str]:
    """Names of the pods of searches and jobs that still run after PODS_END_SECONDS.

    Pods of services are left out, because a service outlives its run.
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
