"""Load an earlier run's parameters, for --resume and --rerun."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

from common import storage
from common.config import AUTO, RunConfig, of_earlier_run, typed
from common.config_file import Flags, Source
from common.errors import InputError, JecError, unknown
from common.records import SummaryRecord
from common.run import Run, read_run
from components.finish import CAME_TO_ITS_END
from operations.endpoint import endpoint
from operations.own_runs import MARKS, why_not_own

NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*")
"""A run's id, or Kubeflow's own id of a run."""


def with_parameters_of(flags: Flags, args: argparse.Namespace) -> argparse.Namespace:
    """Parse again with the earlier run's parameters above the site's defaults.

    Flags typed now and those of --config win. Raises InputError where there is no such run.
    """
    run_id = settled(args.resume or args.rerun, args)
    folder = run_folder(run_id, args)
    values: dict[str, object] = {}
    if folder and storage.exists(storage.join(folder, "run.json")):
        content = read_run(storage.join(folder, "run.json"))
        values = known_parameters(content["config"])
        run_id = content["run_id"]
        if storage.is_s3(folder) and args.runner != "local":
            values |= experiment_of(str(content.get("kfp_run", "")), args)
        # A folder of runs may have been moved; beside the logs of a run elsewhere lies a copy.
        if storage.is_local(str(values["s3_bucket"])):
            values["s3_bucket"] = storage.absolute(folder).rsplit("/", 1)[0]
    elif not (folder and args.resume):
        values = parameters_on_server(run_id, args)
    # else it stopped before its parameters were written down: the same command gives them

    if args.rerun:
        values |= {"run_id": AUTO, "user": AUTO}
    if args.resume:
        values["run_id"] = run_id
    # --config is the last of the sources where it was typed
    position = len(flags.sources) - bool(args.config)
    flags.sources.insert(position, Source(where=f"run {run_id}", values=values))
    return flags.parse()


def settled(run_id: str, args: argparse.Namespace) -> str:
    """The id of the run that a user names: by its id, by `latest`, or by the path of its folder.

    Raises InputError for what leads elsewhere than to a run directly below --output, such as `..`,
    or a link out of it.
    """
    output = Path(args.output).resolve()
    path = output / run_id.rstrip("/")
    if not os.path.lexists(path):
        path = Path(run_id).absolute()  # as a shell completes runs/pfn-0a1b2c3d
        if "/" not in run_id or not os.path.lexists(path):
            if not NAME.fullmatch(run_id):
                raise no_such_run(run_id, args)
            return run_id
    folder = path.resolve()
    if folder.parent != output:
        raise InputError(
            f"'{run_id}' leads to {folder}, which is no run below {output}; nothing was done. Give"
            " a run's id, and --output for a run elsewhere"
        )
    if reason := why_not_own(folder):
        raise InputError(
            f"'{run_id}' leads to {folder}, which is no run: {reason}; nothing was done"
        )
    return folder.name


def run_folder(run_id: str, args: argparse.Namespace) -> str:
    """Return where a run's files are; empty where no storage that was named has them."""
    for place in places(args):
        folder = storage.join(place, run_id)
        for name in MARKS:
            if storage.exists(storage.join(folder, name)):
                return folder
    return ""


def has_ended(config: RunConfig) -> str:
    """Return the folder of the run of this configuration, if its chain ended with these parameters.

    Empty where it has not, or where another value of a parameter asks for a part of it again.
    """
    folder = Run(config=config).folder
    summary = SummaryRecord.find_readable(folder.summary)
    if summary is None or summary.state not in CAME_TO_ITS_END:
        return ""
    return folder.uri if Run.load(folder.uri).config == config else ""


def places(args: argparse.Namespace) -> list[str]:
    """Return where runs may be: --s3-bucket if it was typed, and --output."""
    local = str(args.output.resolve())
    return [local] if args.s3_bucket == AUTO else [args.s3_bucket, local]


def no_such_run(run_id: str, args: argparse.Namespace, also: str = "") -> InputError:
    """Return the error for a run that no place knows, with the nearest of those on this machine."""
    there = {path.parent.name for path in args.output.glob("*/status.json")} - {"latest"}
    where = places(args)
    if also:
        where.append(also)
    return InputError(
        f"{unknown('run', run_id, there)} (looked in {' or '.join(where)}; a run on S3 is found"
        " with --s3-bucket s3://bucket/prefix)"
    )


def parameters_on_server(run_id: str, args: argparse.Namespace) -> dict[str, object]:
    """Return the parameters of a run that Kubeflow knows, by its own id or by ours."""
    host, _ = endpoint(args.host)
    if not host:
        raise no_such_run(run_id, args)
    from operations import kubeflow_runs
    from operations.server import connect

    server = connect(host, args.auth, None if args.namespace == AUTO else args.namespace)
    run = kubeflow_runs.find(server, run_id, args.namespace)
    if run is None:
        raise no_such_run(run_id, args, f"the runs of {host}")
    return known_parameters(kubeflow_runs.parameters(run))


def experiment_of(kfp_run: str, args: argparse.Namespace) -> dict[str, object]:
    """Return the experiment of a run of Kubeflow, which run.json does not know; empty if unseen."""
    host, _ = endpoint(args.host)
    if not host or not kfp_run:
        return {}
    from operations import kubeflow_runs
    from operations.server import connect

    try:
        server = connect(host, args.auth, None if args.namespace == AUTO else args.namespace)
        experiment = kubeflow_runs.get(server, kfp_run).experiment
    except JecError:
        return {}  # a run that is gone; a server that is away says so at the submission
    return {"experiment_name": str(experiment.display_name)} if experiment is not None else {}


def known_parameters(values: Mapping[str, object]) -> dict[str, object]:
    """Keep those that are parameters today: a run of an older version may have others."""
    defaults = RunConfig().parameters()
    known = {name: value for name, value in typed(values).items() if name in defaults}
    return of_earlier_run(known)
