"""`import_module`, under the path from which network files written for weaver-core import it."""

from __future__ import annotations

import importlib.util
import types


def import_module(path: str, name: str = "_mod") -> types.ModuleType:
    """The module that a Python file is, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
