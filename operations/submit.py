"""Submit a run to Kubeflow Pipelines.

All runs belong to one pipeline, which gets a new version only when its IR changes.
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
from common.run import kubernetes_name, make_run_id
from components import chain
from components.inputs import CONFIGURATION_CHECKS, Inputs
from components.server_support import limitations
from operations.server import SINGLE_USER_ACCOUNT, Server, version_problem
from training.search_space import for_network, is_text, load, to_json

PARAMETER_BYTES = 120_000
"""Maximum length of all parameters together, as JSON.

KFP passes them in one argument to its driver and to the step prepare (source of KFP 2.15.0), and
Linux limits an argument to 128 KiB (MAX_ARG_STRLEN). The rest is room for the names of artifacts in
the same argument.
"""
DESCRIPTION_CHARACTERS = 255
"""Maximum length of a run's description.

The column is VARCHAR(255) (source of KFP 2.15.0), and MySQL refuses a run with a longer one.
"""
MORE = " ..."
NAME_CHARACTERS = 60
"""Maximum length of the data's part of a run's name."""
USER_INFO = re.compile(r"//[^/@\s]*@")
"""User and password in an address; descriptions leave them out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A run that was submitted, and its address."""

    kfp_run: str
    """Kubeflow's id of the run."""
    run_id: str
    """Our id of the run, which the step prepare derives from Kubeflow's."""
    url: str
    """Address of its page in the Kubeflow UI."""
    version: str
    """Name of its version of the pipeline."""
    new_version: bool
    """Whether the version was uploaded for this run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the pipeline on a server."""

    pipeline_id: str
    version_id: str
    name: str
    new: bool
    """Whether this command uploaded it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """The uploaded files and the pipeline's version, from which a run is created."""

    config: RunConfig
    """The configuration with the addresses of the uploaded files."""
    version: Version
    namespace: str | None
    """The namespace to name in requests; None to name none."""


def submit(config: RunConfig, server: Server, image: str, *, account: str = AUTO) -> Submission:
    """Upload the files that the run needs, and create the run. Raises as `upload`."""
    upload_result = upload(config, server, image, account=account)
    version = upload_result.version
    config = for_pods(config)
    kfp_run = create_run(
        upload_result.config,
        server,
        version,
        account,
        upload_result.namespace,
        description=run_description(config),
    )
    run_id = config.run_id
    if run_id == AUTO:
        run_id = make_run_id(config.network_config, kfp_run)
    return Submission(
        kfp_run=kfp_run,
        run_id=run_id,
        url=server.run_url(kfp_run),
        version=version.name,
        new_version=version.new,
    )


def upload(config: RunConfig, server: Server, image: str, *, account: str = AUTO) -> Upload:
    """Check the configuration, upload its files, and upload the pipeline's version if missing.

    Args:
        config: configuration of the run.
        server: the server to upload to.
        image: image of the steps.
        account: ServiceAccount of the steps' pods; 'auto' for Kubeflow's own choice.

    Raises:
        InputError: pods cannot reach the storage, or an input cannot be used.
        ClusterError: the server is too old or refuses a request.
    """
    config = for_pods(config)
    namespace = server.namespace_for(config.namespace)
    # Data are not checked here: only the pods may be able to read them. The step prepare does it.
    inputs = Inputs(config)
    for check in CONFIGURATION_CHECKS:
        if warning := check.run(inputs).warning:
            print(f"warning: {warning}", flush=True)
    check_version(server)
    check_length(with_space_as_text(config))
    for note in notes(config, server, account):
        print(f"note: {note}", flush=True)

    config = with_uploaded_files(config)
    if server.multi_user:
        # 'auto' is the namespace of the steps' pods, so that a clone of the run works in the
        # namespace of the user who clones it.
        config = config.replace(namespace=AUTO)
    with tempfile.TemporaryDirectory() as folder:
        # The IR has the site's defaults and not this run's parameters, so that all runs of a site
        # with the same steps and webhook share a version.
        ir = chain.compile_to(
            Path(folder) / "pipeline.yaml", site_defaults(config), image, support=server.support
        )
        version = pipeline_version(server, ir, namespace, image)

    return Upload(config=config, version=version, namespace=namespace)


