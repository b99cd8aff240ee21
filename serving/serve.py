"""Serve the models of a run, or of a model repository, from this machine until Ctrl-C.

python -m serving.serve runs/latest
python -m serving.serve s3://bucket/jec/RUN_ID s3://bucket/models --port 9000

It starts the server alone, trains and measures nothing, and writes nothing into a run's folder.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import shlex
import signal
import socket
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import storage
from common.cli import Parser, port_number, run_main, stop_signals, word
from common.errors import (
    ClusterError,
    FullDiskError,
    InputError,
    InterruptedRun,
    StorageError,
)
from common.layout import DEFAULT_OUTPUT, RAW_SUFFIX, RunFolder
from common.records import ModelCard
from serving import restarts, server_folder, triton

DEFAULT_PORT = 8000
MAX_PLACES = 3  # in an error
GIVE_A_PLACE = (
    "give the folder of a run (it has run.json) or a model repository (NAME/config.pbtxt,"
    " NAME/1/model.onnx)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model to serve."""

    name: str
    folder: str
    """A directory or s3:// URI."""
    request: str = ""
    """URI of a request of one real jet; empty where there is none."""
    warning: str = ""
    card: str = ""
    """URI of its model card; empty where there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """Address and ports of the server. 0 picks a free port for HTTP, and disables the others."""

    host: str = triton.HOST
    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def options(self) -> list[str]:
        """Return Triton's flags for gRPC and metrics."""
        options = []
        if self.grpc:
            options += [
                "--allow-grpc=true",
                f"--grpc-address={self.host}",
                f"--grpc-port={self.grpc}",
            ]
        if self.metrics:
            options += [
                "--allow-metrics=true",
                f"--metrics-address={self.host}",
                f"--metrics-port={self.metrics}",
            ]
        return options


def models_at(place: str) -> list[Model]:
    """Return the models of a run, of a model repository, or of the folder of a single model.

    Raises:
        InputError: If `place` is none of them, or a model in it is incomplete.
    """
    place = storage.absolute(place)
    if storage.exists(storage.join(place, "run.json")):
        run = RunFolder(place)
        folders = triton.models_of(run.models) if storage.exists(run.models) else {}
        if not folders:
            raise InputError(
                f"{place} has no exported model yet; resume the run: {run.resume_command}"
            )
        return _models(folders, run, _refusal(run))
    if storage.exists(storage.join(place, "config.pbtxt")):
        repository, _, name = place.rpartition("/")
        return _models({name: place}, RunFolder(repository.rpartition("/")[0]), "")
    folders = {}
    problem = f"there is nothing at {place}"
    if storage.exists(place):
        folders = triton.models_of(place)
        problem = (
            f"{place} is neither a run nor a model repository: it has no run.json and no"
            " NAME/config.pbtxt"
        )
    if not folders:
        others = " or ".join(_places_near(place))
        cure = f"did you mean {others}?" if others else GIVE_A_PLACE
        raise InputError(f"{problem}; {cure}")
    return _models(folders, RunFolder(place.rpartition("/")[0]), "")


def _places_near(place: str) -> list[str]:
    """Return runs and models that a user may mean by a place that is none, the nearest first.

    They are the folder above a file or a version of a model, and on this machine the runs in the
    place, or of its name in ./runs.
    """
    above = place
    for _ in range(3):  # from NAME/1/model.onnx to NAME
        above = above.rpartition("/")[0]
        if above.rpartition("/")[0] in ("", "s3:/"):
            break  # a bucket, or a folder of the whole disk
        if any(storage.exists(storage.join(above, file)) for file in ("config.pbtxt", "run.json")):
            return [above]
    if not storage.is_local(place):
        return []
    pattern = storage.join(glob.escape(place), "*", "run.json")
    runs = [entry.uri.removesuffix("/run.json") for entry in storage.glob(pattern)]
    name = storage.name(place)
    of_name = storage.join(place.removesuffix(name), DEFAULT_OUTPUT, name)
    if storage.exists(storage.join(of_name, "run.json")):
        runs.append(of_name)
    return sorted(runs)[:MAX_PLACES]


