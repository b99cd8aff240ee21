"""Renew a Kerberos ticket from a keytab and keep it in a Secret, for the pods that read EOS.

    python -m clusters.ticket --keytab FILE --principal USER@REALM --secret krb-secret --key
        krb5cc_1000

The CronJob of deploy/eos runs this. It needs to patch the Secret and, for the first ticket, to
create it.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common.cli import Parser, run_main
from common.errors import ClusterError, InputError

KINIT_SECONDS = 60.0  # a KDC that takes longer is unavailable; the Job tries again
REQUEST_SECONDS = 30.0


def new_ticket(keytab: Path, principal: str) -> bytes:
    """Request a ticket and return the content of its credential cache.

    Raises:
        InputError: If there is no keytab or no kinit.
        ClusterError: If the KDC refuses or does not answer.
    """
    if not os.path.isfile(keytab):  # Path.is_file raises OSError for a path that is too long
        raise InputError(
            f"there is no keytab {keytab}; make one and put it into the Secret krb-keytab, as"
            " docs/cern.md says"
        )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "krb5cc"
        command = ["kinit", "-k", "-t", str(keytab), "-c", f"FILE:{cache}", principal]
        try:
            subprocess.run(
                command, capture_output=True, text=True, timeout=KINIT_SECONDS, check=True
            )
        except FileNotFoundError:
            raise InputError(
                "kinit is not installed here; install krb5-user, or run it in one of the project's"
                " images"
            ) from None
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"kinit for {principal} had no answer for {KINIT_SECONDS:.0f} s; can the KDC be"
                " reached?"
            ) from None
        except subprocess.CalledProcessError as error:
            raise ClusterError(
                f"kinit gave no ticket for {principal}: {error.stderr.strip()}"
            ) from None
        return cache.read_bytes()


def store(ticket: bytes, secret: str, key: str, namespace: str | None = None) -> str:
    """Write the ticket into the Secret, which is created if it does not exist.

    Returns:
        The namespace of the Secret.

    Raises:
        ClusterError: If the API server refuses it.
    """
    import urllib3
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException

    from clusters.api import complaint, connect, namespace_of

    connection = connect()
    namespace = namespace_of(connection, namespace)
    core = client.CoreV1Api(connection.client)
    body = {"data": {key: base64.b64encode(ticket).decode()}}
    try:
        try:
            core.patch_namespaced_secret(secret, namespace, body, _request_timeout=REQUEST_SECONDS)
        except ApiException as error:
            if error.status != 404:
                raise
            core.create_namespaced_secret(
                namespace, {**body, "metadata": {"name": secret}}, _request_timeout=REQUEST_SECONDS
            )
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        raise ClusterError(
            f"cannot write Secret {secret} in namespace '{namespace}': {complaint(error)}"
        ) from error
    return namespace


def main(argv: list[str] | None = None) -> int:
    """Renew the ticket that the command line names and return the exit code."""
    parser = Parser(prog="python -m clusters.ticket", description=__doc__)
    parser.add_argument(
        "--keytab", type=Path, required=True, metavar="FILE", help="keytab of the principal"
    )
    parser.add_argument(
        "--principal", required=True, metavar="USER@REALM", help="principal of the ticket"
    )
    parser.add_argument(
        "--secret", required=True, metavar="NAME", help="Secret that gets the ticket"
    )
    parser.add_argument(
        "--key",
        default="krb5cc_1000",
        metavar="KEY",
        help="key of the Secret (default: krb5cc_1000)",
    )
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        help="namespace of the Secret (default: that of the pod or of the kubeconfig)",
    )
    args = parser.parse_args(argv)

    def body() -> None:
        ticket = new_ticket(args.keytab, args.principal)
        namespace = store(ticket, args.secret, args.key, args.namespace)
        print(
            f"ticket of {args.principal} renewed in Secret {args.secret} of namespace '{namespace}'"
        )

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
