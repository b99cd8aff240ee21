"""The real Triton from a wheel: whether it runs here, and the command that starts it.

Triton's binary is that of nvidia-pytriton, whose Python package is never imported. It has no ONNX
Runtime backend, so the one in serving/backends/onnxruntime takes its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from serving.server_folder import SHARED_MEMORY

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_BACKEND = "libtriton_python.so"
ENVIRONMENTS = (b"/tmp/python_env_", b".//./python_env_")
"""Where the Python backend makes a temporary folder at its start, and where its copy does.

The first is a constant of the library (seen with Triton 2.51), so that a server which is killed
leaves a folder in /tmp that nobody can tell from another server's. The second, of the same length,
is below the server's own folder, where it runs.
"""
MISSING = "(pip install --no-deps -r requirements-triton.lock)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel:
    """Where the wheel put things; nothing there is written to."""

    server: Path
    python_backend: Path
    stub: Path
    """The program in which the Python backend runs a model, made for one version of Python."""
    libraries: Path


def find() -> Wheel | None:
    """The installed wheel; None where there is none."""
    # This finds the folder without importing the package, which wants older numpy.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    return Wheel(
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub",
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def unusable(workdir: str | os.PathLike[str]) -> str:
    """Why Triton cannot run here, in a few words; empty if it can. Prepares `workdir` for it."""
    wheel = find()
    if wheel is None:
        return f"nvidia-pytriton is not installed {MISSING}"
    if not wheel.stub.is_file():
        return f"nvidia-pytriton has no backend for Python {PYTHON_VERSION}"
    if not os.access(SHARED_MEMORY, os.W_OK):
        return f"{SHARED_MEMORY} is not writable"

    # Both tell a missing shared library or too old a C library at once and do nothing else when
    # called like this.
    stub = assemble(wheel, Path(workdir)) / "python" / wheel.stub.name
    for program, arguments in ((wheel.server, ["--help"]), (stub, [])):
        done = subprocess.run(
            [program, *arguments],
            check=False,
            env=environment(wheel, Path(workdir)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        error = re.search(
            r"error while loading shared libraries.*|version `GLIBC\S* not found.*", done.stderr
        )
        if error:
            return f"{program.name}: {error.group(0).strip()}"
    return ""


def assemble(wheel: Wheel, workdir: Path) -> Path:
    """Copy the wheel's Python backend and our onnxruntime backend into one folder; returns it.

    Copies, since the stub has to lie executable beside its library and the wheel's folder may be
    read-only. Each file is replaced by renaming, so that a server that runs from the same folder
    keeps the one that it has open.
    """
    backends = workdir / "backends"
    files = {}
    for path in wheel.python_backend.iterdir():
        if path.is_file():
            files[f"python/{path.name}"] = path
    # The stub of this Python replaces whichever lies there.
    files[f"python/{wheel.stub.name}"] = wheel.stub
    ours = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
    files["onnxruntime/model.py"] = ours

    for name, source in files.items():
        target = backends / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        content = source.read_bytes()
        if source.name == PYTHON_BACKEND and content.count(ENVIRONMENTS[0]) == 1:
            content = content.replace(*ENVIRONMENTS)
        temporary.write_bytes(content)
        temporary.chmod(0o755)
        os.replace(temporary, target)
    return backends


def environment(wheel: Wheel, workdir: Path) -> dict[str, str]:
    """The environment of Triton and its stub.

    The stub embeds Python: it finds the standard library by `python` on PATH and the packages by
    PYTHONPATH.
    """
    libraries = workdir / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    libpython = Path(
        sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or ""
    )
    # A folder with this one library: the interpreter's own lib folder may hold others that must not
    # replace the wheel's.
    link = libraries / libpython.name
    if libpython.is_file() and ".so" in libpython.name and not link.exists():
        with contextlib.suppress(FileExistsError):
            link.symlink_to(libpython)
    packages = []
    for path in sys.path:
        if path.rstrip("/").endswith(("site-packages", "dist-packages")):
            packages.append(path)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{wheel.libraries}:{libraries}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(packages),
    }
