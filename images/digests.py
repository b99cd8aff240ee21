"""Which images the pipeline uses: those that `make images` pushed last, by digest, or else a tag
that the user has to provide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "digests.json"
"""Written by `python -m images.build` after a push:

{"commit": ..., "images": {"steps": "REPOSITORY@sha256:...", ...}}.
"""


def image(name: str) -> str:
    """The reference of the image `steps` or `weaver`, by digest where it was pushed from here."""
    return _recorded().get("images", {}).get(name, f"jec-{name}:latest")


def commit() -> str:
    """The commit that the pushed images hold ('+' behind it: with changes); empty where none were
    pushed from here.
    """
    return _recorded().get("commit", "")


def _recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}
