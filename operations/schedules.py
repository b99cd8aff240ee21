"""Recurring runs of Kubeflow Pipelines: create, list, pause, resume and delete them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import cron
from common.config import AUTO, RunConfig
from common.errors import InputError, unknown
from common.project import ROOT
from common.run import kubernetes_name
from common.storage import digest
from components import chain
from operations.endpoint import endpoint
from operations.kubeflow_runs import PAGE, PAGES
from operations.server import Server, connect
from operations.submit import description_of, experiment_of, upload

MAX_PARALLEL_RUNS = 1
"""Runs of one schedule at a time; a second one would compete for the same GPUs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A recurring run on a server."""

    id: str
    """Kubeflow's id."""
    name: str
    cron: str
    """Six fields, seconds first; empty for a recurring run with an interval."""
    is_on: bool
    created: str
    """Date and time of its creation."""


def act(args: argparse.Namespace) -> int:
    """Run the command on schedules that the flags ask for; return the exit code.

    Raises InputError if no endpoint is configured or no schedule has the name, ClusterError if the
    server refuses.
    """
    host, _ = endpoint(args.host)
    if not host:
        raise InputError(
            "schedules are recurring runs of Kubeflow Pipelines, and no endpoint is configured:"
            " give --host https://.../pipeline or set KFP_ENDPOINT"
        )
    server = connect(host, args.auth, None if args.namespace == AUTO else args.namespace)
    existing = list(schedules(server, args.namespace))
    if args.schedules:
        show(existing, host)
        return 0
    name = args.pause_schedule or args.resume_schedule or args.delete_schedule
    schedule = schedule_of(existing, name, host)
    with server.explain_errors(f"change the schedule {schedule.name}"):
        if args.pause_schedule:
            server.client.disable_recurring_run(schedule.id)
            text = f"paused {schedule.name}; --resume-schedule {schedule.name} resumes it"
        elif args.resume_schedule:
            server.client.enable_recurring_run(schedule.id)
            text = (
                f"resumed {schedule.name}: {schedule.cron}; a time that passed during the pause"
                " starts a run now"
            )
        else:
            server.client.delete_recurring_run(schedule.id)
            text = f"deleted {schedule.name}; the runs that it started stay"
    print(text)
    return 0


def schedules(server: Server, namespace: str) -> Iterator[Schedule]:
    """Yield the schedules of our pipeline, the newest first.

    Raises ClusterError if the server refuses, InputError if it needs a namespace.
    """
    token = ""
    for _ in range(PAGES):
        with server.explain_errors("list recurring runs"):
            page = server.client.list_recurring_runs(
                page_token=token,
                page_size=PAGE,
                sort_by="created_at desc",
                namespace=server.namespace_for(namespace),
            )
        for record in page.recurring_runs or []:
            parameters = record.runtime_config and record.runtime_config.parameters
            if "network_config" in (parameters or {}):
                yield _as_schedule(record)
        token = page.next_page_token or ""
        if not token:
            return


def schedule_of(existing: Sequence[Schedule], name: str, host: str) -> Schedule:
    """Return the schedule with this name or Kubeflow's id. Raises InputError if there is none."""
    for schedule in existing:
        if name in (schedule.name, schedule.id):
            return schedule
    names = [schedule.name for schedule in existing]
    raise InputError(f"{unknown('schedule', name, names)} (the recurring runs of {host})")


def show(existing: Sequence[Schedule], host: str) -> None:
    """Print the schedules as a table."""
    if not existing:
        print(f"no schedules at {host}")
        return
    rows = [("schedule", "state", "cron (second first)", "created")]
    for schedule in existing:
        rows.append(
            (
                schedule.name,
                "on" if schedule.is_on else "paused",
                schedule.cron or "–",
                schedule.created,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def create(
    config: RunConfig, server: Server, text: str, image: str, *, account: str = AUTO
) -> Schedule:
    """Create a recurring run of this configuration, by the cron expression `text`.

    At most one of its runs is active at a time. Of the times that pass during a run or a pause,
    Kubeflow starts a run for the last one, in spite of `no_catchup` (seen with KFP 2.15.0).

    Raises:
        InputError: as `submit.upload`; the cron expression is invalid; or the schedule exists.
        ClusterError: the server refuses.
    """
    when = cron.six_fields(text)
    upload_result = upload(config, server, image, account=account)
    name = schedule_name(upload_result.config, when)
    for other in schedules(server, config.namespace):
        if other.name == name:
            raise InputError(
                f"the schedule {name} exists already, with the same parameters and times;"
                f" --delete-schedule {name} removes it"
            )
    experiment = experiment_of(upload_result.config, server, upload_result.namespace)
    about = description_of(config, f"python pipeline.py --schedule {shlex.quote(text)}")
    with server.explain_errors("create the recurring run"):
        record = server.client.create_recurring_run(
            experiment,
            name,
            description=about,
            cron_expression=when,
            max_concurrency=MAX_PARALLEL_RUNS,
            no_catchup=True,
            params=chain.parameters(upload_result.config),
            pipeline_id=upload_result.version.pipeline_id,
            version_id=upload_result.version.version_id,
            service_account=None if account == AUTO else account,
        )
    return _as_schedule(record)


def schedule_name(config: RunConfig, when: str) -> str:
    """Return a name from the network and a digest of the times and parameters.

    The same schedule gets the same name, so that it is not created twice.
    """
    content = f"{when}\n{chain.parameters(config)}"
    return f"{kubernetes_name(config.network_config)}-every-{digest(content.encode())[:6]}"


def crontab_line(text: str, words: Sequence[str], output: Path) -> str:
    """Return the crontab line that runs this command line on this machine, without --schedule.

    `words` are the arguments of pipeline.py; the log goes to cron.log in `output`.
    """
    other_words, skip = [], False
    for word in words:
        if not skip and word != "--schedule" and not word.startswith("--schedule="):
            other_words.append(word)
        skip = word == "--schedule"
    command = shlex.join([sys.executable, "pipeline.py", *other_words])
    log = shlex.quote(os.path.abspath(output / "cron.log"))
    line = f"cd {shlex.quote(str(ROOT))} && {command} >> {log} 2>&1"
    # crontab reads an unescaped % as the end of the line
    return f"{cron.five_fields(text)} {line.replace('%', chr(92) + '%')}"


def _as_schedule(record: Any) -> Schedule:
    trigger = record.trigger and record.trigger.cron_schedule
    return Schedule(
        id=str(record.recurring_run_id),
        name=str(record.display_name),
        cron=str(trigger.cron) if trigger else "",
        is_on=str(record.status or record.mode or "").startswith("ENABLE"),
        created=record.created_at.strftime("%Y-%m-%d %H:%M") if record.created_at else "–",
    )
