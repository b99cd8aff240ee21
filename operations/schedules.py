"""Recurring runs of Kubeflow Pipelines: make, list, pause, resume and delete them."""

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
from common.run import slug
from common.storage import digest
from components import chain
from operations.endpoint import endpoint
from operations.kubeflow_runs import PAGE, PAGES
from operations.server import Server, connect
from operations.submit import description_of, experiment_of, upload

MOST_AT_ONCE = 1
"""Runs of one schedule at a time: the next one would train on the same GPUs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A recurring run that a server knows."""

    id: str
    """Kubeflow's id of it."""
    name: str
    cron: str
    """Six fields, the second first; empty for one that somebody made with an interval."""
    is_on: bool
    created: str
    """Date and time."""


def act(args: argparse.Namespace) -> int:
    """Do the command on schedules that the flags ask for; return the exit code."""
    host, _ = endpoint(args.host)
    if not host:
        raise InputError(
            "schedules are kept by Kubeflow Pipelines, and there is no endpoint: give --host"
            " https://.../pipeline or set KFP_ENDPOINT"
        )
    server = connect(host, args.auth, None if args.namespace == AUTO else args.namespace)
    known = list(schedules(server, args.namespace))
    if args.schedules:
        show(known, host)
        return 0
    name = args.pause_schedule or args.resume_schedule or args.delete_schedule
    schedule = named(known, name, host)
    with server.explained(f"change the schedule {schedule.name}"):
        if args.pause_schedule:
            server.client.disable_recurring_run(schedule.id)
            text = f"paused {schedule.name}; --resume-schedule {schedule.name} goes on with it"
        elif args.resume_schedule:
            server.client.enable_recurring_run(schedule.id)
            text = (
                f"resumed {schedule.name}: {schedule.cron}; a time that passed during the pause"
                " starts a run now"
            )
        else:
            server.client.delete_recurring_run(schedule.id)
            text = f"deleted {schedule.name}; the runs that it made stay"
    print(text)
    return 0


def schedules(server: Server, namespace: str) -> Iterator[Schedule]:
    """The schedules of our pipeline, the newest first. Raises ClusterError."""
    token = ""
    for _ in range(PAGES):
        with server.explained("list recurring runs"):
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


def named(known: Sequence[Schedule], name: str, host: str) -> Schedule:
    """The schedule of a name or of Kubeflow's id. Raises InputError where there is none."""
    for schedule in known:
        if name in (schedule.name, schedule.id):
            return schedule
    names = [schedule.name for schedule in known]
    raise InputError(f"{unknown('schedule', name, names)} (the recurring runs of {host})")


def show(known: Sequence[Schedule], host: str) -> None:
    """Print the schedules as a table."""
    if not known:
        print(f"no schedules at {host}")
        return
    rows = [("schedule", "state", "cron (second first)", "created")]
    for one in known:
        rows.append((one.name, "on" if one.is_on else "paused", one.cron or "–", one.created))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def create(
    config: RunConfig, server: Server, text: str, image: str, *, account: str = AUTO
) -> Schedule:
    """Make a recurring run of this configuration, by the cron expression `text`.

    At most one of its runs goes on at a time. Of the times that pass during a run or a pause
    Kubeflow makes up for the last one alone, in spite of `no_catchup` (seen with KFP 2.15.0).
    Raises InputError as `submit.upload`, for a cron expression that is none, and where the same
    schedule is there already.
    """
    when = cron.six_fields(text)
    uploaded = upload(config, server, image, account=account)
    name = schedule_name(uploaded.config, when)
    for other in schedules(server, config.namespace):
        if other.name == name:
            raise InputError(
                f"the schedule {name} is there already: the same parameters at the same times;"
                f" --delete-schedule {name} removes it"
            )
    experiment = experiment_of(uploaded.config, server, uploaded.namespace)
    about = description_of(config, f"python pipeline.py --schedule {shlex.quote(text)}")
    with server.explained("create the recurring run"):
        record = server.client.create_recurring_run(
            experiment,
            name,
            description=about,
            cron_expression=when,
            max_concurrency=MOST_AT_ONCE,
            no_catchup=True,
            params=chain.parameters(uploaded.config),
            pipeline_id=uploaded.version.pipeline_id,
            version_id=uploaded.version.version_id,
            service_account=None if account == AUTO else account,
        )
    return _as_schedule(record)


def schedule_name(config: RunConfig, when: str) -> str:
    """The network, and a digest of the times and of all parameters: the same for the same."""
    made_of = f"{when}\n{chain.parameters(config)}"
    return f"{slug(config.network_config)}-every-{digest(made_of.encode())[:6]}"


def crontab_line(text: str, words: Sequence[str], output: Path) -> str:
    """The line of crontab that runs these words of a command line here, without --schedule."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--schedule" and not word.startswith("--schedule="):
            kept.append(word)
        skip = word == "--schedule"
    command = shlex.join([sys.executable, "pipeline.py", *kept])
    log = shlex.quote(os.path.abspath(output / "cron.log"))
    line = f"cd {shlex.quote(str(ROOT))} && {command} >> {log} 2>&1"
    # crontab takes a plain % for the end of the line
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
