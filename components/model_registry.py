"""Register the model of a run in Kubeflow's model registry, if it passed the gate.

The registered model has the name of the service, and each run is a version of it. The version has
the metrics of the evaluation; its artifact has the address of the model repository, which KServe
can serve. A resumed run updates its version. A model that the gate refused is not registered, so
that every model in the registry may be deployed.

The API is v1alpha3 of kubeflow/model-registry (api/openapi/model-registry.yaml there).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common import http
from common.config import NONE, RunConfig
from common.errors import InputError, JecError, StorageError, UnreachableError, without_secrets
from common.records import ExportRecord, MetricsRecord
from common.run import Run
from components import step
from components.steps import REGISTRY_TOKEN

if TYPE_CHECKING:
    import requests

PATH = "api/model_registry/v1alpha3"
Entry = dict[str, Any]
"""One resource of the registry, as JSON."""


class Registry:
    """The API of one registry; its token comes from the environment."""

    def __init__(self, url: str) -> None:
        """Prepare requests to the registry at a URL; nothing is sent yet."""
        self.url = url.rstrip("/")
        self._session = http.session()
        if token := os.environ.get(REGISTRY_TOKEN, "").strip():
            self._session.headers["Authorization"] = f"Bearer {token}"

    def check(self) -> None:
        """Check that the registry answers and accepts the token.

        Raises:
            InputError: the address is not a registry's, or the registry refuses the token.
            UnreachableError: nothing answers at the address.
        """
        answer = self._send("GET", "registered_models", params={"pageSize": "1"})
        if answer.ok and "items" in _json(answer):
            return
        hint = "give the address of the registry's REST API, as http://HOST:8080"
        if answer.status_code in (401, 403):
            hint = f"set {REGISTRY_TOKEN}, or give --model-registry-secret on Kubeflow"
        raise InputError(
            f"--model-registry {self.url}: {PATH}/registered_models answers"
            f" {http.status_line(answer)}; {hint}"
        )

    def find(self, kind: str, **by: str) -> Entry | None:
        """Return the resource with this name or parent; None if there is none.

        Raises StorageError if the registry refuses, UnreachableError if it does not answer.
        """
        answer = self._send("GET", kind, params=by)
        return None if answer.status_code == 404 else self._content(answer)

    def make(self, path: str, content: Entry) -> Entry:
        """Create a resource and return it. Raises StorageError as `find`."""
        return self._content(self._send("POST", path, json=content))

    def change(self, path: str, content: Entry) -> None:
        """Change fields of a resource. Raises StorageError as `find`."""
        self._content(self._send("PATCH", path, json=content))

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            return http.send(self._session, method, f"{self.url}/{PATH}/{path}", **options)
        except UnreachableError as error:
            raise UnreachableError(f"--model-registry {self.url}: {error}") from None

    def _content(self, answer: requests.Response) -> Entry:
        content = _json(answer)
        if answer.ok and content:
            return content
        reason = str(content.get("message", ""))[:300]
        raise StorageError(
            without_secrets(
                f"--model-registry {self.url}: {http.status_line(answer)} {reason}".rstrip()
            )
        )


def check(config: RunConfig) -> None:
    """Check the registry of a configuration before the run starts. Raises as Registry.check."""
    if config.model_registry != NONE:
        Registry(config.model_registry).check()


def register(run: Run, metrics: MetricsRecord) -> None:
    """Register the model of an evaluated run; an error is printed as a warning."""
    if run.config.model_registry == NONE:
        return
    if not metrics.passed:
        step.say("model registry: not registered, because the gate refused the model")
        return
    try:
        number = _register(Registry(run.config.model_registry), run, metrics)
    except JecError as error:
        step.say(f"warning: the model is not in the model registry: {error}")
        return
    step.say(f"model registry: {run.model_name}, version {run.id} (id {number})")


def _register(registry: Registry, run: Run, metrics: MetricsRecord) -> str:
    export = ExportRecord.load(run.folder.export)
    model = registry.find("registered_model", name=run.model_name)
    if model is None:
        model = registry.make("registered_models", {"name": run.model_name, "state": "LIVE"})
    fields: Entry = {
        "author": run.config.user,
        "state": "LIVE",
        "customProperties": _properties(run, export, metrics),
    }
    version = registry.find("model_version", name=run.id, parentResourceId=model["id"])
    if version is None:
        content = {"name": run.id, "registeredModelId": model["id"], **fields}
        version = registry.make(f"registered_models/{model['id']}/versions", content)
    else:
        registry.change(f"model_versions/{version['id']}", fields)
    _register_file(registry, version["id"], run, export)
    return str(version["id"])


def _register_file(registry: Registry, version: str, run: Run, export: ExportRecord) -> None:
    """Register the address of the model repository as the artifact of a version."""
    fields = {
        "artifactType": "model-artifact",
        "uri": run.folder.models,
        "state": "LIVE",
        "modelFormatName": "onnx",
        "modelFormatVersion": str(export.opset),
        "modelSourceKind": "kfp",
        "modelSourceClass": "pipelinerun",
        "modelSourceName": run.id,
    }
    if run.record.kfp_run:
        fields["modelSourceId"] = run.record.kfp_run
    path = f"model_versions/{version}/artifacts"
    for entry in (registry.find(path) or {}).get("items", []):
        if entry.get("name") == run.model_name:
            registry.change(f"model_artifacts/{entry['id']}", fields)
            return
    registry.make(path, {"name": run.model_name, **fields})


def _properties(run: Run, export: ExportRecord, metrics: MetricsRecord) -> Mapping[str, Entry]:
    """Return the metrics as numbers and the model's origin as texts, in the registry's form."""
    texts = {
        "run_id": run.id,
        "trial": export.trial,
        "commit": run.record.git_commit,
        "data_fingerprint": run.record.data_fingerprint,
        "sha256": export.sha256,
        "report": run.folder.report,
        "gate": "passed",
    }
    properties: dict[str, Entry] = {}
    for name, text in texts.items():
        properties[name] = {"metadataType": "MetadataStringValue", "string_value": text}
    for name, value in metrics.headline.items():
        if math.isfinite(value):
            number = {"metadataType": "MetadataDoubleValue", "double_value": float(value)}
            properties[name] = number
    return properties


def _json(answer: requests.Response) -> Entry:
    """Return the JSON object of an answer; empty if it has none."""
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
