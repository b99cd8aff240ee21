#!/usr/bin/env python
"""Calibrate jet energies with a network: prepare -> search -> export -> evaluate -> gate -> deploy.

python pipeline.py                                   on this machine, on generated jets
python pipeline.py --data-train 'train/*.root' --data-val 'val/*.root' --data-test 'test/*.root'
python pipeline.py --host https://KUBEFLOW/pipeline --s3-bucket s3://bucket/jec --num-gpus 1
    --data-train ... --follow
python pipeline.py --check ...                       what would fail, before anything is created
python pipeline.py --status RUN_ID                   and --logs RUN_ID [STEP], --down RUN_ID,
    --rerun RUN_ID
python pipeline.py --list                            and --prune --older-than 30d,
    --prune-cache --older-than 30d
python pipeline.py --schedule '0 3 * * 1' ...        a recurring run on Kubeflow; --schedules
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import config_file, cron, storage
from common.choices import START_STEPS
from common.cli import Parser, age, local_path, output_file, output_folder, run_main, size, word
from common.config import AUTO, RunConfig, add_arguments
from common.errors import InputError, JecError
from common.storage.local import check_writable_folder
from images.digests import image

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
ON_SCHEDULES = ("schedules", "pause_schedule", "resume_schedule", "delete_schedule")
ON_A_RUN = ("status", "logs", "down", "list", "prune", "prune_cache", "compare", *ON_SCHEDULES)
EARLIER_RUNS = ("resume", "more_trials", "rerun")
"""Flags that take the parameters of an earlier run."""
HOW_TO_RUN = (
    "runner",
    "host",
    "auth",
    "output",
    "serve",
    "follow",
    "steps_image",
    "steps_account",
)
"""Flags beside the fields of RunConfig that a file of --config may have."""


class ShowVersion(argparse.Action):
    """Print the version and the commit. The commit takes git, so it is looked up only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the line and end."""
        from common.project import git_commit, version

        print(f"jec-pipeline {version()}, commit {git_commit()}")
        parser.exit()


def build_parser() -> Parser:
    """Return the parser of all flags: how to run, the commands, and the fields of RunConfig."""
    parser = Parser(prog="python pipeline.py", description=__doc__)
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print only how a run ended; with --check only what is not ok",
    )
    parser.add_argument(
        "--version", action=ShowVersion, nargs=0, help="show the version and the commit, and exit"
    )
    run = parser.add_argument_group("how to run")
    run.add_argument(
        "--runner",
        choices=("auto", "local", "kubeflow"),
        default="auto",
        help="'auto': Kubeflow where an endpoint is configured, else this machine (default: auto)",
    )
    run.add_argument(
        "--host",
        type=word,
        default=AUTO,
        metavar="URL",
        help="KFP endpoint; 'auto': KFP_ENDPOINT or a notebook's own; 'none' (default: auto)",
    )
    run.add_argument(
        "--auth",
        choices=("auto", "none", "notebook", "token", "cookie", "dex"),
        default="auto",
        help=(
            "how to log in there: KFP_TOKEN(_FILE), KFP_COOKIE_FILE, KFP_USERNAME and KFP_PASSWORD"
            " (default: what is set)"
        ),
    )
    run.add_argument(
        "--output",
        type=local_path,
        default=Path("runs"),
        metavar="DIR",
        help="where local runs live; DIR/latest is the newest (default: runs)",
    )
    run.add_argument(
        "--serve",
        action="store_true",
        help=(
            "local: keep the service up at the end, until Ctrl-C; with --resume of a run that has"
            " ended, only start the server, as python -m serving.serve does"
        ),
    )
    run.add_argument(
        "--follow",
        action="store_true",
        help="Kubeflow: show steps, trials and the verdict until the end; its exit code",
    )
    run.add_argument(
        "--config",
        type=word,
        metavar="FILE",
        help=(
            "take flags from a YAML file with lines as num_gpus: 1, or from a run.json; a flag that"
            " is typed wins, and JEC_CONFIG names a file of the site's defaults"
        ),
    )
    run.add_argument(
        "--resume",
        type=word,
        metavar="RUN_ID",
        help="go on with a run that was stopped; its own parameters are the defaults",
    )
    run.add_argument(
        "--more-trials",
        type=word,
        nargs=2,
        metavar=("N", "RUN_ID"),
        help=(
            "go on with a search that has ended for N more trials; then export, evaluate and deploy"
            " its best"
        ),
    )
    run.add_argument(
        "--rerun",
        type=word,
        metavar="RUN_ID",
        help="a new run; the parameters of that one are the defaults",
    )
    run.add_argument(
        "--start-at",
        choices=START_STEPS,
        metavar="STEP",
        help=(
            "with --resume: keep the results of the steps before export, evaluate or deploy, and do"
            " this one and those after it again; from an earlier step --rerun begins"
        ),
    )
    run.add_argument(
        "--steps-image",
        type=word,
        default=image("steps"),
        metavar="IMAGE",
        help=(
            "image of the pipeline's steps on Kubeflow (default: the one that `make images` pushed"
            " last)"
        ),
    )
    run.add_argument(
        "--steps-account",
        type=word,
        default=AUTO,
        metavar="NAME",
        help="ServiceAccount of the steps' pods (default: Kubeflow's own)",
    )
    add_commands(parser.add_argument_group("instead of running"))
    add_arguments(parser, skip=("run_id",))
    parser.set_defaults(weaver_image=image("weaver"))
    return parser


def add_commands(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the commands that do something else than to run."""
    group.add_argument(
        "--check",
        action="store_true",
        help="look at everything the run needs, create nothing; exit code 1 on an error",
    )
    group.add_argument(
        "--render",
        type=output_folder,
        metavar="DIR",
        help="write every Kubernetes object the run would create as YAML",
    )
    group.add_argument(
        "--render-reana",
        type=output_folder,
        metavar="DIR",
        help="write the chain up to its evaluation for REANA: reana.yaml and a Snakefile",
    )
    group.add_argument(
        "--compile-to",
        type=output_file,
        metavar="FILE",
        help="write the pipeline's IR as YAML, for the server of --host or else for any",
    )
    group.add_argument(
        "--write-config",
        action="store_true",
        help="print every flag with its value now, as a file for --config",
    )
    group.add_argument(
        "--status",
        type=word,
        metavar="RUN_ID",
        help="what a run does, or how it ended; with --follow until its end",
    )
    group.add_argument(
        "--logs",
        type=word,
        nargs="+",
        metavar=("RUN_ID", "STEP"),
        help="what its steps (or one step, or one trial) wrote",
    )
    group.add_argument(
        "--compare",
        type=word,
        nargs="+",
        metavar="RUN",
        help=(
            "write one page of several runs (ids or folders): gain, closure, resolution and tails,"
            " as OUTPUT/comparison.html"
        ),
    )
    group.add_argument(
        "--down",
        type=word,
        metavar="RUN_ID",
        help="remove everything that a run left: objects, processes, its service",
    )
    group.add_argument(
        "--storage", action="store_true", help="with --down: the run's folder of results as well"
    )
    group.add_argument(
        "--list",
        action="store_true",
        help="the runs below --output, or --s3-bucket: state, gain, size, served or not",
    )
    group.add_argument(
        "--prune",
        action="store_true",
        help=(
            "remove runs of an age or a size, after asking; never one that is served or going on"
        ),
    )
    group.add_argument(
        "--prune-cache",
        action="store_true",
        help=(
            "remove decoded jets below --output and in this machine's cache (JEC_CACHE) by age or"
            " size, after asking; never what is in use"
        ),
    )
    group.add_argument(
        "--older-than",
        type=age,
        metavar="AGE",
        help=(
            "with --prune: whose records changed longer ago than, for example, 30d or 12h; with"
            " --prune-cache: which nothing has used for so long"
        ),
    )
    group.add_argument(
        "--larger-than",
        type=size,
        metavar="SIZE",
        help=(
            "with --prune and --prune-cache: whose files are larger than, for example, 1G or 500M"
        ),
    )
    group.add_argument(
        "--yes", action="store_true", help="with --down, --prune and --prune-cache: do not ask"
    )
    group.add_argument(
        "--json", action="store_true", help="with --status, --check and --list: as one JSON object"
    )
    add_schedule_commands(group)


