"""Runs as Kubeflow Pipelines records them: find one, read its steps and parameters, end it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any

from clusters.protocol import Manifest
from common import form
from common.config import AUTO, RunConfig
from common.config import typed as with_types
from common.errors import ClusterError
from common.run import make_run_id
from components import steps as chain_steps
from operations.server import Server

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
# How far back runs are searched: 2,000 of them take the server a few seconds.
PAGES, PAGE = 20, 100


@dataclasses.dataclass(kw_only=True)
class KubeflowRun:
    """A run that a server knows."""

    server: Server
    record: Any
    """kfp_server_api.V2beta1Run, as the server last gave it."""

    @property
    def id(self) -> str:
        """Kubeflow's own id of the run."""
        return str(self.record.run_id)

    @property
    def state(self) -> str:
        """In KFP's words: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELING, CANCELED, ...

        Empty until KFP has given one, which its persistence agent does.
        """
        state = str(self.record.state or "")
        return "" if state == "RUNTIME_STATE_UNSPECIFIED" else state

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.state in ENDED

    @property
    def is_terminated(self) -> bool:
        """Whether it was terminated and has not ended as yet: only `finish` runs on."""
        return self.state == "CANCELING"

    @property
    def url(self) -> str:
        """Address of the run's page in the Kubeflow UI."""
        return self.server.run_url(self.id)

    @property
    def values(self) -> Mapping[str, Any]:
        """Its pipeline parameters by the fields of RunConfig, of earlier versions as well."""
        given = self.record.runtime_config and self.record.runtime_config.parameters
        return form.fields(given or {})

    @functools.cached_property
    def experiment(self) -> Any:
        """The run's experiment (kfp_server_api.V2beta1Experiment); None where none is given."""
        if not self.record.experiment_id:
            return None
        try:
            with self.server.explained(f"give the experiment of run {self.id}"):
                return self.server.client.get_experiment(experiment_id=self.record.experiment_id)
        except ClusterError:
            return None  # it may have been deleted

    @functools.cached_property
    def workflow(self) -> Manifest:
        """The Argo Workflow of the run as the server has it; empty where it does not give one.

        Only the older API gives it, and only there is why a pod could not be created (seen with
        KFP 2.15.0; backend/src/apiserver/server/api_converter.go:1599).
        """
        api = self.server.client.runs.run_service_get_run.__self__.api_client
        try:
            with self.server.explained(f"give the workflow of run {self.id}"):
                answer = api.call_api(
                    f"/apis/v1beta1/runs/{self.id}",
                    "GET",
                    response_type="object",
                    auth_settings=["Bearer"],
                    _return_http_data_only=True,
                )
                runtime = answer.get("pipeline_runtime") or {}
                workflow: Manifest = json.loads(runtime.get("workflow_manifest") or "{}")
                return workflow
        except ClusterError:
            return {}  # servers that no longer have the older API

    def refresh(self) -> None:
        """Ask the server for the run as it is now. Raises ClusterError."""
        self.record = get(self.server, self.id).record
        self.__dict__.pop("workflow", None)

    def terminate(self) -> None:
        """Ask for the end of the run, which is over once `has_ended` says so."""
        with self.server.explained(f"end run {self.id}"):
            self.server.client.terminate_run(self.id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run."""

    name: str
    state: str
    """In KFP's words, or OMITTED for a step that its run ended before."""
    started: str
    """ISO 8601; empty where it has not begun."""
    ended: str
    """ISO 8601; empty where it has not ended."""
    error: str
    """What went wrong."""


def find(server: Server, run_id: str, namespace: str = AUTO) -> KubeflowRun | None:
    """Return the run of this id, Kubeflow's own or ours; None if the server knows none.

    Raises InputError where one of our ids is to be looked for and the server needs a namespace.
    """
    # Kubeflow's own ids are UUIDs.
    if run_id.count("-") == 4 and len(run_id) == 36:
        try:
            return get(server, run_id)
        except ClusterError as error:
            if getattr(error.__cause__, "status", None) != 404:
                raise
            return None
    # Ours is made of Kubeflow's by a hash, so that all runs have to be looked through.
    in_namespace = server.namespace_for(namespace)
    token = ""
    for _ in range(PAGES):
        with server.explained("list runs"):
            page = server.client.list_runs(
                page_token=token,
                page_size=PAGE,
                sort_by="created_at desc",
                namespace=in_namespace,
            )
        for record in page.runs or []:
            run = KubeflowRun(server=server, record=record)
            if run_id_of(run) == run_id:
                return run
        token = page.next_page_token or ""
        if not token:
            return None
    return None


def get(server: Server, kfp_run: str) -> KubeflowRun:
    """Return the run as it is now. Raises ClusterError if there is none."""
    with server.explained(f"give run {kfp_run}"):
        return KubeflowRun(server=server, record=server.client.get_run(kfp_run))


def run_id_of(run: KubeflowRun) -> str:
    """Return our id of a run: the one it was submitted with, or the one that prepare makes.

    Empty for a run of another pipeline.
    """
    if "network_config" not in run.values:
        return ""
    run_id = str(run.values.get("run_id", AUTO))
    return make_run_id(run.values["network_config"], run.id) if run_id == AUTO else run_id


def parameters(run: KubeflowRun) -> Mapping[str, object]:
    """Return what a run was made with, typed as RunConfig has it: JSON knows no whole numbers.

    Experiment and namespace are those that the server says, which are no parameters of a run.
    """
    defaults = RunConfig().parameters()
    typed = {}
    for name, value in with_types(run.values).items():
        if name in defaults:
            typed[name] = type(defaults[name])(value)
    if run.experiment is not None:
        typed["experiment_name"] = str(run.experiment.display_name)
        if typed.get("namespace", AUTO) == AUTO and run.experiment.namespace:
            typed["namespace"] = str(run.experiment.namespace)
    return typed


def steps(run: KubeflowRun) -> list[Step]:
    """Return the steps that have begun, in their order; the last attempt of each."""
    latest: dict[str, Step] = {}
    details = run.record.run_details
    for task in (details and details.task_details) or []:
        # KFP lists its drivers beside the steps. What it calls a display name here is the name of
        # Argo's node, the task's key in the IR, and never `title` (seen with KFP 2.15.0).
        if task.display_name in chain_steps.NAMES:
            latest[task.display_name] = Step(
                name=task.display_name,
                state=_state(task),
                started=_time(task.start_time),
                ended=_time(task.end_time),
                error=(task.error and task.error.message) or "",
            )
    return [latest[name] for name in chain_steps.NAMES if name in latest]


def _state(task: Any) -> str:
    """The state of a task. One that Argo omits has none, and an end that is its start."""
    if task.state and task.state != "RUNTIME_STATE_UNSPECIFIED":
        return str(task.state)
    omitted = _time(task.end_time) and task.end_time == task.start_time
    return "OMITTED" if omitted else "PENDING"


def _time(moment: datetime.datetime | None) -> str:
    # A step that has not ended carries the year 1 or 1970 in some versions.
    return moment.isoformat(timespec="seconds") if moment is not None and moment.year > 1970 else ""
