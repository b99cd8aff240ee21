#!/usr/bin/env python
"""Calibrate jet energies with a network: prepare -> search -> export -> evaluate -> gate -> deploy.

    python pipeline.py                                   on this machine, on generated jets
    python pipeline.py --data-train 'train/*.root' --data-val 'val/*.root' --data-test 'test/*.root'
    python pipeline.py --host https://KUBEFLOW/pipeline --s3-bucket s3://bucket/jec --num-gpus 1 --data-train ...
    python pipeline.py --render manifests/               every Kubernetes object of a run, as YAML
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import Parser, run_main
from common.config import AUTO, RunConfig, add_arguments
from common.errors import InputError, unknown


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python pipeline.py", description=__doc__)
    run = parser.add_argument_group("how to run")
    run.add_argument("--runner", choices=("auto", "local", "kubeflow"), default="auto",
                     help="'auto': Kubeflow where an endpoint is configured, else this machine (default: auto)")  # fmt: skip
    run.add_argument("--host", default=AUTO, metavar="URL", help="KFP endpoint; 'auto': KFP_ENDPOINT or a notebook's own (default: auto)")
    run.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR",
                     help="where local runs live; DIR/latest is the newest (default: runs)")  # fmt: skip
    run.add_argument("--serve", action="store_true", help="local: keep the service up at the end, until Ctrl-C")
    run.add_argument("--resume", metavar="RUN_ID", help="go on with a run that was stopped; its own parameters are the defaults")
    run.add_argument("--compile-to", type=Path, metavar="FILE", help="write the pipeline's IR as YAML and stop")
    run.add_argument("--render", type=Path, metavar="DIR", help="write every Kubernetes object the run would create as YAML and stop")
    run.add_argument("--steps-image", default="jec-steps:latest", metavar="IMAGE", help="image of the pipeline's steps on Kubeflow")
    add_arguments(parser, skip=("run_id",))
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    return run_main(lambda: act(parser, args, argv))


def act(parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None) -> int:
    """Do what the flags ask for; returns the exit code."""
    from components.step import use_endpoint

    use_endpoint(args.s3_endpoint)
    if args.resume:
        args = _with_defaults_of(args.resume, parser, args, argv)
        use_endpoint(args.s3_endpoint)
    config = RunConfig.from_args(args)
    if args.render:
        return _render(config, args.render)
    if args.compile_to:
        return _compile(config, args)
    return _run(config, args)


def _with_defaults_of(run_id: str, parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None) -> argparse.Namespace:
    """Parse again with the stopped run's own parameters as defaults. Raises InputError where there is no such run."""
    from common import storage

    places = [str(args.output.resolve())] if args.s3_bucket == AUTO else [args.s3_bucket, str(args.output.resolve())]
    folders = [storage.join(place, run_id) for place in places]
    stored = next((folder for folder in folders if storage.exists(storage.join(folder, "run.json"))), None)
    if stored:
        config = storage.read_json(storage.join(stored, "run.json"))["config"]
        if not storage.is_s3(config["s3_bucket"]):  # a folder of runs may have been moved; beside logs lies a copy of S3's
            config["s3_bucket"] = storage.absolute(stored).rsplit("/", 1)[0]
        parser.set_defaults(**config)
    elif not any(storage.exists(storage.join(folder, "status.json")) for folder in folders):
        there = {path.parent.name for path in args.output.glob("*/status.json")}
        raise InputError(f"{unknown('run', run_id, there)} (in {' or '.join(places)})")
    parser.set_defaults(run_id=run_id)
    return parser.parse_args(argv)


def _render(config: RunConfig, folder: Path) -> int:
    from components.render import render

    for path in render(config, folder):
        print(path)
    return 0


def _compile(config: RunConfig, args: argparse.Namespace) -> int:
    from common.project import is_own
    from components import chain
    from components.submit import with_space_as_text, with_uploaded_files

    if all(is_own(path) for path in (config.data_config, config.network_config)):
        config = with_space_as_text(config)  # the images hold the project's own files
    elif config.s3_bucket == AUTO:
        raise InputError("a data config or network file of your own has to be uploaded: give --s3-bucket s3://bucket/prefix as well")
    else:
        config = with_uploaded_files(config)
    print(f"{chain.compile_to(args.compile_to, config, args.steps_image)}: upload it in the Kubeflow UI, or let --runner kubeflow do so")
    return 0


def _run(config: RunConfig, args: argparse.Namespace) -> int:
    from components.submit import endpoint, submit

    host, found = endpoint(args.host)
    if args.runner == "kubeflow" or (args.runner == "auto" and host):
        if not host:
            raise InputError("--runner kubeflow: no endpoint; give --host https://.../pipeline or set KFP_ENDPOINT")
        print(f"running on Kubeflow at {host} (from {found})", flush=True)
        print(f"submitted: {submit(config, host, args.steps_image)}")
        return 0
    reason = "asked by --runner" if args.runner == "local" else "no Kubeflow endpoint: neither --host nor KFP_ENDPOINT"
    print(f"running on this machine ({reason})", flush=True)
    from components.local_run import LocalRun

    return LocalRun(config, args.output, serve=args.serve)()


if __name__ == "__main__":
    raise SystemExit(main())
