"""Reads a Dockerfile as its instructions:

(keyword, argument) with continued lines joined and comments left out.
"""

from __future__ import annotations

import re
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "images"
NAMES = ("steps", "weaver")


def instructions(name: str) -> list[tuple[str, str]]:
    text = (IMAGES / f"{name}.Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [
        (words[0].upper(), words[1].strip())
        for line in joined.splitlines()
        if line.strip()
        for words in [line.split(maxsplit=1)]
    ]


def arguments(name: str, keyword: str) -> list[str]:
    return [argument for word, argument in instructions(name) if word == keyword]


def copy_sources(name: str) -> set[str]:
    """What the image takes from the project: the sources of its COPY instructions."""
    return {source for argument in arguments(name, "COPY") for source in argument.split()[:-1]}
