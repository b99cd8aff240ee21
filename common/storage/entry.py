"""One stored file, as listings give it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored file: its URI, its size in bytes, and a tag that changes with its content.

    The tag is S3's ETag, the ETag or date of an HTTP server, or the time of the last change (ns on
    disk, s on XRootD).
    """

    uri: str
    size: int
    tag: str
    written: str = ""
    """The path as the user's pattern has it, where that is known."""
    tree: str = ""
    """The tree that the user's pattern names, as in `file.root:tree`."""
