"""Validate an object without a cluster, with the clients' typed models and the controllers' rules.

The webhooks of Katib and the training operator check only the parts that they need, KServe's schema
accepts two frameworks at once, and inside a trialSpec everything is accepted. So unknown fields and
wrong types are found with the models of the clients, and the rules of the controllers are
reimplemented here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

from clusters import katib
from clusters.manifests import CREDENTIALS
from clusters.protocol import Manifest
from common.errors import InputError, unknown

MODELS = {  # (apiVersion, kind) -> the package of the published client, its model
    ("kubeflow.org/v1beta1", "Experiment"): ("kubeflow.katib", "V1beta1Experiment"),
    ("kubeflow.org/v1", "PyTorchJob"): ("kubeflow.training", "KubeflowOrgV1PyTorchJob"),
    ("serving.kserve.io/v1beta1", "InferenceService"): ("kserve", "V1beta1InferenceService"),
}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
FRAMEWORKS = (
    "model",
    "triton",
    "onnx",
    "pytorch",
    "tensorflow",
    "sklearn",
    "xgboost",
    "huggingface",
    "paddle",
    "lightgbm",
    "pmml",
)
SIMPLE: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
}
WORDS = {"str": "text", "int": "a whole number", "bool": "true or false", "float": "a number"}


def problems(manifest: Manifest) -> list[str]:
    """Return the problems of an object, each as 'path: what'; empty if it is valid."""
    api_version = manifest.get("apiVersion", "")
    kind = manifest.get("kind", "")
    if (api_version, kind) not in MODELS:
        kinds = ", ".join(" ".join(names) for names in MODELS)
        return [f"apiVersion, kind: {api_version} {kind} is none of {kinds}"]
    package, model = MODELS[api_version, kind]
    wrong_fields = list(_against_model(manifest, model, package, ""))
    # the rules rely on fields of the right type
    return wrong_fields or [*_metadata(manifest), *RULES[kind](manifest)]


# ----------------------------------------------------------------------------------- typed models


def _against_model(value: Any, kind: str, package: str, path: str) -> Iterator[str]:
    """Yield unknown fields and wrong types of a value that an OpenAPI model describes.

    A value without a model is not checked.
    """
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        yield from _items(value, inner[1], package, path)
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        yield from _entries(value, inner[1], package, path)
    elif kind in SIMPLE:
        if not isinstance(value, SIMPLE[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{path}: {value!r} should be {WORDS[kind]}"
    elif model := _model(kind, package):
        yield from _fields(value, model, package, path)


def _items(value: Any, kind: str, package: str, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: {value!r} should be a list"
        return
    for index, item in enumerate(value):
        yield from _against_model(item, kind, package, f"{path}[{index}]")


def _entries(value: Any, kind: str, package: str, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} should be a mapping"
        return
    for key, item in value.items():
        yield from _against_model(item, kind, package, f"{path}.{key}")


def _fields(value: Any, model: Any, package: str, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} should be a mapping"
        return
    types = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        if key not in types:
            yield f"{place}: {unknown('field', key, types)}"
        else:
            yield from _against_model(item, types[key], package, place)


def _model(name: str, package: str) -> Any | None:
    """Return the model class of this name, of the client or of Kubernetes.

    None if neither has it (a quantity, a newer type).
    """
    for module in (package, "kubernetes.client"):
        model = getattr(importlib.import_module(module), name, None)
        if hasattr(model, "openapi_types"):
            return model
    return None


# ----------------------------------------------------------------------------- controllers' rules


def _metadata(manifest: Manifest) -> Iterator[str]:
    name = manifest["metadata"].get("name", "")
    if not DNS_1035.fullmatch(name):
        yield f"metadata.name: '{name}': up to 63 of a-z, 0-9 and '-', a letter first"
    for key, value in (manifest["metadata"].get("labels") or {}).items():
        if not re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?", value):
            yield f"metadata.labels.{key}: '{value}': up to 63 of a-z, A-Z, 0-9, '-', '_' and '.'"


def _experiment(manifest: Manifest) -> Iterator[str]:
    """Yield violations of Katib's rules, and of those of a trial's job, which Katib does not check.

    The job is made for the first point of the search space.
    """
    try:
        katib.check_experiment(manifest)
    except InputError as error:
        yield str(error)
        return
    firsts = {
        parameter["name"]: _first(parameter["feasibleSpace"])
        for parameter in manifest["spec"]["parameters"]
    }
    trial = katib.substitute(manifest, firsts, "trial-1")
    yield from (f"spec.trialTemplate.trialSpec: {problem}" for problem in problems(trial))
    names = {c["name"] for pod in _pods(trial) for c in pod["spec"]["containers"]}
    primary = manifest["spec"]["trialTemplate"]["primaryContainerName"]
    if primary not in names:
        yield f"spec.trialTemplate.primaryContainerName: {unknown('container', primary, names)}"


def _first(space: Manifest) -> str:
    return str((space.get("list") or [space.get("min", "1")])[0])


def _pods(job: Manifest) -> list[Manifest]:
    return [replica["template"] for replica in job["spec"].get("pytorchReplicaSpecs", {}).values()]


def _job(manifest: Manifest) -> Iterator[str]:
    """Yield violations of the training operator's rules, and settings that cannot work."""
    specs = manifest["spec"].get("pytorchReplicaSpecs") or {}
    place = "spec.pytorchReplicaSpecs"
    for role in set(specs) - {"Master", "Worker"}:
        yield f"{place}: {unknown('replica type', role, ('Master', 'Worker'))}"
    if specs.get("Master", {}).get("replicas") != 1:
        yield f"{place}.Master.replicas: must be there, and 1"
    for role, spec in specs.items():
        yield from _pod(spec.get("template", {}), f"{place}.{role}.template")


