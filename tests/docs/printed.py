"""Python that the README and the pages of docs/ print, for tests that run it."""

from __future__ import annotations

import re
import textwrap

from common.project import ROOT


def python_block(page: str, words: str) -> str:
    """The one block of Python on a page that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (block,) = [textwrap.dedent(block) for block in blocks if words in block]
    return block
