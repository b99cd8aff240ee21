"""The compiled pipeline: kfp and the server's own messages accept the IR.

Every choice is a typed parameter with a default.
"""

import dataclasses

import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from common.config import RunConfig
from components import chain, steps
from components.server_support import Support

TYPES = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN"}


STEPS = ("prepare", "search", "export", "evaluate", "deploy", "finish")


def dags(spec):
    """The tasks of every DAG below the root, by the name of its component."""
    return {
        name: part["dag"]["tasks"] for name, part in spec["components"].items() if "dag" in part
    }


def check_parameters(spec, config):
    """Every field of the configuration is a typed parameter whose default is the field's value."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {field.name for field in dataclasses.fields(RunConfig)}
    for name, value in config.parameters().items():
        assert parameters[name]["parameterType"] == TYPES[type(value)]
        # An empty value has no defaultValue in the IR.
        assert parameters[name].get("defaultValue", type(value)()) == value, name


def test_kfp_loads_it(compiled_pipeline):
    pipeline = components.load_component_from_file(str(compiled_pipeline.path))
    assert pipeline.name == chain.NAME


def test_it_is_a_pipeline_spec_without_unknown_fields_whose_references_hold(compiled_pipeline):
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


def test_every_choice_is_a_typed_parameter_with_its_default(compiled_pipeline):
    check_parameters(compiled_pipeline.spec, RunConfig())


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


def test_deployment_stands_behind_the_gate(compiled_pipeline):
    inside = dags(compiled_pipeline.spec)["comp-exit-handler-1"]
    gate = next(task for name, task in inside.items() if name.startswith("condition"))
    assert "== 'true'" in gate["triggerPolicy"]["condition"]
    assert list(dags(compiled_pipeline.spec)[gate["componentRef"]["name"]]) == ["deploy"]
    assert "deploy" not in inside


def test_the_run_is_finished_however_it_ends(compiled_pipeline):
    finish = compiled_pipeline.spec["root"]["dag"]["tasks"]["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert finish["dependentTasks"] == ["exit-handler-1"]
    # Servers before 2.14 refuse a pipeline whose exit task asks how the others ended.
    assert "taskFinalStatus" not in str(compiled_pipeline.spec)


def test_every_step_is_a_pod_with_an_end_a_label_and_the_secret_and_none_is_cached(
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


def test_what_a_step_asks_for_is_that_of_the_configuration(tmp_path):
    config = RunConfig(steps_cpus="100m", steps_memory="8Gi")
    path = chain.compile_to(tmp_path / "pipeline.yaml", config)
    document = next(yaml.safe_load_all(path.read_text()))
    for executor in document["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert resources["resourceCpuRequest"] == "100m"
        assert resources["resourceCpuLimit"] == "2"
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == "8Gi"


def test_every_step_gets_another_try(compiled_pipeline):
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
        given = (
            document["root"]["inputDefinitions"]["parameters"] if where == "root" else inputs[where]
        )
        for name in set(tasks) & set(STEPS):
            assert (
                executors[f"exec-{name}"]["secretAsEnv"][0]["secretNameParameter"][
                    "componentInputParameter"
                ]
                in given
            ), name


def test_non_root_is_asked_only_of_servers_that_know_it(compiled_pipeline, tmp_path):
    assert "securityContext" not in str(compiled_pipeline.platform)
    config = RunConfig(num_gpus=2, namespace="physics")
    path = chain.compile_to(tmp_path / "new.yaml", config, support=Support(non_root=True))
    spec, platform = yaml.safe_load_all(path.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all(executor["securityContext"]["runAsNonRoot"] for executor in executors.values())
    check_parameters(spec, config)


def test_the_same_pipeline_compiles_to_the_same_text(compiled_pipeline, tmp_path):
    """Its digest names the version; another text would be another version on every submission."""
    again = chain.compile_to(tmp_path / "again.yaml", RunConfig())
    assert again.read_text() == compiled_pipeline.path.read_text()


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
    given = {
        name: secret["keyToEnv"]
        for name, executor in executors.items()
        for secret in executor["secretAsEnv"]
        if secret.get("secretName") == "jec-webhook"
    }
    assert given == {"exec-finish": [{"secretKey": "url", "envVar": "JEC_WEBHOOK"}]}


def test_every_step_gets_the_login_for_xrootd_where_the_run_names_one(tmp_path):
    path = chain.compile_to(tmp_path / "p.yaml", RunConfig(xrootd_secret="grid-login"))
    spec, platform = yaml.safe_load_all(path.read_text())
    asked = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = spec["deploymentSpec"]["executors"]
    assert len(asked) == len(containers) == 6
    for name, one in asked.items():
        (volume,) = one["secretAsVolume"]
        assert (volume["secretName"], volume["optional"]) == ("grid-login", True)
        env = {entry["name"]: entry["value"] for entry in containers[name]["container"]["env"]}
        assert env["JEC_XROOTD_LOGIN"] == volume["mountPath"]


def test_without_a_login_no_secret_is_mounted(compiled_pipeline):
    executors = compiled_pipeline.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert not any("secretAsVolume" in one for one in executors.values())
