"""References of images, and their digests in registries."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ClusterError, InputError, JecError
from common.http import SECONDS, send, session

if TYPE_CHECKING:
    import requests

ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
# where docker, podman and buildah keep a login for registries
DOCKER_CONFIG = "~/.docker/config.json"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Address of an image: registry, repository, and the digest or else the tag."""

    registry: str
    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """Parse the address of an image.

        Returns:
            The reference; None for a name without a registry, whose meaning depends on the node.
        """
        rest, _, digest = text.partition("@")
        registry, _, path = rest.partition("/")
        if not path or not ("." in registry or ":" in registry or registry == "localhost"):
            return None
        name, colon, tag = path.rpartition(":")
        return cls(
            registry=registry,
            repository=name if colon else path,
            tag=tag if colon else "latest",
            digest=digest,
        )


def digest_of(image: str, *, seconds: float = SECONDS) -> str | None:
    """Return the digest of an image from its reference, or else from its registry.

    None if neither has it, for example if the registry is unreachable or requires a login.
    """
    digest = image.partition("@")[2]
    if digest:
        return digest if DIGEST.fullmatch(digest) else None
    reference = Reference.parse(image)
    if reference is None:
        return None
    try:
        answer = ask_manifest(reference, seconds=seconds)
    except JecError:
        return None
    digest = answer.headers.get("Docker-Content-Digest", "")
    return digest if answer.ok and DIGEST.fullmatch(digest) else None


def ask_manifest(reference: Reference, *, seconds: float = SECONDS) -> requests.Response:
    """Send HEAD for the manifest of an image and return the answer; log in if required.

    Args:
        reference: The image.
        seconds: Timeout of each of at most three requests.

    Raises:
        UnreachableError: If there is no answer.
        ClusterError: If a challenge or token does not follow the distribution specification.
        InputError: If DOCKER_CONFIG is unreadable.
    """
    local = re.match(r"(localhost|127\.)", reference.registry)
    path = f"/v2/{reference.repository}/manifests/{reference.digest or reference.tag}"
    url = f"{'http' if local else 'https'}://{reference.registry}{path}"
    client = session()
    client.headers["Accept"] = ACCEPT
    answer = send(client, "HEAD", url, seconds=seconds)

    # A registry refuses the first request with the address and the scope of the token that it
    # needs: https://distribution.github.io/distribution/spec/auth/token/
    challenge = answer.headers.get("WWW-Authenticate", "")
    if answer.status_code != 401 or not challenge.lower().startswith("bearer"):
        return answer
    parts = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if "realm" not in parts:
        raise ClusterError("it requires a login and does not say where (WWW-Authenticate: realm)")
    query = {key: parts[key] for key in ("service", "scope") if key in parts}
    login = stored_login(reference.registry)
    reply = send(client, "GET", parts["realm"], seconds=seconds, params=query, headers=login)
    if not reply.ok:
        return reply
    token = token_in(reply.content)
    login = {"Authorization": f"Bearer {token}"}
    return send(client, "HEAD", url, seconds=seconds, headers=login)


def token_in(content: bytes) -> str:
    """Return the token in the answer of a token service. Raises ClusterError without one."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    token = None
    if isinstance(answer, dict):
        token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str):
        raise ClusterError("its token service answers without a token")
    return token


def stored_login(registry: str) -> dict[str, str]:
    """Return the header of a stored login; empty without one, or if a helper stores it.

    Raises InputError if DOCKER_CONFIG is unreadable.
    """
    file = Path(DOCKER_CONFIG).expanduser()
    try:
        auths = json.loads(file.read_text()).get("auths", {}) if file.exists() else {}
        login = auths.get(registry, {}).get("auth", "")
        # decoded and encoded again, so that invalid base64 fails here and not at the registry
        word = base64.b64encode(base64.b64decode(login)).decode()
    except OSError as error:
        raise InputError(f"{DOCKER_CONFIG} cannot be read: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError):  # whose texts may show a part of a login
        raise InputError(
            f"{DOCKER_CONFIG} does not hold logins as docker login writes them; log in again"
        ) from None
    return {"Authorization": f"Basic {word}"} if word else {}
