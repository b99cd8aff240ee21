"""Which images the pipeline uses.

Those that `make images` pushed last, by digest, or else a tag that the user has to provide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

FILE = Path(__file__).resolve().parent / "digests.json"
"""Written by `python -m images.build` after a push."""


class Digests(TypedDict):
    """What digests.json holds."""

    commit: str
    images: dict[str, str]
    """Image -> its reference, REPOSITORY@sha256:..."""


def image(name: str) -> str:
    """The reference of the image `steps` or `weaver`, by digest where it was pushed from here."""
    return recorded()["images"].get(name, f"jec-{name}:latest")


def commit() -> str:
    """The commit that the pushed images hold ('+' behind it: with changes).

    Empty where none were pushed from here.
    """
    return recorded()["commit"]


def recorded() -> Digests:
    """What the last push wrote; without images where none were pushed from here."""
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {"commit": content.get("commit", ""), "images": content.get("images", {})}
