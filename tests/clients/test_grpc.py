"""The client over gRPC: the same answers and the same errors as over HTTP."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import awkward as ak
import grpc
import numpy as np
import pytest

from common.project import ROOT
from jec_client import Client, InputError, NotServing, ServerError, Unreachable, protocol, validity
from jec_client.grpc_messages import SERVICE, message
from jec_client.grpc_server import CONTENTS
from serving.client import Client as ClientOfTheProject
from serving.client import Unreachable as UnreachableOfTheProject
from tests.clients.model_server import METADATA, MOST, NAME, RANGE, answer

PACKAGE = ROOT / "clients" / "python"
METHODS = (
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "RepositoryIndex",
    "ModelInfer",
)


class GrpcModelServer:
    """The model of model_server behind gRPC."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.metadata: dict[str, str] = {}
        self.raw = True
        """Whether answers are bytes, or lists of numbers."""
        methods = {}
        for name in METHODS:
            methods[name] = grpc.unary_unary_rpc_method_handler(
                self.answering(name),
                request_deserializer=message(f"{name}Request").FromString,
                response_serializer=message(f"{name}Response").SerializeToString,
            )
        self.grpc = grpc.server(ThreadPoolExecutor(2))
        self.grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, methods),)
        )
        self.url = f"grpc://127.0.0.1:{self.grpc.add_insecure_port('127.0.0.1:0')}"
        self.grpc.start()

    def answering(self, name: str):
        def respond(request, context):
            self.metadata = dict(context.invocation_metadata())
            if self.failures and name != "RepositoryIndex":
                context.abort(*self.failures.pop(0))
            return getattr(self, name)(request, context)

        return respond

    def ServerMetadata(self, *_):
        return message("ServerMetadataResponse")(name="triton", version="2.64.0")

    def ModelReady(self, request, _):
        return message("ModelReadyResponse")(ready=request.name == NAME)

    def RepositoryIndex(self, *_):
        return message("RepositoryIndexResponse")(models=[{"name": NAME}])

    def ModelMetadata(self, request, context):
        if request.name != NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        return message("ModelMetadataResponse")(**METADATA)

    def ModelConfig(self, *_):
        parameters = [{"key": "valid_range", "value": {"string_value": json.dumps(RANGE)}}]
        config = {"max_batch_size": MOST, "parameters": parameters}
        return message("ModelConfigResponse")(config=config)

    def ModelInfer(self, request, _):
        inputs = {}
        for tensor, part in zip(request.inputs, request.raw_input_contents, strict=True):
            inputs[tensor.name] = protocol.from_raw(part, tensor.datatype, tensor.shape)
        self.batches.append(len(inputs["jetPt"]))
        response = message("ModelInferResponse")(model_name=NAME)
        for name, array in answer(inputs).items():
            datatype = protocol.datatype(name, array)
            tensor = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            if self.raw:
                response.raw_output_contents.append(protocol.raw_bytes(array))
            else:
                getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
        return response


@pytest.fixture
def server():
    running = GrpcModelServer()
    yield running
    running.grpc.stop(None).wait(timeout=10)


def jets(count: int) -> dict:
    rng = np.random.default_rng(count)
    number = rng.integers(0, 5, count)
    particles = ak.unflatten(rng.uniform(1, 9, number.sum()), number)
    return {"jetPt": rng.uniform(20, 200, count), "PF_pT": particles}


def expected_pt(of: dict) -> np.ndarray:
    return 2 * of["jetPt"] + ak.to_numpy(ak.sum(of["PF_pT"], axis=-1))


@pytest.mark.parametrize("raw", [True, False], ids=["bytes", "numbers"])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_jets_in_their_order(server, raw, count):
    server.raw = raw
    columns = jets(count)
    answers = Client(server.url, NAME).calibrate(columns)
    assert str(answers.type) == f"{count} * {{calibrated_pt: float32, valid: bool}}"
    np.testing.assert_allclose(answers.calibrated_pt, expected_pt(columns), rtol=1e-6)
    assert sum(server.batches) == count
    assert max(server.batches, default=0) <= MOST


