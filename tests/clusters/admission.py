"""What the real admission refuses, with its codes.

Katib's webhook answers 400 (katib v0.19.0
pkg/webhook/v1beta1/experiment/validation_webhook.go:125), the training operator's 403, the CRDs'
schemas 422. What they accept although it cannot work (an unknown serving runtime, nonsense inside a
trialSpec) is accepted here too.
"""

from __future__ import annotations

import json
import re

# katib v0.19.0 manifests/v1beta1/installs/katib-standalone/katib-config.yaml:27-50
ALGORITHMS = {
    "random",
    "grid",
    "bayesianoptimization",
    "hyperband",
    "tpe",
    "multivariate-tpe",
    "cmaes",
    "sobol",
    "enas",
    "darts",
    "pbt",
}
# katib v0.19.0 pkg/apis/controller/common/v1beta1/common_types.go
COLLECTORS = {"StdOut", "File", "TensorFlowEvent", "PrometheusMetric", "Custom", "None", "Push"}
TYPES = {"int", "double", "discrete", "categorical"}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_1123 = re.compile(rf"{DNS_1123_LABEL}(\.{DNS_1123_LABEL})*")
# Kubernetes documentation, Labels and Selectors
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


class Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def admit(kind: str, thing: dict, old: dict | None) -> None:
    """Raise Refused as the API server would when this object is created, or replaces `old`."""
    _metadata(kind, thing["metadata"])
    if kind == "Experiment":
        _experiment(thing, old)
    elif kind == "PyTorchJob":
        _pytorchjob(thing)
    elif kind == "InferenceService":
        _schema(
            kind,
            thing,
            isinstance(thing.get("spec", {}).get("predictor"), dict),
            "spec.predictor: Required value",
        )


def pod_security(spec: dict) -> list[str]:
    """What the Pod Security level `restricted` refuses in a pod's spec; empty if it passes.

    For the level's version `latest`: pod-security-admission v0.34.4
    policy/check_allowPrivilegeEscalation.go:86, check_capabilities_restricted.go:138,
    check_runAsNonRoot.go:61, check_runAsUser.go:62, check_seccompProfile_restricted.go:148,
    check_restrictedVolumes.go:88, and the level `baseline` in the other files.
    """
    violations = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= RESTRICTED_VOLUMES:
            violations.append(f"volume {volume['name']} is a {kinds.pop()}")
    pod_context = spec.get("securityContext") or {}
    for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
        own = container.get("securityContext") or {}
        context = {**pod_context, **own}
        capabilities = own.get("capabilities") or {}
        rules = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop": "ALL" in (capabilities.get("drop") or []),
            "capabilities.add": set(capabilities.get("add") or []) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser") != 0,
            "seccompProfile": (context.get("seccompProfile") or {}).get("type")
            in ("RuntimeDefault", "Localhost"),
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any(port.get("hostPort") for port in container.get("ports") or []),
        }
        for rule, passes in rules.items():
            if not passes:
                violations.append(f"{rule} of container {container['name']}")
    return violations


def _metadata(kind: str, metadata: dict) -> None:
    """Names and labels: Kubernetes documentation, Object Names, and Labels and Selectors."""
    _schema(
        kind, {"metadata": metadata}, bool(metadata.get("name")), "name or generateName is required"
    )
    _schema(
        kind,
        {"metadata": metadata},
        bool(DNS_1123.fullmatch(metadata["name"])),
        "metadata.name: Invalid value: a lowercase RFC 1123 subdomain",
    )
    for key, value in (metadata.get("labels") or {}).items():
        good = isinstance(value, str) and len(value) <= 63 and LABEL_VALUE.fullmatch(value)
        _schema(
            kind,
            {"metadata": metadata},
            bool(good),
            f"metadata.labels: Invalid value: {value!r} of {key}",
        )


def _schema(kind: str, thing: dict, condition: bool, what: str) -> None:
    if not condition:
        raise Refused(422, f'{kind} "{thing["metadata"].get("name")}" is invalid: {what}')


