"""Triton backend `onnxruntime` in Python, for a CPU where Triton has no libtriton_onnxruntime.so.

It serves an unmodified repository. Triton starts one process per model instance and passes it the
requests that the dynamic batcher combined. They run in pieces of at most PIECE jets, each piece on
one of as many threads as there are cores. So what a network of particles writes between its layers
stays in the cache of a core, threads do not wait for each other after every layer, and a request of
at least one piece is not copied. Each thread has a session of its own: two threads that share
one wait for each other where it allocates memory, which costs a small network 15 % of its rate.

What the C++ backend checks when it loads a model (names, types, dims) is checked here too, with
similar messages, so that a config.pbtxt that a cluster would refuse is also refused on one machine.
The config must be complete, because it is not filled in from the model. This file runs inside
Triton and imports nothing of this project.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

Config = dict[str, Any]
"""Triton's model configuration as JSON."""

Feed = Mapping[str, np.ndarray]
"""Inputs by name, with the jets in the first axis where the model takes batches."""

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(bool)": "TYPE_BOOL",
}  # no strings: they do not pass through DLPack, see as_tensor

# config.pbtxt's optimization.graph.level as the C++ backend reads it.
LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# Jets per run. A particle flow network of 5 x 50 takes 20 us a jet on one core with 16 to 32, 23
# with 128, 30 with 1024.
PIECE = 32

# DLPack's name for a capsule whose memory has another owner. It is a constant of the module,
# because the capsule stores only a pointer to it.
CONSUMED_CAPSULE = b"used_dltensor"
set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    """One instance of a model, as Triton's Python backend calls it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the ONNX file and compare it with the configuration.

        Raises:
            TritonModelException: If Triton must refuse the model.
        """
        config: Config = json.loads(args["model_config"])
        self.max_batch = int(config["max_batch_size"])
        self.threads = thread_count(config)
        self.pool = futures.ThreadPoolExecutor(self.threads)
        self.inputs: list[str] = [entry["name"] for entry in config["input"]]
        self.outputs: list[str] = [entry["name"] for entry in config["output"]]
        path = os.path.join(
            args["model_repository"],
            args["model_version"],
            config.get("default_model_filename") or "model.onnx",
        )
        load = functools.partial(
            ort.InferenceSession, path, session_options(config), providers=["CPUExecutionProvider"]
        )
        try:
            first = load()
            # Without batches there are no pieces, and all threads work on one execution.
            others = self.threads - 1 if self.max_batch else 0
            sessions = [first, *self.pool.map(lambda _: load(), range(others))]
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise pb.TritonModelException(f"unable to load '{path}': {error}") from error
        where = f"model '{args['model_name']}'"
        check(where, "input", first.get_inputs(), config["input"], self.max_batch)
        check(where, "output", first.get_outputs(), config["output"], self.max_batch)
        self.idle_sessions: queue.SimpleQueue[ort.InferenceSession] = queue.SimpleQueue()
        for session in sessions:
            self.idle_sessions.put(session)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request, in their order."""
        feeds = []
        for request in requests:
            feed = {}
            for name in self.inputs:
                # DLPack, because as_numpy() is wrong with NumPy 2, see as_tensor.
                feed[name] = np.from_dlpack(pb.get_input_tensor_by_name(request, name))
            feeds.append(feed)

        answers: list[Any] = []
        try:
            answers += self.run(feeds)
        # A bad request must not fail the others of its batch, so each runs alone.
        except Exception:
            if len(requests) > 1:
                pb.Logger.log_warn(
                    f"a batch of {len(requests)} requests failed; running them one by one"
                )
            for feed in feeds:
                try:
                    answers += self.run([feed])
                except Exception as error:
                    answers.append(pb.TritonError(f"onnxruntime: {error}"))

        responses = []
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, pb.TritonError):
                responses.append(pb.InferenceResponse(error=answer))
                continue
            names = request.requested_output_names()
            outputs = []
            for name, array in zip(self.outputs, answer, strict=True):
                if name in names:
                    outputs.append(as_tensor(name, array))
            responses.append(pb.InferenceResponse(outputs))
        return responses

    def run(self, feeds: Sequence[Feed]) -> list[list[np.ndarray]]:
        """Return the outputs of each request, in the order of `self.outputs`."""
        if self.max_batch == 0:
            return [self.run_piece(feed) for feed in feeds]
        counts = [len(feed[self.inputs[0]]) for feed in feeds]
        pieces = list(self.pieces(feeds, counts))
        # For one piece, or one thread, a pool would only add overhead.
        apply: Callable[..., Any] = self.pool.map if min(self.threads, len(pieces)) > 1 else map
        results = list(apply(self.run_piece, pieces))
        outputs = [np.concatenate(parts) for parts in zip(*results, strict=True)]

        # Split the outputs by request.
        answers = []
        end = 0
        for count in counts:
            start, end = end, end + count
            answers.append([output[start:end] for output in outputs])
        return answers

    def run_piece(self, feed: Feed) -> list[np.ndarray]:
        """Run an idle session; there are as many as threads."""
        session = self.idle_sessions.get()
        try:
            outputs: list[np.ndarray] = session.run(self.outputs, feed)
        finally:
            self.idle_sessions.put(session)
        return outputs

    def pieces(self, feeds: Sequence[Feed], counts: Sequence[int]) -> Iterator[Feed]:
        """Yield the inputs of each run: small requests combined, large ones split.

        All threads get equal shares.
        """
        piece_size = min(PIECE, -(-sum(counts) // self.threads))
        for group in groups(counts, piece_size):
            feed = {}
            for name in self.inputs:
                arrays = [feeds[index][name] for index in group]
                feed[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            jets = sum(counts[index] for index in group)
            for start in range(0, max(jets, 1), piece_size or 1):
                yield {name: array[start : start + piece_size] for name, array in feed.items()}


def groups(counts: Sequence[int], max_jets: int) -> Iterator[list[int]]:
    """Yield indices of consecutive requests with up to `max_jets` jets together.

    A request with more jets is a group by itself.
    """
    group: list[int] = []
    jets = 0
    for index, count in enumerate(counts):
        if group and jets + count > max_jets:
            yield group
            group = []
            jets = 0
        group.append(index)
        jets += count
    yield group


def parameters(config: Config) -> dict[str, str]:
    """Return the parameters of the configuration by name."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def thread_count(config: Config) -> int:
    """Return the number of threads of an instance.

    It is set by the configuration, or else the share of the instance of the CPUs that this process
    may use. By default onnxruntime would use all CPUs of the machine for each instance, and pin
    threads to them.
    """
    num_threads = int(parameters(config).get("intra_op_thread_count", 0))
    if num_threads:
        return num_threads
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", []))
    return max(len(os.sched_getaffinity(0)) // (instances or 1), 1)


def session_options(config: Config) -> ort.SessionOptions:
    """Return options of onnxruntime: graph level and the parameters of the C++ backend."""
    settings = parameters(config)
    options = ort.SessionOptions()
    # Jets are divided among threads, so that each run needs only one.
    options.intra_op_num_threads = 1 if int(config["max_batch_size"]) > 0 else thread_count(config)
    # Spinning threads would take cores from the server itself, which shares them.
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", settings.get("session.intra_op.allow_spinning", "0")
    )
    options.inter_op_num_threads = int(settings.get("inter_op_thread_count", 0))
    if settings.get("execution_mode", "0") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    graph = config.get("optimization", {}).get("graph") or {}
    options.graph_optimization_level = LEVELS[int(graph.get("level", 0))]
    options.enable_cpu_mem_arena = settings.get("enable_mem_arena", "1") == "1"
    options.enable_mem_pattern = settings.get("enable_mem_pattern", "1") == "1"
    return options


