"""The commands on a run that exists, and the submission of a new one."""

from __future__ import annotations

import argparse

from common.config import AUTO, RunConfig
from common.errors import InputError
from operations import kubeflow_runs
from operations.server import connect
from operations.target import Target, ask_cluster, locate


def act(args: argparse.Namespace) -> int:
    """Do the command that the flags ask for; returns the exit code."""
    if args.logs:
        if len(args.logs) > 2:
            raise InputError(f"--logs takes RUN_ID and at most one STEP, not {' '.join(args.logs)}")
        from operations.logs import logs

        return logs(locate(args.logs[0], args), args.logs[1] if len(args.logs) == 2 else "")
    if args.status:
        from operations.follow import follow
        from operations.status import status

        target = locate(args.status, args)
        return follow(target) if args.follow and target.kfp_run is not None else status(target)
    from operations.down import down

    return down(locate(args.down, args, must_exist=False), storage_too=args.storage, yes=args.yes)


def run_on_kubeflow(config: RunConfig, host: str, args: argparse.Namespace) -> int:
    """Submit, say where to look, and with --follow stay until the end.

    The exit code is the run's if it was followed, else 0.
    """
    from operations.submit import submit

    server = connect(host, args.auth, None if config.namespace == AUTO else config.namespace)
    made = submit(config, server, args.steps_image, account=args.steps_account)
    print(
        f"pipeline version {made.version} {'uploaded' if made.new_version else 'is there already'}"
    )
    print(f"run {made.run_id}: {made.url}", flush=True)
    if not args.follow:
        print(
            f"next: python pipeline.py --status {made.run_id} --host {host} --s3-bucket"
            f" {config.s3_bucket}"
        )
        return 0
    from operations.follow import follow

    args.s3_bucket = config.s3_bucket
    target = Target(
        run_id=made.run_id,
        folder="",
        server=server,
        kfp_run=kubeflow_runs.get(server, made.kfp_run),
        operator=None,
        args=args,
        unseen=[],
    )
    ask_cluster(target)
    return follow(target)