def _katib(condition: object, what: str) -> None:
    if not condition:
        raise Refused(
            400,
            'admission webhook "validator.experiment.katib.kubeflow.org" denied the request:'
            f" {what}",
        )


def _experiment(thing: dict, old: dict | None) -> None:
    """What Katib refuses.

    katib v0.19.0 pkg/webhook/v1beta1/experiment/validator/validator.go:81-174, objective :176,
    algorithm :196, parameters :246, template :308, collector :487. The pattern of the name has no
    end (:84), but no name in Kubernetes has capitals. Defaults are set before
    (pkg/apis/controller/experiments/v1beta1/experiment_defaults.go:27).
    """
    spec, name = thing["spec"], thing["metadata"]["name"]
    _katib(
        len(name) <= 40 and DNS_1035.match(name),
        "name must consist of at most 40 lower case alphanumeric characters or '-'",
    )
    most = spec.get("maxTrialCount")
    _katib(most is None or most > 0, "spec.maxTrialCount must be greater than 0")
    _katib(
        most is None or spec.get("parallelTrialCount", 3) <= most,
        "spec.paralelTrialCount should be less than or equal to spec.maxTrialCount",
    )
    _katib(
        most is None or spec.get("maxFailedTrialCount", 0) <= most,
        "spec.maxFailedTrialCount should be less than or equal to spec.maxTrialCount",
    )
    if old is not None:
        _edit(thing, old)
    objective = spec.get("objective") or {}
    _katib(
        objective.get("type") in ("minimize", "maximize"),
        "spec.objective.type must be minimize or maximize",
    )
    _katib(objective.get("objectiveMetricName"), "no spec.objective.objectiveMetricName specified")
    algorithm = (spec.get("algorithm") or {}).get("algorithmName")
    _katib(
        algorithm in ALGORITHMS, f"unable to get Suggestion config data for algorithm {algorithm}"
    )
    collector = ((spec.get("metricsCollectorSpec") or {}).get("collector") or {}).get(
        "kind", "StdOut"
    )
    _katib(collector in COLLECTORS, f"invalid metrics collector kind: {collector}")
    _parameters(spec.get("parameters") or [])
    _template(
        spec.get("trialTemplate") or {}, {parameter["name"] for parameter in spec["parameters"]}
    )


def _edit(thing: dict, old: dict) -> None:
    """What may change of an Experiment, and when: katib v0.19.0 ... validator.go:118-145.

    One that has ended may change only if it resumes, and needs more trials than there are.
    """
    spec = thing["spec"]
    if spec == old["spec"]:
        return
    conditions = (old.get("status") or {}).get("conditions") or []
    ends = {
        condition["type"]: condition["reason"]
        for condition in conditions
        if condition["type"] in ("Succeeded", "Failed") and condition["status"] == "True"
    }
    resumes = old["spec"].get("resumePolicy", "Never") in ("LongRunning", "FromVolume")
    _katib(
        not ends or (resumes and ends.get("Succeeded") == "ExperimentMaxTrialsReached"),
        "Experiment can be restarted if it is in succeeded state by reaching max trials and"
        " spec.resumePolicy = LongRunning or spec.resumePolicy = FromVolume, when experiment is"
        " completed",
    )
    trials = (old.get("status") or {}).get("trials", 0)
    most = spec.get("maxTrialCount")
    _katib(most is None or most > trials, "must be greater than status.trials count")
    editable = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
    fixed = [
        {key: value for key, value in version.items() if key not in editable}
        for version in (spec, old["spec"])
    ]
    _katib(
        fixed[0] == fixed[1],
        "only spec.parallelTrialCount, spec.maxTrialCount and spec.maxFailedTrialCount are"
        " editable",
    )


