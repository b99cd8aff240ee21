"""Runs as Kubeflow Pipelines remembers them: found by its id or by ours, their steps, their
parameters, ended.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from common.config import AUTO, RunConfig
from common.errors import ClusterError
from common.run import make_run_id
from operations.server import Server

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
STEPS = ("prepare", "search", "export", "evaluate", "deploy", "finish")
PAGES, PAGE = 20, 100  # as far back as runs are looked through


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run: its state in KFP's words, when it began and ended (ISO 8601, or empty), what
    went wrong.
    """

    name: str
    state: str
    started: str
    ended: str
    error: str


def find(server: Server, run_id: str, namespace: str = AUTO) -> Any | None:
    """The run of this id, Kubeflow's own or ours (which is made of Kubeflow's);

    None if the server knows none.
    """
    if run_id.count("-") == 4 and len(run_id) == 36:
        try:
            return get(server, run_id)
        except ClusterError:
            return None
    token, space = "", None if namespace == AUTO else namespace
    for _ in range(PAGES):
        with server.explained("list runs"):
            page = server.client.list_runs(
                page_token=token, page_size=PAGE, sort_by="created_at desc", namespace=space
            )
        for run in page.runs or []:
            if run_id_of(run) == run_id:
                return run
        if not (token := page.next_page_token or ""):
            return None
    return None


def get(server: Server, kfp_run: str) -> Any:
    """The run as it is now. Raises ClusterError if there is none."""
    with server.explained(f"give run {kfp_run}"):
        return server.client.get_run(kfp_run)


def run_id_of(run: Any) -> str:
    """Our id of a run: the one it was given, or the one that prepare makes.

    Empty for a run of another pipeline.
    """
    values = (run.runtime_config and run.runtime_config.parameters) or {}
    if "network_config" not in values:
        return ""
    given = values.get("run_id", AUTO)
    return make_run_id(values["network_config"], run.run_id) if given == AUTO else given


def parameters(run: Any) -> dict[str, Any]:
    """What a run was made with, typed as RunConfig has it: JSON knows no whole numbers."""
    defaults = RunConfig().parameters()
    given = (run.runtime_config and run.runtime_config.parameters) or {}
    return {name: type(defaults[name])(value) for name, value in given.items() if name in defaults}


def steps(run: Any) -> list[Step]:
    """The steps in their order, as far as they have begun; the last attempt of each."""
    found: dict[str, Step] = {}
    for task in (run.run_details and run.run_details.task_details) or []:
        if task.display_name in STEPS:
            found[task.display_name] = Step(
                name=task.display_name,
                state=str(task.state or "PENDING"),
                started=_time(task.start_time),
                ended=_time(task.end_time),
                error=(task.error and task.error.message) or "",
            )
    return [found[name] for name in STEPS if name in found]


def has_ended(run: Any) -> bool:
    return str(run.state) in ENDED


def terminate(server: Server, kfp_run: str) -> None:
    """Ask for the end of a run. It is over when `has_ended` says so."""
    with server.explained(f"end run {kfp_run}"):
        server.client.terminate_run(kfp_run)


def _time(moment: Any) -> str:
    # A step that has not ended carries the year 1 or 1970 in some versions.
    return moment.isoformat(timespec="seconds") if moment is not None and moment.year > 1970 else ""
