"""`import_module`, at the path where network files written for weaver-core import it from.

Such a file loads a Python file beside it: `import_module("layers.py").Block`.
"""

from __future__ import annotations

import importlib.util
import types


def import_module(path: str, name: str = "_mod") -> types.ModuleType:
    """Import the Python file at a path as a separate module, without adding it to sys.modules.

    Raises ImportError for a path without the ending of a Python file, and FileNotFoundError.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file", path=path)
    # not in sys.modules, as in weaver-core: two network files may each have a layers.py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