def check(
    where: str, kind: str, nodes: Sequence[Any], entries: Sequence[Config], max_batch: int
) -> None:
    """Compare the tensors of the model with those of the configuration.

    Raises:
        TritonModelException: If one of them differs.
    """
    nodes_by_name = {node.name: node for node in nodes}
    if kind == "input" and len(entries) != len(nodes):
        raise pb.TritonModelException(
            f"{where}: the configuration has {len(entries)} inputs, the model {len(nodes)}:"
            f" {', '.join(nodes_by_name)}"
        )
    for entry in entries:
        name = entry["name"]
        if name not in nodes_by_name:
            raise pb.TritonModelException(
                f"{where}: unexpected {kind} '{name}', the model has: {', '.join(nodes_by_name)}"
            )
        if TYPES.get(nodes_by_name[name].type) != entry["data_type"]:
            raise pb.TritonModelException(
                f"{where}, {kind} '{name}': {entry['data_type']} in the configuration,"
                f" {nodes_by_name[name].type} in the model"
            )
        reshape: Config = entry.get("reshape") or {}
        sizes = reshape["shape"] if "shape" in reshape else entry["dims"]
        dims = [int(size) for size in sizes]
        full = ([-1] if max_batch > 0 else []) + dims
        shape = [size if isinstance(size, int) else -1 for size in nodes_by_name[name].shape]
        fits = len(full) == len(shape) and all(
            a == b or -1 in (a, b) for a, b in zip(full, shape, strict=True)
        )
        if not fits or (max_batch > 0 and shape[0] != -1):
            raise pb.TritonModelException(
                f"{where}, {kind} '{name}': dims {dims} with max_batch_size {max_batch} mean the"
                f" shape {full}, the model has {shape}"
            )


def as_tensor(name: str, array: np.ndarray) -> Any:
    """Return an array of any shape as a Triton tensor, made with DLPack.

    The compiled stub is built against NumPy 1: with NumPy 2, pb.Tensor(name, array) silently sends
    0 bytes and as_numpy() is wrong. It also gives the capsule a name of its own, for which NumPy
    writes an error to stderr for each tensor; the name CONSUMED_CAPSULE avoids it. The memory is
    released through the tensor in either case.
    """
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb.Tensor.from_dlpack(name, capsule)
    set_capsule_name(capsule, CONSUMED_CAPSULE)
    return tensor
