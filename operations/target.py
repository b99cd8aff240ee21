"""A run and every place that knows of it: its files, Kubeflow Pipelines, the cluster."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from clusters.api import NoCluster
from common.config import AUTO
from common.errors import JecError
from operations import kubeflow_runs, previous_run
from operations.endpoint import endpoint
from operations.server import Server, connect


@dataclasses.dataclass(kw_only=True)
class Target:
    """A run, and every place that knows of it;

    None where there is no such place, with the reason in `unseen`.
    """

    run_id: str
    folder: str
    """URI of the run's files; empty if they were not found."""
    server: Server | None
    kfp_run: Any | None
    """Kubeflow's own record of the run."""
    operator: Any | None
    """clusters.operator.Operator of the run's namespace."""
    args: argparse.Namespace
    unseen: list[str]
    storage_unseen: str = ""
    """Why its files could not be looked for; empty if they could."""

    @property
    def kfp_id(self) -> str:
        return self.kfp_run.run_id if self.kfp_run is not None else ""


def locate(run_id: str, args: argparse.Namespace, *, must_exist: bool = True) -> Target:
    """The run in every place that can be asked.

    Raises InputError where none knows it, unless it need not exist (any more).
    """
    target = Target(
        run_id=run_id, folder="", server=None, kfp_run=None, operator=None, args=args, unseen=[]
    )
    _ask_server(target)
    if target.kfp_run is not None:
        # Kubeflow's own id was given
        target.run_id = kubeflow_runs.run_id_of(target.kfp_run) or run_id
        values = kubeflow_runs.parameters(target.kfp_run)
        for name in ("s3_bucket", "namespace"):
            if getattr(args, name) == AUTO:
                setattr(args, name, values.get(name, AUTO))
    try:
        target.folder = previous_run.run_folder(target.run_id, args)
    except JecError as error:
        target.storage_unseen = str(error)
        target.unseen.append(f"storage: {error}")
    ask_cluster(target)
    known = (
        target.folder
        or target.kfp_run is not None
        or (target.operator and target.operator.find(target.run_id))
    )
    if must_exist and not known:
        raise previous_run.no_such_run(run_id, args, "; ".join(target.unseen))
    return target


def _ask_server(target: Target) -> None:
    host, _ = endpoint(target.args.host)
    if not host:
        target.unseen.append("Kubeflow Pipelines: no --host and no KFP_ENDPOINT")
        return
    namespace = target.args.namespace
    try:
        target.server = connect(host, target.args.auth, None if namespace == AUTO else namespace)
        target.kfp_run = kubeflow_runs.find(target.server, target.run_id, namespace)
    except JecError as error:
        target.unseen.append(str(error))


def ask_cluster(target: Target) -> None:
    from clusters.operator import Operator

    try:
        target.operator = Operator(target.args.namespace)
        target.operator.find(target.run_id)
    except NoCluster as error:
        target.unseen.append(error.short)
    except JecError as error:
        target.operator = None
        target.unseen.append(f"Kubernetes: {error}")
