"""The parameters of a run that was: for going on with it (`--resume`) and for a new one like it
(`--rerun`).
"""

from __future__ import annotations

import argparse
from typing import Any

from common import storage
from common.config import AUTO, RunConfig
from common.errors import InputError, unknown
from operations.endpoint import endpoint


def with_parameters_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None
) -> argparse.Namespace:
    """Parse again with the former run's parameters as defaults, so that flags given now win.

    Raises InputError where there is none.
    """
    run_id = args.resume or args.rerun
    folder = run_folder(run_id, args)
    if folder and storage.exists(storage.join(folder, "run.json")):
        values = _known(storage.read_json(storage.join(folder, "run.json"))["config"])
        # a folder of runs may have been moved; beside logs lies a copy of S3's
        if not storage.is_s3(values["s3_bucket"]):
            values["s3_bucket"] = storage.absolute(folder).rsplit("/", 1)[0]
    elif folder and args.resume:
        # it stopped before its parameters were written down: the same command gives them
        values = {}
    else:
        values = _from_server(run_id, args)
    if args.rerun:
        values |= {"run_id": AUTO, "user": AUTO}
    parser.set_defaults(**(values | ({"run_id": run_id} if args.resume else {})))
    return parser.parse_args(argv)


def run_folder(run_id: str, args: argparse.Namespace) -> str:
    """Where a run's files are, of the storage that was named and the folder of local runs; empty if
    it is in neither.
    """
    for place in places(args):
        folder = storage.join(place, run_id)
        if any(storage.exists(storage.join(folder, name)) for name in ("run.json", "status.json")):
            return folder
    return ""


def places(args: argparse.Namespace) -> list[str]:
    """Where runs may be: --s3-bucket if it is given, and --output."""
    local = str(args.output.resolve())
    return [local] if args.s3_bucket == AUTO else [args.s3_bucket, local]


def no_such_run(run_id: str, args: argparse.Namespace, also: str = "") -> InputError:
    """The error for a run that is nowhere, with the nearest of those on this machine."""
    there = {path.parent.name for path in args.output.glob("*/status.json")}
    where = " or ".join([*places(args), *([also] if also else [])])
    return InputError(
        f"{unknown('run', run_id, there)} (looked in {where}; a run on S3 is found with --s3-bucket"
        " s3://bucket/prefix)"
    )


def _from_server(run_id: str, args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of a run that Kubeflow remembers, by its own id or by ours."""
    host, _ = endpoint(args.host)
    if not host:
        raise no_such_run(run_id, args)
    from operations import kubeflow_runs
    from operations.server import connect

    server = connect(host, args.auth, None if args.namespace == AUTO else args.namespace)
    if found := kubeflow_runs.find(server, run_id, args.namespace):
        return _known(kubeflow_runs.parameters(found))
    raise no_such_run(run_id, args, f"the runs of {host}")


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are parameters today: a run of an older version may have others."""
    defaults = RunConfig().parameters()
    return {name: value for name, value in values.items() if name in defaults}