def _pod(template: Manifest, place: str) -> Iterator[str]:
    metadata = template.get("metadata", {})
    spec = template.get("spec", {})
    containers = spec.get("containers", [])
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    if "pytorch" not in [container.get("name") for container in containers]:
        yield f"{place}.spec.containers: the training operator needs one named 'pytorch'"
    if all(
        metadata.get(where, {}).get("sidecar.istio.io/inject") != "false"
        for where in ("labels", "annotations")
    ):
        yield (
            f"{place}.metadata: no sidecar.istio.io/inject: 'false'; with a sidecar the job never"
            " completes"
        )
    for container in containers:
        where = f"{place}.spec.containers[{container.get('name')}]"
        if not container.get("image"):
            yield f"{where}.image: missing"
        if not container.get("resources", {}).get("limits"):
            yield f"{where}.resources.limits: missing"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{where}.volumeMounts: {unknown('volume', mount['name'], volumes)}"
        for entry in container.get("env", []):
            if entry["name"] in CREDENTIALS and "value" in entry:
                yield f"{where}.env: {entry['name']} as plain text; take it from a Secret"


def _service(manifest: Manifest) -> Iterator[str]:
    """Yield violations that KServe's schema accepts, although KServe could not serve them."""
    predictor = manifest["spec"].get("predictor", {})
    frameworks = [framework for framework in FRAMEWORKS if framework in predictor]
    if len(frameworks) != 1:
        yield (
            f"spec.predictor: needs exactly one of {', '.join(FRAMEWORKS)}; has"
            f" {', '.join(frameworks) or 'none'}"
        )
        return
    server = predictor[frameworks[0]]
    place = f"spec.predictor.{frameworks[0]}"
    if frameworks[0] == "model" and not server.get("modelFormat", {}).get("name"):
        yield f"{place}.modelFormat.name: missing"
    for name in ("storageUri", "resources"):
        if not server.get(name):
            yield f"{place}.{name}: missing"
    for key in manifest["metadata"].get("annotations", {}):
        if key.startswith("serving.kubeflow.org/"):
            yield f"metadata.annotations: {key}: KServe reads serving.kserve.io/"


RULES = {"Experiment": _experiment, "PyTorchJob": _job, "InferenceService": _service}
