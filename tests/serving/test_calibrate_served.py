"""serving.calibrate --url: the model of a server, by the client."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from jec_client import protocol
from serving import calibrate
from serving.calibration.model import local_model
from tests.serving.calibration_files import expected, jets, write_jets, write_model

NAME = "small-raw"
DATATYPES = {"float32": "FP32", "int32": "INT32", "bool": "BOOL"}


class Server(http.server.ThreadingHTTPServer):
    """A server of one model with the metadata of the protocol and of Triton."""

    daemon_threads = True

    def __init__(self, onnx: Path, parameters: dict[str, str], most: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = local_model(str(onnx))
        self.most = most
        self.sizes: list[int] = []
        self.is_broken = False
        described = {key: {"string_value": text} for key, text in parameters.items()}
        inputs = []
        description = self.model.description
        for name, column in description.inputs.items():
            shape = [-1, -1 if column.counter else 1]
            datatype = DATATYPES[str(column.dtype)]
            inputs.append({"name": name, "datatype": datatype, "shape": shape})
        inputs += [{"name": n, "datatype": "INT32", "shape": [-1, 1]} for n in description.counters]
        outputs = [
            {"name": name, "datatype": "BOOL" if name == "valid" else "FP32", "shape": [-1, 1]}
            for name in description.outputs
        ]
        self.pages: dict[str, Any] = {
            "/v2": {"name": "test", "version": "1", "extensions": ["none"]},
            f"/v2/models/{NAME}": {"name": NAME, "inputs": inputs, "outputs": outputs},
            f"/v2/models/{NAME}/config": {"max_batch_size": most, "parameters": described},
            "/v2/models": {"models": [NAME, "small"]},
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path in self.server.pages:
            self.reply(200, self.server.pages[self.path])
        else:
            self.reply(404, {"error": f"unknown path {self.path}"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if not self.path.endswith("/infer") or self.server.is_broken:
            self.reply(400, {"error": "this model is broken"})
            return
        inputs = protocol.arrays(body["inputs"])
        count = len(inputs["jetPt"])
        self.server.sizes.append(count)
        answers = self.server.model.answer(inputs)
        outputs = [protocol.encode(name, x[:, None]) for name, x in answers.items()]
        self.reply(200, {"model_name": NAME, "outputs": outputs})


@pytest.fixture(scope="module")
def onnx(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@contextlib.contextmanager
def serving(onnx: Path, parameters: dict[str, str], most: int = 64) -> Iterator[Server]:
    with Server(onnx, parameters, most) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


@pytest.fixture
def server(onnx) -> Iterator[Server]:
    """A server that returns the config.pbtxt of exporting/repository.py."""
    import onnx as onnx_package

    entries = onnx_package.load(str(onnx)).metadata_props
    facts = {entry.key: entry.value for entry in entries}
    facts["sha256"] = local_model(str(onnx)).description.digest
    with serving(onnx, facts) as server:
        yield server


def calibrate_with(*arguments: object) -> int:
    return calibrate.main([str(argument) for argument in arguments])


def test_a_server_answers_as_the_file_does(tmp_path, server, onnx):
    """Also, what one of them has calibrated, the other keeps: it is the same model."""
    columns = jets(500)
    path = write_jets(tmp_path / "x.root", columns)
    assert calibrate_with(path, "--url", server.url, "--output", tmp_path / "out") == 0
    with uproot.open(tmp_path / "out" / "x.root") as file:
        friend = file["calibration"].arrays(library="np")
    for name, values in expected(columns).items():
        np.testing.assert_allclose(friend[name], values, rtol=1e-5)
    assert friend["event"].tolist() == columns["event"].tolist()
    assert max(server.sizes) <= 64
    assert sum(server.sizes) == 500
    before = (tmp_path / "out" / "x.root").stat().st_mtime_ns
    assert calibrate_with(path, "--model", onnx, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "x.root").stat().st_mtime_ns == before


def error_of(capsys, *arguments: object) -> str:
    """The one line of a command that is refused."""
    assert calibrate_with(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_missing_features_of_a_server_are_reported(tmp_path, server, onnx, capsys):
    path = write_jets(tmp_path / "x.root", jets(10))
    out = ("--output", tmp_path / "out")
    line = error_of(capsys, path, "--url", server.url, "--model", "smal-raw", *out)
    assert "unknown model 'smal-raw'; did you mean 'small-raw'" in line
    line = error_of(capsys, path, "--url", "http://127.0.0.1:9", *out)
    assert "no server answers at http://127.0.0.1:9" in line
    assert "python -m serving.serve RUN" in line
    with serving(onnx, {}) as old:
        line = error_of(capsys, path, "--url", old.url, *out)
        assert "too old" in line
        old.pages["/v2/models"] = {"models": ["a-raw", "b-raw"]}
        line = error_of(capsys, path, "--url", old.url, *out)
        assert "2 models NAME-raw: a-raw, b-raw" in line
    assert "give --model RUN, or --url URL" in error_of(capsys, path, *out)
    assert not (tmp_path / "out").exists()


def test_a_failing_server_leaves_only_whole_files(tmp_path, server, capsys):
    for name in "ab":
        write_jets(tmp_path / "in" / f"{name}.root", jets(100))
    out = ("--output", tmp_path / "out")
    assert calibrate_with(tmp_path / "in" / "a.root", "--url", server.url, *out) == 0
    server.is_broken = True
    capsys.readouterr()
    assert calibrate_with(tmp_path / "in" / "*.root", "--url", server.url, *out) != 0
    assert "this model is broken" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.root", "calibration.json"]
    server.is_broken = False
    assert calibrate_with(tmp_path / "in" / "*.root", "--url", server.url, *out) == 0
    assert (tmp_path / "out" / "b.root").exists()


def test_a_file_with_answers_of_two_models_is_not_written(tmp_path, server, capsys):
    """A file with answers of two models has no output."""
    for name in "ab":
        write_jets(tmp_path / "in" / f"{name}.root", jets(100))
    out = ("--output", tmp_path / "out", "--threads", 1)
    sha256 = server.pages[f"/v2/models/{NAME}/config"]["parameters"]["sha256"]
    answer = server.model.answer

    def answer_and_change(inputs):
        sha256["string_value"] = "of another"
        return answer(inputs)

    server.model.answer = answer_and_change
    assert calibrate_with(tmp_path / "in" / "*.root", "--url", server.url, *out) == 1
    assert "serves another model" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.root"))
