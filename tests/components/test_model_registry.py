"""Kubeflow's model registry: requests hold its contract, a second run changes and adds nothing."""

from __future__ import annotations

import http.server
import json
import re
import urllib.parse
from pathlib import Path

import jsonschema
import pytest

from common.config import RunConfig
from common.errors import InputError, UnreachableError
from common.run import Run
from components import model_registry
from tests.records import export_record, metrics_record
from tests.servers.handling import handling

SCHEMAS = json.loads(Path(__file__).with_name("model_registry_schemas.json").read_text())
ROOT = "/api/model_registry/v1alpha3/"
BODIES = {
    r"POST registered_models": "RegisteredModelCreate",
    r"POST registered_models/\d+/versions": "ModelVersionCreate",
    r"POST model_versions/\d+/artifacts": "ModelArtifactCreate",
    r"PATCH model_versions/\d+": "ModelVersionUpdate",
    r"PATCH model_artifacts/\d+": "ModelArtifactUpdate",
}
"""Requests with a body, and the schema of each in the registry's OpenAPI document."""


class Handler(http.server.BaseHTTPRequestHandler):
    """A registry in memory, which refuses what its OpenAPI document does not allow."""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        path = url.path.removeprefix(ROOT)
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer(401, {"message": "no token"})
        if path == "registered_models":
            return self._answer(200, {"items": [], "size": 0})
        if path.endswith("/artifacts"):
            parent = path.split("/")[1]
            items = [e for e in self._of("artifact") if e["parent"] == parent]
            return self._answer(200, {"items": items, "size": len(items)})
        entries = [e for e in self._of(path) if e["name"] == query["name"]]
        if path == "model_version":
            entries = [e for e in entries if e["registeredModelId"] == query["parentResourceId"]]
        if not entries:
            return self._answer(404, {"message": "not found"})
        return self._answer(200, entries[0])

    def do_POST(self):
        path, body = self._body("POST")
        if body is None:
            return
        kind = {"registered_models": "registered_model", "versions": "model_version"}.get(
            path.rsplit("/", 1)[-1], "artifact"
        )
        parts = path.split("/")
        entry = {**body, "id": str(len(self.server.entries) + 1), "kind": kind}
        entry["parent"] = parts[1] if len(parts) > 1 else ""
        self.server.entries.append(entry)
        self._answer(201, entry)

    def do_PATCH(self):
        path, body = self._body("PATCH")
        if body is None:
            return
        number = path.split("/")[1]
        entry = next(e for e in self.server.entries if e["id"] == number)
        entry.update(body)
        self._answer(200, entry)

    def _of(self, kind):
        return [entry for entry in self.server.entries if entry["kind"] == kind]

    def _body(self, method):
        """The path and the content of a request; the content is None where it was refused."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix(ROOT)
        self.server.requests.append(f"{method} {path}")
        for pattern, name in BODIES.items():
            if re.fullmatch(pattern, f"{method} {path}"):
                schema = {**SCHEMAS, "$ref": f"#/components/schemas/{name}"}
                try:
                    jsonschema.validate(body, schema)
                except jsonschema.ValidationError as error:
                    self._answer(400, {"message": error.message})
                    return path, None
                return path, body
        self._answer(404, {"message": f"no {method} {path}"})
        return path, None

    def _answer(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def registry(monkeypatch):
    """A registry that asks for a token, which this process has."""
    with handling(Handler, entries=[], requests=[], token="canary-5d1f") as server:
        monkeypatch.setenv("JEC_MODEL_REGISTRY_TOKEN", server.token)
        yield server


def run_with(tmp_path, url: str) -> Run:
    config = RunConfig(
        s3_bucket=str(tmp_path), run_id="pfn-0a1b2c3d", service_name="jets", model_registry=url
    )
    run = Run(config=config)
    export_record("jets").save(run.folder.export)
    return run


def test_a_model_is_registered_once_and_updated_on_resume(tmp_path, registry):
    run = run_with(tmp_path, registry.url)
    model_registry.register(run, metrics_record(headline={"resolution_gain_percent_value": 3.0}))
    model, version, artifact = registry.entries
    assert (model["name"], version["name"], artifact["name"]) == ("jets", run.id, "jets")
    assert version["registeredModelId"] == model["id"]
    assert artifact["parent"] == version["id"]
    assert (artifact["uri"], artifact["modelFormatName"]) == (run.folder.models, "onnx")
    properties = version["customProperties"]
    assert properties["resolution_gain_percent_value"]["double_value"] == 3.0
    assert properties["run_id"]["string_value"] == run.id

    model_registry.register(run, metrics_record(headline={"resolution_gain_percent_value": 4.0}))
    assert len(registry.entries) == 3
    properties = registry.entries[1]["customProperties"]
    assert properties["resolution_gain_percent_value"]["double_value"] == 4.0


def test_a_refused_model_is_not_registered(tmp_path, registry, capsys):
    run = run_with(tmp_path, registry.url)
    model_registry.register(run, metrics_record(passed=False, reasons=["closure 3 %"]))
    assert registry.requests == []
    assert "refused" in capsys.readouterr().out


def test_a_registry_that_refuses_or_is_away_costs_a_warning(
    tmp_path, registry, monkeypatch, capsys
):
    monkeypatch.setenv("JEC_MODEL_REGISTRY_TOKEN", "canary-wrong")
    model_registry.register(run_with(tmp_path, registry.url), metrics_record())
    model_registry.register(run_with(tmp_path, "http://127.0.0.1:1"), metrics_record())
    warnings = capsys.readouterr().out.splitlines()
    assert [line.startswith("warning: ") for line in warnings] == [True, True]
    assert registry.entries == []
    assert "canary" not in "".join(warnings)


def test_a_registry_that_cannot_be_used_is_refused_before_a_run(registry, monkeypatch):
    model_registry.check(RunConfig(model_registry=registry.url))
    with pytest.raises(InputError, match="--model-registry"):
        model_registry.check(RunConfig(model_registry=f"{registry.url}/elsewhere"))
    with pytest.raises(UnreachableError, match="--model-registry"):
        model_registry.check(RunConfig(model_registry="http://127.0.0.1:1"))
    monkeypatch.delenv("JEC_MODEL_REGISTRY_TOKEN")
    with pytest.raises(InputError, match="JEC_MODEL_REGISTRY_TOKEN"):
        model_registry.check(RunConfig(model_registry=registry.url))


def test_the_token_is_no_argument():
    with pytest.raises(InputError, match="--model-registry-secret") as refusal:
        RunConfig(model_registry_secret="canary token")
    assert "canary" not in str(refusal.value)
    with pytest.raises(InputError, match="--model-registry") as refusal:
        RunConfig(model_registry="https://me:canary@registry.example")
    assert "canary" not in str(refusal.value)
