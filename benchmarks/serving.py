"""Measure how fast the exported networks answer, in ONNX Runtime and through Triton.

Our form of the networks is compared with the published form, both in ONNX Runtime; Triton is
compared with ONNX Runtime in process.

    python -m benchmarks.serving                      # everything, a few minutes; writes
        benchmarks/results/serving-*
    python -m benchmarks.serving --parts runtime      # or: variants, triton-pfn, triton-particlenet
    python -m benchmarks.serving --run RUN            # a run's own two models, side by side

Load on Triton comes from NVIDIA's perf_analyzer if it is on the PATH (it is in the wheel
tritonclient 2.51.0, and needs libb64 and libcudart), else from a process of our own client, whose
Python takes much of the CPU time that it shares with the server.

Weights are random and jets are generated numbers: neither changes the work. The networks have the
sizes of the published study's best trials (ParticleNet: 3 blocks, k 16, 3 x 50, then 3 x 200; PFN:
5 x 50, then 3 x 400; 100 particles). Both forms of a network hold the same weights, are exported by
the same exporter, and run in the same ONNX Runtime with as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Report, Spread, alternate, ratio
from common.machine import cores, free_port
from common.project import ROOT

LENGTH = 100
GROUPS = {"pf_points": 2, "pf_features": 6, "pf_mask": 1, "jet_features": 8}
NETWORKS: dict[str, tuple[str, dict[str, int]]] = {
    "ParticleNet": ("particle_net_regressor_open.py", {"conv_dim": 50, "fc_dim": 200}),
    "PFN": ("pfn_regressor_open.py", {"num_conv_layers": 5, "conv_dim": 50, "fc_dim": 400}),
}
BATCHES = (1, 100, 1000)
SECONDS = 0.3  # of one run, at least; one batch of 1000 jets may take longer
CONCURRENCY = 16
LOAD_SECONDS = 2.5
ANALYZER = "perf_analyzer"
WINDOW_MS = 500
PIECE = 32  # as in serving/backends/onnxruntime/model.py, which cannot be imported outside Triton
IN_PIECES = "in pieces"
RATES = ("Triton", "in process", "in process, in pieces", "empty model")
# jets a request: one, an event's or a file's
REQUESTS = {"ParticleNet": (1, 32), "PFN": (1, 32, 128, 256)}
SHARED_MEMORY = "shared memory"  # of client and server, announced over HTTP
WAYS = ("HTTP", "gRPC", SHARED_MEMORY)

# A model for Triton's Python backend that does nothing; tensors.py is our backend, for how it makes
# an answer.
EMPTY = "empty"
EMPTY_MODEL = """
import importlib.util, pathlib
import numpy as np
import triton_python_backend_utils as pb

path = pathlib.Path(__file__).with_name("tensors.py")
spec = importlib.util.spec_from_file_location("tensors", path)
tensors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tensors)


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            count = pb.get_input_tensor_by_name(request, "jet_features").shape()[0]
            zeros = tensors._tensor("output", np.zeros((count, 1), np.float32))
            responses.append(pb.InferenceResponse([zeros]))
        return responses
"""

Inputs = dict[str, np.ndarray]


# ------------------------------------------------------------------------------ networks and jets


def build(name: str, **more: Any):
    """(model, model_info, data config) of a network with random weights."""
    import torch

    from benchmarks.published import settle
    from weaver.network.network_file import load_network

    file, options = NETWORKS[name]
    groups = [group for group in GROUPS if group != "pf_points" or name == "ParticleNet"]
    shapes = {
        g: (-1, GROUPS[g]) if g == "jet_features" else (-1, GROUPS[g], LENGTH) for g in groups
    }
    config = types.SimpleNamespace(input_names=groups, input_shapes=shapes)
    torch.manual_seed(0)
    model, info = load_network(str(ROOT / "networks" / file)).build(config, {**options, **more})
    return settle(model), info, config


def jets(config: Any, count: int, seed: int = 1) -> Inputs:
    """`count` jets with 10 to 100 particles of random features."""
    rng = np.random.default_rng(seed)
    real = (np.arange(LENGTH) < rng.integers(10, LENGTH + 1, count)[:, None])[:, None].astype(
        np.float32
    )
    network = {
        group: (
            rng.normal(size=(count, *shape[1:])).astype(np.float32)
            * (1 if len(shape) == 2 else real)
        )
        for group, shape in config.input_shapes.items()
    }
    return network | {"pf_mask": real}


def export_pair(name: str, folder: Path) -> tuple[dict[str, Path], Any]:
    """The same function in our form and in the published one, as two ONNX files."""
    from benchmarks.published import plain_form
    from weaver.onnx.onnx_export import export_onnx

    model, info, config = build(name, **({"use_counts": False} if name == "ParticleNet" else {}))
    forms = {"ours": model, "published form": plain_form(model)}
    return {
        form: export_onnx(network, info, config, folder / f"{name}-{form}.onnx")
        for form, network in forms.items()
    }, config


def rate(run: Callable[[], Any], count: int) -> Callable[[], float]:
    """A contender: jets a second over at least SECONDS."""

    def measure_once() -> float:
        """Run for SECONDS; return jets/s."""
        start, num_jets = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            run()
            num_jets += count
        return num_jets / (time.perf_counter() - start)

    return measure_once


def apart(answers: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Largest and median difference, and the share of jets within the gate's 1e-5.

    Both arrays are (N, C): C outputs of N jets.
    """
    difference = np.abs(answers.astype(np.float64) - expected).max(axis=1)
    return {
        "largest": float(difference.max()),
        "median": float(np.median(difference)),
        "share": float(np.mean(difference <= 1e-5)),
    }


