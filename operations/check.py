"""`pipeline.py --check`: look at everything that a run needs, and create nothing.

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
from operations.table import Line, State, error, not_seen, ok, warning


def check(config: RunConfig, args: argparse.Namespace) -> int:
    """Print the table; the exit code is 1 if a line is an error."""
    host, source = endpoint(args.host)
    on_kubeflow = args.runner == "kubeflow" or (args.runner == "auto" and bool(host))
    where = "on this machine"
    if on_kubeflow:
        where = f"on Kubeflow at {host} (from {source})" if host else "on Kubeflow"
    elif config.s3_bucket == AUTO:
        config = config.replace(s3_bucket=str(args.output.resolve()))
    print(f"checked for a run {where}\n")

    images = [args.steps_image, config.weaver_image]
    # Each section begins only when it is shown, so that its lines appear as they are known.
    sections: list[tuple[str, Callable[[], Iterable[Line]]]] = [
        ("objects", lambda: check_objects(config)),
        ("inputs", lambda: check_inputs(config, on_kubeflow=on_kubeflow)),
        ("Kubeflow Pipelines", lambda: check_server(config, host, args.auth)),
        (
            "cluster",
            lambda: check_cluster(config, account=args.steps_account, on_cluster=on_kubeflow),
        ),
        ("storage", lambda: check_storage(config, on_kubeflow=on_kubeflow)),
        ("images", lambda: check_images(images, on_cluster=on_kubeflow)),
    ]
    lines = []
    for name, section in sections:
        lines += table.show(guarded(name, section))

    counts = []
    for state, words in (
        (State.ERROR, "errors"),
        (State.WARNING, "warnings"),
        (State.NOT_SEEN, "not seen"),
    ):
        if number := table.count(lines, state):
            counts.append(f"{number} {words}")
    fails = table.count(lines, State.ERROR) > 0
    verdict = "this run would fail" if fails else "nothing that was seen stands in the way"
    print(f"\n{', '.join(counts) or 'all well'}: {verdict}")
    return 1 if fails else 0


def guarded(name: str, section: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """Yield the lines of a section; an error it raises becomes its last line.

    So the other sections are still looked at.
    """
    try:
        yield from section()
    except JecError as failure:
        yield error(name, str(failure))


def check_objects(config: RunConfig) -> Iterator[Line]:
    """Hold every object of the run against the typed models and the controllers' rules."""
    from clusters.validate import problems

    for manifest in objects(rendered_run(config)).values():
        name = f"{manifest['kind']} ({manifest['metadata']['labels'][STEP_LABEL]})"
        violations = problems(manifest)
        for violation in violations:
            yield error(name, violation)
        if not violations:
            yield ok(name, "typed model and admission rules hold")


def check_server(config: RunConfig, host: str, auth: str) -> Iterator[Line]:
    """Reach Kubeflow Pipelines, log in, and look at its version and at our namespace."""
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
    sdk = sdk_version()
    if problem := version_problem(server.version, sdk):
        # a server that does not say its version may be new enough
        line = error if server.version else warning
        yield line("its version", f"{problem} (the SDK is kfp {sdk})")
    else:
        yield ok("its version", f"{server.version}; the pipeline is compiled by kfp {sdk}")
    # Whether the namespace is ours shows only in what we may do there.
    with server.explained("list runs"):
        server.client.list_runs(page_size=1, namespace=namespace)
    yield ok("its namespace", f"{namespace or 'the server has one for all'}: runs can be listed")