def _models(folders: dict[str, str], run: RunFolder, warning: str) -> list[Model]:
    models = []
    names_on_card = _names_on_card(run)
    for name, folder in folders.items():
        files = {entry.uri[len(folder) + 1 :] for entry in storage.entries(folder)}
        versions = {file.split("/")[0] for file in files if file.endswith("/model.onnx")}
        if not any(version.isdigit() for version in versions):
            raise InputError(
                f"the model {name} at {folder} is not complete: there is no {name}/1/model.onnx"
            )
        request = storage.join(run.golden(name), "request.json")
        models.append(
            Model(
                name=name,
                folder=folder,
                request=request if storage.exists(request) else "",
                warning=warning,
                card=run.card_page if name in names_on_card else "",
            )
        )
    # the model that a run is about before its raw one
    return sorted(models, key=lambda model: (model.name.endswith(RAW_SUFFIX), model.name))


def _names_on_card(run: RunFolder) -> list[str]:
    """Return the models that the card beside them describes; none if it cannot be read."""
    try:
        card = ModelCard.find(run.card)
    except (InputError, StorageError):  # damaged, of another version, or not readable
        return []
    return [] if card is None else card.models


def _refusal(run: RunFolder) -> str:
    """Return a line if the gate refused the model of a run, or did not judge it; else empty.

    Only two fields of metrics.json are read, because files of earlier versions may lack others, and
    a model without a readable verdict is served as well.
    """
    try:
        metrics = storage.find_json(run.metrics)
    except (InputError, StorageError) as error:
        return f"{error}: nobody knows how good the model of {run.uri} is"
    if metrics is None:
        return f"{run.uri} was not evaluated: nobody knows how good its model is"
    if not isinstance(metrics, dict) or not isinstance(metrics.get("passed"), bool):
        return f"{run.metrics} has no verdict: nobody knows how good the model of {run.uri} is"
    if not metrics["passed"]:
        reasons = "; ".join(map(str, metrics.get("reasons", [])))
        return f"the gate refused the model of {run.uri}: {reasons}"
    return ""


def served_already(models: Sequence[Model]) -> dict[str, server_folder.Running]:
    """Return the running server of each model that this user serves already, by folder."""
    servers_by_folder = {}
    for running in server_folder.running():
        folders = {_real(folder) for folder in running.models.values()}
        for model in models:
            if _real(model.folder) in folders:
                servers_by_folder[model.folder] = running
    return servers_by_folder


def _report_served(
    models: Sequence[Model], servers_by_folder: Mapping[str, server_folder.Running]
) -> None:
    """Print where all these models are served already.

    Raises:
        InputError: If only some of them are.
    """
    names_by_pid: dict[int, list[str]] = {}
    text_by_pid = {}
    others = []
    for model in models:
        running = servers_by_folder.get(model.folder)
        if running is None:
            others.append(model.name)
            continue
        pid = running.pid_to_kill
        names_by_pid.setdefault(pid, []).append(model.name)
        text_by_pid[pid] = f"already served at {running.url} (pid {pid})"
    if len(text_by_pid) == 1 and not others:
        print(*text_by_pid.values())
        return
    lines = [f"{', '.join(names)}: {text_by_pid[pid]}" for pid, names in names_by_pid.items()]
    if others:
        pids = " ".join(map(str, names_by_pid))
        raise InputError(
            f"{'; '.join(lines)}; to serve {', '.join(others)} give its place alone, or first end"
            f" what runs: kill {pids}"
        )
    print(*lines, sep="\n")


def _real(folder: str) -> str:
    return os.path.realpath(folder) if storage.is_local(folder) else folder


