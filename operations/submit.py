"""Submit a run to Kubeflow Pipelines: one pipeline, one experiment, one run.

The pipeline gets a new version only when its IR changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import storage
from common.config import AUTO, RunConfig, flag
from common.errors import ClusterError, InputError
from common.project import here
from common.run import make_run_id
from components import chain
from components.inputs import OF_CONFIGURATION, Inputs
from components.server_support import losses
from operations.server import SINGLE_USER_ACCOUNT, Server, version_problem
from training.search_space import for_network, load, to_json

PARAMETER_BYTES = 120_000
"""What all parameters together may be long as JSON.

KFP passes them in one argument to its driver and to the step prepare (read in KFP 2.15.0), and
Linux starts no program with an argument of 128 KiB (MAX_ARG_STRLEN). Some is left for the names of
artifacts, which come with them.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submitted:
    """A run that the server took, and where to look for it."""

    kfp_run: str
    """Kubeflow's id of it."""
    run_id: str
    """The id that prepare will make of Kubeflow's."""
    url: str
    version: str
    """Name of the pipeline's version that it runs."""
    new_version: bool
    """Whether the version was uploaded for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the pipeline on a server."""

    pipeline_id: str
    version_id: str
    name: str
    new: bool
    """Whether it was uploaded just now."""


def submit(config: RunConfig, server: Server, image: str, *, account: str = AUTO) -> Submitted:
    """Upload local files, upload the pipeline's version where it is missing, and create the run.

    `account` is the ServiceAccount of the steps' pods, 'auto' Kubeflow's own choice. Raises
    InputError for a storage that pods could not reach and for inputs that cannot be used,
    ClusterError for what the server refuses.
    """
    config = for_pods(config)
    namespace = server.namespace_for(config.namespace)
    # The data may lie where only the pods can read them: prepare looks at them.
    inputs = Inputs(config)
    for check in OF_CONFIGURATION:
        check.run(inputs)
    check_version(server)
    check_length(with_space_as_text(config))
    for note in notes(config, server, account):
        print(f"note: {note}", flush=True)

    config = with_uploaded_files(config)
    with tempfile.TemporaryDirectory() as folder:
        # The IR holds the defaults, never this run's parameters: so one version serves all runs
        # whose steps ask for the same and have the same webhook.
        ir = chain.compile_to(
            Path(folder) / "pipeline.yaml",
            with_space_as_text(
                RunConfig(
                    steps_cpus=config.steps_cpus,
                    steps_memory=config.steps_memory,
                    webhook_secret=config.webhook_secret,
                )
            ),
            image,
            support=server.support,
        )
        version = pipeline_version(server, ir, namespace)

    kfp_run = create_run(config, server, version, account, namespace)
    run_id = config.run_id
    if run_id == AUTO:
        run_id = make_run_id(config.network_config, kfp_run)
    return Submitted(
        kfp_run=kfp_run,
        run_id=run_id,
        url=server.run_url(kfp_run),
        version=version.name,
        new_version=version.new,
    )


def create_run(
    config: RunConfig, server: Server, version: Version, account: str, namespace: str | None
) -> str:
    """Create a run of the version in the experiment of the configuration; return Kubeflow's id."""
    with server.explained("create the experiment"):
        experiment = server.client.create_experiment(
            config.experiment_name, namespace=namespace
        ).experiment_id
    network = storage.name(config.network_config).removesuffix(".py")
    with server.explained("create the run"):
        run = server.client.run_pipeline(
            experiment,
            f"{network} {config.algorithm} {config.max_trials}x{config.num_epochs}",
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            params=config.parameters(),
            enable_caching=False,
            service_account=None if account == AUTO else account,
        )
    return str(run.run_id)


def for_pods(config: RunConfig) -> RunConfig:
    """Return the configuration with what pods cannot find out themselves.

    Raises InputError for a storage that they could not reach.
    """
    if not storage.is_s3(config.s3_bucket):
        raise InputError(
            f"--s3-bucket '{config.s3_bucket}': on Kubeflow give s3://bucket/prefix, where all pods"
            " read and write"
        )
    if config.s3_endpoint == AUTO and os.environ.get("AWS_ENDPOINT_URL"):
        # The pods have no such variable: without this they would ask Amazon for a bucket that lies
        # elsewhere.
        return config.replace(s3_endpoint=os.environ["AWS_ENDPOINT_URL"])
    return config


def check_version(server: Server) -> None:
    """Warn of a server that does not say its version. Raises ClusterError for one not to use."""
    if problem := version_problem(server.version, chain.sdk_version()):
        if server.version:
            raise ClusterError(f"Kubeflow Pipelines at {server.host}: {problem}")
        print(
            f"warning: {problem}; these steps were compiled by kfp {chain.sdk_version()}",
            flush=True,
        )


