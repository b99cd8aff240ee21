"""Submit a run to Kubeflow Pipelines: one pipeline, one experiment, one run.

The pipeline gets a new version only when its IR changed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import form, storage
from common.config import AUTO, RunConfig, flag
from common.errors import ClusterError, InputError
from common.project import git_commit, here
from common.run import make_run_id, slug
from components import chain
from components.inputs import OF_CONFIGURATION, Inputs
from components.server_support import losses
from operations.server import SINGLE_USER_ACCOUNT, Server, version_problem
from training.search_space import for_network, is_text, load, to_json

PARAMETER_BYTES = 120_000
"""What all parameters together may be long as JSON.

KFP passes them in one argument to its driver and to the step prepare (read in KFP 2.15.0), and
Linux starts no program with an argument of 128 KiB (MAX_ARG_STRLEN). Some is left for the names of
artifacts, which come with them.
"""
DESCRIPTION_CHARACTERS = 255
"""What a run's description may have: the column is VARCHAR(255) (read in KFP 2.15.0), and MySQL
refuses a longer one together with the run.
"""
MORE = " ..."
NAME_CHARACTERS = 60
"""What a run's name shows of its data at most."""
USER_INFO = re.compile(r"//[^/@\s]*@")
"""User and password of an address, which no description shows."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What a run of a configuration is created from."""

    config: RunConfig
    """With the places of the uploaded files."""
    version: Version
    namespace: str | None
    """That requests name; None where they name none."""


def submit(config: RunConfig, server: Server, image: str, *, account: str = AUTO) -> Submitted:
    """Upload what the run needs, and create it. Raises as `upload`."""
    uploaded = upload(config, server, image, account=account)
    version = uploaded.version
    config = for_pods(config)
    kfp_run = create_run(
        uploaded.config,
        server,
        version,
        account,
        uploaded.namespace,
        description=run_description(config),
    )
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


def upload(config: RunConfig, server: Server, image: str, *, account: str = AUTO) -> Uploaded:
    """Check the configuration, upload its files, and the pipeline's version where it is missing.

    `account` is the ServiceAccount of the steps' pods, 'auto' Kubeflow's own choice. Raises
    InputError for a storage that pods could not reach and for inputs that cannot be used,
    ClusterError for what the server refuses.
    """
    config = for_pods(config)
    namespace = server.namespace_for(config.namespace)
    # The data may lie where only the pods can read them: prepare looks at them.
    inputs = Inputs(config)
    for check in OF_CONFIGURATION:
        if warning := check.run(inputs).warning:
            print(f"warning: {warning}", flush=True)
    check_version(server)
    check_length(with_space_as_text(config))
    for note in notes(config, server, account):
        print(f"note: {note}", flush=True)

    config = with_uploaded_files(config)
    if server.multi_user:
        # The steps run in the run's namespace. So a clone works in the namespace of who clones it.
        config = config.replace(namespace=AUTO)
    with tempfile.TemporaryDirectory() as folder:
        # The IR never holds this run's own parameters, so that one version serves all runs of the
        # site whose steps ask for the same and have the same webhook.
        ir = chain.compile_to(
            Path(folder) / "pipeline.yaml", site_defaults(config), image, support=server.support
        )
        version = pipeline_version(server, ir, namespace, image)

    return Uploaded(config=config, version=version, namespace=namespace)


def site_defaults(config: RunConfig) -> RunConfig:
    """The defaults of the form for a site, so that a run which is created there works.

    What is the same for all runs of the site is as in this configuration, all else as by default.
    """
    site = {entry.field: getattr(config, entry.field) for entry in form.ENTRIES if entry.of_site}
    return RunConfig(**site)


def create_run(
    config: RunConfig,
    server: Server,
    version: Version,
    account: str,
    namespace: str | None,
    *,
    description: str,
) -> str:
    """Create a run of the version in the experiment of the configuration; return Kubeflow's id."""
    experiment = experiment_of(config, server, namespace)
    models = server.client.api_models
    # kfp.Client.run_pipeline gives a run no description.
    run = models.V2beta1Run(
        experiment_id=experiment,
        display_name=run_name(config, datetime.datetime.now()),
        description=description,
        pipeline_version_reference=models.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=models.V2beta1RuntimeConfig(parameters=chain.parameters(config)),
        service_account=None if account == AUTO else account,
    )
    with server.explained("create the run"):
        return str(server.client.runs.run_service_create_run(run).run_id)


def experiment_of(config: RunConfig, server: Server, namespace: str | None) -> str:
    """Return Kubeflow's id of the configuration's experiment, which is made where it is missing."""
    with server.explained("create the experiment"):
        made = server.client.create_experiment(config.experiment_name, namespace=namespace)
    return str(made.experiment_id)


