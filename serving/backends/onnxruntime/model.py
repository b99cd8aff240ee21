"""Triton backend `onnxruntime` in Python: serves an unmodified repository on a CPU where Triton has no libtriton_onnxruntime.so.

Triton starts one process a model instance and hands it the requests that the dynamic batcher put together; they are concatenated
along the batch axis, run once and split again. What the C++ backend checks when it loads a model (names, types, dims) is checked here
too, in like words, so that a config.pbtxt that a cluster would refuse is refused on one machine as well. The config must be complete: it
is not filled in from the model. This file runs inside Triton and imports nothing of this project.
"""

import ctypes
import json
import os

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

TAKEN = b"used_dltensor"  # a module's constant: the capsule keeps the pointer, not the object
set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    def initialize(self, args):
        """Load the ONNX file and compare it with the configuration. Raises TritonModelException: Triton refuses the model."""
        config = json.loads(args["model_config"])
        self.max_batch = int(config["max_batch_size"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        path = os.path.join(args["model_repository"], args["model_version"], config.get("default_model_filename") or "model.onnx")
        try:
            self.session = ort.InferenceSession(path, session_options(config), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise pb.TritonModelException(f"unable to load '{path}': {error}") from error
        where = f"model '{args['model_name']}'"
        check(where, "input", self.session.get_inputs(), config["input"], self.max_batch)
        check(where, "output", self.session.get_outputs(), config["output"], self.max_batch)

    def execute(self, requests):
        feeds = [{name: np.from_dlpack(pb.get_input_tensor_by_name(r, name)) for name in self.inputs} for r in requests]
        if len(requests) > 1 and self.max_batch > 0:
            try:
                return self._run_together(requests, feeds)
            except Exception:  # one bad request must not fail its neighbours: find it by running each alone
                pb.Logger.log_warn(f"a batch of {len(requests)} requests failed; running them one by one")
        return [self._run_alone(request, feed) for request, feed in zip(requests, feeds, strict=True)]

    def _run_together(self, requests, feeds):
        results = self.session.run(self.outputs, {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs})
        cuts = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
        parts = zip(*(np.split(result, cuts) for result in results), strict=True)
        return [self._respond(request, part) for request, part in zip(requests, parts, strict=True)]

    def _run_alone(self, request, feed):
        try:
            return self._respond(request, self.session.run(self.outputs, feed))
        except Exception as error:
            return pb.InferenceResponse(error=pb.TritonError(f"onnxruntime: {error}"))

    def _respond(self, request, results):
        wanted = request.requested_output_names()
        return pb.InferenceResponse([_tensor(name, result) for name, result in zip(self.outputs, results, strict=True) if name in wanted])


def session_options(config):
    """onnxruntime's options from the configuration: graph level and the parameters that the C++ backend knows too."""
    given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = ort.SessionOptions()
    # 0 means "choose": then the CPUs that this process may use, since onnxruntime itself counts the machine's and pins its threads.
    options.intra_op_num_threads = int(given.get("intra_op_thread_count", 0)) or len(os.sched_getaffinity(0))
    # Threads that spin while they wait would take the cores from the server itself, which here shares them.
    options.add_session_config_entry("session.intra_op.allow_spinning", given.get("session.intra_op.allow_spinning", "0"))
    options.inter_op_num_threads = int(given.get("inter_op_thread_count", 0))
    if given.get("execution_mode", "0") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = LEVELS[int((config.get("optimization", {}).get("graph") or {}).get("level", 0))]
    options.enable_cpu_mem_arena = given.get("enable_mem_arena", "1") == "1"
    options.enable_mem_pattern = given.get("enable_mem_pattern", "1") == "1"
    return options


def check(where, kind, nodes, entries, max_batch):
    """Compare the tensors of the model with those of the configuration; raise TritonModelException at the first that differs."""
    known = {node.name: node for node in nodes}
    if kind == "input" and len(entries) != len(nodes):
        raise pb.TritonModelException(f"{where}: the configuration has {len(entries)} inputs, the model {len(nodes)}: {', '.join(known)}")
    for entry in entries:
        name = entry["name"]
        if name not in known:
            raise pb.TritonModelException(f"{where}: unexpected {kind} '{name}', the model has: {', '.join(known)}")
        if TYPES.get(known[name].type) != entry["data_type"]:
            raise pb.TritonModelException(
                f"{where}, {kind} '{name}': {entry['data_type']} in the configuration, {known[name].type} in the model"
            )
        dims = [int(size) for size in (entry.get("reshape") or {}).get("shape", entry["dims"])]
        full = ([-1] if max_batch > 0 else []) + dims
        shape = [size if isinstance(size, int) else -1 for size in known[name].shape]
        fits = len(full) == len(shape) and all(a == b or -1 in (a, b) for a, b in zip(full, shape, strict=True))
        if not fits or (max_batch > 0 and shape[0] != -1):
            raise pb.TritonModelException(
                f"{where}, {kind} '{name}': dims {dims} with max_batch_size {max_batch} mean the shape {full}, the model has {shape}"
            )


def _tensor(name, array):
    """A Triton tensor by way of DLPack.

    The compiled stub is built against NumPy 1: with NumPy 2, pb.Tensor(name, array) silently sends 0 bytes and as_numpy() is wrong.
    It also renames the capsule that it took to a name of its own, at which NumPy writes an error to stderr for each tensor; DLPack's
    name for a capsule that was taken keeps it quiet. The memory is released through the tensor either way.
    """
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb.Tensor.from_dlpack(name, capsule)
    set_capsule_name(capsule, TAKEN)
    return tensor
