"""Submits a run to Kubeflow Pipelines: one pipeline, a new version of it only when its IR changed,
one experiment, one run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

from common import storage
from common.config import AUTO, RunConfig
from common.errors import ClusterError, InputError
from common.project import here
from common.run import make_run_id
from components import chain
from operations.server import Server, version_problem
from training.network_options import check_builds, check_options
from training.search_space import check_algorithm, for_network, load, to_json
from weaver.config.data_config import DataConfig
from weaver.network.network_file import load_network

# servers before refuse the field; the image's own user is not root either way
NON_ROOT_SINCE = (2, 17)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submitted:
    """A run that the server took:

    Kubeflow's id of it, the run id that prepare will make of that, where to look.
    """

    kfp_run: str
    run_id: str
    url: str
    version: str
    """Name of the pipeline's version that it runs, and whether it was uploaded for it."""
    new_version: bool


def submit(config: RunConfig, server: Server, image: str, *, account: str = AUTO) -> Submitted:
    """Upload local files, see that the pipeline's version is there, create the run.

    `account` is the ServiceAccount of the steps' pods, 'auto' Kubeflow's own choice. Raises
    InputError for a storage that pods could not reach, ClusterError for what the server refuses.
    """
    config = for_pods(config)
    _check_search(config)
    if problem := version_problem(server.version, chain.sdk_version()):
        if server.version:
            raise ClusterError(f"Kubeflow Pipelines at {server.host}: {problem}")
        print(
            f"warning: {problem}; these steps were compiled by kfp {chain.sdk_version()}",
            flush=True,
        )
    config = with_uploaded_files(config)
    namespace = None if config.namespace == AUTO else config.namespace
    with tempfile.TemporaryDirectory() as folder:
        ir = chain.compile_to(
            Path(folder) / "pipeline.yaml",
            with_space_as_text(RunConfig()),
            image,
            non_root=knows_non_root(server),
        )
        pipeline, version, name, new = _version(server, ir, namespace)
    with server.explained("create the experiment"):
        experiment = server.client.create_experiment(
            config.experiment_name, namespace=namespace
        ).experiment_id
    with server.explained("create the run"):
        run = server.client.run_pipeline(
            experiment,
            _run_name(config),
            pipeline_id=pipeline,
            version_id=version,
            params=config.parameters(),
            enable_caching=False,
            service_account=None if account == AUTO else account,
        )
    run_id = (
        make_run_id(config.network_config, run.run_id) if config.run_id == AUTO else config.run_id
    )
    return Submitted(
        kfp_run=run.run_id,
        run_id=run_id,
        url=server.run_url(run.run_id),
        version=name,
        new_version=new,
    )


def for_pods(config: RunConfig) -> RunConfig:
    """The configuration with what pods cannot find out themselves.

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


def knows_non_root(server: Server) -> bool:
    """Whether the server takes 'this step must not be root' from the IR."""
    numbers = server.version.lstrip("v").split(".")[:2]
    return all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) >= NON_ROOT_SINCE


def _check_search(config: RunConfig) -> None:
    """Refuse a search that trials could not use, before anything is sent: names, values, the
    algorithm, the network at its extremes.
    """
    space = for_network(load(config.search_space), config.network_config)
    network = load_network(here(config.network_config))
    check_options(space, config.network_config, network.source)
    check_algorithm(space, config.algorithm)
    check_builds(space, network, DataConfig.load(here(config.data_config)))


def with_uploaded_files(config: RunConfig) -> RunConfig:
    """The configuration with the user's files at content-addressed places in the storage, and the
    search space as JSON.

    Editing a network or a data configuration therefore needs no new image.
    """
    places = {}
    for name in ("data_config", "network_config"):
        path = getattr(config, name)
        if not storage.is_s3(path):
            content = storage.read_bytes(here(path))
            place = storage.join(
                config.s3_bucket, "inputs", storage.digest(content)[:16], storage.name(path)
            )
            if not storage.exists(place):
                storage.write_bytes(place, content)
            places[name] = place
    return with_space_as_text(config).replace(**places)


def with_space_as_text(config: RunConfig) -> RunConfig:
    """The configuration with the search space as the JSON that the UI can edit."""
    return config.replace(
        search_space=to_json(for_network(load(config.search_space), config.network_config))
    )


def _run_name(config: RunConfig) -> str:
    stem = storage.name(config.network_config).removesuffix(".py")
    return f"{stem} {config.algorithm} {config.max_trials}x{config.num_epochs}"


def _version(server: Server, ir: Path, namespace: str | None) -> tuple[str, str, str, bool]:
    """Ids of the pipeline and of the version that is this IR, the version's name, and whether it is
    new.

    The name holds a digest of the IR, so that the same pipeline is found again, by whomever it was
    uploaded.
    """
    name = f"ir-{hashlib.sha256(ir.read_bytes()).hexdigest()[:12]}"
    pipeline = _pipeline(server, namespace)
    if found := _find_version(server, pipeline, name):
        return pipeline, found, name, False
    try:
        with server.explained("take the pipeline"):
            made = server.client.upload_pipeline_version(
                str(ir), name, pipeline_id=pipeline, description=f"kfp {chain.sdk_version()}"
            )
        return pipeline, made.pipeline_version_id, name, True
    except ClusterError:
        if found := _find_version(server, pipeline, name):  # somebody was quicker
            return pipeline, found, name, False
        raise


def _pipeline(server: Server, namespace: str | None) -> str:
    """The id of the one pipeline; made where there is none yet."""
    named = json.dumps(
        {"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": chain.NAME}]}
    )
    with server.explained("list pipelines"):
        found = server.client.list_pipelines(filter=named, namespace=namespace).pipelines or []
    if found:
        return found[0].pipeline_id
    models, pipelines = server.client.api_models, server.client.pipelines
    wanted = models.V2beta1Pipeline(
        display_name=chain.NAME, name=chain.NAME, description=chain.DESCRIPTION, namespace=namespace
    )
    with server.explained("create the pipeline"):
        return pipelines.pipeline_service_create_pipeline(wanted).pipeline_id


def _find_version(server: Server, pipeline: str, name: str) -> str:
    """The id of a pipeline's version by its name, the newest hundred pages searched; empty if there
    is none.
    """
    token = ""
    for _ in range(100):
        with server.explained("list versions of the pipeline"):
            page = server.client.list_pipeline_versions(
                pipeline, page_token=token, page_size=100, sort_by="created_at desc"
            )
        for version in page.pipeline_versions or []:
            if version.display_name == name:
                return version.pipeline_version_id
        if not (token := page.next_page_token or ""):
            break
    return ""
