"""Submits the pipeline to a Kubeflow Pipelines endpoint and prints where to watch it."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from common import storage
from common.config import AUTO, RunConfig
from common.errors import ClusterError, InputError
from common.project import here
from components import chain
from training.search_space import for_network, load, to_json

IN_CLUSTER = "/var/run/secrets/kubeflow/pipelines/token"  # mounted into notebooks that may submit runs


def endpoint(host: str) -> tuple[str, str]:
    """The KFP endpoint and where it was found; two empty texts where there is none. 'in-cluster' stands for KFP's own default."""
    if host != AUTO:
        return host, "--host"
    if os.environ.get("KFP_ENDPOINT"):
        return os.environ["KFP_ENDPOINT"], "KFP_ENDPOINT"
    if os.path.exists(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", IN_CLUSTER)):
        return "in-cluster", "the token that Kubeflow mounts into notebooks"
    return "", ""


def submit(config: RunConfig, host: str, image: str) -> str:
    """Upload local files, create the run, return its URL. Raises InputError for a storage that pods could not reach."""
    if not storage.is_s3(config.s3_bucket):
        raise InputError(f"--s3-bucket '{config.s3_bucket}': on Kubeflow give s3://bucket/prefix, where all pods read and write")
    config = with_uploaded_files(config)
    with tempfile.TemporaryDirectory() as folder:
        ir = chain.compile_to(Path(folder) / "pipeline.yaml", config, image)
        return _create_run(ir, config, host)


def with_uploaded_files(config: RunConfig) -> RunConfig:
    """The configuration with the user's files at content-addressed places in the storage, and the search space as JSON.

    Editing a network or a data configuration therefore needs no new image.
    """
    places = {}
    for name in ("data_config", "network_config"):
        path = getattr(config, name)
        if not storage.is_s3(path):
            content = storage.read_bytes(here(path))
            place = storage.join(config.s3_bucket, "inputs", storage.digest(content)[:16], storage.name(path))
            if not storage.exists(place):
                storage.write_bytes(place, content)
            places[name] = place
    return with_space_as_text(config).replace(**places)


def with_space_as_text(config: RunConfig) -> RunConfig:
    """The configuration with the search space as the JSON that the UI can edit."""
    return config.replace(search_space=to_json(for_network(load(config.search_space), config.network_config)))


def _create_run(ir: Path, config: RunConfig, host: str) -> str:
    import kfp

    namespace = None if config.namespace == AUTO else config.namespace
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that servers before 2.0 are not served
            client = kfp.Client(host=None if host == "in-cluster" else host, namespace=namespace or "kubeflow")
        run = client.create_run_from_pipeline_package(
            str(ir), arguments=config.parameters(), experiment_name=config.experiment_name, namespace=namespace, enable_caching=False
        )
    except Exception as error:  # the client raises whatever its layers raise
        reason = " ".join(str(error).split())[:400]
        raise ClusterError(f"Kubeflow Pipelines at {host} did not take the run: {type(error).__name__}: {reason}") from error
    return f"{host.rstrip('/')}/#/runs/details/{run.run_id}"
