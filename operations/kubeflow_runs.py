"""Runs on Kubeflow Pipelines: find a run, read its steps and parameters, terminate it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any

from clusters.protocol import Manifest
from common import form
from common.config import AUTO, RunConfig, with_types
from common.errors import ClusterError
from common.run import make_run_id
from components import steps as chain_steps
from operations.server import Server

END_STATES = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
# Search the newest 2,000 runs at most, which take the server a few seconds.
PAGES, PAGE = 20, 100


@dataclasses.dataclass(kw_only=True)
class KubeflowRun:
    """A run on a Kubeflow Pipelines server."""

    server: Server
    record: Any
    """kfp_server_api.V2beta1Run, from the last answer of the server."""

    @property
    def id(self) -> str:
        """Kubeflow's own id of the run."""
        return str(self.record.run_id)

    @property
    def state(self) -> str:
        """KFP's state: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELING, CANCELED, ...

        Empty until KFP's persistence agent has set one.
        """
        state = str(self.record.state or "")
        return "" if state == "RUNTIME_STATE_UNSPECIFIED" else state

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.state in END_STATES

    @property
    def is_terminated(self) -> bool:
        """Whether it was terminated and has not ended yet: only the step `finish` still runs."""
        return self.state == "CANCELING"

    @property
    def url(self) -> str:
        """Address of the run's page in the Kubeflow UI."""
        return self.server.run_url(self.id)

    @property
    def values(self) -> Mapping[str, Any]:
        """Its parameters by fields of RunConfig; those of earlier versions are converted."""
        parameters = self.record.runtime_config and self.record.runtime_config.parameters
        return form.fields(parameters or {})

    @functools.cached_property
    def experiment(self) -> Any:
        """The run's experiment (kfp_server_api.V2beta1Experiment); None if it has none."""
        if not self.record.experiment_id:
            return None
        try:
            with self.server.explain_errors(f"give the experiment of run {self.id}"):
                return self.server.client.get_experiment(experiment_id=self.record.experiment_id)
        except ClusterError:
            return None  # it may have been deleted

    @functools.cached_property
    def workflow(self) -> Manifest:
        """The run's Argo Workflow as the server stores it; empty if the server returns none.

        Only the older API (v1beta1) returns it, and only the Workflow has the reason why a pod
        could not be created (KFP 2.15.0; backend/src/apiserver/server/api_converter.go:1599).
        """
        api = self.server.client.runs.run_service_get_run.__self__.api_client
        try:
            with self.server.explain_errors(f"give the workflow of run {self.id}"):
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
        """Read the run from the server again. Raises ClusterError if the server refuses."""
        self.record = get(self.server, self.id).record
        self.__dict__.pop("workflow", None)

    def terminate(self) -> None:
        """Ask the server to terminate the run; `has_ended` becomes true later.

        Raises ClusterError if the server refuses.
        """
        with self.server.explain_errors(f"end run {self.id}"):
            self.server.client.terminate_run(self.id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run."""

    name: str
    state: str
    """KFP's state, or OMITTED for a step that its run never started."""
    start_time: str
    """ISO 8601; empty if it has not started."""
    end_time: str
    """ISO 8601; empty if it has not ended."""
    error: str
    """KFP's error message; empty if there is none."""


def find(server: Server, run_id: str, namespace: str = AUTO) -> KubeflowRun | None:
    """Return the run with this id, Kubeflow's or ours; None if the server has no such run.

    Raises:
        InputError: the id is one of ours, and the server needs a namespace to list runs.
        ClusterError: the server refuses.
    """
    # Kubeflow's own ids are UUIDs.
    if run_id.count("-") == 4 and len(run_id) == 36:
        try:
            return get(server, run_id)
        except ClusterError as error:
            if getattr(error.__cause__, "status", None) != 404:
                raise
            return None
    # Our id is a hash of Kubeflow's, so that only listing the runs finds it.
    in_namespace = server.namespace_for(namespace)
    token = ""
    for _ in range(PAGES):
        with server.explain_errors("list runs"):
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
    """Return a run by Kubeflow's id. Raises ClusterError if there is none."""
    with server.explain_errors(f"give run {kfp_run}"):
        return KubeflowRun(server=server, record=server.client.get_run(kfp_run))


def run_id_of(run: KubeflowRun) -> str:
    """Return our id of a run: its parameter run_id, or the one that the step prepare derives.

    Empty for a run of another pipeline.
    """
    if "network_config" not in run.values:
        return ""
    run_id = str(run.values.get("run_id", AUTO))
    return make_run_id(run.values["network_config"], run.id) if run_id == AUTO else run_id


def parameters(run: KubeflowRun) -> Mapping[str, object]:
    """Return a run's parameters with the types of RunConfig; JSON has no integers.

    The experiment's name and the namespace come from the server, because they are no pipeline
    parameters.
    """
    defaults = RunConfig().parameters()
    values = {}
    for name, value in with_types(run.values).items():
        if name in defaults:
            values[name] = type(defaults[name])(value)
    if run.experiment is not None:
        values["experiment_name"] = str(run.experiment.display_name)
        if values.get("namespace", AUTO) == AUTO and run.experiment.namespace:
            values["namespace"] = str(run.experiment.namespace)
    return values


def steps(run: KubeflowRun) -> list[Step]:
    """Return the last attempt of each step that KFP lists, in the pipeline's order."""
    latest: dict[str, Step] = {}
    details = run.record.run_details
    for task in (details and details.task_details) or []:
        # KFP lists its drivers beside the steps. Its display_name is the name of Argo's node, which
        # is the task's key in the IR, and never our `title` (observed with KFP 2.15.0).
        if task.display_name in chain_steps.NAMES:
            latest[task.display_name] = Step(
                name=task.display_name,
                state=_state(task),
                start_time=_time(task.start_time),
                end_time=_time(task.end_time),
                error=(task.error and task.error.message) or "",
            )
    return [latest[name] for name in chain_steps.NAMES if name in latest]


def _state(task: Any) -> str:
    """Return the state of a task.

    Argo gives an omitted task no state, and an end equal to its start.
    """
    if task.state and task.state != "RUNTIME_STATE_UNSPECIFIED":
        return str(task.state)
    is_omitted = _time(task.end_time) and task.end_time == task.start_time
    return "OMITTED" if is_omitted else "PENDING"


def _time(moment: datetime.datetime | None) -> str:
    # A step that has not ended carries the year 1 or 1970 in some versions.
    return moment.isoformat(timespec="seconds") if moment is not None and moment.year > 1970 else ""