def site_defaults(config: RunConfig) -> RunConfig:
    """Return the defaults of the form in the Kubeflow UI, so that a run created there works.

    Fields that are the same for all runs of a site come from this configuration; all others have
    their defaults.
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
    """Create a run of the version in the configuration's experiment; return Kubeflow's id.

    Raises ClusterError if the server refuses.
    """
    experiment = experiment_of(config, server, namespace)
    models = server.client.api_models
    # Not kfp.Client.run_pipeline, which cannot set a description.
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
    with server.explain_errors("create the run"):
        return str(server.client.runs.run_service_create_run(run).run_id)


def experiment_of(config: RunConfig, server: Server, namespace: str | None) -> str:
    """Return Kubeflow's id of the configuration's experiment; create it if it does not exist."""
    with server.explain_errors("create the experiment"):
        experiment = server.client.create_experiment(config.experiment_name, namespace=namespace)
    return str(experiment.experiment_id)


def run_name(config: RunConfig, time: datetime.datetime) -> str:
    """Return a name for a list of runs: network, data, search and time of submission.

    >>> run_name(RunConfig(), datetime.datetime(2026, 11, 29, 17, 40, 5))
    'pfn_regressor_open on sample, random 30x50, 2026-11-29 17:40:05'
    """
    network = storage.name(config.network_config).removesuffix(".py")
    search = f"{config.algorithm} {config.max_trials}x{config.num_epochs}"
    return f"{network} on {data_name(config.data_train)}, {search}, {time:%Y-%m-%d %H:%M:%S}"


def data_name(patterns: str) -> str:
    """Return a short name of the data: the last two folders of the first pattern.

    >>> data_name("s3://bucket/jec/2026/train/*.root,s3://bucket/more/*.root")
    '2026/train and more'
    """
    first, *others = patterns.split(",")
    *folders, file = first.split("://")[-1].split("/")
    name = "/".join([folder for folder in folders if folder][-2:]) or file
    return name[:NAME_CHARACTERS] + (" and more" if others else "")


def run_description(config: RunConfig) -> str:
    """Return the run's id and the command that submitted it, in DESCRIPTION_CHARACTERS."""
    run_id = config.run_id
    if run_id == AUTO:
        run_id = (
            f"{kubernetes_name(config.network_config)}- and 8 characters of a hash of Kubeflow's id"
        )
    return description_of(config, f"run id: {run_id}; python pipeline.py")


def description_of(config: RunConfig, text: str) -> str:
    """Return `text`, the beginning of a command, with the flags that are not at their defaults.

    The flags are in the order of the form; those that exceed DESCRIPTION_CHARACTERS are left out.
    """
    defaults = RunConfig().parameters()
    for name in [*(entry.field for entry in form.ENTRIES), "experiment_name"]:
        value = getattr(config, name)
        # an inline search space would fill the description; the run's parameters show it
        is_long = name == form.SEARCH_SPACE and is_text(value)
        if value == defaults[name] or name == "run_id" or is_long:
            continue
        part = f" --{flag(name)} {shlex.quote(USER_INFO.sub('//', str(value)))}"
        if len(text) + len(part) > DESCRIPTION_CHARACTERS - len(MORE):
            return text + MORE
        text += part
    return text


def for_pods(config: RunConfig) -> RunConfig:
    """Return the configuration with this machine's S3 endpoint, which the pods do not know.

    Raises InputError for storage that pods cannot reach.
    """
    if not storage.is_s3(config.s3_bucket):
        raise InputError(
            f"--s3-bucket '{config.s3_bucket}': on Kubeflow give s3://bucket/prefix, where all pods"
            " read and write"
        )
    if config.s3_endpoint == AUTO and os.environ.get("AWS_ENDPOINT_URL"):
        # The pods do not have this variable: without the parameter they would look for the bucket
        # at Amazon.
        return config.replace(s3_endpoint=os.environ["AWS_ENDPOINT_URL"])
    return config