def test_invalid_jets_are_counted_by_reason(server):
    answers = Client(server.url, NAME).calibrate({"jetPt": [3.0, 30.0], "PF_pT": [[1.0], [1.0]]})
    assert answers.attrs["invalid"] == {validity.PT_RANGE: 1}


def test_the_metadata_of_server_and_model(server):
    client = Client(server.url, NAME)
    assert client.server_name() == "triton"
    assert client.models() == [NAME]
    assert client.ready()
    assert not Client(server.url, "other").ready()
    assert client.metadata() == METADATA


def test_a_json_request_goes_over_grpc(server):
    inputs = {
        "jetPt": np.ones((1, 1), "f4"),
        "PF_pT": np.ones((1, 2), "f4"),
        "nPF": np.full((1, 1), 2, "i4"),
    }
    body = {"inputs": [protocol.encode(name, array) for name, array in inputs.items()]}
    outputs = Client(server.url, NAME).infer(body)["outputs"]
    assert outputs[0]["data"] == [4.0]


def test_a_temporary_error_is_retried(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    server.failures = [
        (grpc.StatusCode.UNAVAILABLE, "restarting"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full"),
    ]
    np.testing.assert_allclose(
        client.calibrate(jets(9)).calibrated_pt, expected_pt(jets(9)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("UNAVAILABLE", Unreachable, "no server answers"),
        ("RESOURCE_EXHAUSTED", NotServing, "cannot serve"),
        ("INTERNAL", ServerError, "failed"),
        ("INVALID_ARGUMENT", InputError, "refused"),
        ("UNAUTHENTICATED", InputError, "401"),
    ],
)
def test_a_lasting_error_is_raised(server, code, kind, words):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    server.failures = [(grpc.StatusCode[code], "its words")] * 9
    with pytest.raises(kind, match=f"{words}.*its words") as error:
        client.calibrate(jets(1))
    assert type(error.value) is kind


def test_an_unknown_model_and_a_server_that_is_away(server):
    with pytest.raises(InputError, match=f"'m-rwa'.*'{NAME}'"):
        Client(server.url, "m-rwa").calibrate(jets(1))
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        Client("grpc://127.0.0.1:9", NAME).calibrate(jets(1))
    with pytest.raises(UnreachableOfTheProject):
        ClientOfTheProject("grpc://127.0.0.1:9", NAME).metadata()


def test_the_deadline(server):
    client = Client(server.url, NAME)
    client.calibrate(jets(1))
    start = time.monotonic()
    with pytest.raises(Unreachable, match="did not answer within"):
        client.calibrate(jets(1), deadline=0)
    assert time.monotonic() - start < 5


def test_the_token_of_a_file_is_sent_and_not_pickled(server, tmp_path):
    (tmp_path / "token").write_text("s3cr3t")
    (tmp_path / "cookies").write_text("session=c00k13")
    client = Client(server.url, NAME, token=tmp_path / "token", cookies=tmp_path / "cookies")
    client.calibrate(jets(1))
    pickled = pickle.dumps(client)
    assert b"s3cr3t" not in pickled
    assert b"c00k13" not in pickled
    assert len(pickle.loads(pickled).calibrate(jets(3))) == 3
    assert server.metadata["authorization"] == "Bearer s3cr3t"
    assert server.metadata["cookie"] == "session=c00k13"


def test_certificates(tmp_path):
    with pytest.raises(InputError, match="verify=False"):
        Client("grpcs://host", NAME, verify=False)
    with pytest.raises(InputError, match=r"missing\.pem"):
        Client("grpcs://host", NAME, verify=tmp_path / "missing.pem")


def test_a_missing_extra_is_named_in_the_error():
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from jec_client import Client, InputError\n"
        "try: Client('grpc://host:1', 'm')\n"
        "except InputError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE, timeout=60, capture_output=True, text=True
    )
    assert "jec-client[grpc]" in process.stdout


def test_it_can_be_imported_beside_other_packages_messages():
    code = (
        "import tritonclient.grpc; from jec_client.grpc_messages import message;"
        "print(message('ModelIndex')(name='a').SerializeToString())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE, timeout=60, capture_output=True, text=True
    )
    assert process.stdout == "b'\\n\\x01a'\n", process.stderr
