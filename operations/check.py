"""`pipeline.py --check`: look at everything that a run needs, create nothing, and say of each thing
whether it will do.

The objects are rendered and validated, the network is built for the data configuration, the data
are listed, S3 is written to and read, and where a cluster or Kubeflow Pipelines answers they are
asked as well. What could not be looked at is a line too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator

from clusters.protocol import STEP_LABEL
from common.config import AUTO, RunConfig
from common.errors import JecError
from operations import table
from operations.check_cluster import check_cluster
from operations.check_images import check_images
from operations.check_inputs import check_inputs
from operations.check_storage import check_storage
from operations.endpoint import endpoint
from operations.render import objects, rendered_run
from operations.table import Line, error, not_seen, ok, warning


def check(config: RunConfig, args: argparse.Namespace) -> int:
    """Print the table; the exit code is 1 if a line is an error."""
    host, found = endpoint(args.host)
    on_kubeflow = args.runner == "kubeflow" or (args.runner == "auto" and bool(host))
    if not on_kubeflow and config.s3_bucket == AUTO:
        config = config.replace(s3_bucket=str(args.output.resolve()))
    where = (
        f"on Kubeflow at {host} (from {found})"
        if on_kubeflow and host
        else "on Kubeflow"
        if on_kubeflow
        else "on this machine"
    )
    print(f"checked for a run {where}\n")
    sections: list[tuple[str, Callable[[], Iterable[Line]]]] = [
        ("objects", lambda: check_objects(config)),
        ("inputs", lambda: check_inputs(config)),
        ("Kubeflow Pipelines", lambda: check_server(config, host, args.auth)),
        ("cluster", lambda: check_cluster(config, account=args.steps_account, wanted=on_kubeflow)),
        ("storage", lambda: check_storage(config, on_kubeflow=on_kubeflow)),
        (
            "images",
            lambda: check_images([args.steps_image, config.weaver_image], wanted=on_kubeflow),
        ),
    ]
    lines = [line for name, section in sections for line in table.show(guarded(name, section))]
    return _verdict(lines)


def guarded(name: str, section: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """The lines of a section; what it raises becomes its last one, so that the others are still
    looked at.
    """
    try:
        yield from section()
    except JecError as failure:
        yield error(name, str(failure))


def _verdict(lines: list[Line]) -> int:
    counts = {state: table.count(lines, state) for state in ("error", "warning", "not seen")}
    words = {"error": "errors", "warning": "warnings", "not seen": "not seen"}
    told = ", ".join(f"{number} {words[state]}" for state, number in counts.items() if number)
    fails = counts["error"] > 0
    verdict = "this run would fail" if fails else "nothing that was seen stands in the way"
    print(f"\n{told or 'all well'}: {verdict}")
    return 1 if counts["error"] else 0


def check_objects(config: RunConfig) -> Iterator[Line]:
    """Every object of the run against the typed models and the controllers' rules."""
    from clusters.validate import problems

    for manifest in objects(rendered_run(config)).values():
        name = f"{manifest['kind']} ({manifest['metadata']['labels'][STEP_LABEL]})"
        found = problems(manifest)
        for problem in found:
            yield error(name, problem)
        if not found:
            yield ok(name, "typed model and admission rules hold")


def check_server(config: RunConfig, host: str, auth: str) -> Iterator[Line]:
    """Kubeflow Pipelines: reached, logged in, of a version that runs this pipeline, and the
    namespace is ours.
    """
    if not host:
        yield not_seen(
            "Kubeflow Pipelines",
            "no endpoint: login, version, namespace",
            "give --host or set KFP_ENDPOINT",
        )
        return
    from components.chain import sdk_version
    from operations.server import connect, version_problem

    namespace = None if config.namespace == AUTO else config.namespace
    server = connect(host, auth, namespace)
    yield ok("Kubeflow Pipelines", f"answers at {host}, logged in by {server.credentials.source}")
    if problem := version_problem(server.version, sdk_version()):
        yield (error if server.version else warning)(
            "its version", f"{problem} (the SDK is kfp {sdk_version()})"
        )
    else:
        yield ok(
            "its version", f"{server.version}; the pipeline is compiled by kfp {sdk_version()}"
        )
    with server.explained("list runs"):
        server.client.list_runs(page_size=1, namespace=namespace)
    yield ok("its namespace", f"{namespace or 'the server has one for all'}: runs can be listed")