def check_version(server: Server) -> None:
    """Warn if the server does not report its version. Raises ClusterError if it is unsuitable."""
    if problem := version_problem(server.version, chain.sdk_version()):
        if server.version:
            raise ClusterError(f"Kubeflow Pipelines at {server.host}: {problem}")
        print(
            f"warning: {problem}; these steps were compiled by kfp {chain.sdk_version()}",
            flush=True,
        )


def check_length(config: RunConfig) -> int:
    """Return the length of the run's parameters in bytes. Raises InputError if they are too long.

    The search space must be JSON already, as `with_space_as_text` makes it.
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
    """Yield how this server departs from what a user may expect."""
    if server.multi_user is False:
        account = SINGLE_USER_ACCOUNT if account == AUTO else account
        where = "objects there as well"
        if config.namespace != AUTO:
            where = f"objects in namespace {config.namespace} (--namespace)"
        yield (
            "the server has one namespace for all runs: steps run there, as ServiceAccount"
            f" {account}, and make the run's {where}"
        )
    for limitation in limitations(server.support, config.s3_secret, config.webhook_secret):
        yield f"server {server.version or 'of an unknown version'}: {limitation}"


def with_uploaded_files(config: RunConfig) -> RunConfig:
    """Upload the user's files; return the configuration with their addresses.

    The addresses contain a digest of the content, so that the same file is uploaded once. A network
    file is uploaded with the files beside it that it imports. So a new network or data
    configuration needs no new image. The search space becomes JSON.
    """
    from weaver.network.network_file import NetworkFile
    from weaver.network.siblings import write_siblings

    places = {}
    for name in ("data_config", "network_config"):
        path = getattr(config, name)
        if not storage.is_s3(path):  # pods may not reach other addresses
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
                # last, so that its existence means that the upload is complete
                storage.write_bytes(place, content)
            places[name] = place
    return with_space_as_text(config).replace(**places)


def with_space_as_text(config: RunConfig) -> RunConfig:
    """Return the configuration with the search space as JSON, which the UI can edit."""
    space = for_network(load(config.search_space), config.network_config)
    return config.replace(search_space=to_json(space))


def pipeline_version(server: Server, ir: Path, namespace: str | None, image: str) -> Version:
    """Return the pipeline's version with this IR; upload it if there is none.

    The version's name has the commit and the date and ends in a digest of the IR, by which an
    existing version is recognised. It is a valid name of a Kubernetes object, because Kubeflow may
    store versions as such.
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
        with server.explain_errors("take the pipeline"):
            version_id = server.client.upload_pipeline_version(
                str(ir), name, pipeline_id=pipeline, description=about
            ).pipeline_version_id
    except ClusterError:
        # Another user may have uploaded it meanwhile.
        if version := _find_version(server, pipeline, digest):
            return version
        raise
    return Version(pipeline_id=pipeline, version_id=str(version_id), name=name, new=True)


def pipeline_id(server: Server, namespace: str | None) -> str:
    """Return the id of our pipeline; create it if it does not exist."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": chain.NAME}
    by_name = json.dumps({"predicates": [predicate]})
    with server.explain_errors("list pipelines"):
        pipelines = server.client.list_pipelines(filter=by_name, namespace=namespace).pipelines
    if pipelines:
        return str(pipelines[0].pipeline_id)
    # Not kfp.Client, which creates a pipeline only together with a version.
    description = server.client.api_models.V2beta1Pipeline(
        display_name=chain.NAME, name=chain.NAME, description=chain.DESCRIPTION, namespace=namespace
    )
    with server.explain_errors("create the pipeline"):
        pipeline = server.client.pipelines.pipeline_service_create_pipeline(description)
    return str(pipeline.pipeline_id)


def _find_version(server: Server, pipeline: str, digest: str) -> Version | None:
    """Return the version whose name ends in the digest, among the newest 10,000; None if none."""
    token = ""
    for _ in range(100):
        with server.explain_errors("list versions of the pipeline"):
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
