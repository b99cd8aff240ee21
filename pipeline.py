#!/usr/bin/env python
"""Calibrate jet energies with a network: prepare -> search -> export -> evaluate -> gate -> deploy.

make run                            a small search on generated jets, in minutes
python pipeline.py --rerun latest --data-train ... --data-val ... --data-test ...
                                    the same search on your jets
python pipeline.py ...              the defaults: 30 trials of 50 epochs, for GPUs
python pipeline.py --check ...      check everything that this run needs, create nothing
python pipeline.py --host https://KUBEFLOW/pipeline --s3-bucket s3://bucket/jec --follow ...
                                    run on Kubeflow
python pipeline.py --schedule '0 3 * * 1' --host ...
                                    run on Kubeflow every Monday
python pipeline.py --list           list runs; then --status, --logs, --resume, --rerun, --down
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import config_file, cron, storage
from common.choices import START_STEPS
from common.cli import Parser, age, local_path, output_file, output_folder, run_main, size, word
from common.config import AUTO, RunConfig, add_arguments, check_image
from common.errors import InputError, JecError
from common.layout import DEFAULT_OUTPUT
from common.storage.local import check_writable_folder
from images.digests import image, unpushed

COMMANDS = (
    "check",
    "status",
    "logs",
    "down",
    "list",
    "prune",
    "prune_cache",
    "compare",
    "render",
    "render_reana",
    "compile_to",
    "write_config",
    "schedule",
    "schedules",
    "pause_schedule",
    "resume_schedule",
    "delete_schedule",
)
SCHEDULE_COMMANDS = ("schedules", "pause_schedule", "resume_schedule", "delete_schedule")
RUN_COMMANDS = (
    "status",
    "logs",
    "down",
    "list",
    "prune",
    "prune_cache",
    "compare",
    *SCHEDULE_COMMANDS,
)
EARLIER_RUNS = ("resume", "more_trials", "rerun")
"""Flags that take the parameters of an earlier run."""
RUNNER_FLAGS = (
    "runner",
    "host",
    "auth",
    "output",
    "serve",
    "follow",
    "steps_image",
    "steps_account",
)
"""Flags that a --config file may have besides the fields of RunConfig."""


class ShowVersion(argparse.Action):
    """Print the version and the commit, and exit. Only this flag calls git, which takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit."""
        from common.project import git_commit, version

        print(f"jec-pipeline {version()}, commit {git_commit()}")
        parser.exit()


def build_parser() -> Parser:
    """Return the parser of all flags: how to run, the commands, and the fields of RunConfig."""
    # argparse's own usage would be a screen of flags.
    usage = "python pipeline.py [FLAGS]"
    parser = Parser(prog="python pipeline.py", usage=usage, description=__doc__)
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print only how a run ended; with --check, only lines that are not ok",
    )
    parser.add_argument(
        "--version", action=ShowVersion, nargs=0, help="show the version and the commit, and exit"
    )
    run = parser.add_argument_group("how to run")
    run.add_argument(
        "--runner",
        choices=("auto", "local", "kubeflow"),
        default="auto",
        help=(
            "where to run: 'auto' is Kubeflow if an endpoint is configured, else this machine"
            " (default: auto)"
        ),
    )
    run.add_argument(
        "--host",
        type=word,
        default=AUTO,
        metavar="URL",
        help=(
            "Kubeflow Pipelines endpoint; 'auto' takes KFP_ENDPOINT or, in a notebook, Kubeflow's"
            " own; 'none' ignores both (default: auto)"
        ),
    )
    run.add_argument(
        "--auth",
        choices=("auto", "none", "notebook", "token", "cookie", "dex"),
        default="auto",
        help=(
            "how to log in to Kubeflow: with KFP_TOKEN or KFP_TOKEN_FILE, KFP_COOKIE_FILE, or"
            " KFP_USERNAME and KFP_PASSWORD; 'auto' takes the one that is set (default: auto)"
        ),
    )
    run.add_argument(
        "--output",
        type=local_path,
        default=Path(DEFAULT_OUTPUT),
        metavar="DIR",
        help="folder of the runs of this machine; DIR/latest is the newest (default: %(default)s)",
    )
    run.add_argument(
        "--serve",
        action="store_true",
        help=(
            "this machine: keep the model server running after the run, until Ctrl-C; with --resume"
            " of a finished run, only start the server, as python -m serving.serve does"
        ),
    )
    run.add_argument(
        "--follow",
        action="store_true",
        help=(
            "Kubeflow: print steps, trials and the gate's verdict until the run ends, and exit with"
            " its exit code"
        ),
    )
    run.add_argument(
        "--config",
        type=word,
        metavar="FILE",
        help=(
            "read flags from a YAML file with lines such as num_gpus: 1, or from a run.json; flags"
            " of the command line override it. JEC_CONFIG names a file with a site's defaults"
        ),
    )
    run.add_argument(
        "--resume",
        type=word,
        metavar="RUN_ID",
        help=(
            "resume a stopped or failed run; its parameters are the defaults. RUN_ID is an id of"
            " --list, 'latest' or the path of a run's folder"
        ),
    )
    run.add_argument(
        "--more-trials",
        type=word,
        nargs=2,
        metavar=("N", "RUN_ID"),
        help=(
            "resume a finished search with N more trials; then export, evaluate and deploy the best"
            " trial"
        ),
    )
    run.add_argument(
        "--rerun",
        type=word,
        metavar="RUN_ID",
        help="start a new run; the parameters of run RUN_ID are the defaults",
    )
    run.add_argument(
        "--start-at",
        choices=START_STEPS,
        metavar="STEP",
        help=(
            "with --resume: repeat export, evaluate or deploy and all later steps, and keep the"
            " results of the earlier ones; to repeat prepare or search use --rerun"
        ),
    )
    run.add_argument(
        "--steps-image",
        type=word,
        default=image("steps"),
        metavar="IMAGE",
        help=(
            "image of the pipeline's steps on Kubeflow (default: the last one that `make images`"
            " pushed)"
        ),
    )
    run.add_argument(
        "--steps-account",
        type=word,
        default=AUTO,
        metavar="NAME",
        help="ServiceAccount of the steps' pods on Kubeflow (default: Kubeflow's own)",
    )
    add_commands(parser.add_argument_group("instead of running"))
    add_arguments(parser, skip=("run_id",))
    parser.set_defaults(weaver_image=image("weaver"))
    return parser


def add_commands(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the commands that do not start a run."""
    group.add_argument(
        "--check",
        action="store_true",
        help="check everything that the run needs and create nothing; exit code 1 on an error",
    )
    group.add_argument(
        "--render",
        type=output_folder,
        metavar="DIR",
        help="write every Kubernetes object that the run would create, as YAML files",
    )
    group.add_argument(
        "--render-reana",
        type=output_folder,
        metavar="DIR",
        help="write the steps up to evaluate for REANA, as reana.yaml and a Snakefile",
    )
    group.add_argument(
        "--compile-to",
        type=output_file,
        metavar="FILE",
        help=(
            "compile the pipeline to KFP's IR (YAML), for the server of --host, or else for every"
            " supported one"
        ),
    )
    group.add_argument(
        "--write-config",
        action="store_true",
        help="print every flag with its current value, as a file for --config",
    )
    group.add_argument(
        "--status",
        type=word,
        metavar="RUN_ID",
        help="show the state of a run; with --follow, until it ends",
    )
    group.add_argument(
        "--logs",
        type=word,
        nargs="+",
        metavar=("RUN_ID", "STEP"),
        help="print the logs of a run's steps, or of one step or trial",
    )
    group.add_argument(
        "--compare",
        type=word,
        nargs="+",
        metavar="RUN",
        help=(
            "compare runs (ids or folders) on one page, DIR/comparison.html with DIR of --output:"
            " gain, closure, resolution and tails"
        ),
    )
    group.add_argument(
        "--down",
        type=word,
        metavar="RUN_ID",
        help="remove a run's Kubernetes objects, processes and service, after asking",
    )
    group.add_argument(
        "--storage", action="store_true", help="with --down: remove the run's folder as well"
    )
    group.add_argument(
        "--list",
        action="store_true",
        help=(
            "list the runs in --output or --s3-bucket: state, gain, size, and whether they are"
            " served"
        ),
    )
    group.add_argument(
        "--prune",
        action="store_true",
        help=(
            "remove runs by --older-than and --larger-than, after asking; runs that are active or"
            " served are kept"
        ),
    )
    group.add_argument(
        "--prune-cache",
        action="store_true",
        help=(
            "remove decoded jets in --output and in this machine's cache (JEC_CACHE) by"
            " --older-than and --larger-than, after asking; what is in use is kept"
        ),
    )
    group.add_argument(
        "--older-than",
        type=age,
        metavar="AGE",
        help=(
            "with --prune: runs whose records last changed longer ago than AGE, as 30d or 12h; with"
            " --prune-cache: decoded jets that were last used longer ago"
        ),
    )
    group.add_argument(
        "--larger-than",
        type=size,
        metavar="SIZE",
        help=("with --prune and --prune-cache: only what is larger than SIZE, as 1G or 500M"),
    )
    group.add_argument(
        "--yes", action="store_true", help="with --down, --prune and --prune-cache: do not ask"
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="with --status, --check and --list: print one JSON object",
    )
    add_schedule_commands(group)


