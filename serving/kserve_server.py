"""kserve's own model server over a Triton repository: answers where the real Triton cannot run.

    python -m serving.kserve_server --repository runs/x/model --name pfn-1a2b3c4d --http-port 8000

It speaks the same protocol and obeys the same config.pbtxt (tensors, max_batch_size, graph level,
parameters). It has no dynamic batching and no statistics. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from pathlib import Path

from common.cli import Parser, run_main
from common.errors import ClusterError, InputError
from weaver.onnx.triton_config import GRAPH_LEVELS, check_config, messages


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m serving.kserve_server", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", required=True, help="Triton model repository, a directory")
    parser.add_argument(
        "--name", required=True, help="model in it that must be there; the others are served too"
    )
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument(
        "--id", default="kserve", help="what the server calls itself at /v2 (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    sys.argv = sys.argv[:1]  # kserve parses it while it is imported
    return run_main(
        lambda: serve(Path(options.repository), options.name, options.http_port, options.id)
    )


def serve(repository: Path, name: str, port: int, identity: str) -> None:
    """Load the repository's models and serve them until SIGTERM.

    Raises InputError for a config.pbtxt unlike its file.
    """
    import kserve.model_server

    _listen_locally(kserve.model_server)
    model_class = _model_class()
    names = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    models = [model_class(repository, one) for one in dict.fromkeys([name, *names])]
    server = kserve.model_server.ModelServer(
        http_port=port, enable_grpc=False, workers=1, access_log_format=None
    )
    # several lines a request; the server's constructor set them up
    for noisy in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    server.dataplane._server_name = identity  # pinned version; there is no public way to set it
    served = ", ".join(model.name for model in models)
    print(
        f"serving {served} with kserve's model server on http://127.0.0.1:{port} (no Triton, no"
        " dynamic batching)",
        flush=True,
    )
    server.start(models)


def _listen_locally(module) -> None:
    """kserve binds to all addresses and offers no option for it: put one that binds to this machine
    in the place of its REST server.
    """

    class LocalRESTServer(module.RESTServer):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.config.host = "127.0.0.1"

    module.RESTServer = LocalRESTServer


def _model_class():
    """The kserve model that runs an ONNX file (a function, so that kserve is imported after its
    arguments were taken away).
    """
    import numpy as np
    from kserve import InferOutput, InferRequest, InferResponse, Model
    from kserve.errors import InvalidInput
    from kserve.utils.numpy_codec import from_np_dtype

    class OnnxModel(Model):
        def __init__(self, repository: Path, name: str) -> None:
            super().__init__(name)
            self.session, self.config = load(repository, name)
            self.inputs, self.outputs = (
                {entry.name: (_datatype(entry), list(entry.dims)) for entry in entries}
                for entries in (self.config.input, self.config.output)
            )
            self.ready = True

        def get_input_types(self):
            return [
                {"name": name, "datatype": kind, "shape": self._shape(dims)}
                for name, (kind, dims) in self.inputs.items()
            ]

        def get_output_types(self):
            return [
                {"name": name, "datatype": kind, "shape": self._shape(dims)}
                for name, (kind, dims) in self.outputs.items()
            ]

        def predict(self, payload, headers=None):
            if not isinstance(payload, InferRequest):
                raise InvalidInput("send requests of protocol v2, to /v2/models/<name>/infer")
            feed = self._feed(payload)
            results = self.session.run(list(self.outputs), feed)
            return InferResponse(
                response_id=payload.id or uuid.uuid4().hex,  # kserve's own response model wants one
                model_name=self.name,
                model_version="1",
                infer_outputs=[
                    self._output(name, result)
                    for name, result in zip(self.outputs, results, strict=True)
                ],
            )

        def _feed(self, payload) -> dict[str, np.ndarray]:
            given = {tensor.name: tensor for tensor in payload.inputs}
            if set(given) != set(self.inputs):
                raise InvalidInput(
                    f"model '{self.name}' takes the inputs {', '.join(self.inputs)}; the request"
                    f" has {', '.join(given)}"
                )
            for name, (kind, dims) in self.inputs.items():
                _check_input(
                    given[name], kind, self._shape(dims), self.config.max_batch_size, self.name
                )
            sizes = {given[name].shape[0] for name in given}
            if self.config.max_batch_size > 0 and len(sizes) > 1:
                raise InvalidInput(
                    f"the inputs of model '{self.name}' differ in their number of jets:"
                    f" {sorted(sizes)}"
                )
            return {name: given[name].as_numpy() for name in self.inputs}

        def _shape(self, dims: list[int]) -> list[int]:
            return ([-1] if self.config.max_batch_size > 0 else []) + dims

        @staticmethod
        def _output(name: str, array: np.ndarray):
            output = InferOutput(
                name=name, shape=list(array.shape), datatype=from_np_dtype(array.dtype)
            )
            output.set_data_from_numpy(array, binary_data=False)
            return output

    def _check_input(tensor, kind: str, shape: list[int], max_batch_size: int, model: str) -> None:
        if tensor.datatype != kind:
            raise InvalidInput(
                f"input '{tensor.name}' of model '{model}' is {kind}, the request has"
                f" {tensor.datatype}"
            )
        if len(tensor.shape) != len(shape) or any(
            a != b for a, b in zip(shape, tensor.shape, strict=True) if a != -1
        ):
            raise InvalidInput(
                f"unexpected shape for input '{tensor.name}' of model '{model}'. Expected {shape},"
                f" got {tensor.shape}"
            )
        if max_batch_size and tensor.shape[0] > max_batch_size:
            raise InvalidInput(
                f"batch size {tensor.shape[0]} of the request is larger than max_batch_size"
                f" {max_batch_size} of '{model}'"
            )

    return OnnxModel


def load(repository: Path, name: str):
    """The onnxruntime session and the ModelConfig of the highest version of a model in a
    repository.
    """
    import onnxruntime

    folder = repository / name
    versions = sorted(
        (int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True
    )
    if not versions:
        raise InputError(f"{folder} has no version folder; Triton wants {folder}/1/model.onnx")
    config_path = folder / "config.pbtxt"
    text = config_path.read_text()
    onnx_path = folder / str(versions[0]) / "model.onnx"
    if not onnx_path.is_file():
        raise InputError(f"there is no file {onnx_path}")
    config = check_config(text, onnx_path, str(config_path))
    if config.name and config.name != name:
        raise InputError(
            f"{config_path} is for a model '{config.name}'; Triton wants the folder to have the"
            " same name"
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[config.optimization.graph.level]
    )
    threads = (
        config.parameters["intra_op_thread_count"].string_value
        if "intra_op_thread_count" in config.parameters
        else "0"
    )
    options.intra_op_num_threads = int(threads) or len(os.sched_getaffinity(0))
    try:
        return (
            onnxruntime.InferenceSession(
                os.fspath(onnx_path), options, providers=["CPUExecutionProvider"]
            ),
            config,
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ClusterError(f"onnxruntime cannot load {onnx_path}: {error}") from error


def _datatype(entry) -> str:
    """Triton's TYPE_FP32 -> the protocol's FP32."""
    name = messages().DataType.Name(entry.data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


if __name__ == "__main__":
    sys.exit(main())