def serve(places: Sequence[str], ports: Ports) -> None:
    """Serve the models at these places until SIGTERM or Ctrl-C.

    Returns at once if they are served already. A server that ends by itself is restarted a few
    times.

    Raises:
        InputError: If they cannot be served; nothing was started then.
        ClusterError: If the server has ended too often.
    """
    models: list[Model] = []
    for place in places:
        models += models_at(place)
    folder_of: dict[str, str] = {}
    for model in models:
        first = folder_of.setdefault(model.name, model.folder)
        if _real(first) != _real(model.folder):
            raise InputError(
                f"two models have the name {model.name}: {first} and {model.folder}; serve them by"
                " two commands"
            )
    models = list({model.name: model for model in models}.values())

    servers_by_folder = served_already(models)
    if servers_by_folder:
        _report_served(models, servers_by_folder)
        return
    for warning in dict.fromkeys(model.warning for model in models if model.warning):
        print(f"warning: {warning}", file=sys.stderr)
    ports = _checked(ports)

    for number in stop_signals():
        if number != signal.SIGINT:  # it raises KeyboardInterrupt
            signal.signal(number, _interrupt)
    # folder of this process, which others remove if this process is killed
    folder = server_folder.create()
    log = folder.path / "server.log"
    servers: list[triton.Server] = []

    def restart() -> int:
        ports_again = dataclasses.replace(ports, http=urlsplit(servers[0].url).port or 0)
        try:
            servers.append(_start_server(models, ports_again, log))
        except FullDiskError:
            raise
        # it was served before, so that the input is not wrong
        except (InputError, StorageError) as error:
            raise ClusterError(f"the model server does not start again: {error}") from None
        print(f"the server runs again (pid {servers[-1].pid})", flush=True)
        return servers[-1].pid

    try:
        servers.append(_start_server(models, ports, log))
        print(_usage(servers[0], models, ports, folder.path), flush=True)
        restarts.keep_running(servers[0].pid, restart, log=log, report=_warn)
    except (InterruptedRun, KeyboardInterrupt):
        if not servers:  # it was never ready
            raise
        print("the server has ended", flush=True)
    finally:
        if servers:
            triton.stop(servers[-1].pid)
        folder.leave()
        server_folder.remove_abandoned()


def _start_server(models: Sequence[Model], ports: Ports, log: Path) -> triton.Server:
    """Start a server and return it when it is ready.

    Raises:
        InputError: If it cannot load the models, with the error of the server.
    """

    def start(http_port: int) -> triton.Server:
        return triton.start_models(
            {model.name: model.folder for model in models},
            log=log,
            host=ports.host,
            http_port=http_port,
            options=ports.options(),
            report=lambda line: print(line, flush=True) if "instead of" in line else None,
            owner=os.getpid(),
        )

    try:
        try:
            server = start(ports.http or _default_port(ports))
        except triton.PortInUse:
            if ports.http:
                raise
            server = start(0)  # another process has just taken the usual port
    except triton.ServerEnded as error:
        names = ", ".join(model.name for model in models)
        raise InputError(f"the server cannot load {names}: {error.words}") from None
    except triton.PortInUse as error:
        raise InputError(str(error)) from None
    if server.reason and (ports.grpc or ports.metrics):
        triton.stop(server.pid)
        raise InputError(
            f"--grpc-port and --metrics-port need Triton, which cannot run here: {server.reason}"
        )
    return server


def _usage(server: triton.Server, models: Sequence[Model], ports: Ports, folder: Path) -> str:
    """Return lines with commands for requests to the server."""
    url = server.url
    if ports.host == triton.ANY_ADDRESS:
        url = url.replace(triton.HOST, socket.gethostname())
    name, request = models[0].name, models[0].request
    curl = "curl -s --noproxy '*'" if _uses_proxy(url) else "curl -s"
    lines = [f"{', '.join(model.name for model in models)}: served by {server.kind} at {url}"]
    cards = dict.fromkeys(model.card for model in models if model.card)
    lines += [f"model card: {card}" for card in cards]
    host = urlsplit(url).hostname
    if ports.grpc:
        lines.append(f"gRPC at {host}:{ports.grpc}")
    if ports.metrics:
        lines.append(f"metrics at http://{host}:{ports.metrics}/metrics")
    if request:
        file = _local(request, folder / "request.json")
        lines += [
            "",
            "ask it about one jet:",
            f"  {curl} {url}/v2/models/{name}/infer -d @{shlex.quote(file)}",
            "",
            "  import json",
            "  from jec_client import Client",
            f"  print(Client({url!r}, {name!r}).infer(json.load(open({file!r}))))",
        ]
    else:
        lines += [
            "",
            "what it takes and gives:",
            f"  {curl} {url}/v2/models/{name}",
            "",
            "  from jec_client import Client",
            f"  print(Client({url!r}, {name!r}).metadata())",
        ]
    raw = [model for model in models if model.name.endswith(RAW_SUFFIX)]
    if raw:
        lines += ["", *_calibration(url, raw[0], folder)]
    return "\n".join([*lines, "", "Ctrl-C ends it"])


