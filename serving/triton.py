"""A model server on this machine: the real Triton from a wheel, or kserve's own model server where
Triton cannot run.

    server = start("runs/x/model", model_name="pfn", log="server.log", workdir="work")
    ...                                    # server.url + "/v2/models/pfn/infer"
    stop(server.pid)

Triton's binary is that of nvidia-pytriton (its Python package is never imported). It has no ONNX
Runtime backend, so the one in serving/backends/onnxruntime takes its place; the repository is the
one that a cluster loads, unchanged. The server is reachable from this machine only and outlives the
process that started it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from common import storage
from common.errors import ClusterError, DeadlineError, InputError, unknown
from serving.client import Client
from weaver.onnx.triton_config import LOCAL

HOST = "127.0.0.1"
KINDS = ("auto", "triton", "kserve-server")
# a free port may be taken by another process between the choice and the server's own bind
PORT_ATTEMPTS = 4
# seconds; Triton needs about 3 here, kserve's imports about 10, a loaded machine several times that
START_DEADLINE = 120.0
KILL_SECONDS = 5  # a killed process is gone at once, unless the machine is short of breath
STOP_SECONDS = 10  # for requests in flight when the server is told to stop
_PORT_TAKEN = re.compile(
    r"address already in use|failed to start HTTP service|Errno 98", re.IGNORECASE
)
# In the environment of a server and so of its children: by these a process is known to be ours, and
# to which start it belongs.
WORKDIR, IDENTITY = "JEC_SERVER_WORKDIR", "JEC_SERVER_ID"

# those started by this very process: they need to be waited for when they end
_children: dict[int, subprocess.Popen] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is ready."""

    pid: int
    """Of the server, which leads a process group of its own."""
    url: str
    kind: str
    """'triton' or 'kserve-server'."""
    log: str
    reason: str = ""
    """Why it is not Triton."""


