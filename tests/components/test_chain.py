"""The compiled pipeline: IR that kfp and the server's own messages take, every choice a typed parameter with a default."""

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
    path = chain.compile_to(tmp_path_factory.mktemp("ir") / "pipeline.yaml", RunConfig(num_gpus=2, namespace="physics"))
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
    for dag in [document["root"]["dag"], *(c["dag"] for c in document["components"].values() if "dag" in c)]:
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


def test_the_job_id_is_passed_whole(compiled):
    """The backend resolves the placeholder only where it is the whole argument."""
    arguments = compiled[1]["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]
    assert arguments["job_id"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"


def test_deployment_stands_behind_the_gate(compiled):
    _, document, _ = compiled
    tasks = document["root"]["dag"]["tasks"]
    gate = next(task for name, task in tasks.items() if name.startswith("condition"))
    assert "== 'true'" in gate["triggerPolicy"]["condition"]
    inside = document["components"][gate["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inside) == ["deploy"]
    assert "deploy" not in tasks


def test_every_step_reads_the_s3_secret_and_none_is_cached(compiled):
    _, document, platform = compiled
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{step}" for step in ("prepare", "search", "export", "evaluate", "deploy")}
    for executor in executors.values():
        assert {pair["secretKey"] for pair in executor["secretAsEnv"][0]["keyToEnv"]} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert "enableCache" not in str(document)