def _calibration(url: str, model: Model, folder: Path) -> list[str]:
    """Return lines of Python that calibrate jets with a model of columns."""
    lines = ["calibrate jets with the columns of a file (docs/using-the-model.md):"]
    if not model.request:
        return [
            *lines,
            "  from jec_client import Client",
            f"  Client({url!r}, {model.name!r}).calibrate('FILE.root:TREE')",
        ]
    file = _local(model.request, folder / "raw-request.json")
    return [
        *lines,
        "  import json, numpy, pathlib",
        "  from jec_client import Client",
        f"  inputs = json.loads(pathlib.Path({file!r}).read_text())['inputs']  # of one jet",
        "  jets = {x['name']: numpy.reshape(x['data'], x['shape']) for x in inputs}",
        f"  print(Client({url!r}, {model.name!r}).calibrate(jets).tolist())",
    ]


def _uses_proxy(url: str) -> bool:
    """Return whether curl would send a request for this server to a proxy of the environment."""
    proxies = urllib.request.getproxies()
    host = urlsplit(url).hostname or ""
    return bool({"http", "all"} & set(proxies)) and not urllib.request.proxy_bypass(host)


def _local(request: str, copy: Path) -> str:
    """Return the request as a file of this machine."""
    return request if storage.is_local(request) else str(storage.download(request, copy))


def _checked(ports: Ports) -> Ports:
    """Return the ports with the number of the host's address, because Triton takes no names.

    Raises:
        InputError: If the host is not an IPv4 address of this machine, a port is in use, or two
            ports are equal.
    """
    if ":" in ports.host:
        raise InputError(
            f"--host {ports.host} is an IPv6 address or has a port; give an IPv4 address, such as"
            f" {triton.HOST}, and the port with --port"
        )
    try:
        ports = dataclasses.replace(ports, host=socket.gethostbyname(ports.host))
        _bind(ports.host, 0)
    # UnicodeError: a part of the host's name is too long
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {ports.host} is not an address of this machine: {_reason(error)}; give"
            f" {triton.HOST}, or {triton.ANY_ADDRESS} for all its addresses"
        ) from None
    flag_by_port: dict[int, str] = {}
    for flag, port in (
        ("--port", ports.http),
        ("--grpc-port", ports.grpc),
        ("--metrics-port", ports.metrics),
    ):
        if not port:
            continue
        other = flag_by_port.setdefault(port, flag)
        if other != flag:
            raise InputError(f"{other} and {flag} are both {port}; give two ports")
        try:
            _bind(ports.host, port)
        except OSError as error:
            raise InputError(
                f"cannot listen at {ports.host}:{port}: {_reason(error)}; give another {flag}"
            ) from None
    return ports


def _bind(host: str, port: int) -> None:
    """Take a port for a moment; port 0 tries the host alone. Raises OSError if it is not free."""
    with socket.socket() as listener:
        # a port whose last server has just ended is free
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))


def _reason(error: OSError | UnicodeError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _default_port(ports: Ports) -> int:
    """Return Triton's usual port for HTTP if it is free, else 0."""
    try:
        _checked(dataclasses.replace(ports, http=DEFAULT_PORT))
    except InputError:
        return 0
    return DEFAULT_PORT


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _interrupt(*_: Any) -> None:
    raise InterruptedRun("by a signal")


def main(argv: list[str] | None = None) -> int:
    """Serve what the command line names until Ctrl-C, and return the exit code."""
    parser = Parser(prog="python -m serving.serve", description=__doc__)
    parser.add_argument(
        "places",
        nargs="+",
        type=word,
        metavar="RUN_OR_REPOSITORY",
        help="folder or s3:// URI of a run, or of a model repository (NAME/config.pbtxt)",
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=0,
        metavar="PORT",
        help=f"port of HTTP (default: {DEFAULT_PORT}, or a free one if that is in use)",
    )
    parser.add_argument(
        "--grpc-port",
        type=port_number,
        default=0,
        metavar="PORT",
        help="port of gRPC (default: none)",
    )
    parser.add_argument(
        "--metrics-port",
        type=port_number,
        default=0,
        metavar="PORT",
        help="port of Prometheus metrics (default: none)",
    )
    parser.add_argument(
        "--host",
        type=word,
        default=triton.HOST,
        metavar="ADDRESS",
        help=(
            "address to listen at; 0.0.0.0 also accepts requests from other machines"
            " (default: %(default)s)"
        ),
    )
    options = parser.parse_args(argv)
    ports = Ports(
        host=options.host,
        http=options.port,
        grpc=options.grpc_port,
        metrics=options.metrics_port,
    )

    def body() -> None:
        try:
            serve(options.places, ports)
        except FullDiskError:
            raise
        except StorageError as error:  # nothing was started
            raise InputError(str(error)) from None

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
