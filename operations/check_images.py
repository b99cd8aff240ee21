"""Ask the registries whether the images can be pulled.

An image named by its digest is fine; a tag gets a warning.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UnreachableError
from common.http import send, session, status_line
from operations.table import Line, error, not_seen, ok, warning

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """An image's address: registry, repository, and the digest or else the tag."""

    registry: str
    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """Parse an image's address.

        None for a name without a registry: what that means depends on the node that pulls it.
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


def check_images(images: Iterable[str], *, on_cluster: bool) -> Iterator[Line]:
    """Yield one line an image. `on_cluster` is False for a run on this machine, which uses none."""
    if not on_cluster:
        yield not_seen("images", "a run on this machine uses none")
        return
    for image in dict.fromkeys(images):
        yield check_image(image)


def check_image(image: str) -> Line:
    """Ask the image's registry for its manifest and say whether nodes will get it."""
    what = f"image {image.split('@', 1)[0].rsplit('/', 1)[-1]}"
    reference = Reference.parse(image)
    if reference is None:
        return error(
            what,
            f"{image} names no registry: nodes would look for it at their default one",
            "make images REGISTRY=..., then --steps-image and --weaver-image REGISTRY/NAME@DIGEST",
        )
    try:
        answer = ask_manifest(reference)
    except (UnreachableError, OSError, ValueError, KeyError) as problem:
        words = str(problem)
        if not isinstance(problem, UnreachableError):
            words = f"{type(problem).__name__}: {problem}"
        return not_seen(what, f"{reference.registry} cannot be asked from here: {words}")

    if answer.status_code == 404:
        return error(what, f"{image} is not in its registry", "push it, or correct the name")
    if answer.status_code in (401, 403):
        return warning(
            what,
            f"its registry wants a login that is not in {DOCKER_CONFIG}: not seen whether it is"
            " there",
            "log in, and give the namespace's ServiceAccounts an imagePullSecret",
        )
    if not answer.ok:
        return not_seen(what, f"its registry answers {status_line(answer)}")
    if reference.digest:
        return ok(what, f"can be pulled by its digest {reference.digest[:19]}")
    digest = answer.headers.get("Docker-Content-Digest", "")
    return warning(
        what,
        f"can be pulled; the tag {reference.tag} may name another image tomorrow",
        f"{reference.registry}/{reference.repository}@{digest}",
    )


def ask_manifest(reference: Reference) -> requests.Response:
    """Return the registry's answer to HEAD of the image's manifest, logged in where it asks for it.

    Raises UnreachableError where no answer comes; KeyError or ValueError for a challenge or a token
    of another form than the distribution specification's; OSError for an unreadable DOCKER_CONFIG.
    """
    local = re.match(r"(localhost|127\.)", reference.registry)
    path = f"/v2/{reference.repository}/manifests/{reference.digest or reference.tag}"
    url = f"{'http' if local else 'https'}://{reference.registry}{path}"
    client = session()
    client.headers["Accept"] = ACCEPT
    answer = send(client, "HEAD", url)

    # A registry refuses the first request with the place and the scope of the token that it wants:
    # https://distribution.github.io/distribution/spec/auth/token/
    challenge = answer.headers.get("WWW-Authenticate", "")
    if answer.status_code != 401 or not challenge.lower().startswith("bearer"):
        return answer
    parts = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = {key: parts[key] for key in ("service", "scope") if key in parts}
    login = stored_login(reference.registry)
    reply = send(client, "GET", parts["realm"], params=query, headers=login)
    if not reply.ok:
        return reply
    content = json.loads(reply.content)
    token = content.get("token") or content["access_token"]
    return send(client, "HEAD", url, headers={"Authorization": f"Bearer {token}"})


def stored_login(registry: str) -> dict[str, str]:
    """Return the header of a stored login; empty where nobody logged in, or a helper keeps it."""
    file = Path(DOCKER_CONFIG).expanduser()
    auths = json.loads(file.read_text()).get("auths", {}) if file.exists() else {}
    stored = auths.get(registry, {}).get("auth", "")
    if not stored:
        return {}
    # decoded and encoded again, so that what is no base64 fails here and not at the registry
    return {"Authorization": f"Basic {base64.b64encode(base64.b64decode(stored)).decode()}"}