def check_length(config: RunConfig) -> int:
    """Return the bytes of the run's parameters. Raises InputError where pods cannot be given them.

    The search space is to be text already.
    """
    sizes = {name: len(json.dumps(value)) for name, value in config.parameters().items()}
    total = len(json.dumps(config.parameters()))
    if total > PARAMETER_BYTES:
        longest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"the run's parameters are {total:,} bytes, --{flag(longest)} alone {sizes[longest]:,};"
            f" Kubeflow Pipelines can pass {PARAMETER_BYTES:,} to a step. In a search space write"
            " ranges (min, max, step) in place of long lists"
        )
    return total


def notes(config: RunConfig, server: Server, account: str) -> Iterator[str]:
    """Yield what this server does otherwise than a user may expect, before the run starts."""
    if server.multi_user is False:
        account = SINGLE_USER_ACCOUNT if account == AUTO else account
        where = "objects there as well"
        if config.namespace != AUTO:
            where = f"objects in namespace {config.namespace} (--namespace)"
        yield (
            "the server has one namespace for all runs: steps run there, as ServiceAccount"
            f" {account}, and make the run's {where}"
        )
    for loss in losses(server.support, config.s3_secret, config.webhook_secret):
        yield f"server {server.version or 'of an unknown version'}: {loss}"


def with_uploaded_files(config: RunConfig) -> RunConfig:
    """Upload the user's files; return the configuration with their places and the space as JSON.

    The places are content-addressed, so that the same file is uploaded once; a network file goes
    with the files beside it that it needs. Editing a network or a
    data configuration therefore needs no new image.
    """
    from weaver.network.network_file import NetworkFile
    from weaver.network.siblings import write_siblings

    places = {}
    for name in ("data_config", "network_config"):
        path = getattr(config, name)
        if not storage.is_s3(path):  # pods may not reach the others
            content = storage.read_bytes(here(path))
            siblings: Mapping[str, bytes] = {}
            digest = storage.digest(content)
            if name == "network_config":
                network = NetworkFile.read(here(path))
                siblings, digest = network.siblings, network.digest()
            folder = storage.join(config.s3_bucket, "inputs", digest[:16])
            place = storage.join(folder, storage.name(path))
            if not storage.exists(place):
                write_siblings(siblings, folder)
                # last, so that who finds it finds the others
                storage.write_bytes(place, content)
            places[name] = place
    return with_space_as_text(config).replace(**places)


def with_space_as_text(config: RunConfig) -> RunConfig:
    """Return the configuration with the search space as the JSON that the UI can edit."""
    space = for_network(load(config.search_space), config.network_config)
    return config.replace(search_space=to_json(space))


def pipeline_version(server: Server, ir: Path, namespace: str | None) -> Version:
    """Return the pipeline's version that is this IR; upload it where there is none.

    The name holds a digest of the IR, so that the same version is found again, whoever uploaded it.
    """
    name = f"ir-{hashlib.sha256(ir.read_bytes()).hexdigest()[:12]}"
    pipeline = pipeline_id(server, namespace)
    version, new = _find_version(server, pipeline, name), False
    if not version:
        try:
            with server.explained("take the pipeline"):
                version = server.client.upload_pipeline_version(
                    str(ir), name, pipeline_id=pipeline, description=f"kfp {chain.sdk_version()}"
                ).pipeline_version_id
            new = True
        except ClusterError:
            # Another user may have uploaded it since the search above.
            version = _find_version(server, pipeline, name)
            if not version:
                raise
    return Version(pipeline_id=pipeline, version_id=version, name=name, new=new)


def pipeline_id(server: Server, namespace: str | None) -> str:
    """Return the id of the one pipeline; make it where there is none yet."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": chain.NAME}
    named = json.dumps({"predicates": [predicate]})
    with server.explained("list pipelines"):
        pipelines = server.client.list_pipelines(filter=named, namespace=namespace).pipelines
    if pipelines:
        return str(pipelines[0].pipeline_id)
    # kfp.Client makes a pipeline only together with a version.
    description = server.client.api_models.V2beta1Pipeline(
        display_name=chain.NAME, name=chain.NAME, description=chain.DESCRIPTION, namespace=namespace
    )
    with server.explained("create the pipeline"):
        pipeline = server.client.pipelines.pipeline_service_create_pipeline(description)
    return str(pipeline.pipeline_id)


def _find_version(server: Server, pipeline: str, name: str) -> str:
    """Return the id of a pipeline's version by its name, from the newest 10,000; empty if none."""
    token = ""
    for _ in range(100):
        with server.explained("list versions of the pipeline"):
            page = server.client.list_pipeline_versions(
                pipeline, page_token=token, page_size=100, sort_by="created_at desc"
            )
        for version in page.pipeline_versions or []:
            if version.display_name == name:
                return str(version.pipeline_version_id)
        token = page.next_page_token or ""
        if not token:
            break
    return ""
