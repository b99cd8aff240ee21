"""Whether the images can be pulled, asked of their registries: by digest where one is named, with a
warning where a tag is.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from operations.table import Line, error, not_seen, ok, warning

ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
SECONDS = 15.0
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
        """None for a name without a registry: what that means depends on the node that pulls it."""
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


def check_images(images: Iterable[str], *, wanted: bool) -> Iterator[Line]:
    """One line an image. `wanted` is False for a run on this machine, which uses none."""
    if not wanted:
        yield not_seen("images", "a run on this machine uses none")
        return
    for image in dict.fromkeys(images):
        yield _one(image)


def _one(image: str) -> Line:
    what, reference = f"image {image.split('@')[0].rsplit('/', 1)[-1]}", Reference.parse(image)
    if reference is None:
        cure = (
            "make images REGISTRY=..., then --steps-image and --weaver-image REGISTRY/NAME@DIGEST"
        )
        return error(
            what, f"{image} names no registry: nodes would look for it at their default one", cure
        )
    try:
        digest = _digest(reference)
    except urllib.error.HTTPError as problem:
        return _refused(what, image, problem)
    except (OSError, ValueError, KeyError) as problem:
        return not_seen(
            what,
            f"{reference.registry} cannot be asked from here: {type(problem).__name__}: {problem}",
        )
    if reference.digest:
        return ok(what, f"can be pulled by its digest {reference.digest[:19]}")
    return warning(
        what,
        f"can be pulled; the tag {reference.tag} may name another image tomorrow",
        f"{image.rsplit(':', 1)[0] if ':' in image.rsplit('/', 1)[-1] else image}@{digest}",
    )


def _refused(what: str, image: str, problem: urllib.error.HTTPError) -> Line:
    if problem.code == 404:
        return error(what, f"{image} is not in its registry", "push it, or correct the name")
    if problem.code in (401, 403):
        return warning(
            what,
            f"its registry wants a login that is not in {DOCKER_CONFIG}: not seen whether it is"
            " there",
            "log in, and give the namespace's ServiceAccounts an imagePullSecret",
        )
    return not_seen(what, f"its registry answers {problem.code} {problem.reason}")


def _digest(reference: Reference) -> str:
    """The digest of the image's manifest.

    Raises HTTPError (404: not there, 401: a login is wanted) and OSError.
    """
    local = re.match(r"(localhost|127\.)", reference.registry)
    path = f"/v2/{reference.repository}/manifests/{reference.digest or reference.tag}"
    url = f"{'http' if local else 'https'}://{reference.registry}{path}"
    try:
        return _head(url, {})
    except urllib.error.HTTPError as problem:
        challenge = problem.headers.get("WWW-Authenticate", "")
        if problem.code != 401 or not challenge.lower().startswith("bearer"):
            raise
    return _head(url, {"Authorization": f"Bearer {_token(challenge, reference.registry)}"})


def _head(url: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": ACCEPT, **headers})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.headers.get("Docker-Content-Digest", "")


def _token(challenge: str, registry: str) -> str:
    """A token for pulling, as the registry's challenge says where to get it, with the stored login
    if there is one.
    """
    parts = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urllib.parse.urlencode(
        {key: parts[key] for key in ("service", "scope") if key in parts}
    )
    request = urllib.request.Request(f"{parts['realm']}?{query}", headers=_login(registry))
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        content = json.loads(answer.read())
    return content.get("token") or content["access_token"]


def _login(registry: str) -> dict[str, str]:
    """The header of a stored login; none where nobody logged in, or a helper program keeps it."""
    file = Path(DOCKER_CONFIG).expanduser()
    auths = json.loads(file.read_text()).get("auths", {}) if file.exists() else {}
    stored = auths.get(registry, {}).get("auth", "")
    return (
        {"Authorization": f"Basic {base64.b64encode(base64.b64decode(stored)).decode()}"}
        if stored
        else {}
    )
