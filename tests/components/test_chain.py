"""The compiled pipeline: kfp and the server's own messages accept the IR.

Every choice is a typed parameter with a default.
"""

import re
import subprocess
import sys

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from common import form, tracking
from common.config import RunConfig
from common.project import ROOT
from components import chain, steps
from components.server_support import Support, support_of

TYPES = {str: "STRING", int: "NUMBER_INTEGER", dict: "STRUCT"}


STEPS = ("prepare", "search", "export", "evaluate", "deploy", "finish")


def dags(spec):
    """The tasks of every DAG below the root, by the name of its component."""
    return {
        name: part["dag"]["tasks"] for name, part in spec["components"].items() if "dag" in part
    }


def check_parameters(spec, config):
    """The parameters are those of the form, typed, described, with the configuration's values."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == set(form.TYPES)
    for name, value in chain.parameters(config).items():
        assert parameters[name]["parameterType"] == TYPES[type(value)], name
        assert parameters[name]["description"] == form.DESCRIPTIONS[name], name
        if (name, value) != ("storage_bucket", "auto"):
            assert parameters[name]["defaultValue"] == value, name


def test_kfp_loads_the_compiled_pipeline(compiled_pipeline):
    pipeline = components.load_component_from_file(str(compiled_pipeline.path))
    assert pipeline.name == chain.NAME


def test_the_ir_has_no_unknown_field_and_every_producer_exists(compiled_pipeline):
    """What the server checks on upload, and that every producer exists, which it does not."""
    document, platform = compiled_pipeline.spec, compiled_pipeline.platform
    spec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    assert spec.schema_version == "2.1.0"
    executors = document["deploymentSpec"]["executors"]
    for component in document["components"].values():
        assert component.get("executorLabel") in executors or "dag" in component
    for dag in [
        document["root"]["dag"],
        *(c["dag"] for c in document["components"].values() if "dag" in c),
    ]:
        for task in dag["tasks"].values():
            assert task["componentRef"]["name"] in document["components"]
            assert set(task.get("dependentTasks", [])) <= set(dag["tasks"])


def test_prepare_gets_the_image_of_the_steps_in_its_environment(compiled_pipeline):
    containers = {
        name: executor["container"]
        for name, executor in compiled_pipeline.spec["deploymentSpec"]["executors"].items()
    }
    prepare = containers["exec-prepare"]
    variables = {entry["name"]: entry["value"] for entry in prepare["env"]}
    assert variables[steps.IMAGE_VARIABLE] == prepare["image"]


def test_every_choice_is_a_typed_parameter_with_its_default(compiled_pipeline):
    check_parameters(compiled_pipeline.spec, RunConfig())


def test_the_search_space_is_json_that_the_form_can_edit(compiled_pipeline):
    parameter = compiled_pipeline.spec["root"]["inputDefinitions"]["parameters"]["search_space"]
    assert parameter["parameterType"] == "STRUCT"
    names = {entry["name"] for entry in parameter["defaultValue"]["parameters"]}
    assert {"num-conv-layers", "start-lr"} <= names


@pytest.mark.parametrize("bucket", ["auto", "s3://bucket/jec"])
def test_the_form_asks_for_a_bucket_where_there_is_no_default(tmp_path, bucket):
    """The UI starts no run with a parameter that has neither a value nor a default."""
    path = chain.compile_to(tmp_path / "pipeline.yaml", RunConfig(s3_bucket=bucket))
    spec = next(yaml.safe_load_all(path.read_text()))
    parameter = spec["root"]["inputDefinitions"]["parameters"]["storage_bucket"]
    if bucket == "auto":
        assert not {"defaultValue", "isOptional"} & set(parameter)
    else:
        assert parameter["defaultValue"] == bucket


def test_the_description_is_markdown_that_names_only_parameters_of_the_form(compiled_pipeline):
    text = compiled_pipeline.spec["pipelineInfo"]["description"]
    in_code = re.findall(r"`([^`]+)`", text)
    names = {name for name in in_code if re.fullmatch(r"[a-z]+(_[a-z]+)+", name)}
    assert names
    assert names <= {entry.name for entry in form.ENTRIES}
    prefixes = {name for name in in_code if re.fullmatch(r"[a-z]+_", name)}
    assert prefixes >= {f"{entry.name.split('_')[0]}_" for entry in form.IN_SETTINGS}
    # a name outside of code loses its underscores
    assert "_" not in re.sub(r"`[^`]+`", "", text)


def test_the_job_id_is_passed_whole(compiled_pipeline):
    """The backend resolves the placeholder only where it is the whole argument."""
    tasks = {
        name: task
        for dag in [
            compiled_pipeline.spec["root"]["dag"]["tasks"],
            *dags(compiled_pipeline.spec).values(),
        ]
        for name, task in dag.items()
    }
    for name in STEPS:
        assert (
            tasks[name]["inputs"]["parameters"]["job_id"]["runtimeValue"]["constant"]
            == "{{$.pipeline_job_uuid}}"
        ), name


def test_all_steps_are_in_one_dag_and_deploy_gets_the_verdict_of_the_gate(compiled_pipeline):
    """The KFP UI shows one DAG at a time, and one whose last task is a DAG as running for ever."""
    (group,) = dags(compiled_pipeline.spec).values()
    assert set(group) == {"prepare", "search", "export", "evaluate", "deploy"}
    assert not any("triggerPolicy" in task for task in group.values())
    verdict = group["deploy"]["inputs"]["parameters"]["passed"]["taskOutputParameter"]
    assert verdict == {"producerTask": "evaluate", "outputParameterKey": "passed"}


def display_names(spec):
    """Task's key -> its display name."""
    tasks = {**spec["root"]["dag"]["tasks"], **dags(spec)["comp-exit-handler-1"]}
    return {key: task["taskInfo"]["name"] for key, task in tasks.items()}