def start(
    repository_dir: str,
    *,
    model_name: str,
    log: str | os.PathLike,
    workdir: str | os.PathLike,
    http_port: int = 0,
    deadline: float = START_DEADLINE,
    kind: str = "auto",
    options: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Server:
    """Start a server over a Triton repository (a directory or s3:// URI) and return when
    `model_name` is ready.

    log: file for the server's output. workdir: folder for what the server needs beside the
    repository; made where missing. http_port: 0 picks a free one. deadline: seconds. kind:
    'triton', 'kserve-server', or 'auto' for the first that can run here; why it is not Triton goes
    to `report` and into the log. options: further ones for Triton's command line, such as
    ("--allow-grpc=true",). Raises InputError for a repository without the model, ClusterError with
    the server's own words if it ended, and DeadlineError.
    """
    if kind not in KINDS:
        raise InputError(unknown("kind of server", kind, KINDS))
    workdir = Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    repository = _repository(repository_dir, model_name, workdir)
    why_not = (
        triton_unusable(workdir)
        if kind == "auto"
        else ""
        if kind == "triton"
        else "it was asked for"
    )
    plan = _Plan(
        kind="kserve-server" if why_not else "triton",
        repository=repository,
        model=model_name,
        log=Path(log).absolute(),
        workdir=workdir,
        ends=time.monotonic() + deadline,
        deadline=deadline,
        options=tuple(options),
    )
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    plan.log.write_text("")
    if why_not:
        _say(plan, f"serving with kserve's model server instead of Triton: {why_not}", report)
    pid, port = _start_on_a_port(plan, http_port, report)
    return Server(
        pid=pid, url=f"http://{HOST}:{port}", kind=plan.kind, log=str(plan.log), reason=why_not
    )


def stop(pid: int, *, seconds: float = STOP_SECONDS) -> bool:
    """End a server and its children: asked first, killed after `seconds`. False if nothing of such
    a server runs (any more).

    A process that is no server of ours keeps running: the pid in an old service.json may belong to
    another by now.
    """
    members = _members(pid)
    running = is_running(pid)
    if running:
        os.kill(pid, signal.SIGTERM)
        _wait_while(lambda: is_running(pid), seconds)
    # What is left: a server that did not end by itself, and its backend processes, which survive a
    # server that was killed.
    left = list(_members(pid))
    for member in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    _wait_while(lambda: any(map(_lives, {*left, *members})), KILL_SECONDS)
    _reap(pid)
    for identity in set(members.values()):
        # shared memory of a killed backend process
        for region in Path("/dev/shm").glob(f"{identity}*"):
            region.unlink(missing_ok=True)
    return running or bool(members)


def is_running(pid: int) -> bool:
    """True if the process exists, has not ended, and is a server that this module started."""
    if pid in _children:
        # its environment cannot be read for a moment after the start
        return _children[pid].poll() is None
    return pid in _members(pid)


def _members(leader: int) -> dict[int, str]:
    """Living processes of the group that a server leads or led -> the server's identity; empty if
    the group is another's.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # after the name, which may hold anything
            _, _, group = path.read_text().rsplit(")", 1)[1].split()[:3]
            # empty for one that ended
            environment = path.with_name("environ").read_bytes() if int(group) == leader else b""
            if match := re.search(rb"(?:^|\0)" + IDENTITY.encode() + rb"=([^\0]+)", environment):
                found[int(path.parent.name)] = match.group(1).decode()
    return found


def _lives(pid: int) -> bool:
    """True until the process has ended.

    One that is ending has no environment any more, but may hold its ports for a moment.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while condition() and time.monotonic() < ends:
        time.sleep(0.02)


def triton_unusable(workdir: str | os.PathLike) -> str:
    """Why Triton cannot run here, in a few words; empty if it can. Prepares `workdir` for it."""
    triton = _find_triton()
    if triton is None:
        return (
            "nvidia-pytriton is not installed (pip install --no-deps -r requirements-triton.lock)"
        )
    if not triton.stub.is_file():
        return f"nvidia-pytriton has no backend for Python {_python_version()}"
    if not os.access("/dev/shm", os.W_OK):
        return "/dev/shm is not writable"
    backends = _assemble(triton, Path(workdir))
    # Both tell a missing shared library or too old a C library at once and do nothing else when
    # called like this.
    for program, arguments in (
        (triton.server, ["--help"]),
        (backends / "python" / triton.stub.name, []),
    ):
        done = subprocess.run(
            [program, *arguments],
            env=_environment(triton, Path(workdir)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        trouble = re.search(
            r"error while loading shared libraries.*|version `GLIBC\S* not found.*", done.stderr
        )
        if trouble:
            return f"{program.name}: {trouble.group(0).strip()}"
    return ""


# ---------------------------------------------------------------------------------------- a start


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    kind: str
    repository: Path
    model: str
    log: Path
    workdir: Path
    ends: float
    """On time.monotonic()'s clock."""
    deadline: float
    options: tuple[str, ...] = ()


class _PortTaken(Exception):
    pass


def _repository(uri: str, model: str, workdir: Path) -> Path:
    """The repository as a local directory. Raises InputError if it lacks the model."""
    uri = storage.absolute(os.fspath(uri))
    if storage.is_s3(uri):
        folder = workdir / "repository"
        shutil.rmtree(folder, ignore_errors=True)
        uri = os.fspath(storage.download(uri, folder))
    models = [path.parent.name for path in sorted(Path(uri).glob("*/config.pbtxt"))]
    if model not in models:
        raise InputError(f"{uri}: {unknown('model', model, models)}")
    return Path(uri)


def _start_on_a_port(plan: _Plan, http_port: int, report) -> tuple[int, int]:
    """Returns pid and port of a server that is ready."""
    for attempt in range(1, PORT_ATTEMPTS + 1):
        port = http_port or _free_port()
        _say(plan, f"starting {plan.kind} for model {plan.model} on http://{HOST}:{port}", report)
        identity = f"jec-{uuid.uuid4().hex[:12]}"
        process = _launch(plan, port, identity)
        try:
            _wait_until_ready(plan, process, port, identity)
            return process.pid, port
        except _PortTaken:
            stop(process.pid)
            if http_port or attempt == PORT_ATTEMPTS:
                raise ClusterError(
                    f"port {port} on {HOST} is in use by another process; give another one"
                ) from None
        except BaseException:
            stop(process.pid, seconds=2)
            raise
    raise AssertionError("unreachable")


def _launch(plan: _Plan, port: int, identity: str) -> subprocess.Popen:
    command, env = (
        _triton_command(plan, port, identity)
        if plan.kind == "triton"
        else _kserve_command(plan, port, identity)
    )
    env |= {WORKDIR: str(plan.workdir), IDENTITY: identity}
    with open(plan.log, "ab") as output:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=plan.workdir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[process.pid] = process
    return process


def _wait_until_ready(plan: _Plan, process: subprocess.Popen, port: int, identity: str) -> None:
    client = Client(f"http://{HOST}:{port}", plan.model, timeout=2.0)
    while True:
        # The identity tells our server from a stranger's on the same port that has a model of the
        # same name.
        ready = client.ready() and client.server_name() == identity
        if process.poll() is not None:
            _raise_ended(plan, process.returncode)
        if ready:
            return
        if time.monotonic() > plan.ends:
            raise DeadlineError(
                f"model {plan.model} was not ready within {plan.deadline:.0f} s; last lines of"
                f" {plan.log}:\n{_last_lines(plan.log)}"
            )
        time.sleep(0.1)


def _raise_ended(plan: _Plan, returncode: int) -> None:
    text = plan.log.read_text(errors="replace").rsplit("starting ", 1)[-1]  # of the last attempt
    if _PORT_TAKEN.search(text):
        raise _PortTaken
    words = _errors(text) or _last_lines(plan.log)
    raise ClusterError(
        f"{plan.kind} ended with exit code {returncode} before model {plan.model} was"
        f" ready:\n{words}\n(log: {plan.log})"
    )


def _errors(text: str) -> str:
    """The error lines of a log:

    Triton's (severity E), those of its protobuf parser, and our own.
    """
    found = re.findall(
        r"^(?:E\d{4} [^\]]*\]|\[libprotobuf ERROR [^\]]*\]|error:) *(.*)", text, re.MULTILINE
    )
    # Triton writes "At: file(line): function" of the Python backend into the same line, and a word
    # on CUDA wherever there is none.
    found = [
        line.split("\\n\\nAt:")[0].strip('"') for line in found if "CudaDriverHelper" not in line
    ]
    # says what the lines before it say
    loading = [line for line in found if line.startswith("failed to load")]
    return "\n".join(dict.fromkeys(loading or found))


def _last_lines(path: Path, count: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])


def _say(plan: _Plan, line: str, report: Callable[[str], None]) -> None:
    with open(plan.log, "a") as output:
        output.write(line + "\n")
    report(line)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return sock.getsockname()[1]


def _reap(pid: int) -> None:
    process = _children.pop(pid, None)
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


# ----------------------------------------------------------------------------------------- Triton


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Triton:
    """Where the wheel put things; nothing there is written to."""

    server: Path
    python_backend: Path
    stub: Path
    libraries: Path


def _find_triton() -> _Triton | None:
    # finds the folder without importing the package, which wants older numpy
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    return _Triton(
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / _python_version() / "triton_python_backend_stub",
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _assemble(triton: _Triton, workdir: Path) -> Path:
    """The backend directory: the wheel's Python backend and, beside it, our onnxruntime backend.
    Returns its path.

    Copies, since the stub has to lie executable beside its library and the wheel's folder may be
    read-only. Each file is replaced by renaming, so that a server that runs from the same folder
    keeps the one that it has open.
    """
    backends = workdir / "backends"
    ours = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
    files = {
        f"python/{path.name}": path for path in triton.python_backend.iterdir() if path.is_file()
    }
    files |= {f"python/{triton.stub.name}": triton.stub, "onnxruntime/model.py": ours}
    for name, source in files.items():
        target = backends / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, temporary)
        temporary.chmod(0o755)
        os.replace(temporary, target)
    return backends


def _environment(triton: _Triton, workdir: Path) -> dict[str, str]:
    """The stub embeds Python: it finds the standard library by `python` on PATH and the packages by
    PYTHONPATH.
    """
    libraries = workdir / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    libpython = Path(
        sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or ""
    )
    # A folder with this one library: the interpreter's own lib folder may hold others that must not
    # replace the wheel's.
    if (
        libpython.is_file()
        and ".so" in libpython.name
        and not (libraries / libpython.name).exists()
    ):
        with contextlib.suppress(FileExistsError):
            (libraries / libpython.name).symlink_to(libpython)
    packages = [
        path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))
    ]
    return os.environ | {
        "LD_LIBRARY_PATH": f"{triton.libraries}:{libraries}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(packages),
    }


