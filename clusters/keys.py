"""Check that a predictor will get its S3 keys.

The Secret must have them and name the endpoint, and the ServiceAccount must name the Secret.
Without these checks a wrong key shows only when the storage initializer of KServe fails, minutes
later, after everything else succeeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from clusters.manifests import CREDENTIALS
from clusters.survey import Survey

ENDPOINT = "serving.kserve.io/s3-endpoint"
HTTPS = "serving.kserve.io/s3-usehttps"
OLD_GROUP = "serving.kubeflow.org/"


class KeyCheck(NamedTuple):
    """A result of a check; `state` is 'ok', 'error' or 'not seen', as in the table of --check."""

    state: str
    what: str
    result: str
    cure: str = ""


def findings(survey: Survey, *, secret: str, account: str, endpoint: str) -> Iterator[KeyCheck]:
    """Check the Secret and the ServiceAccount.

    Args:
        survey: Access to the cluster.
        secret: Name of the Secret.
        account: Name of the ServiceAccount.
        endpoint: S3 URL of the run; empty if it names none.
    """
    yield from _secret(survey, secret, endpoint)
    yield _account(survey, account, secret)


def _secret(survey: Survey, name: str, endpoint: str) -> Iterator[KeyCheck]:
    what = f"Secret {name}"
    secret = survey.secret(name)
    make = (
        f"kubectl -n {survey.namespace} create secret generic {name}"
        " --from-literal=AWS_ACCESS_KEY_ID=... (see deploy/)"
    )
    if secret is None:
        why = survey.unseen.get(what)
        if why:
            yield KeyCheck("not seen", what, why)
        else:
            yield KeyCheck("error", what, f"there is none in namespace {survey.namespace}", make)
        return
    existing = ", ".join(sorted(secret.values)) or "nothing"
    missing = [key for key in CREDENTIALS if not secret.values.get(key)]
    for key in missing:
        yield KeyCheck("error", what, f"has no {key}; it has {existing}", make)
    if not missing:
        yield _endpoint(what, secret.annotations, endpoint)


def _endpoint(what: str, annotations: dict[str, str], endpoint: str) -> KeyCheck:
    """Check the annotations from which KServe takes host, port and scheme of the endpoint."""
    host = urlsplit(endpoint).netloc
    https = str(int(endpoint.startswith("https")))
    old = [key for key in annotations if key.startswith(OLD_GROUP)]
    if old:
        return KeyCheck(
            "error",
            what,
            f"annotation {old[0]} is in a group that KServe no longer reads",
            f"name it {ENDPOINT}",
        )
    if host and ENDPOINT not in annotations:
        return KeyCheck(
            "error",
            what,
            f"no annotation {ENDPOINT}: KServe would fetch the model from Amazon",
            f"{ENDPOINT}: {host}",
        )
    if host and annotations[ENDPOINT] != host:
        return KeyCheck(
            "error",
            what,
            f"annotation {ENDPOINT} is {annotations[ENDPOINT]}, --s3-endpoint is {host}",
            "make them agree",
        )
    if host and annotations.get(HTTPS) != https:
        return KeyCheck(
            "error", what, f"annotation {HTTPS} does not fit {endpoint}", f'write "{https}"'
        )
    return KeyCheck(
        "ok", what, f"has its keys; KServe's endpoint {annotations.get(ENDPOINT, 'Amazon')}"
    )


def _account(survey: Survey, name: str, secret: str) -> KeyCheck:
    """Check that the ServiceAccount of the predictor names the Secret.

    KServe passes the keys of the Secrets that the account names to the storage initializer.
    """
    what = f"ServiceAccount {name}"
    secrets = survey.account_secrets(name)
    if secrets is None:
        why = survey.unseen.get(what)
        if why:
            return KeyCheck("not seen", what, why)
        return KeyCheck(
            "error",
            what,
            f"there is none in namespace {survey.namespace}",
            "see deploy/, or --service-account NAME",
        )
    if secret not in secrets:
        patch = (
            f"kubectl -n {survey.namespace} patch serviceaccount {name} -p"
            f' \'{{"secrets":[{{"name":"{secret}"}}]}}\''
        )
        return KeyCheck(
            "error", what, f"does not name Secret {secret}: KServe would have no keys", patch
        )
    return KeyCheck("ok", what, f"names Secret {secret}")
