"""Siblings of a network file: files beside it that it imports or opens.

They are derived from its text, without running it: imported modules, and strings that name a file,
such as those in `import_module(os.path.join(os.path.dirname(__file__), "layers.py"))`. The siblings
of a sibling are included.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator, Mapping

from common import storage
from common.errors import InputError

FILE_NAME = re.compile(r"[\w][\w./-]*\.(py|json|ya?ml|txt|csv|npy|npz|pt|pth|onnx)")
MOST_BYTES = 64 * 2**20  # size of all siblings together, because every run gets a copy of them

Siblings = dict[str, bytes]
"""Path relative to the network file's folder -> content."""


def read_siblings(place: str, source: str) -> Siblings:
    """Read the siblings of a network file.

    place: its path or s3:// address. source: its text. Raises InputError where the siblings are
    larger than MOST_BYTES.
    """
    folder = place.rpartition("/")[0] or "."
    siblings: Siblings = {}
    # (folder relative to that of the network file, text)
    pending = [("", source)]
    while pending:
        subfolder, text = pending.pop()
        for name in _names(text):
            path = posixpath.normpath(posixpath.join(subfolder, name))
            is_outside = path.startswith("..")
            if is_outside or path in siblings or storage.join(folder, path) == place:
                continue
            for file in _files(folder, path):
                siblings[file] = storage.read_bytes(storage.join(folder, file))
                if file.endswith(".py"):
                    text = storage.read_text(storage.join(folder, file))
                    pending.append((posixpath.dirname(file), text))
    size = sum(map(len, siblings.values()))
    if size > MOST_BYTES:
        raise InputError(
            f"{place}: the files beside it that it names ({', '.join(siblings)}) have"
            f" {size / 2**20:.0f} MiB together, more than {MOST_BYTES // 2**20}; name large files"
            " by an address of their own"
        )
    return dict(sorted(siblings.items()))


def _files(folder: str, path: str) -> list[str]:
    """Return the relative paths of the file, module or package `path` below `folder`.

    Empty without one.
    """
    place = storage.join(folder, path)
    if FILE_NAME.fullmatch(path):
        return [path] if storage.exists(place) else []
    if storage.exists(f"{place}.py"):
        return [f"{path}.py"]
    if not storage.exists(storage.join(place, "__init__.py")):
        return []
    start = storage.absolute(folder)
    entries = storage.glob(storage.join(place, "*.py"))
    return [entry.uri.removeprefix(start).lstrip("/") for entry in entries]


def _names(text: str) -> Iterator[str]:
    """Yield the relative paths of files, and names of modules, that a Python text may refer to."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the import will report it
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if FILE_NAME.fullmatch(node.value):
                yield node.value
        elif isinstance(node, ast.Call):
            # os.path.join(os.path.dirname(__file__), "parts", "layers.py")
            parts = [item.value for item in node.args if isinstance(item, ast.Constant)]
            texts = [part for part in parts if isinstance(part, str) and part]
            if len(texts) > 1 and FILE_NAME.fullmatch("/".join(texts)):
                yield "/".join(texts)


def write_siblings(siblings: Mapping[str, bytes], folder: str) -> None:
    """Write siblings below a folder or s3:// address."""
    for path, content in siblings.items():
        storage.write_bytes(storage.join(folder, path), content)
