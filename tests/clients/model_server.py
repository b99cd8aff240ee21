"""A small server of the Open Inference Protocol v2, as strict as Triton, whose model is arithmetic.

The model: calibrated_pt = 2 * jetPt + the sum of the first nPF values of PF_pT, and valid where
jetPt is at least 15.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable

import numpy as np

from jec_client import protocol

NAME = "m-raw"
MOST = 64
INPUTS = {"jetPt": ("FP32", [-1, 1]), "PF_pT": ("FP32", [-1, -1]), "nPF": ("INT32", [-1, 1])}
OUTPUTS = {"calibrated_pt": "FP32", "valid": "BOOL"}
METADATA = {
    "name": NAME,
    "inputs": [{"name": n, "datatype": kind, "shape": s} for n, (kind, s) in INPUTS.items()],
    "outputs": [{"name": n, "datatype": kind, "shape": [-1, 1]} for n, kind in OUTPUTS.items()],
}
RANGE = {"min_pt": 15, "max_pt": 1000, "pt": "jetPt", "counters": {"nPF": ["PF_pT"]}}


class Refused(Exception):
    """What Triton answers with 400."""


class ModelServer:
    """Listens at `url` until it is closed."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        """Jets of each request."""
        self.headers: list[dict[str, str]] = []
        self.failures: list[tuple[int, bytes]] = []
        """Status and content of what the next requests about the model get; 0 breaks off."""
        self.change_case: Callable[[str], str] = str
        """Applied to the names of the headers of answers."""
        self.pages = {
            "/v2": {"name": "triton", "version": "2.64.0", "extensions": ["binary_tensor_data"]},
            "/v2/repository/index": [{"name": NAME}],
            f"/v2/models/{NAME}": METADATA,
            f"/v2/models/{NAME}/config": {
                "max_batch_size": MOST,
                "parameters": {"valid_range": {"string_value": json.dumps(RANGE)}},
            },
            f"/v2/models/{NAME}/ready": {},
        }
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs. Raises Refused for what Triton refuses."""
        if set(inputs) != set(INPUTS):
            raise Refused(f"expected the inputs {list(INPUTS)}, got {list(inputs)}")
        for name, (datatype, shape) in INPUTS.items():
            array = inputs[name]
            if array.dtype != protocol.DTYPES[datatype]:
                raise Refused(f"inference input '{name}' data-type is {array.dtype}")
            if array.ndim != len(shape) or (shape[1] != -1 and array.shape[1] != shape[1]):
                raise Refused(f"unexpected shape for input '{name}': {array.shape}")
            if not 0 < len(array) <= MOST:
                raise Refused(f"inference request batch-size must be <= {MOST}")
        self.batches.append(len(inputs["jetPt"]))
        return answer(inputs)


def answer(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    is_candidate = np.arange(inputs["PF_pT"].shape[1]) < inputs["nPF"]
    pt = 2 * inputs["jetPt"] + (inputs["PF_pT"] * is_candidate).sum(1, keepdims=True)
    return {"calibrated_pt": pt.astype(np.float32), "valid": inputs["jetPt"] >= 15}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: ModelServer

    def do_GET(self) -> None:
        self._serve(self._page)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/infer"):
            self._serve(lambda: self._infer(body))
        else:
            self._serve(self._page)

    def _serve(self, respond: Callable[[], tuple[int, bytes, dict[str, str]]]) -> None:
        self.owner.headers.append({k.lower(): v for k, v in self.headers.items()})
        if self.owner.failures and self.path.startswith("/v2/models/"):
            status, content = self.owner.failures.pop(0)
            if not status:  # the connection breaks
                self.close_connection = True
                return
            self._send(status, content, {})
            return
        self._send(*respond())

    def _page(self) -> tuple[int, bytes, dict[str, str]]:
        page = self.owner.pages.get(self.path)
        if page is None:
            return 404, json.dumps({"error": f"no {self.path}"}).encode(), {}
        return 200, json.dumps(page).encode(), {}

    def _infer(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if self.path != f"/v2/models/{NAME}/infer":
            return 400, json.dumps({"error": "unknown model"}).encode(), {}
        head = self.headers.get(protocol.HEADER_LENGTH)
        try:
            if head is None:
                outputs = self.owner.infer(protocol.arrays(json.loads(body)["inputs"]))
                tensors = [protocol.encode(name, array) for name, array in outputs.items()]
                return 200, json.dumps({"outputs": tensors}).encode(), {}
            request = json.loads(body[: int(head)])
            outputs = self.owner.infer(
                protocol.from_binary(
                    json.dumps({"outputs": request["inputs"]}).encode() + body[int(head) :],
                    len(json.dumps({"outputs": request["inputs"]}).encode()),
                )
            )
        except Refused as refused:
            return 400, json.dumps({"error": str(refused)}).encode(), {}
        content, headers = protocol.to_binary(outputs)
        length = int(headers[protocol.HEADER_LENGTH])
        text = json.dumps({"outputs": json.loads(content[:length])["inputs"]}).encode()
        return 200, text + content[length:], {protocol.HEADER_LENGTH: str(len(text))}

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(self.owner.change_case(name), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
