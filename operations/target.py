"""Find a run in every place that may have it: its files, Kubeflow Pipelines, the cluster."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from typing import TYPE_CHECKING

from clusters.api import NoCluster
from common import storage
from common.config import AUTO, flag
from common.errors import JecError
from components.step import use_endpoint
from operations import kubeflow_runs, previous_run
from operations.endpoint import endpoint
from operations.kubeflow_runs import KubeflowRun
from operations.server import connect

if TYPE_CHECKING:
    from clusters.operator import Operator


PLACES = ("s3_bucket", "s3_endpoint", "namespace")
"""Parameters of a run that tell where its files and objects are."""


@dataclasses.dataclass(kw_only=True)
class Target:
    """A run and the places that have it.

    A place that cannot be asked is None or empty, and `unseen` has the reason.
    """

    run_id: str
    args: argparse.Namespace
    folder: str = ""
    """URI of the run's files; empty if there are none."""
    kubeflow: KubeflowRun | None = None
    operator: Operator | None = None
    """The cluster, in the run's namespace."""
    unseen: list[str] = dataclasses.field(default_factory=list)
    """Places that could not be asked, with the reason."""
    forgotten_by: str = ""
    """Address of the Kubeflow Pipelines server that was asked and does not have the run."""
    storage_unseen: str = ""
    """Why the storage could not be asked for the run's files; empty if it could."""

    @property
    def is_known(self) -> bool:
        """Whether a place that could be asked has something of the run."""
        if self.folder or self.kubeflow is not None or self.storage_unseen:
            return True
        return self.operator is not None and bool(self.operator.find(self.run_id))

    @property
    def is_unreachable(self) -> bool:
        """Whether no place outside this machine could be asked for the run."""
        has_answer = self.kubeflow is not None or self.forgotten_by or self.operator is not None
        return bool(self.storage_unseen) and not has_answer

    @property
    def unreachable(self) -> str:
        """Sentence for a run of which nothing was found because of that."""
        return f"no place that may have run {self.run_id} could be asked"

    @property
    def kfp_id(self) -> str:
        """Kubeflow's own id of the run; empty if no server has it."""
        return self.kubeflow.id if self.kubeflow is not None else ""


def locate(run_id: str, args: argparse.Namespace, *, must_exist: bool = True) -> Target:
    """Look for a run in every place that can be asked.

    Raises InputError if no place has it, unless `must_exist` is False.
    """
    target = Target(run_id=previous_run.resolve_run_id(run_id, args), args=args)
    ask_server(target)
    if target.kubeflow is not None:
        # The user may have given Kubeflow's id.
        target.run_id = kubeflow_runs.run_id_of(target.kubeflow) or run_id
        values = kubeflow_runs.parameters(target.kubeflow)
        for name in PLACES:
            if getattr(args, name) == AUTO:
                setattr(args, name, values.get(name, AUTO))
        if args.s3_endpoint != AUTO:
            # the run's endpoint replaces this machine's own
            use_endpoint(args.s3_endpoint)
            storage.forget_client()
    try:
        target.folder = previous_run.run_folder(target.run_id, args)
    except JecError as error:
        target.storage_unseen = str(error)
        target.unseen.append(f"storage: {error}")
    ask_cluster(target)

    if must_exist and not target.is_known:
        raise previous_run.no_such_run(run_id, args, "; ".join(target.unseen))
    return target


def place_flags(host: str, args: argparse.Namespace) -> str:
    """Return the flags by which a command finds a run again: server, storage and namespace."""
    flags = ["--host", host]
    for name in PLACES:
        if getattr(args, name) != AUTO:
            flags += [f"--{flag(name)}", getattr(args, name)]
    return shlex.join(flags)


def ask_server(target: Target) -> None:
    """Look for the run on Kubeflow Pipelines, if an endpoint is configured."""
    host, _ = endpoint(target.args.host)
    if not host:
        target.unseen.append("Kubeflow Pipelines: no --host and no KFP_ENDPOINT")
        return
    namespace = target.args.namespace
    try:
        server = connect(host, target.args.auth, None if namespace == AUTO else namespace)
        target.kubeflow = kubeflow_runs.find(server, target.run_id, namespace)
        if target.kubeflow is None:
            target.forgotten_by = host
    except JecError as error:
        target.unseen.append(str(error))


def ask_cluster(target: Target) -> None:
    """Connect to the cluster, if one is configured and answers."""
    from clusters.operator import Operator

    try:
        target.operator = Operator(target.args.namespace)
        target.operator.find(target.run_id)
    except NoCluster as error:
        target.unseen.append(error.short)
    except JecError as error:
        target.operator = None
        target.unseen.append(f"Kubernetes: {error}")
