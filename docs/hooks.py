"""Hooks of the docs site: links to files of the project outside of docs/, and flags in sentences.

On the repository's own pages such a link opens the file. The site has no such file, and shows its
path. A file that is not there is a warning, at which `make docs` fails.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]*)\)")
CODE = re.compile(r"(<pre.*?</pre>)|<code>([^<]*)</code>", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
LOG = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links to files outside of docs/ by their text and path."""

    def path_of(link: re.Match[str]) -> str:
        text, path = link.groups()
        if not (ROOT / path).exists():
            LOG.warning("%s links to ../%s, which does not exist", page.file.src_uri, path)
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(path_of, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark the flags in sentences, so that site.css can keep each on one line."""

    def mark(match: re.Match[str]) -> str:
        block, words = match.groups()
        if block is not None:
            return block
        marked = FLAG.sub(r'<span class="flag">\g<0></span>', words)
        return f"<code>{marked}</code>"

    return CODE.sub(mark, html)
