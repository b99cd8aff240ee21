"""Read data with the credentials of the run's pods: their S3 keys and XRootD login."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.config import NONE, RunConfig
from common.errors import InputError
from common.storage import xrootd_login
from common.storage.addresses import XROOTD, scheme_of
from common.storage.patterns import parse_one, split_patterns
from operations.check_storage import credentials, pods_keys, secret_of
from operations.table import Line, not_seen, ok

NOWHERE = "/nonexistent"
"""Value of the variables that name login files which pods do not have."""


@contextlib.contextmanager
def as_the_pods(config: RunConfig) -> Iterator[list[Line]]:
    """Use the pods' credentials for reading addresses within the block, if we may read them.

    Yields lines for the table. Where we may not read the pods' credentials, a line says so, and the
    addresses are read with our own.
    """
    schemes = {scheme_of(text) for text in addresses(config)}
    lines: list[Line] = []
    with contextlib.ExitStack() as stack:
        if "s3" in schemes:
            try:
                stack.enter_context(credentials(pods_keys(config)))
            except InputError as problem:
                lines.append(
                    not_seen("S3 as the pods", str(problem), "s3:// is read with our own keys")
                )
        if schemes & set(XROOTD):
            try:
                lines.append(stack.enter_context(xrootd_as_the_pods(config)))
            except InputError as problem:
                lines.append(
                    not_seen("XRootD as the pods", str(problem), "root:// is read as ourselves")
                )
        yield lines


def addresses(config: RunConfig) -> Iterator[str]:
    """Yield every address or path that the run reads."""
    yield from (config.data_config, config.network_config, config.search_space)
    for value in (config.data_train, config.data_val, config.data_test):
        yield from (parse_one(part).text for part in split_patterns(value))


@contextlib.contextmanager
def xrootd_as_the_pods(config: RunConfig) -> Iterator[Line]:
    """Give XRootD the login of --xrootd-secret within the block, and hide our own logins.

    Raises InputError if the Secret cannot be read, does not exist, or has none of the keys.
    """
    values: Mapping[str, bytes] = {}
    whose = "without a login (--xrootd-secret none)"
    if config.xrootd_secret != NONE:
        secret = secret_of(config, config.xrootd_secret).contents
        values = {key: secret[key] for key in xrootd_login.KEYS if secret.get(key)}
        if not values:
            keys = " or ".join(xrootd_login.KEYS)
            raise InputError(f"Secret {config.xrootd_secret} has no key {keys}; add one")
        whose = f"as Secret {config.xrootd_secret}"

    hidden_variables = dict.fromkeys([*xrootd_login.KEYS.values(), "XDG_RUNTIME_DIR"], NOWHERE)
    removed_variables = ["BEARER_TOKEN"]
    our_proxy = xrootd_login.default_proxy()
    if "token" in values or not our_proxy.exists():
        # A token is sent over TLS only, and the client gives up TLS if X509_USER_PROXY names a file
        # that it cannot read (seen with XRootD's client 6.2).
        del hidden_variables["X509_USER_PROXY"]
        removed_variables.append("X509_USER_PROXY")
        if our_proxy.exists() and "x509up" not in values:
            whose += f"; unlike the pods, this machine has a proxy as well: {our_proxy}"
    changed_variables = (*hidden_variables, *removed_variables, xrootd_login.SECRET_FOLDER)
    before = {name: os.environ.get(name) for name in changed_variables}
    with tempfile.TemporaryDirectory() as folder:
        for key, value in values.items():
            Path(folder, key).write_bytes(value)
        os.environ.update(hidden_variables)
        for name in removed_variables:
            os.environ.pop(name, None)
        os.environ[xrootd_login.SECRET_FOLDER] = folder
        xrootd_login.forget()
        try:
            yield ok("XRootD as the pods", f"root:// is read {whose}")
        finally:
            xrootd_login.forget()
            for name, value_before in before.items():
                os.environ.pop(name, None)
                if value_before is not None:
                    os.environ[name] = value_before