def test_display_names_go_only_to_servers_that_do_not_look_up_outputs_by_them(
    compiled_pipeline, tmp_path
):
    """Before 2.14 the driver looks for a producer's key among the display names."""
    for version, titled in [(None, False), ((2, 5), False), ((2, 14), True), ((2, 17), True)]:
        path = tmp_path / f"{titled}.yaml"
        chain.compile_to(path, RunConfig(), support=support_of(version))
        names = display_names(next(yaml.safe_load_all(path.read_text())))
        group = names.pop("exit-handler-1")
        assert group == chain.GROUP
        assert names == {step.name: step.title if titled else step.name for step in steps.STEPS}
    numbers = [int(step.title.split()[0]) for step in steps.STEPS]
    assert numbers == list(range(1, len(steps.STEPS) + 1))


def test_no_artifact_has_the_name_of_another():
    names = [
        name for step in steps.STEPS for name, kind in step.outputs.items() if kind != "parameter"
    ]
    assert len(names) == len(set(names))


def test_finish_runs_after_success_and_failure(compiled_pipeline):
    finish = compiled_pipeline.spec["root"]["dag"]["tasks"]["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert finish["dependentTasks"] == ["exit-handler-1"]
    # Servers before 2.14 refuse a pipeline whose exit task asks how the others ended.
    assert "taskFinalStatus" not in str(compiled_pipeline.spec)


def test_every_step_has_a_deadline_a_label_and_the_secret_and_no_cache(
    compiled_pipeline,
):
    document, platform = compiled_pipeline.spec, compiled_pipeline.platform
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{step}" for step in STEPS}
    for name, executor in executors.items():
        assert {pair["secretKey"] for pair in executor["secretAsEnv"][0]["keyToEnv"]} == {
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        }
        assert executor["podMetadata"]["labels"]["jec/step"] == name.removeprefix("exec-")
        annotations = executor["podMetadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert int(executor["activeDeadlineSeconds"]) > 0
        limits = document["deploymentSpec"]["executors"][name]["container"]["resources"]
        assert limits["resourceMemoryLimit"] == "4Gi"
        assert limits["resourceCpuRequest"] == "500m"
    assert "enableCache" not in str(document)


def test_a_steps_resources_are_those_of_the_configuration(tmp_path):
    config = RunConfig(steps_cpus="100m", steps_memory="8Gi")
    path = chain.compile_to(tmp_path / "pipeline.yaml", config)
    document = next(yaml.safe_load_all(path.read_text()))
    for executor in document["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert resources["resourceCpuRequest"] == "100m"
        assert resources["resourceCpuLimit"] == "2"
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == "8Gi"


def test_every_step_is_retried(compiled_pipeline):
    for tasks in [
        compiled_pipeline.spec["root"]["dag"]["tasks"],
        *dags(compiled_pipeline.spec).values(),
    ]:
        for name, task in tasks.items():
            if name in STEPS:
                assert task["retryPolicy"]["maxRetryCount"] == steps.RETRIES


def test_the_secrets_name_reaches_every_nested_step(compiled_pipeline):
    """A step takes the Secret's name from the inputs of the DAG that it is in; a server cannot
    resolve one that is not there.
    """
    document, platform = compiled_pipeline.spec, compiled_pipeline.platform
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    inputs = {
        name: part.get("inputDefinitions", {}).get("parameters", {})
        for name, part in document["components"].items()
    }
    for where, tasks in {"root": document["root"]["dag"]["tasks"], **dags(document)}.items():
        expected_values = (
            document["root"]["inputDefinitions"]["parameters"] if where == "root" else inputs[where]
        )
        for name in set(tasks) & set(STEPS):
            assert (
                executors[f"exec-{name}"]["secretAsEnv"][0]["secretNameParameter"][
                    "componentInputParameter"
                ]
                in expected_values
            ), name


def test_non_root_is_asked_only_of_servers_that_know_it(compiled_pipeline, tmp_path):
    assert "securityContext" not in str(compiled_pipeline.platform)
    config = RunConfig(num_gpus=2, namespace="physics", s3_bucket="s3://bucket/jec")
    path = chain.compile_to(tmp_path / "new.yaml", config, support=Support(non_root=True))
    spec, platform = yaml.safe_load_all(path.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all(executor["securityContext"]["runAsNonRoot"] for executor in executors.values())
    check_parameters(spec, config)


def test_another_process_compiles_the_same_pipeline_to_the_same_text(compiled_pipeline, tmp_path):
    """A version's name has the digest of the text: with another text each submission would add one.

    Seen on KFP 2.15.0: each command uploaded a version, because of the order of a dict's defaults.
    """
    path = tmp_path / "again.yaml"
    program = (
        "from common.config import RunConfig; from components import chain;"
        f" chain.compile_to({str(path)!r}, RunConfig())"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
    assert path.read_text() == compiled_pipeline.path.read_text()


def test_a_retry_is_not_cut_short_by_the_clock_of_the_first_attempt(compiled_pipeline):
    """Argo counts the longest duration from the first attempt's start (seen with Argo 3.7.3)."""
    checked = 0
    for dag in [compiled_pipeline.spec["root"], *compiled_pipeline.spec["components"].values()]:
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            if name not in steps.NAMES:
                continue
            policy = task["retryPolicy"]
            attempts = policy["maxRetryCount"] + 1
            longest = float(policy["backoffMaxDuration"].removesuffix("s"))
            assert longest >= attempts * steps.step_of(name).deadline
            checked += 1
    assert checked == len(steps.NAMES)


def test_the_webhook_of_a_secret_is_in_the_environment_of_finish_alone(tmp_path, monkeypatch):
    canary = "https://hooks.example.org/canary-7f3a"
    monkeypatch.setenv("JEC_WEBHOOK", canary)
    config = RunConfig(webhook_secret="jec-webhook/url")
    text = chain.compile_to(tmp_path / "pipeline.yaml", config).read_text()
    assert "canary-7f3a" not in text
    platform = list(yaml.safe_load_all(text))[1]["platforms"]["kubernetes"]
    executors = platform["deploymentSpec"]["executors"]
    expected_values = {
        name: secret["keyToEnv"]
        for name, executor in executors.items()
        for secret in executor["secretAsEnv"]
        if secret.get("secretName") == "jec-webhook"
    }
    assert expected_values == {"exec-finish": [{"secretKey": "url", "envVar": "JEC_WEBHOOK"}]}


def test_steps_that_log_get_the_logins_of_their_secrets(tmp_path, monkeypatch):
    for name in (*tracking.CREDENTIALS, "JEC_MODEL_REGISTRY_TOKEN"):
        monkeypatch.setenv(name, "canary-7f3a")
    config = RunConfig(mlflow_secret="mlflow-login", model_registry_secret="registry/token")
    text = chain.compile_to(tmp_path / "pipeline.yaml", config).read_text()
    assert "canary-7f3a" not in text
    platform = list(yaml.safe_load_all(text))[1]["platforms"]["kubernetes"]
    variables: dict[str, dict[str, list[str]]] = {"mlflow-login": {}, "registry": {}}
    for name, executor in platform["deploymentSpec"]["executors"].items():
        for secret in executor["secretAsEnv"]:
            if secret.get("secretName") in variables:
                names = [key["envVar"] for key in secret["keyToEnv"]]
                variables[secret["secretName"]][name] = names
    keys = list(tracking.SECRET_KEYS)
    assert variables["mlflow-login"] == {
        "exec-prepare": keys,
        "exec-search": keys,
        "exec-finish": keys,
    }
    token = ["JEC_MODEL_REGISTRY_TOKEN"]
    assert variables["registry"] == {"exec-prepare": token, "exec-evaluate": token}


def test_every_step_gets_the_login_for_xrootd_where_the_run_names_one(tmp_path):
    path = chain.compile_to(tmp_path / "p.yaml", RunConfig(xrootd_secret="grid-login"))
    spec, platform = yaml.safe_load_all(path.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = spec["deploymentSpec"]["executors"]
    assert len(executors) == len(containers) == 6
    for name, executor in executors.items():
        (volume,) = executor["secretAsVolume"]
        assert (volume["secretName"], volume["optional"]) == ("grid-login", True)
        env = {entry["name"]: entry["value"] for entry in containers[name]["container"]["env"]}
        assert env["JEC_XROOTD_LOGIN"] == volume["mountPath"]


def test_without_a_login_no_secret_is_mounted(compiled_pipeline):
    executors = compiled_pipeline.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert not any("secretAsVolume" in executor for executor in executors.values())
