"""Patterns of data files as users write them: Weaver's, with uproot's `file.root:tree`.

Patterns are separated by blanks or commas, or given as a list. Each is a path or an address, with
`*`, `?` or `[...]`, and optionally with `name:` in front (the name of a sample) and `:tree` behind
a name that ends in .root.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from glob import iglob

from common.storage.addresses import is_storage_scheme, refuse_secrets, scheme_of, wildcard_at

SAMPLE = re.compile(r"^(?P<sample>[\w.+%-]+):(?!//)")
# not the port of root://my.root:1094//path
TREE = re.compile(r"^(?P<file>.+\.root):(?!\d+/)(?P<tree>[^:]+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """One pattern."""

    text: str
    """The path or address, perhaps with wildcards."""
    sample: str = ""
    """The name in front of it."""
    tree: str = ""
    """The tree behind it."""

    @property
    def without_sample(self) -> str:
        """The pattern as it is written, without the name in front."""
        return f"{self.text}:{self.tree}" if self.tree else self.text


def parse(patterns: str | Iterable[str]) -> list[Pattern]:
    """Return the patterns of a text or of several.

    A text that is the path of an existing file, or matches one, is one pattern, with its blanks.
    Raises InputError for an address of an unknown scheme.
    """
    result = []
    for text in [patterns] if isinstance(patterns, str) else patterns:
        parts = split_patterns(text)
        if len(parts) > 1 and any(iglob(text)):
            parts = [text]
        result += [parse_one(part) for part in parts]
    return result


def split_patterns(text: str) -> list[str]:
    """Split a text into patterns at blanks and commas; the path of an existing file is not split.

    Raises InputError for an address with a secret in it.
    """
    refuse_secrets(text)
    return [text] if os.path.exists(text) else re.findall(r"[^,\s]+", text)


def parse_one(text: str) -> Pattern:
    """Return one pattern. Raises InputError for an address of an unknown scheme."""
    if os.path.exists(text):
        return Pattern(text=text)
    sample = tree = ""
    if (match := SAMPLE.match(text)) and not _is_scheme_or_file(match["sample"], text):
        sample, text = match["sample"], text[match.end() :]
    if not os.path.exists(text) and (match := TREE.match(text)):
        text, tree = match["file"], match["tree"]
    scheme_of(text)
    return Pattern(text=text, sample=sample, tree=tree)


def _is_scheme_or_file(name: str, text: str) -> bool:
    """Return whether `name:` is no sample: `s3:/x` is a misspelt address, `a.root:tree` a file."""
    is_path = text[len(name) + 1 :].startswith("/")
    return name.endswith(".root") or (is_path and is_storage_scheme(name))


def has_wildcard(text: str) -> bool:
    """Return whether a text has a wildcard of glob."""
    return wildcard_at(text) is not None
