"""Check that the predictor of a run can load its model: its Secret and its ServiceAccount.

prepare checks it before the search, which takes days, and deploy before it creates the service.
"""

from __future__ import annotations

import os

from clusters import keys
from clusters.api import NoCluster, connect, namespace_of
from clusters.survey import Survey
from common import storage
from common.config import AUTO
from common.errors import ClusterError, DeadlineError, InputError, UnreachableError
from common.run import Run
from components import step


def check_keys(run: Run) -> None:
    """On a cluster, check that the predictor will have S3 keys.

    Raises InputError, with the cure, if it will not; NoCluster, ClusterError, DeadlineError or
    UnreachableError if the cluster cannot be asked.
    """
    if step.LOCAL_DIR in os.environ or not storage.is_s3(run.config.s3_bucket):
        return
    config, connection = run.config, connect()
    endpoint = "" if config.s3_endpoint == AUTO else config.s3_endpoint
    survey = Survey(connection, namespace_of(connection, config.namespace))
    for finding in keys.findings(
        survey, secret=config.s3_secret, account=config.service_account, endpoint=endpoint
    ):
        if finding.state == "error":
            raise InputError(
                f"the service could not load its model: {finding.what} {finding.result};"
                f" {finding.cure}"
            )
        if finding.state == "not seen":
            step.say(f"not seen: {finding.what}: {finding.result}")


def check_keys_early(run: Run) -> None:
    """Do the same for prepare, but only print a line if the cluster cannot be asked.

    deploy checks again. Raises InputError, with the cure, if the predictor will have no S3 keys.
    """
    try:
        check_keys(run)
    except NoCluster as error:
        step.say(f"not seen: the predictor's Secret and ServiceAccount: {error.short}")
    except (ClusterError, DeadlineError, UnreachableError) as error:
        step.say(f"not seen: the predictor's Secret and ServiceAccount: {error}")