def run_name(config: RunConfig, time: datetime.datetime) -> str:
    """What a list of runs is to tell apart: network, data, search and time of submission.

    >>> run_name(RunConfig(), datetime.datetime(2026, 11, 29, 17, 40, 5))
    'pfn_regressor_open on sample, random 30x50, 2026-11-29 17:40:05'
    """
    network = storage.name(config.network_config).removesuffix(".py")
    search = f"{config.algorithm} {config.max_trials}x{config.num_epochs}"
    return f"{network} on {data_name(config.data_train)}, {search}, {time:%Y-%m-%d %H:%M:%S}"


def data_name(patterns: str) -> str:
    """The data's place in a few words: the last two folders of its first pattern.

    >>> data_name("s3://bucket/jec/2026/train/*.root,s3://bucket/more/*.root")
    '2026/train and more'
    """
    first, *others = patterns.split(",")
    *folders, file = first.split("://")[-1].split("/")
    name = "/".join([folder for folder in folders if folder][-2:]) or file
    return name[:NAME_CHARACTERS] + (" and more" if others else "")


def run_description(config: RunConfig) -> str:
    """The run's id and the command that submitted it, within what a server takes."""
    run_id = config.run_id
    if run_id == AUTO:
        run_id = f"{slug(config.network_config)}- and 8 characters made of Kubeflow's id"
    return description_of(config, f"run id: {run_id}; python pipeline.py")


def description_of(config: RunConfig, text: str) -> str:
    """The beginning of a command and its flags, within what a server takes.

    They are those that are not at their defaults, in the order of the form, as far as there is
    room.
    """
    defaults = RunConfig().parameters()
    for name in [*(entry.field for entry in form.ENTRIES), "experiment_name"]:
        value = getattr(config, name)
        # an inline search space is as long as all others together, and a parameter of the run
        is_long = name == form.SEARCH_SPACE and is_text(value)
        if value == defaults[name] or name == "run_id" or is_long:
            continue
        part = f" --{flag(name)} {shlex.quote(USER_INFO.sub('//', str(value)))}"
        if len(text) + len(part) > DESCRIPTION_CHARACTERS - len(MORE):
            return text + MORE
        text += part
    return text


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

    The search space is to be JSON already.
    """
    parameters = form.parameters(config, json.loads(config.search_space))
    values = {**parameters, **parameters[form.SETTINGS]}
    del values[form.SETTINGS]
    sizes = {name: len(json.dumps(value)) for name, value in values.items()}
    total = len(json.dumps(parameters))
    if total > PARAMETER_BYTES:
        longest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"the run's parameters are {total:,} bytes, --{flag(form.field_of(longest))} alone"
            f" {sizes[longest]:,}; Kubeflow Pipelines can pass {PARAMETER_BYTES:,} to a step. In a"
            " search space write ranges (min, max, step) in place of long lists"
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


def pipeline_version(server: Server, ir: Path, namespace: str | None, image: str) -> Version:
    """Return the pipeline's version that is this IR; upload it where there is none.

    The name says the commit and the date, and ends in a digest of the IR, by which the same version
    is found again, whoever uploaded it. Kubeflow may keep versions as objects of Kubernetes, so
    that it is written as their names are.
    """
    digest = hashlib.sha256(ir.read_bytes()).hexdigest()[:12]
    pipeline = pipeline_id(server, namespace)
    if version := _find_version(server, pipeline, digest):
        return version
    commit = git_commit()
    code = f"{commit[:8]}-changed" if commit.endswith("+") else commit[:8]
    name = f"{code}-{datetime.date.today():%Y-%m-%d}-{digest}"
    about = f"commit {commit}, kfp {chain.sdk_version()}, steps in {image}"
    try:
        with server.explained("take the pipeline"):
            version_id = server.client.upload_pipeline_version(
                str(ir), name, pipeline_id=pipeline, description=about
            ).pipeline_version_id
    except ClusterError:
        # Another user may have uploaded it since the search above.
        if version := _find_version(server, pipeline, digest):
            return version
        raise
    return Version(pipeline_id=pipeline, version_id=str(version_id), name=name, new=True)


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


def _find_version(server: Server, pipeline: str, digest: str) -> Version | None:
    """Return a pipeline's version whose name ends in the digest, from the newest 10,000."""
    token = ""
    for _ in range(100):
        with server.explained("list versions of the pipeline"):
            page = server.client.list_pipeline_versions(
                pipeline, page_token=token, page_size=100, sort_by="created_at desc"
            )
        for version in page.pipeline_versions or []:
            name = str(version.display_name)
            if name.endswith(f"-{digest}"):
                return Version(
                    pipeline_id=pipeline,
                    version_id=str(version.pipeline_version_id),
                    name=name,
                    new=False,
                )
        token = page.next_page_token or ""
        if not token:
            break
    return None