def _parameters(parameters: list[dict]) -> None:
    """katib v0.19.0 ... validator.go:163 and :246-305."""
    _katib(parameters, "spec.parameters or spec.nasConfig must be specified")
    for index, parameter in enumerate(parameters):
        space = parameter.get("feasibleSpace") or {}
        values = [*space.get("list", []), *(value for key, value in space.items() if key != "list")]
        # Fields of Go strings: a number there fails to decode before the webhook has a look.
        _katib(
            all(isinstance(value, str) for value in values),
            f"cannot unmarshal number into field feasibleSpace of parameter {index}",
        )
        _katib(
            parameter.get("parameterType") in TYPES,
            f"parameterType: {parameter.get('parameterType')} is not supported",
        )
        _katib(space, f"feasibleSpace must be specified in spec.parameters[{index}]")
        has_list = parameter["parameterType"] in ("discrete", "categorical")
        if has_list:
            _katib(
                not {"max", "min", "step"} & set(space),
                "feasibleSpace .max, .min and .step is not supported for parameterType:"
                f" {parameter['parameterType']}",
            )
        else:
            _katib(
                not space.get("list"),
                "feasibleSpace.list is not supported for parameterType:"
                f" {parameter['parameterType']}",
            )
            _katib(
                space.get("max") and space.get("min"),
                "feasibleSpace.max or feasibleSpace.min must be specified for parameterType:"
                f" {parameter['parameterType']}",
            )


def _template(template: dict, names: set[str]) -> None:
    """katib v0.19.0 ... validator.go:308-438."""
    _katib(
        template.get("primaryContainerName"),
        "spec.trialTemplate.primaryContainerName must be specified",
    )
    trial = template.get("trialSpec")
    _katib(trial, "spec.trialTemplate.trialSpec or spec.trialTemplate.configMap must be specified")
    text = json.dumps(trial)
    for parameter in template.get("trialParameters") or []:
        reference = parameter.get("reference", "")
        _katib(
            reference in names or reference.startswith("${trialSpec."),
            f"parameter reference {reference} does not exist in spec.parameters",
        )
        placeholder = f"${{trialParameters.{parameter['name']}}}"
        _katib(
            placeholder in text,
            f"parameter name: {parameter['name']} in spec.trialParameters not found in"
            " spec.trialTemplate",
        )
        text = text.replace(placeholder, "test-value")
    _katib(
        "${trialParameters." not in text,
        "parameters in spec.trialTemplate not found in spec.trialParameters",
    )
    metadata = trial.get("metadata") or {}
    _katib(
        "name" not in metadata and "namespace" not in metadata,
        "metadata.name and metadata.namespace in spec.trialTemplate must be omitted",
    )
    _katib(
        trial.get("apiVersion") and trial.get("kind"),
        "APIVersion and Kind in spec.trialTemplate must be specified",
    )


def _pytorchjob(job: dict) -> None:
    """What the training operator refuses.

    trainer v1.9.3 pkg/webhooks/pytorch/pytorchjob_webhook.go:76-91 (name) and :115-161. A Master
    without a number of replicas is refused: the webhook comes before the operator's defaults.
    """

    def check(condition: object, what: str) -> None:
        if not condition:
            webhook = "validator.pytorchjob.training-operator.kubeflow.org"
            raise Refused(403, f'admission webhook "{webhook}" denied the request: {what}')

    check(
        DNS_1035.fullmatch(job["metadata"]["name"]),
        f'metadata.name: Invalid value: "{job["metadata"]["name"]}": a DNS-1035 label',
    )
    replicas = job["spec"].get("pytorchReplicaSpecs")
    check(replicas, "spec.pytorchReplicaSpecs: Required value")
    for role, spec in replicas.items():
        place = f"spec.pytorchReplicaSpecs[{role}]"
        check(
            role in ("Master", "Worker"),
            f'{place}: Unsupported value: "{role}": supported values: "Master", "Worker"',
        )
        check(
            role != "Master" or spec.get("replicas") == 1,
            f"{place}.replicas: Forbidden: must be 1",
        )
        check(
            spec.get("replicas", 1) >= 1,
            f"{place}.replicas: Forbidden: must be at least 1",
        )
        containers = spec.get("template", {}).get("spec", {}).get("containers") or []
        check(
            any(container.get("name") == "pytorch" for container in containers),
            f"{place}.template.spec.containers: must have a container named pytorch",
        )
        check(
            all(container.get("image") for container in containers),
            f"{place}.template.spec.containers[0].image: Required value",
        )
