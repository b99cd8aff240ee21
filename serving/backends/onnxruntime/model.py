"""Triton backend `onnxruntime` in Python: serves an unmodified repository on a CPU where Triton has
no libtriton_onnxruntime.so.

Triton starts one process a model instance and hands it the requests that the dynamic batcher put
together. They are run in pieces of at most PIECE jets, on as many threads as there are cores, each
piece on one: what a network of particles writes between its layers then stays in a core's cache,
threads do not wait for each other after every layer, and a request of a piece or more is run where
it lies, without a copy. What the C++ backend checks when it loads a model (names, types, dims) is
checked here too, in like words, so that a config.pbtxt that a cluster would refuse is refused on
one machine as well. The config must be complete: it is not filled in from the model. This file runs
inside Triton and imports nothing of this project.
"""

import ctypes
import functools
import json
import os
from concurrent import futures

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

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
}  # no strings and booleans: they do not pass through DLPack, see _tensor

# config.pbtxt's optimization.graph.level as the C++ backend reads it.
LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# Jets of one run. A particle flow network of 5 x 50 takes 20 us a jet on one core with 16 to 32, 23
# with 128, 30 with 1024.
PIECE = 32

TAKEN = b"used_dltensor"  # a module's constant: the capsule keeps the pointer, not the object
set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    def initialize(self, args):
        """Load the ONNX file and compare it with the configuration.

        Raises TritonModelException: Triton refuses the model.
        """
        config = json.loads(args["model_config"])
        self.max_batch = int(config["max_batch_size"])
        self.threads = thread_count(config)
        self.pool = futures.ThreadPoolExecutor(self.threads)
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        path = os.path.join(
            args["model_repository"],
            args["model_version"],
            config.get("default_model_filename") or "model.onnx",
        )
        try:
            self.session = ort.InferenceSession(
                path, session_options(config), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise pb.TritonModelException(f"unable to load '{path}': {error}") from error
        where = f"model '{args['model_name']}'"
        check(where, "input", self.session.get_inputs(), config["input"], self.max_batch)
        check(where, "output", self.session.get_outputs(), config["output"], self.max_batch)

    def execute(self, requests):
        """One response a request, in their order."""
        feeds = [
            {name: np.from_dlpack(pb.get_input_tensor_by_name(r, name)) for name in self.inputs}
            for r in requests
        ]
        try:
            answers = self._run(feeds)
        # one bad request must not fail its neighbours: find it by running each alone
        except Exception:
            if len(requests) > 1:
                pb.Logger.log_warn(
                    f"a batch of {len(requests)} requests failed; running them one by one"
                )
            answers = [self._run_alone(feed) for feed in feeds]
        return [
            self._respond(request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _run(self, feeds):
        """The outputs of each request."""
        if self.max_batch == 0:
            return [self.session.run(self.outputs, feed) for feed in feeds]
        counts = [len(feed[self.inputs[0]]) for feed in feeds]
        pieces = list(self._pieces(feeds, counts))
        run = functools.partial(self.session.run, self.outputs)
        each = self.pool.map if min(self.threads, len(pieces)) > 1 else map
        done = list(each(run, pieces))
        outputs = [np.concatenate(parts) for parts in zip(*done, strict=True)]
        ends = np.cumsum(counts)
        return [
            [output[end - count : end] for output in outputs]
            for count, end in zip(counts, ends, strict=True)
        ]

    def _pieces(self, feeds, counts):
        """What to run at once: small requests together, large ones in parts, so that the threads
        have equal shares.
        """
        most = min(PIECE, -(-sum(counts) // self.threads))
        for group in groups(counts, most):
            feed = {name: _joined([feeds[i][name] for i in group]) for name in self.inputs}
            jets = sum(counts[i] for i in group)
            for start in range(0, max(jets, 1), most or 1):
                yield {name: x[start : start + most] for name, x in feed.items()}

    def _run_alone(self, feed):
        try:
            return self._run([feed])[0]
        except Exception as error:
            return pb.TritonError(f"onnxruntime: {error}")

    def _respond(self, request, results):
        if isinstance(results, pb.TritonError):
            return pb.InferenceResponse(error=results)
        wanted = request.requested_output_names()
        return pb.InferenceResponse(
            [
                _tensor(name, result)
                for name, result in zip(self.outputs, results, strict=True)
                if name in wanted
            ]
        )


def groups(counts, most):
    """Indices of requests that follow each other, as many as have `most` jets together; at least
    one.
    """
    group, jets = [], 0
    for index, count in enumerate(counts):
        if group and jets + count > most:
            yield group
            group, jets = [], 0
        group.append(index)
        jets += count
    yield group


def _joined(arrays):
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def parameters(config):
    """The backend's parameters, by name."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def thread_count(config):
    """How many threads an instance works with: its share of the CPUs that this process may use,
    unless the configuration says.

    onnxruntime by itself would count the machine's CPUs, for each instance, and pin threads to
    them.
    """
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1
    return int(parameters(config).get("intra_op_thread_count", 0)) or max(
        len(os.sched_getaffinity(0)) // instances, 1
    )


def session_options(config):
    """onnxruntime's options from the configuration: graph level and the parameters that the C++
    backend knows too.
    """
    given = parameters(config)
    options = ort.SessionOptions()
    # Where jets can be divided among threads, no run needs several.
    options.intra_op_num_threads = 1 if int(config["max_batch_size"]) > 0 else thread_count(config)
    # Threads that spin while they wait would take the cores from the server itself, which here
    # shares them.
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", given.get("session.intra_op.allow_spinning", "0")
    )
    options.inter_op_num_threads = int(given.get("inter_op_thread_count", 0))
    if given.get("execution_mode", "0") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = LEVELS[
        int((config.get("optimization", {}).get("graph") or {}).get("level", 0))
    ]
    options.enable_cpu_mem_arena = given.get("enable_mem_arena", "1") == "1"
    options.enable_mem_pattern = given.get("enable_mem_pattern", "1") == "1"
    return options


def check(where, kind, nodes, entries, max_batch):
    """Compare the tensors of the model with those of the configuration; raise TritonModelException
    at the first that differs.
    """
    known = {node.name: node for node in nodes}
    if kind == "input" and len(entries) != len(nodes):
        raise pb.TritonModelException(
            f"{where}: the configuration has {len(entries)} inputs, the model {len(nodes)}:"
            f" {', '.join(known)}"
        )
    for entry in entries:
        name = entry["name"]
        if name not in known:
            raise pb.TritonModelException(
                f"{where}: unexpected {kind} '{name}', the model has: {', '.join(known)}"
            )
        if TYPES.get(known[name].type) != entry["data_type"]:
            raise pb.TritonModelException(
                f"{where}, {kind} '{name}': {entry['data_type']} in the configuration,"
                f" {known[name].type} in the model"
            )
        dims = [int(size) for size in (entry.get("reshape") or {}).get("shape", entry["dims"])]
        full = ([-1] if max_batch > 0 else []) + dims
        shape = [size if isinstance(size, int) else -1 for size in known[name].shape]
        fits = len(full) == len(shape) and all(
            a == b or -1 in (a, b) for a, b in zip(full, shape, strict=True)
        )
        if not fits or (max_batch > 0 and shape[0] != -1):
            raise pb.TritonModelException(
                f"{where}, {kind} '{name}': dims {dims} with max_batch_size {max_batch} mean the"
                f" shape {full}, the model has {shape}"
            )


def _tensor(name, array):
    """A Triton tensor by way of DLPack.

    The compiled stub is built against NumPy 1: with NumPy 2, pb.Tensor(name, array) silently sends
    0 bytes and as_numpy() is wrong. It also renames the capsule that it took to a name of its own,
    at which NumPy writes an error to stderr for each tensor; DLPack's name for a capsule that was
    taken keeps it quiet. The memory is released through the tensor either way.
    """
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb.Tensor.from_dlpack(name, capsule)
    set_capsule_name(capsule, TAKEN)
    return tensor
