"""An ONNX file as a model of kserve's own server, configured by the config.pbtxt beside it.

kserve parses sys.argv while it is imported, so serving.kserve_server imports this module only after
it has parsed and removed its own arguments.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastapi
import kserve.model_server
import onnxruntime
from google.protobuf import json_format
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.utils.numpy_codec import from_np_dtype

from common.errors import ClusterError, InputError
from weaver.onnx.triton_config import GRAPH_LEVELS, check_config, messages


class RESTServer(kserve.model_server.RESTServer):  # type: ignore[misc]  # kserve has no types
    """kserve's REST server, bound to one address.

    kserve binds to all addresses and has no option for it.
    """

    host = "127.0.0.1"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Listen on `host`, which kserve ignores."""
        super().__init__(*args, **kwargs)
        self.config.host = self.host

    def _register_endpoints(self, app: fastapi.FastAPI) -> None:
        """Add Triton's route to the config.pbtxt of a model, which has the range of valid jets.

        kserve has no public way to add a route; its version is pinned.
        """
        super()._register_endpoints(app)

        def config(name: str) -> dict[str, Any]:
            model = self.dataplane.get_model_from_registry(name)  # raises ModelNotFound: 404
            return dict(json_format.MessageToDict(model.config, preserving_proto_field_name=True))

        app.add_api_route("/v2/models/{name}/config", config, methods=["GET"])


class OnnxModel(Model):  # type: ignore[misc]  # kserve has no types
    """The highest version of a model in a Triton repository, run by onnxruntime."""

    def __init__(self, repository: Path, name: str) -> None:
        """Load the model and its config.pbtxt.

        Raises:
            InputError: If config.pbtxt does not match the file.
            ClusterError: If onnxruntime cannot load the file.
        """
        super().__init__(name)
        self.session, self.config = load(repository, name)
        self.inputs = self._tensors(self.config.input)
        self.outputs = self._tensors(self.config.output)
        self.ready = True

    def _tensors(self, entries: Any) -> dict[str, tuple[str, list[int]]]:
        """Return datatype and shape (-1 for a free size) of config entries, by name."""
        tensors = {}
        for entry in entries:
            # Triton's TYPE_FP32 is the protocol's FP32, its TYPE_STRING the protocol's BYTES.
            datatype = messages().DataType.Name(entry.data_type).removeprefix("TYPE_")
            shape = list(entry.dims)
            if self.config.max_batch_size > 0:
                shape = [-1, *shape]  # dims leave the axis of the jets out
            tensors[entry.name] = ("BYTES" if datatype == "STRING" else datatype, shape)
        return tensors

    def get_input_types(self) -> list[Mapping[str, object]]:
        """Return kserve's metadata of the inputs."""
        return _metadata_of(self.inputs)

    def get_output_types(self) -> list[Mapping[str, object]]:
        """Return kserve's metadata of the outputs."""
        return _metadata_of(self.outputs)

    def predict(
        self, payload: InferRequest, headers: Mapping[str, str] | None = None
    ) -> InferResponse:
        """Answer a request.

        Raises:
            InvalidInput: If Triton would refuse it.
        """
        if not isinstance(payload, InferRequest):
            raise InvalidInput("send requests of protocol v2, to /v2/models/<name>/infer")
        tensors = {tensor.name: tensor for tensor in payload.inputs}
        self._check(tensors)
        feed = {name: tensors[name].as_numpy() for name in self.inputs}
        results = self.session.run(list(self.outputs), feed)

        outputs = []
        for name, array in zip(self.outputs, results, strict=True):
            datatype = from_np_dtype(array.dtype)
            output = InferOutput(name=name, shape=list(array.shape), datatype=datatype)
            # JSON has no infinity, which kserve would send as null
            output.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or uuid.uuid4().hex,  # required by kserve's response model
            model_name=self.name,
            model_version="1",
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
        )

    def _check(self, tensors: Mapping[str, InferInput]) -> None:
        """Compare a request with the configuration.

        Raises:
            InvalidInput: If they differ.
        """
        if set(tensors) != set(self.inputs):
            raise InvalidInput(
                f"model '{self.name}' takes the inputs {', '.join(self.inputs)}; the request"
                f" has {', '.join(tensors)}"
            )
        max_batch_size = self.config.max_batch_size
        for name, (datatype, shape) in self.inputs.items():
            tensor = tensors[name]
            what = f"input '{name}' of model '{self.name}'"
            if tensor.datatype != datatype:
                raise InvalidInput(f"{what} is {datatype}, the request has {tensor.datatype}")
            fits = len(tensor.shape) == len(shape) and all(
                size in (-1, actual) for size, actual in zip(shape, tensor.shape, strict=True)
            )
            if not fits:
                raise InvalidInput(
                    f"unexpected shape for {what}. Expected {shape}, got {tensor.shape}"
                )
            if max_batch_size and tensor.shape[0] > max_batch_size:
                raise InvalidInput(
                    f"batch size {tensor.shape[0]} of the request is larger than max_batch_size"
                    f" {max_batch_size} of '{self.name}'"
                )

        sizes = {tensor.shape[0] for tensor in tensors.values()}
        if max_batch_size > 0 and len(sizes) > 1:
            raise InvalidInput(
                f"the inputs of model '{self.name}' differ in their number of jets: {sorted(sizes)}"
            )


def _metadata_of(tensors: Mapping[str, tuple[str, list[int]]]) -> list[Mapping[str, object]]:
    metadata: list[Mapping[str, object]] = []
    for name, (datatype, shape) in tensors.items():
        metadata.append({"name": name, "datatype": datatype, "shape": shape})
    return metadata


def load(repository: Path, name: str) -> tuple[onnxruntime.InferenceSession, Any]:
    """Load the highest version of a model.

    Returns:
        The session of onnxruntime and Triton's ModelConfig.

    Raises:
        InputError: If Triton would refuse the folder.
        ClusterError: If onnxruntime cannot load the file.
    """
    folder = repository / name
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    if not versions:
        raise InputError(f"{folder} has no version folder; Triton needs {folder}/1/model.onnx")
    config_path = folder / "config.pbtxt"
    text = config_path.read_text()
    onnx_path = folder / str(max(versions)) / "model.onnx"
    if not onnx_path.is_file():
        raise InputError(f"there is no file {onnx_path}; export the model again, or copy it there")
    config = check_config(text, onnx_path, str(config_path))
    if config.name and config.name != name:
        raise InputError(
            f"{config_path} is for a model '{config.name}'; rename the folder or"
            " the model, since Triton needs equal names"
        )

    options = onnxruntime.SessionOptions()
    level = GRAPH_LEVELS[config.optimization.graph.level]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    threads = "0"
    if "intra_op_thread_count" in config.parameters:
        threads = config.parameters["intra_op_thread_count"].string_value
    # By default onnxruntime counts the CPUs of the machine, not those that this process may use.
    options.intra_op_num_threads = int(threads) or len(os.sched_getaffinity(0))
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(onnx_path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ClusterError(f"onnxruntime cannot load {onnx_path}: {error}") from error
    return session, config