def _triton_command(plan: _Plan, port: int, identity: str) -> tuple[list[str], dict[str, str]]:
    triton = _find_triton()
    if triton is None:
        raise ClusterError(
            "Triton is not installed; pip install --no-deps -r requirements-triton.lock"
        )
    command = [
        os.fspath(triton.server),
        f"--id={identity}",
        f"--model-repository={plan.repository}",
        f"--backend-directory={_assemble(triton, plan.workdir)}",
        f"--backend-config=python,shm-region-prefix-name={identity}",
        "--disable-auto-complete-config",  # what a repository needs must stand in its config.pbtxt
        # a model with configs/local.pbtxt is served by that; the others by their config.pbtxt
        f"--model-config-name={LOCAL}",
        f"--http-address={HOST}",
        f"--http-port={port}",
        *([] if "--allow-grpc=true" in plan.options else ["--allow-grpc=false"]),
        "--allow-metrics=false",
        f"--exit-timeout-secs={STOP_SECONDS}",
        *plan.options,
    ]
    return command, _environment(triton, plan.workdir)


# -------------------------------------------------------------------------- kserve's model server


def _kserve_command(plan: _Plan, port: int, identity: str) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, "-u", "-m", "serving.kserve_server"]
    command += [
        "--repository",
        os.fspath(plan.repository),
        "--name",
        plan.model,
        "--http-port",
        str(port),
        "--id",
        identity,
    ]
    path = [os.fspath(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return command, os.environ | {"PYTHONPATH": os.pathsep.join(path)}