def add_schedule_commands(group: argparse._ArgumentGroup) -> None:
    """Add the flags of recurring runs."""
    group.add_argument(
        "--schedule",
        type=cron_text,
        metavar="CRON",
        help=(
            "Kubeflow: make a recurring run with these parameters, one at a time; CRON is minute,"
            " hour, day, month and weekday, as '0 3 * * 1' for Mondays at 3:00 by the server's"
            " clock (by itself UTC), or Kubeflow's six fields, the second first"
        ),
    )
    group.add_argument(
        "--schedules", action="store_true", help="the recurring runs of this pipeline on Kubeflow"
    )
    for verb, text in (
        ("pause", "make no more runs for now; one that goes on is left alone"),
        ("resume", "go on with a schedule that was paused"),
        ("delete", "remove a schedule; the runs that it made stay"),
    ):
        group.add_argument(f"--{verb}-schedule", type=word, metavar="NAME", help=text)


def cron_text(text: str) -> str:
    """A cron expression as it was typed; argparse reports one that is none."""
    try:
        cron.six_fields(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return run_main(lambda: parse_and_act(argv))


def parse_and_act(argv: list[str] | None) -> int:
    """Refuse flags that do not go together, then do what they ask for; return the exit code."""
    parser = build_parser()
    flags = config_file.Flags(parser, config_file.keys(HOW_TO_RUN), argv)
    flags.sources += config_file.site(flags)
    args = flags.parse()
    if args.config:
        flags.sources.append(flags.read(args.config, "--config"))
        args = flags.parse()
    commands = typed_flags(args, COMMANDS)
    if len(commands) > 1:
        parser.error(f"{commands[0]} and {commands[1]} are two commands; give one")
    earlier = typed_flags(args, EARLIER_RUNS)
    if len(earlier) > 1:
        parser.error(f"{earlier[0]} and {earlier[1]} both name an earlier run; give one")
    on_a_run = typed_flags(args, ON_A_RUN)
    if on_a_run and earlier:
        parser.error(f"{on_a_run[0]} looks at a run, {earlier[0]} starts one; give one of them")
    check_companions(parser, args)
    try:
        return act(flags, args)
    except InputError as error:
        flags.explain(error)
        raise


def check_companions(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags without the command that they go with."""
    if args.storage and not args.down:
        parser.error("--storage goes with --down RUN_ID")
    prunes = args.prune or args.prune_cache
    if args.yes and not (args.down or prunes):
        parser.error("--yes goes with --down RUN_ID, --prune or --prune-cache")
    if args.schedule and (args.resume or args.more_trials):
        parser.error("--schedule makes new runs; take an earlier run's parameters with --rerun")
    if args.schedule and args.follow:
        parser.error("--follow follows one run, and --schedule starts none now")
    if args.json and not (args.status or args.check or args.list):
        parser.error("--json goes with --status RUN_ID, --check or --list")
    if args.json and (args.follow or args.quiet):
        parser.error("--json prints one object; leave --follow and --quiet out")
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
    """Those of the flags with these names that were typed."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]


def act(flags: config_file.Flags, args: argparse.Namespace) -> int:
    """Do what the flags ask for; return the exit code."""
    # Rooms are imported where they are used: --help answers before kfp and kubernetes are loaded.
    from components.step import use_endpoint

    use_endpoint(args.s3_endpoint)
    if args.status or args.logs or args.down or args.compare or typed_flags(args, ON_SCHEDULES):
        from operations import commands

        return commands.act(args)

    if args.list or args.prune or args.prune_cache:
        from operations import prune_cache, run_list

        return prune_cache.act(args) if args.prune_cache else run_list.act(args)

    # The flags and their files alone, or on top of the parameters of an earlier run.
    more_trials, resumed = args.more_trials or (None, args.resume)
    if resumed or args.rerun:
        from operations.previous_run import with_parameters_of

        args.resume = resumed
        args = with_parameters_of(flags, args)
        # the earlier run may have had an endpoint of its own
        use_endpoint(args.s3_endpoint)
    config = RunConfig.from_args(args)
    if args.write_config:
        print(flags.as_yaml(args), end="")
        return 0
    if args.serve and resumed and not (more_trials or args.start_at) and args.runner != "kubeflow":
        from operations.previous_run import has_ended

        folder = has_ended(config)
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
    if resumed:
        from common.run import Run
        from components import start_at

        earlier_run = Run(config=config)
        if args.start_at:
            start_at.ask(earlier_run, args.start_at)
        else:
            start_at.forget(earlier_run)
    return run(flags, config, args)


def write_files(config: RunConfig, args: argparse.Namespace) -> int:
    """Write what the run would be, in the form that a flag asks for; return the exit code."""
    if args.compile_to:
        return compile_pipeline(config, args)
    if args.render_reana:
        from operations import reana

        paths = reana.render(config, args.render_reana, args.steps_image)
    else:
        from operations.render import render

        paths = render(config, args.render)
    for path in paths:
        print(path)
    return 0


def compile_pipeline(config: RunConfig, args: argparse.Namespace) -> int:
    """Write the pipeline's IR with this configuration as its defaults.

    It is for the server at --host where that is given, else for every supported one. Raises
    InputError for a file of the user's own that no pod could read, ClusterError for a server that
    is too old.
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
            "a data config or network file of your own has to be uploaded: give --s3-bucket"
            " s3://bucket/prefix as well"
        )
    else:
        config = with_uploaded_files(config)
    file = chain.compile_to(args.compile_to, config, args.steps_image, support=support)
    print(f"{file}: upload it in the Kubeflow UI, or let --runner kubeflow do so")
    return 0


def run(flags: config_file.Flags, config: RunConfig, args: argparse.Namespace) -> int:
    """Run on Kubeflow where an endpoint is configured or asked for, else on this machine."""
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
            "--schedule makes a recurring run on Kubeflow, and this run is for one machine: paste"
            f" this line into what `crontab -e` opens: {line}"
        )
    reason = "no Kubeflow endpoint: neither --host nor KFP_ENDPOINT"
    if args.runner == "local":
        reason = "asked by --runner"
    places = {"--output": str(args.output)}
    if config.s3_bucket != AUTO and storage.is_local(config.s3_bucket):
        places["--s3-bucket"] = storage.absolute(config.s3_bucket)
    for name, path in places.items():
        try:
            check_writable_folder(path)
        except JecError as error:
            raise InputError(f"{name}: {error}") from None
    if not args.quiet:
        print(f"running on this machine ({reason})", flush=True)
    # Printed before this import, which takes a second or two.
    from components.local_run import LocalRun

    return LocalRun(config, args.output, serve=args.serve, quiet=args.quiet)()


if __name__ == "__main__":
    raise SystemExit(main())
