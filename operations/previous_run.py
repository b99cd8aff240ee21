"""Load an earlier run's parameters, for --resume and --rerun."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

from common import storage
from common.config import AUTO, RunConfig, with_former_defaults, with_types
from common.config_file import Flags, Source
from common.errors import InputError, JecError, unknown
from common.records import SummaryRecord
from common.run import Run, read_run
from components.finish import COMPLETE
from operations.endpoint import endpoint
from operations.own_runs import MARKS, why_not_own

NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]*")
"""A run id, ours or Kubeflow's."""


def with_parameters_of(flags: Flags, args: argparse.Namespace) -> argparse.Namespace:
    """Parse the flags again, with the earlier run's parameters in place of the site's defaults.

    Flags of this command and of --config override them. Raises InputError if there is no such run.
    """
    run_id = resolve_run_id(args.resume or args.rerun, args)
    folder = run_folder(run_id, args)
    values: dict[str, object] = {}
    if folder and storage.exists(storage.join(folder, "run.json")):
        content = read_run(storage.join(folder, "run.json"))
        values = known_parameters(content["config"])
        run_id = content["run_id"]
        if storage.is_s3(folder) and args.runner != "local":
            values |= experiment_of(str(content.get("kfp_run", "")), args)
        # The folder of runs may have been moved since run.json was written.
        if storage.is_local(str(values["s3_bucket"])):
            values["s3_bucket"] = storage.absolute(folder).rsplit("/", 1)[0]
    elif not (folder and args.resume):
        values = parameters_on_server(run_id, args)
    # else it stopped before run.json was written: the flags of this command are its parameters

    if args.rerun:
        values |= {"run_id": AUTO, "user": AUTO}
    if args.resume:
        values["run_id"] = run_id
    # --config, if given, is the last source and keeps its place
    position = len(flags.sources) - bool(args.config)
    flags.sources.insert(position, Source(where=f"run {run_id}", values=values))
    return flags.parse()


def resolve_run_id(run_id: str, args: argparse.Namespace) -> str:
    """Return the id of a run, given its id, `latest`, or the path of its folder.

    Raises InputError for a path that is not a run directly below --output, such as `..` or a link
    to another folder.
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
            f"'{run_id}' is {folder}, which is not a run below {output}; nothing was done. Give"
            " a run's id, and --output DIR for a run in another folder"
        )
    if reason := why_not_own(folder):
        raise InputError(f"'{run_id}' is {folder}, which is not a run: {reason}; nothing was done")
    return folder.name


def run_folder(run_id: str, args: argparse.Namespace) -> str:
    """Return the folder of a run; empty if neither --s3-bucket nor --output has it."""
    for place in places(args):
        folder = storage.join(place, run_id)
        for name in MARKS:
            if storage.exists(storage.join(folder, name)):
                return folder
    return ""


def completed_folder(config: RunConfig) -> str:
    """Return the folder of the run of this configuration if nothing is left to run, else "".

    The run must have ended well, deployed or refused by the gate, with exactly these parameters.
    """
    folder = Run(config=config).folder
    summary = SummaryRecord.find_readable(folder.summary)
    if summary is None or summary.state not in COMPLETE:
        return ""
    return folder.uri if Run.load(folder.uri).config == config else ""


def places(args: argparse.Namespace) -> list[str]:
    """Return where runs may be: --s3-bucket if it was given, and --output."""
    local = str(args.output.resolve())
    return [local] if args.s3_bucket == AUTO else [args.s3_bucket, local]


def no_such_run(run_id: str, args: argparse.Namespace, other_place: str = "") -> InputError:
    """Return the error for an unknown run; it names the nearest ids on this machine.

    `other_place`: where else was looked, or why a place could not be asked.
    """
    local_ids = {path.parent.name for path in args.output.glob("*/status.json")} - {"latest"}
    where = places(args)
    if other_place:
        where.append(other_place)
    return InputError(
        f"{unknown('run', run_id, local_ids)} (looked in {' or '.join(where)}; for a run on S3 give"
        " --s3-bucket s3://bucket/prefix)"
    )


def parameters_on_server(run_id: str, args: argparse.Namespace) -> dict[str, object]:
    """Return the parameters of a run on Kubeflow, by Kubeflow's id or by ours.

    Raises InputError if no endpoint is configured or the server has no such run, ClusterError if it
    does not answer.
    """
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
    """Return the experiment's name of a run on Kubeflow, which run.json lacks.

    Empty if no server is configured or it does not answer.
    """
    host, _ = endpoint(args.host)
    if not host or not kfp_run:
        return {}
    from operations import kubeflow_runs
    from operations.server import connect

    try:
        server = connect(host, args.auth, None if args.namespace == AUTO else args.namespace)
        experiment = kubeflow_runs.get(server, kfp_run).experiment
    except JecError:
        return {}  # a deleted run; a server that does not answer fails the submission later
    return {"experiment_name": str(experiment.display_name)} if experiment is not None else {}


def known_parameters(values: Mapping[str, object]) -> dict[str, object]:
    """Drop parameters that this version does not have; a run of an older one may have others."""
    defaults = RunConfig().parameters()
    current = {name: value for name, value in with_types(values).items() if name in defaults}
    return with_former_defaults(current)
