"""Triton from a wheel: whether it can run here, and the files and environment to start it.

The binary of Triton is that of nvidia-pytriton, whose Python package is never imported. It has no
ONNX Runtime backend; the one in serving/backends/onnxruntime replaces it.
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
"""Temporary folders of the Python backend: in the library, and in our copy of it.

The first is a constant of the library (seen with Triton 2.51), so that a killed server leaves a
folder in /tmp that looks like that of any other server. The second has the same length and is below
the server's own folder, its working directory.
"""
MISSING = "(pip install --no-deps -r requirements-triton.lock)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel:
    """Files of the wheel, which are only read."""

    server: Path
    python_backend: Path
    stub: Path
    """Program in which the Python backend runs a model, built for one version of Python."""
    libraries: Path


def find() -> Wheel | None:
    """Return the installed wheel; None if there is none."""
    # This finds the folder without importing the package, which needs an older numpy.
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
    """Return why Triton cannot run here; empty if it can. Prepares `workdir` for it."""
    wheel = find()
    if wheel is None:
        return f"nvidia-pytriton is not installed {MISSING}"
    if not wheel.stub.is_file():
        return f"nvidia-pytriton has no backend for Python {PYTHON_VERSION}"
    if not os.access(SHARED_MEMORY, os.W_OK):
        return f"{SHARED_MEMORY} is not writable"

    # Both programs report a missing shared library or an old C library at once, and do nothing else
    # with these arguments.
    stub = assemble(wheel, Path(workdir)) / "python" / wheel.stub.name
    for program, arguments in ((wheel.server, ["--help"]), (stub, [])):
        result = subprocess.run(
            [program, *arguments],
            check=False,
            env=environment(wheel, Path(workdir)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        error = re.search(
            r"error while loading shared libraries.*|version `GLIBC\S* not found.*", result.stderr
        )
        if error:
            return f"{program.name}: {error.group(0).strip()}"
    return ""


def assemble(wheel: Wheel, workdir: Path) -> Path:
    """Copy the wheel's Python backend and our onnxruntime backend into one folder; return it.

    They are copied, because the stub must be executable beside its library and the folder of the
    wheel may be read-only. Each file is replaced by a rename, so that a running server keeps the
    files that it has open.
    """
    backends = workdir / "backends"
    files = {}
    for path in wheel.python_backend.iterdir():
        if path.is_file():
            files[f"python/{path.name}"] = path
    # The stub for this version of Python replaces the one in the folder.
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
    """Return the environment of Triton and its stub.

    The stub embeds Python: it finds the standard library through `python` on PATH, and packages
    through PYTHONPATH.
    """
    libraries = workdir / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    libpython = Path(
        sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or ""
    )
    # A folder with only this library: the lib folder of the interpreter may have others, which must
    # not replace those of the wheel.
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
