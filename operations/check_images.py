"""Ask the registries whether the images can be pulled.

An image named by its digest is fine; a tag gets a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from clusters.registry import DOCKER_CONFIG, Reference, ask_manifest
from common.errors import JecError, UnreachableError
from common.http import status_line
from operations.table import Line, error, not_seen, ok, warning


def check_images(images: Iterable[str], *, on_cluster: bool) -> Iterator[Line]:
    """Yield a line for each image. `on_cluster`: False for a run here, which uses no images."""
    if not on_cluster:
        yield not_seen("images", "a run on this machine uses none")
        return
    for image in dict.fromkeys(images):
        yield check_image(image)


def check_image(image: str) -> Line:
    """Ask the image's registry for its manifest; return whether nodes can pull it."""
    what = f"image {image.split('@', 1)[0].rsplit('/', 1)[-1]}"
    reference = Reference.parse(image)
    if reference is None:
        return error(
            what,
            f"{image} names no registry: nodes would pull it from their default one",
            "make images REGISTRY=... in this checkout, or --steps-image and --weaver-image"
            " REGISTRY/NAME@DIGEST",
        )
    try:
        answer = ask_manifest(reference)
    except JecError as problem:
        is_unreachable = isinstance(problem, UnreachableError)
        failure = "cannot be reached" if is_unreachable else "cannot be asked"
        return not_seen(what, f"{reference.registry} {failure} from here: {problem}")

    if answer.status_code == 404:
        return error(what, f"{image} is not in its registry", "push it, or correct the name")
    if answer.status_code in (401, 403):
        return warning(
            what,
            f"its registry requires a login that is not in {DOCKER_CONFIG}: whether the image"
            " exists was not checked",
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
