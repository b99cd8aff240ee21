#!/usr/bin/env python
"""Calibrate jet energies with a network: prepare -> search -> export -> evaluate -> gate -> deploy.

    python pipeline.py                                   on this machine, on generated jets
    python pipeline.py --data-train 'train/*.root' --data-val 'val/*.root' --data-test 'test/*.root'
    python pipeline.py --host https://KUBEFLOW/pipeline --s3-bucket s3://bucket/jec --num-gpus 1 --data-train ...
    python pipeline.py --render manifests/               every Kubernetes object of a run, as YAML
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import Parser, run_main
from common.config import AUTO, RunConfig, add_arguments


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
    if args.resume:
        args = _with_defaults_of(args.resume, parser, args, argv)
    config = RunConfig.from_args(args)
    if args.render:
        return _render(config, args.render)
    if args.compile_to:
        return _compile(config, args)
    return _run(config, args)


def _with_defaults_of(run_id: str, parser: argparse.ArgumentParser, args: argparse.Namespace, argv: list[str] | None) -> argparse.Namespace:
    """Parse again with the interrupted run's own parameters as defaults, where its run.json had been written."""
    from common import storage
    from common.run import Run

    place = str(args.output.resolve()) if args.s3_bucket == AUTO else args.s3_bucket
    folders = [storage.join(place, run_id), str(args.output.resolve() / run_id)]
    stored = next((folder for folder in folders if storage.exists(storage.join(folder, "run.json"))), None)
    if stored:
        parser.set_defaults(**Run.load(stored).config.parameters())
    parser.set_defaults(run_id=run_id)
    return parser.parse_args(argv)


def _render(config: RunConfig, folder: Path) -> int:
    from components.render import render

    for path in render(config, folder):
        print(path)
    return 0


def _compile(config: RunConfig, args: argparse.Namespace) -> int:
    from components import chain
    from training.search_space import for_network, load, to_json

    config = config.replace(search_space=to_json(for_network(load(config.search_space), config.network_config)))
    print(f"{chain.compile_to(args.compile_to, config, args.steps_image)}: upload it in the Kubeflow UI, or let --runner kubeflow do so")
    return 0


def _run(config: RunConfig, args: argparse.Namespace) -> int:
    from components.submit import endpoint, submit

    host, found = endpoint(args.host)
    if args.runner == "kubeflow" or (args.runner == "auto" and host):
        if not host:
            parser_hint = "give --host https://.../pipeline or set KFP_ENDPOINT"
            print(f"error: --runner kubeflow: no endpoint; {parser_hint}", file=sys.stderr)
            return 2
        print(f"running on Kubeflow at {host} (from {found})", flush=True)
        print(f"submitted: {submit(config, host, args.steps_image)}")
        return 0
    reason = "asked by --runner" if args.runner == "local" else "no Kubeflow endpoint: neither --host nor KFP_ENDPOINT"
    print(f"running on this machine ({reason})", flush=True)
    from components.local_run import LocalRun

    return LocalRun(config, args.output, serve=args.serve)()


if __name__ == "__main__":
    raise SystemExit(main())
