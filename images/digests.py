"""The images that the pipeline uses by default.

They are the last ones that `make images` pushed, by digest, or else a tag that the user has to
provide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

FILE = Path(__file__).resolve().parent / "digests.json"
"""Written by `python -m images.build` after a push."""


class Digests(TypedDict):
    """The content of digests.json."""

    commit: str
    images: dict[str, str]
    """Image -> its reference, REPOSITORY@sha256:..."""


def unpushed(name: str) -> str:
    """Return the reference of the image `steps` or `weaver` that stands for one never pushed."""
    return f"jec-{name}:latest"


def image(name: str) -> str:
    """Return the reference of the image `steps` or `weaver`, by digest if pushed from here."""
    return read_digests()["images"].get(name, unpushed(name))


def commit() -> str:
    """Return the commit that the pushed images hold ('+' behind it: with changes).

    Empty where none were pushed from here.
    """
    return read_digests()["commit"]


def read_digests() -> Digests:
    """Read digests.json; the result has no images if none were pushed from here."""
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {"commit": content.get("commit", ""), "images": content.get("images", {})}
