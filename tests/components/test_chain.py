"""The compiled pipeline:

IR that kfp and the server's own messages take, every choice a typed parameter with a default.
"""

import dataclasses

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from common.config import RunConfig
from components import chain

TYPES = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    path = chain.compile_to(
        tmp_path_factory.mktemp("ir") / "pipeline.yaml", RunConfig(num_gpus=2, namespace="physics")
    )
    spec, platform = yaml.safe_load_all(path.read_text())
    return path, spec, platform


def test_kfp_loads_it(compiled):
    pipeline = components.load_component_from_file(str(compiled[0]))
    assert pipeline.name == chain.NAME


def test_it_is_a_pipeline_spec_without_unknown_fields_whose_references_hold(compiled):
    """What the server checks on upload, and that every producer exists, which it does not."""
    _, document, platform = compiled
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


def test_every_choice_is_a_typed_parameter_with_its_default(compiled):
    parameters = compiled[1]["root"]["inputDefinitions"]["parameters"]
    config = RunConfig(num_gpus=2, namespace="physics")
    assert set(parameters) == {field.name for field in dataclasses.fields(RunConfig)}
    for name, value in config.parameters().items():
        assert parameters[name]["parameterType"] == TYPES[type(value)]
        assert parameters[name].get("defaultValue", type(value)()) == value, name


STEPS = ("prepare", "search", "export", "evaluate", "deploy", "finish")


def dags(document):
    return {
        name: part["dag"]["tasks"] for name, part in document["components"].items() if "dag" in part
    }


def test_the_job_id_is_passed_whole(compiled):
    """The backend resolves the placeholder only where it is the whole argument."""
    tasks = {
        name: task
        for dag in [compiled[1]["root"]["dag"]["tasks"], *dags(compiled[1]).values()]
        for name, task in dag.items()
    }
    for name in STEPS:
        assert (
            tasks[name]["inputs"]["parameters"]["job_id"]["runtimeValue"]["constant"]
            == "{{$.pipeline_job_uuid}}"
        ), name


def test_deployment_stands_behind_the_gate(compiled):
    inside = dags(compiled[1])["comp-exit-handler-1"]
    gate = next(task for name, task in inside.items() if name.startswith("condition"))
    assert "== 'true'" in gate["triggerPolicy"]["condition"]
    assert list(dags(compiled[1])[gate["componentRef"]["name"]]) == ["deploy"]
    assert "deploy" not in inside


def test_the_run_is_finished_however_it_ends(compiled):
    finish = compiled[1]["root"]["dag"]["tasks"]["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert finish["dependentTasks"] == ["exit-handler-1"]
    # Servers before 2.14 refuse a pipeline whose exit task asks how the others ended.
    assert "taskFinalStatus" not in str(compiled[1])


def test_every_step_is_a_pod_with_an_end_a_label_and_the_secret_and_none_is_cached(compiled):
    _, document, platform = compiled
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{step}" for step in STEPS}
    for name, executor in executors.items():
        assert {pair["secretKey"] for pair in executor["secretAsEnv"][0]["keyToEnv"]} == {
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        }
        assert executor["podMetadata"]["labels"]["jec/step"] == name.removeprefix("exec-")
        assert int(executor["activeDeadlineSeconds"]) > 0
        limits = document["deploymentSpec"]["executors"][name]["container"]["resources"]
        assert limits["resourceMemoryLimit"] == "4Gi"
        assert limits["resourceCpuRequest"] == "500m"
    assert "enableCache" not in str(document)


def test_every_step_gets_another_try(compiled):
    for tasks in [compiled[1]["root"]["dag"]["tasks"], *dags(compiled[1]).values()]:
        for name, task in tasks.items():
            if name in STEPS:
                assert task["retryPolicy"]["maxRetryCount"] == chain.RETRIES


def test_the_secrets_name_reaches_every_nested_step(compiled):
    """A step takes the Secret's name from the inputs of the DAG that it is in; a server cannot
    resolve one that is not there.
    """
    _, document, platform = compiled
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


def test_non_root_is_asked_only_of_servers_that_know_it(compiled, tmp_path):
    assert "securityContext" not in str(compiled[2])
    asked = chain.compile_to(tmp_path / "new.yaml", RunConfig(), non_root=True)
    executors = list(yaml.safe_load_all(asked.read_text()))[1]["platforms"]["kubernetes"][
        "deploymentSpec"
    ]["executors"]
    assert all(executor["securityContext"]["runAsNonRoot"] for executor in executors.values())


def test_the_same_pipeline_compiles_to_the_same_text(compiled, tmp_path):
    """Its digest names the version; another text would be another version on every submission."""
    again = chain.compile_to(tmp_path / "again.yaml", RunConfig(num_gpus=2, namespace="physics"))
    assert again.read_text() == compiled[0].read_text()
