"""Whether the predictor of a run would get its model: its Secret and its ServiceAccount.

prepare looks before days of search, and deploy before it makes anything.
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
    """On a cluster: refuse before anything is made where the predictor would have no S3 keys.

    Raises InputError with the cure.
    """
    if step.LOCAL_DIR in os.environ or not storage.is_s3(run.config.s3_bucket):
        return
    config, connection = run.config, connect()
    endpoint = "" if config.s3_endpoint == AUTO else config.s3_endpoint
    survey = Survey(connection, namespace_of(connection, config.namespace))
    for one in keys.findings(
        survey, secret=config.s3_secret, account=config.service_account, endpoint=endpoint
    ):
        if one.state == "error":
            raise InputError(
                f"the service would not get its model: {one.what} {one.found}; {one.cure}"
            )
        if one.state == "not seen":
            step.say(f"not seen: {one.what}: {one.found}")


def check_keys_early(run: Run) -> None:
    """The same, where the cluster answers: what cannot be seen now is looked at by deploy.

    Raises InputError with the cure.
    """
    try:
        check_keys(run)
    except NoCluster as error:
        step.say(f"not seen: the predictor's Secret and ServiceAccount: {error.short}")
    except (ClusterError, DeadlineError, UnreachableError) as error:
        step.say(f"not seen: the predictor's Secret and ServiceAccount: {error}")