# -------------------------------------------------------------------------------------- the parts


def runtime(report: Report, rounds: int) -> None:
    """Our form against the published one, in ONNX Runtime."""
    from weaver.onnx.parity import session

    rows, data, notes = [], {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            paths, config = export_pair(name, Path(folder))
            sessions = {form: session(path) for form, path in paths.items()}
            inputs = jets(config, max(BATCHES))
            answers = {form: model.run(None, inputs)[0] for form, model in sessions.items()}
            close = apart(answers["ours"], answers["published form"])
            notes.append(
                f"{name}: the two forms agree within {close['largest']:.1e} (median"
                f" {close['median']:.1e}) on 1,000 jets"
            )
            for batch in BATCHES:
                feed = {key: x[:batch] for key, x in inputs.items()}
                runs = alternate(
                    {form: rate(_runner(model, feed), batch) for form, model in sessions.items()},
                    rounds,
                )
                gain = ratio(runs["ours"], runs["published form"])
                rows.append(
                    [
                        name,
                        batch,
                        *(Spread.of(runs[form]).text() for form in sessions),
                        gain.text(".2f"),
                    ]
                )
                data[f"{name} {batch}"] = runs
    columns = ["network", "batch", "ours, jets/s", "published form, jets/s", "ratio"]
    report.section("ONNX Runtime, float32", columns=columns, rows=rows, notes=notes, runs=data)


def _runner(session: Any, feed: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    return lambda: session.run(None, feed)


def variants(report: Report, rounds: int) -> None:
    """What lower precision would give, and how far its answers are off."""
    rows, data = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            runners, config = _variants(name, Path(folder))
            inputs = jets(config, 100)
            expected = runners["float32"](inputs)
            contenders = {
                label: rate(lambda run=run, feed=inputs: run(feed), 100)
                for label, run in runners.items()
            }
            runs = data[name] = alternate(contenders, rounds)
            for label, run in runners.items():
                off = apart(run(inputs), expected)
                gain = ratio(runs[label], runs["float32"])
                texts = (f"{off[key]:.1e}" for key in ("largest", "median"))
                rows.append([name, label, Spread.of(runs[label]).text(), gain.text(".2f"), *texts])
    notes = [
        (
            "batch 100; differences are of log(pT_gen/pT) from ONNX Runtime's float32; the gate"
            " allows 1e-3 to any jet and 1e-5 to 99.9 %"
        ),
        (
            "int8: dynamic quantisation of all matrix products and convolutions (for the latter"
            " ONNX Runtime has only a slow kernel); ONNX Runtime has no bfloat16 kernels for x86:"
            " bf16 is torch's"
        ),
    ]
    columns = [
        "network",
        "variant",
        "jets/s",
        "to float32",
        "largest difference",
        "median difference",
    ]
    report.section("lower precision", columns=columns, rows=rows, notes=notes, runs=data)


def _variants(name: str, folder: Path) -> tuple[dict[str, Callable[[Inputs], np.ndarray]], Any]:
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from weaver.onnx.onnx_export import export_onnx
    from weaver.onnx.parity import session, torch_answers

    model, info, config = build(name)
    paths = {label: folder / f"{name}-{label}.onnx" for label in ("float32", "int8", "float16")}
    export_onnx(model, info, config, paths["float32"])
    quantize_dynamic(paths["float32"], paths["int8"], weight_type=QuantType.QInt8)
    onnx.save(
        convert_float_to_float16(onnx.load(paths["float32"]), keep_io_types=True), paths["float16"]
    )
    sessions = {label: session(path) for label, path in paths.items()}
    runners = {
        label: lambda feed, model=model: model.run(None, feed)[0]
        for label, model in sessions.items()
    }

    def bf16(feed: Inputs) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return torch_answers(model, info["input_names"], feed)

    runners["torch float32"] = lambda feed: torch_answers(model, info["input_names"], feed)
    return runners | {"torch bf16": bf16}, config


def measure_triton(report: Report, rounds: int, name: str) -> None:
    """A network in Triton with dynamic batching against ONNX Runtime in process.

    ONNX Runtime has the batch that Triton made of the requests.
    """
    from serving import triton

    with tempfile.TemporaryDirectory() as folder:
        if why_not := triton.triton_unusable(folder):
            print(f"no Triton here: {why_not}", file=sys.stderr)
            return
        _measure_triton(report, name, rounds, Path(folder))


def _measure_triton(report: Report, name: str, rounds: int, folder: Path) -> None:
    has_analyzer = bool(shutil.which(ANALYZER))
    ways = WAYS if has_analyzer else ("HTTP",)
    client = "perf_analyzer" if has_analyzer else "a Python client"
    data = _measure_cases(
        name, [(request, way) for request in REQUESTS[name] for way in ways], rounds, folder
    )
    rows = []
    for label, runs in data.items():
        rates = (Spread.of(runs[key]).text() for key in RATES)
        pairs = (
            ("Triton", "in process"),
            ("Triton", "in process, in pieces"),
            ("empty model", "in process"),
        )
        ratios = (ratio(runs[first], runs[other]).text(".2f") for first, other in pairs)
        rows.append(
            [*label.split(" over "), Spread.of(runs["mean batch"]).text(".1f"), *rates, *ratios]
        )
    notes = [
        (
            f"{CONCURRENCY} requests at a time from {client} on kept connections; server, client"
            " and model share the cores"
        ),
        (
            "in process: one onnxruntime session with all cores, run on batches of the mean size"
            " that Triton made of the requests"
        ),
        (
            f"in process, in pieces: the same batches run as our backend for Triton does, {PIECE}"
            " jets at a time on each core by itself; at more than about 100 jets of the PFN that"
            " alone is quicker than a single run, since the pieces stay in the cores' caches"
        ),
        (
            "empty model: the same requests to a model of Triton's Python backend that answers"
            " zeros without looking at its inputs: what client, protocol, queue and the way into"
            " the backend's process and back leave of these cores, whatever the model. Where that"
            " alone is near the rate in process, or below, the ratio says what a request costs, not"
            " what the model does"
        ),
    ]
    rates = [f"{key}, jets/s" for key in RATES]
    columns = [
        "jets a request",
        "by",
        "mean batch",
        *rates,
        "ratio",
        "ratio to pieces",
        "empty model's ratio",
    ]
    report.section(
        f"Triton on this machine: {name}", columns=columns, rows=rows, notes=notes, runs=data
    )


def _measure_cases(
    name: str, cases: list[tuple[int, str]], rounds: int, folder: Path
) -> dict[str, dict[str, list[float]]]:
    """Rates and the mean batch of each case, `rounds` times in turn.

    Triton waits without work while the other is measured.
    """
    from serving import triton
    from weaver.onnx.parity import session

    onnx_path, config = _repository(name, folder / name)
    in_process = functools.partial(session(onnx_path).run, None)
    in_pieces = pieces(onnx_path)
    repository = onnx_path.parents[2]
    runs = {
        f"{request} over {way}": {key: [] for key in (*RATES, "mean batch")}
        for request, way in cases
    }
    port = free_port()
    server = triton.start(
        os.fspath(repository),
        model_name=name.lower(),
        log=folder / "server.log",
        kind="triton",
        options=("--allow-grpc=true", "--grpc-address=127.0.0.1", f"--grpc-port={port}"),
    )
    try:
        for _ in range(rounds):
            for request, way in cases:
                rate_of_triton, batch = _load(server.url, name.lower(), request, way, port)
                empty, _ = _load(server.url, EMPTY, request, way, port)
                feed = jets(config, max(round(batch), 1))
                local = [
                    rate(lambda run=run, feed=feed: run(feed), len(feed["pf_mask"]))()
                    for run in (in_process, in_pieces)
                ]
                for key, value in zip(
                    (*RATES, "mean batch"), (rate_of_triton, *local, empty, batch), strict=True
                ):
                    runs[f"{request} over {way}"][key].append(value)
                print(
                    f"{name} {request} over {way}: {rate_of_triton:,.0f} jets/s;"
                    f" in process {local[0]:,.0f}",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        triton.stop(server.pid, seconds=0.5)
    return runs


def pieces(onnx_path: Path) -> Callable[[Inputs], Any]:
    """A batch run in pieces, each on a core by itself, as serving/backends/onnxruntime does."""
    from weaver.onnx.runtime import session

    idle_sessions: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(cores()):
        idle_sessions.put(session(onnx_path, threads=1))
    pool = ThreadPoolExecutor(cores())

    def run_piece(feed: Inputs) -> Any:
        idle_session = idle_sessions.get()
        try:
            return idle_session.run(None, feed)
        finally:
            idle_sessions.put(idle_session)

    def run(feed: Inputs) -> list[Any]:
        count = len(next(iter(feed.values())))
        most = min(PIECE, -(-count // cores()))
        parts = [
            {name: x[start : start + most] for name, x in feed.items()}
            for start in range(0, count, most)
        ]
        return list(pool.map(run_piece, parts)) if len(parts) > 1 else [run_piece(feed)]

    return run


def _repository(name: str, folder: Path) -> tuple[Path, Any]:
    """A Triton repository with one network and the empty model.

    Returns the network's ONNX file, and the data config.
    """
    from serving import backends
    from weaver.onnx.onnx_export import export_onnx
    from weaver.onnx.triton_config import LOCAL_INSTANCES, parse_config, triton_config

    model, info, config = build(name)
    path = folder / name.lower() / "1" / "model.onnx"
    empty = folder / EMPTY / "1"
    for folder_of_version in (path.parent, empty):
        folder_of_version.mkdir(parents=True)
    export_onnx(model, info, config, path)
    text = triton_config(
        path, name.lower(), warmup=(1, 100), device="cpu", instances=LOCAL_INSTANCES
    )
    (path.parents[1] / "config.pbtxt").write_text(text)
    message = parse_config(text)
    message.name, message.backend, message.default_model_filename = EMPTY, "python", "model.py"
    (empty.parent / "config.pbtxt").write_text(str(message))
    shutil.copy(Path(backends.__path__[0], "onnxruntime", "model.py"), empty / "tensors.py")
    (empty / "model.py").write_text(EMPTY_MODEL)
    return path, config


def _load(url: str, model: str, request: int, way: str, grpc_port: int) -> tuple[float, float]:
    """Jets a second and the mean batch that Triton ran, under load from another process."""
    before = _statistics(url, model)
    rate_of_requests = (
        _analyzer_rate(url, model, request, way, grpc_port)
        if shutil.which(ANALYZER)
        else _client_rate(url, model, request)
    )
    inferences, executions = (
        after - b for after, b in zip(_statistics(url, model), before, strict=True)
    )
    return rate_of_requests, inferences / executions


def _analyzer_rate(url: str, model: str, request: int, way: str, grpc_port: int) -> float:
    """Jets a second as perf_analyzer counts them, mean of three windows."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "rates.csv")
        address = (
            ["-i", "grpc", "-u", f"127.0.0.1:{grpc_port}"]
            if way == "gRPC"
            else ["-i", "http", "-u", url.removeprefix("http://")]
        )
        command = [
            ANALYZER,
            "-m",
            model,
            *address,
            "-b",
            str(request),
            "-f",
            os.fspath(table),
            "--input-data",
            "random",
        ]
        # Three windows whatever their spread: that is what the rounds are for.
        command += [
            "--concurrency-range",
            str(CONCURRENCY),
            "-p",
            str(WINDOW_MS),
            "-r",
            "3",
            "-s",
            "999",
        ]
        command += (
            ["--shared-memory", "system", "--output-shared-memory-size", str(4 * request)]
            if way == SHARED_MEMORY
            else []
        )
        _output_of(command)
        with table.open(newline="") as rows:
            return float(next(csv.DictReader(rows))["Inferences/Second"])


def _client_rate(url: str, model: str, request: int) -> float:
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving",
        "--load",
        url,
        "--model",
        model,
        "--request",
        str(request),
    ]
    return json.loads(_output_of(command))["rate"]


def _output_of(command: list[str]) -> str:
    process = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"{command[0]}: {process.stdout[-500:]} {process.stderr[-2000:]}")
    return process.stdout


def _statistics(url: str, model: str) -> tuple[int, int]:
    """Inferences, and executions of batches, since Triton has started."""
    from jec_client.connection import Connections

    reply = Connections(url, 10.0).request(f"/v2/models/{model}/stats", None, {})
    stats = json.loads(reply.content)["model_stats"][0]
    return stats["inference_count"], stats["execution_count"]


def load(url: str, model: str, request: int) -> None:
    """CONCURRENCY threads that send the next request as soon as the last is answered.

    Prints the rate after a second of warming up. A thread ends with RuntimeError at the first
    answer that is no success.
    """
    from jec_client.connection import Connections
    from serving import golden

    connections = Connections(url, 60.0)
    metadata = json.loads(connections.request(f"/v2/models/{model}", None, {}).content)
    shapes = {entry["name"]: entry["shape"] for entry in metadata["inputs"]}
    body, headers = golden.to_binary(jets(types.SimpleNamespace(input_shapes=shapes), request))
    request_counts = [0] * CONCURRENCY
    ends = time.perf_counter() + 1 + LOAD_SECONDS

    def ask(index: int) -> None:
        while time.perf_counter() < ends:
            reply = connections.request(f"/v2/models/{model}/infer", body, headers)
            if reply.status != 200:
                raise RuntimeError(reply.content[:300])
            request_counts[index] += 1

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    start, before = time.perf_counter(), sum(request_counts)
    time.sleep(LOAD_SECONDS - 0.2)
    seconds = time.perf_counter() - start
    print(json.dumps({"rate": (sum(request_counts) - before) * request / seconds}))
    for thread in threads:
        thread.join()


def measure_run(report: Report, rounds: int, run: str) -> None:
    """A run's own two models, the one that takes features and the raw one, on its golden jets.

    Both take jets that are decoded and in memory. The 100 golden jets of each model, of the
    validation set, are repeated to the batch.
    """
    from common.layout import RAW_SUFFIX, RunFolder
    from common.records import ExportRecord, TrialOptions
    from serving import golden
    from weaver.onnx.runtime import session

    folder = RunFolder(run)
    record = ExportRecord.load(folder.export)
    if record.raw is None:
        raise SystemExit(f"{run} has no raw model: {record.raw_reason}")
    names = (record.model, record.model + RAW_SUFFIX)
    requests = {}
    for name in names:
        body = json.loads(Path(folder.golden(name), "request-100.json").read_text())
        requests[name] = golden.arrays(body["inputs"])
    rows, data = [], {}
    ways = {f"{threads} threads": threads for threads in sorted({1, cores()})}
    ways = {"1 thread" if threads == 1 else label: threads for label, threads in ways.items()}
    for way in (*ways, IN_PIECES):
        if way == IN_PIECES:
            runners = {name: pieces(folder.onnx(name)) for name in names}
        else:
            runners = {
                name: functools.partial(session(folder.onnx(name), threads=ways[way]).run, None)
                for name in names
            }
        for batch in (1, 32, 1000):
            contenders = {}
            for name, run_model in runners.items():
                jets_of = np.arange(batch) % 100
                feed = {key: np.ascontiguousarray(x[jets_of]) for key, x in requests[name].items()}
                contenders[name] = rate(functools.partial(run_model, feed), batch)
            runs = data[f"batch {batch}, {way}"] = alternate(contenders, rounds)
            features, raw = runs.values()
            spreads = (Spread.of(of_model).text() for of_model in (features, raw))
            rows.append([way, batch, *spreads, ratio(raw, features).text(".2f")])
    places = max(x.shape[1] for x in requests[record.model + RAW_SUFFIX].values())
    options = TrialOptions.load(folder.options(record.trial)).network_options or {}
    size = " ".join(f"{key} {value}" for key, value in options.items())
    notes = [
        f"{Path(folder.uri).name}: {record.model}, {size}",
        f"jets of up to {places} particles; {os.cpu_count()} cores",
        (
            f"{IN_PIECES}: as our backend for Triton runs a batch, at most {PIECE} jets at a time,"
            " one piece on each core"
        ),
    ]
    report.section(
        f"The two models of a run: {size}",
        columns=["run", "batch", "features, jets/s", "raw jets, jets/s", "ratio"],
        rows=rows,
        notes=notes,
        runs=data,
    )


PARTS = {"runtime": runtime, "variants": variants} | {
    f"triton-{name.lower()}": functools.partial(measure_triton, name=name) for name in NETWORKS
}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what to measure (default: all)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="runs of each contender, in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--run", metavar="FOLDER", help="measure the two models of this run instead"
    )
    parser.add_argument("--dry", action="store_true", help="print, write no files")
    for name in ("--load", "--model", "--request"):  # the client's process
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.load:
        load(options.load, options.model, int(options.request))
        return 0
    report = Report("serving", "The exported networks: ONNX Runtime and Triton")
    if options.run:
        measure_run(report, options.rounds, options.run)
        if not options.dry:
            report.save()
        return 0
    for part in options.parts:
        PARTS[part](report, options.rounds)
        if not options.dry:
            report.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
