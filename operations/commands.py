"""Run the commands on an existing run or schedule, and submit new ones to Kubeflow."""

from __future__ import annotations

import argparse

from common.config import AUTO, RunConfig
from common.errors import InputError
from operations import kubeflow_runs
from operations.previous_run import no_such_run
from operations.server import connect
from operations.target import PLACES, Target, ask_cluster, locate, place_flags


def act(args: argparse.Namespace) -> int:
    """Run the command that the flags ask for; return the exit code.

    Raises InputError if no place has the run, or for more than one step of --logs.
    """
    if args.compare:
        from operations.compare import compare

        return compare(args.compare, args)
    if args.logs:
        if len(args.logs) > 2:
            raise InputError(f"--logs takes RUN_ID and at most one STEP, not {' '.join(args.logs)}")
        from operations.logs import logs

        return logs(locate(args.logs[0], args), args.logs[1] if len(args.logs) == 2 else "")
    if not (args.status or args.down):
        from operations import schedules

        return schedules.act(args)
    if args.status:
        from operations.follow import follow
        from operations.status import status

        target = locate(args.status, args)
        if args.follow and target.kubeflow is not None:
            return follow(target, target.kubeflow, quiet=args.quiet)
        return status(target, as_json=args.json)
    from operations.down import down, was_removed
    from operations.status import local_processes

    target = locate(args.down, args, must_exist=False)
    # --down of a run that is already removed is no error, so that it can be repeated.
    if not (target.is_known or local_processes(target) or was_removed(target)):
        raise no_such_run(args.down, args, "; ".join(target.unseen))
    return down(target, storage_too=args.storage, yes=args.yes)


def run_on_kubeflow(config: RunConfig, host: str, args: argparse.Namespace) -> int:
    """Submit a run and print its address, or create a schedule with --schedule.

    With --follow, wait until the run ends and return its exit code; else return 0.
    """
    from operations.submit import for_pods, submit

    config = for_pods(config)
    for name in PLACES:
        setattr(args, name, getattr(config, name))
    server = connect(host, args.auth, None if config.namespace == AUTO else config.namespace)
    if args.schedule:
        from operations import schedules

        schedule = schedules.create(
            config, server, args.schedule, args.steps_image, account=args.steps_account
        )
        print(f"schedule {schedule.name}: {schedule.cron} (second minute hour day month weekday)")
        print(f"next: python pipeline.py --schedules {place_flags(host, args)}")
        return 0
    run = submit(config, server, args.steps_image, account=args.steps_account)
    if not args.quiet:
        state = "uploaded" if run.new_version else "is there already"
        print(f"pipeline version {run.version} {state}")
    print(f"run {run.run_id}: {run.url}", flush=True)
    if not args.follow:
        print(f"next: python pipeline.py --status {run.run_id} {place_flags(host, args)}")
        return 0
    from operations.follow import follow

    target = Target(run_id=run.run_id, args=args)
    target.kubeflow = kubeflow_runs.get(server, run.kfp_run)
    ask_cluster(target)
    return follow(target, target.kubeflow, quiet=args.quiet)