def add_schedule_commands(group: argparse._ArgumentGroup) -> None:
    """Add the flags of recurring runs."""
    group.add_argument(
        "--schedule",
        type=cron_text,
        metavar="CRON",
        help=(
            "Kubeflow: create a recurring run with these parameters, one run at a time. CRON is"
            " minute, hour, day, month and weekday in the server's time zone (UTC by default), as"
            " '0 3 * * 1' for Mondays at 3:00, or Kubeflow's six fields (seconds first)"
        ),
    )
    group.add_argument(
        "--schedules",
        action="store_true",
        help="list the recurring runs of this pipeline on Kubeflow",
    )
    for verb, text in (
        ("pause", "start no more runs of a schedule until it is resumed; an active run continues"),
        ("resume", "resume a paused schedule"),
        ("delete", "delete a schedule; the runs that it started stay"),
    ):
        group.add_argument(f"--{verb}-schedule", type=word, metavar="NAME", help=text)


def cron_text(text: str) -> str:
    """Return a cron expression unchanged. Raises argparse.ArgumentTypeError if it is invalid."""
    try:
        cron.six_fields(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run_main(lambda: parse_and_act(argv))


def parse_and_act(argv: list[str] | None) -> int:
    """Refuse flags that exclude each other, then run the command; return the exit code."""
    parser = build_parser()
    flags = config_file.Flags(parser, config_file.keys(RUNNER_FLAGS), argv)
    flags.sources += config_file.site(flags)
    args = flags.parse()
    if args.config:
        flags.sources.append(flags.read(args.config, "--config"))
        args = flags.parse()
    commands = typed_flags(args, COMMANDS)
    if len(commands) > 1:
        parser.error(f"{commands[0]} and {commands[1]} are two commands; give only one of them")
    earlier_run_flags = typed_flags(args, EARLIER_RUNS)
    if len(earlier_run_flags) > 1:
        parser.error(
            f"{earlier_run_flags[0]} and {earlier_run_flags[1]} both name an earlier run; give only"
            " one of them"
        )
    run_commands = typed_flags(args, RUN_COMMANDS)
    if run_commands and earlier_run_flags:
        parser.error(
            f"{run_commands[0]} is about existing runs, {earlier_run_flags[0]} starts one; give"
            " only one of them"
        )
    check_companions(parser, args)
    try:
        return act(flags, args)
    except InputError as error:
        flags.explain(error)
        raise


def check_companions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags whose command is missing, by argparse's error (exit code 2)."""
    if args.storage and not args.down:
        parser.error("--storage goes with --down RUN_ID")
    prunes = args.prune or args.prune_cache
    if args.yes and not (args.down or prunes):
        parser.error("--yes goes with --down RUN_ID, --prune or --prune-cache")
    if args.schedule and (args.resume or args.more_trials):
        parser.error("--schedule starts new runs; to take an earlier run's parameters use --rerun")
    if args.schedule and args.follow:
        parser.error(
            "--follow is for one run, and --schedule starts none now; leave one of them out"
        )
    if args.json and not (args.status or args.check or args.list):
        parser.error("--json goes with --status RUN_ID, --check or --list")
    if args.json and (args.follow or args.quiet):
        parser.error("--json prints one object at the end; leave --follow and --quiet out")
    commands = [flag for flag in typed_flags(args, COMMANDS) if flag not in ("--check", "--status")]
    if args.quiet and (commands or (args.status and not args.follow)):
        parser.error("--quiet goes with a run, --check or --status RUN_ID --follow")
    if args.start_at and not args.resume:
        parser.error(f"--start-at {args.start_at} goes with --resume RUN_ID")
    limits = args.older_than is not None or args.larger_than is not None
    if limits and not prunes:
        parser.error("--older-than and --larger-than go with --prune or --prune-cache")
    if prunes and not limits:
        command = "--prune" if args.prune else "--prune-cache"
        parser.error(f"{command} needs --older-than AGE, --larger-than SIZE or both")


def typed_flags(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Return the flags among `names` that were given, as '--name'."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]


def act(flags: config_file.Flags, args: argparse.Namespace) -> int:
    """Run the command that the flags ask for, or the pipeline; return the exit code."""
    # Packages are imported where they are used, so that --help need not load kfp and kubernetes.
    from components.step import use_endpoint

    check_image("steps-image", args.steps_image)
    use_endpoint(args.s3_endpoint)
    if (
        args.status
        or args.logs
        or args.down
        or args.compare
        or typed_flags(args, SCHEDULE_COMMANDS)
    ):
        from operations import commands

        return commands.act(args)

    if args.list or args.prune or args.prune_cache:
        from operations import prune_cache, run_list

        return prune_cache.act(args) if args.prune_cache else run_list.act(args)

    # The parameters are those of the flags and config files, over those of an earlier run.
    more_trials, resumed_id = args.more_trials or (None, args.resume)
    if resumed_id or args.rerun:
        from operations.previous_run import with_parameters_of

        args.resume = resumed_id
        args = with_parameters_of(flags, args)
        # the earlier run may have another endpoint
        use_endpoint(args.s3_endpoint)
    config = RunConfig.from_args(args)
    if args.write_config:
        # These images are on no registry, and this file would keep the user from pushed ones.
        images = {"steps_image": unpushed("steps"), "weaver_image": unpushed("weaver")}
        print(flags.as_yaml(args, without=images), end="")
        return 0
    if (
        args.serve
        and resumed_id
        and not (more_trials or args.start_at)
        and args.runner != "kubeflow"
    ):
        from operations.previous_run import completed_folder

        folder = completed_folder(config)
        if folder:
            from serving.serve import Ports, serve

            serve([folder], Ports())
            return 0
    if more_trials:
        from training.more_trials import with_more_trials

        config = with_more_trials(config, more_trials)

    if args.check:
        from operations.check import check

        return check(config, args)
    if args.render or args.render_reana or args.compile_to:
        return write_files(config, args)
    if resumed_id:
        from common.run import Run
        from components import start_at

        previous_run = Run(config=config)
        if args.start_at:
            start_at.request(previous_run, args.start_at)
        else:
            start_at.forget(previous_run)
    return run(flags, config, args)


def write_files(config: RunConfig, args: argparse.Namespace) -> int:
    """Write the files of --compile-to, --render-reana or --render; return the exit code."""
    if args.compile_to:
        return compile_pipeline(config, args)
    if args.render_reana:
        from operations import reana

        for text in reana.unpullable([args.steps_image, config.weaver_image]):
            print(f"warning: {text}", file=sys.stderr)
        paths = reana.render(config, args.render_reana, args.steps_image)
    else:
        from operations.render import render

        paths = render(config, args.render)
    for path in paths:
        print(path)
    return 0


def compile_pipeline(config: RunConfig, args: argparse.Namespace) -> int:
    """Write the pipeline's IR with this configuration as its defaults; return the exit code.

    The IR is for the server at --host if that is given, else for every supported one.

    Raises:
        InputError: the user's own files cannot be uploaded, so that no pod could read them.
        ClusterError: the server is too old.
    """
    from common.project import is_own
    from components import chain
    from operations.submit import check_version, with_space_as_text, with_uploaded_files

    support = chain.ANY_SERVER
    if args.host != AUTO:
        from operations.endpoint import endpoint
        from operations.server import connect

        server = connect(endpoint(args.host)[0], args.auth)
        check_version(server)
        support = server.support
    if is_own(config.data_config) and is_own(config.network_config):
        config = with_space_as_text(config)  # the images hold the project's own files
    elif config.s3_bucket == AUTO:
        raise InputError(
            "--compile-to with your own data config or network file: pods read it from S3; give"
            " --s3-bucket s3://bucket/prefix as well"
        )
    else:
        config = with_uploaded_files(config)
    file = chain.compile_to(args.compile_to, config, args.steps_image, support=support)
    print(f"{file}: upload it in the Kubeflow UI; --runner kubeflow does that itself")
    return 0


def run(flags: config_file.Flags, config: RunConfig, args: argparse.Namespace) -> int:
    """Run the pipeline on Kubeflow or on this machine, as --runner says; return the exit code.

    Raises InputError if --runner kubeflow has no endpoint, if --schedule is used without Kubeflow,
    or if the folder of runs cannot be written.
    """
    from operations.endpoint import endpoint

    host, source = endpoint(args.host)
    if args.runner == "kubeflow" or (args.runner == "auto" and host):
        if not host:
            raise InputError(
                "--runner kubeflow: no endpoint; give --host https://.../pipeline or set"
                " KFP_ENDPOINT"
            )
        if not args.quiet:
            print(f"running on Kubeflow at {host} (from {source})", flush=True)
        from operations.commands import run_on_kubeflow

        return run_on_kubeflow(config, host, args)

    if args.schedule:
        from operations.schedules import crontab_line

        words = sys.argv[1:] if flags.words is None else flags.words
        line = crontab_line(args.schedule, words, args.output)
        raise InputError(
            "--schedule needs Kubeflow, and this run is for this machine; to repeat it here, run"
            f" `crontab -e` and add this line: {line}"
        )
    reason = "no Kubeflow endpoint: neither --host nor KFP_ENDPOINT"
    if args.runner == "local":
        reason = "--runner local"
    folders = {"--output": str(args.output)}
    if config.s3_bucket != AUTO and storage.is_local(config.s3_bucket):
        folders["--s3-bucket"] = storage.absolute(config.s3_bucket)
    for name, path in folders.items():
        try:
            check_writable_folder(path)
        except JecError as error:
            raise InputError(f"{name}: {error}") from None
    if not args.quiet:
        print(f"running on this machine ({reason})", flush=True)
    # Imported after the line is printed, because the import takes a second or two.
    from components.local_run import LocalRun

    return LocalRun(config, args.output, serve=args.serve, quiet=args.quiet)()


if __name__ == "__main__":
    raise SystemExit(main())
