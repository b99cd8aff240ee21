"""`pipeline.py --check`: check everything that a run needs, and create nothing.

It renders and validates the objects, builds the network for the data configuration, lists the data,
writes and reads a small file in the storage, and asks the cluster and Kubeflow Pipelines if they
answer. What cannot be checked is a line of the table too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from clusters.protocol import STEP_LABEL
from common import storage
from common.config import AUTO, RunConfig
from common.errors import InputError, JecError
from operations import table
from operations.check_cluster import check_cluster
from operations.check_images import check_images
from operations.check_inputs import check_inputs
from operations.check_storage import check_storage
from operations.endpoint import endpoint
from operations.pods_login import as_the_pods
from operations.render import objects, placeholder_run
from operations.table import Line, State, error, not_seen, ok, warning

if TYPE_CHECKING:
    from operations.server import Server


def check(config: RunConfig, args: argparse.Namespace) -> int:
    """Print the table, or one JSON object; return exit code 1 if a line is an error, else 0."""
    host, source = endpoint(args.host)
    on_kubeflow = args.runner == "kubeflow" or (args.runner == "auto" and bool(host))
    where = "on this machine"
    if on_kubeflow:
        where = f"on Kubeflow at {host} (from {source})" if host else "on Kubeflow"
    elif config.s3_bucket == AUTO:
        config = config.replace(s3_bucket=storage.absolute(str(args.output)))
    hidden_states: tuple[State, ...] = ()
    if args.json:
        hidden_states = tuple(State)
    elif args.quiet:
        hidden_states = (State.OK,)
    else:
        print(f"checked for a run {where}\n")

    servers: list[Server] = []  # filled by the section on Kubeflow Pipelines, read by later ones
    images = [args.steps_image, config.weaver_image]
    # A section starts only when it is printed, so that each line appears as soon as it is known.
    sections: list[tuple[str, Callable[[], Iterable[Line]]]] = [
        # First, so that the error of an input names the input, not an object rendered from it.
        ("inputs", lambda: inputs_of_a_run(config, on_kubeflow=on_kubeflow)),
        ("objects", lambda: check_objects(config)),
        ("Kubeflow Pipelines", lambda: check_server(config, host, args.auth, servers)),
        (
            "cluster",
            lambda: check_cluster(
                config,
                account=args.steps_account,
                on_cluster=on_kubeflow,
                single_user=any(server.multi_user is False for server in servers),
            ),
        ),
        ("storage", lambda: check_storage(config, on_kubeflow=on_kubeflow)),
        ("images", lambda: check_images(images, on_cluster=on_kubeflow)),
    ]
    lines: list[Line] = []
    with storage.few_retries():
        for name, section in sections:
            lines += table.show(lines_or_error(name, section, lines), hidden_states)

    fails = table.count(lines, State.ERROR) > 0
    if args.json:
        table_as_json = {
            "where": where,
            "fails": fails,
            "lines": [dataclasses.asdict(line) for line in lines],
        }
        print(json.dumps(table_as_json, indent=2))
        return 1 if fails else 0
    counts = []
    for state, words in (
        (State.ERROR, "error"),
        (State.WARNING, "warning"),
        (State.NOT_SEEN, "not seen"),
    ):
        if number := table.count(lines, state):
            plural = "s" * (number != 1 and state is not State.NOT_SEEN)
            counts.append(f"{number} {words}{plural}")
    verdict = "this run would fail" if fails else "no check found a reason for the run to fail"
    print(f"\n{', '.join(counts) or 'all ok'}: {verdict}")
    return 1 if fails else 0


def inputs_of_a_run(config: RunConfig, *, on_kubeflow: bool) -> Iterator[Line]:
    """Check the inputs, on Kubeflow with the credentials that the run's pods will have."""
    if not on_kubeflow:
        yield from check_inputs(config)
        return
    with as_the_pods(config) as lines:
        yield from lines
        yield from check_inputs(config, on_kubeflow=True)


def lines_or_error(
    name: str, section: Callable[[], Iterable[Line]], earlier_lines: Iterable[Line] = ()
) -> Iterator[Line]:
    """Yield the lines of a section; an error that it raises becomes its last line.

    So one failure does not hide the sections after it. An error that `earlier_lines` already show
    is not repeated.
    """
    try:
        yield from section()
    except JecError as failure:
        same = [line.what for line in earlier_lines if line.finding == str(failure)]
        if same:
            yield not_seen(name, f"cannot be looked at before the error of '{same[0]}' is gone")
        else:
            yield error(name, str(failure))


def check_objects(config: RunConfig) -> Iterator[Line]:
    """Validate every object of the run against the typed models and the controllers' rules."""
    from clusters.validate import problems

    for manifest in objects(placeholder_run(config)).values():
        name = f"{manifest['kind']} ({manifest['metadata']['labels'][STEP_LABEL]})"
        violations = problems(manifest)
        for violation in violations:
            yield error(name, violation)
        if not violations:
            yield ok(name, "typed model and admission rules hold")


def check_server(config: RunConfig, host: str, auth: str, servers: list[Server]) -> Iterator[Line]:
    """Connect to Kubeflow Pipelines, and check its version, the parameters and the namespace.

    A server that answers is added to `reached`.
    """
    if not host:
        yield not_seen(
            "Kubeflow Pipelines",
            "no endpoint: login, version, namespace",
            "give --host or set KFP_ENDPOINT",
        )
        return
    from components.chain import sdk_version
    from components.server_support import limitations
    from operations.server import connect, version_problem

    namespace = None if config.namespace == AUTO else config.namespace
    server = connect(host, auth, namespace)
    servers.append(server)
    yield ok("Kubeflow Pipelines", f"answers at {host}, logged in by {server.credentials.source}")
    sdk = sdk_version()
    if problem := version_problem(server.version, sdk):
        # a server that does not say its version may be new enough
        line = error if server.version else warning
        yield line("its version", f"{problem} (the SDK is kfp {sdk})")
    else:
        yield ok("its version", f"{server.version}; the pipeline is compiled by kfp {sdk}")
        for limitation in limitations(server.support, config.s3_secret, config.webhook_secret):
            yield warning("its version", limitation)
    yield check_parameters(config)
    yield check_namespace(config, server)


def check_parameters(config: RunConfig) -> Line:
    """Return whether the run's parameters are short enough to be passed to pods."""
    from operations.submit import PARAMETER_BYTES, check_length, with_space_as_text

    try:
        size = check_length(with_space_as_text(config))
    except InputError as problem:
        return error("parameters", str(problem))
    return ok("parameters", f"{size:,} of {PARAMETER_BYTES:,} bytes")


def check_namespace(config: RunConfig, server: Server) -> Line:
    """Return whether we may list runs in our namespace, and in which namespace the steps run."""
    try:
        namespace = server.namespace_for(config.namespace)
    except InputError as problem:
        return error("its namespace", str(problem))
    # No request tells whether a namespace is ours; listing its runs fails if it is not.
    with server.explain_errors("list runs"):
        server.client.list_runs(page_size=1, namespace=namespace)
    if namespace:
        return ok("its namespace", f"{namespace}: runs can be listed")
    if config.namespace == AUTO:
        return ok("its namespace", "the server has one for all: runs can be listed")
    return warning(
        "its namespace",
        "the server has one for all, and steps run there whatever --namespace says; they make the"
        f" run's objects in {config.namespace}",
        "leave --namespace out where that is the server's own",
    )
