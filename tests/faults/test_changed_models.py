"""An exported model whose bytes have changed since: nothing serves, measures or uses it."""

import json

import pytest

from common import storage
from common.config import RunConfig
from common.errors import InputError
from common.exported_model import check_model
from common.run import Run
from components import deploy, predictor, step
from evaluating.inference import load_session
from serving import serve, server_folder
from serving.calibration.model import local_model
from tests.records import export_record

pytestmark = pytest.mark.faults

CONTENT = bytes(range(256)) * 8
RUN_ID = "pfn-0a1b2c3d"
NAME = "pfn"
DAMAGES = {
    "truncated": CONTENT[:-1],
    "empty": b"",
    "one bit": CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:],
    "longer": CONTENT + b"\0",
}


@pytest.fixture
def run(tmp_path):
    """A run with an exported model and a raw one."""
    new_run = Run(config=RunConfig(run_id=RUN_ID, s3_bucket=str(tmp_path), service_name=NAME))
    new_run.save()
    raw = export_record(f"{NAME}-raw", sha256=storage.digest(CONTENT))
    digest = storage.digest(CONTENT)
    export_record(NAME, sha256=digest, raw=raw).save(new_run.folder.export)
    for name in (NAME, f"{NAME}-raw"):
        storage.write_bytes(new_run.folder.onnx(name), CONTENT)
        storage.write_text(storage.join(new_run.folder.model(name), "config.pbtxt"), "")
        storage.write_json(storage.join(new_run.folder.golden(name), "request.json"), {})
    return new_run


def by_serving(run):
    """python -m serving.serve, and the deploy step on one machine."""
    folder = server_folder.create()
    try:
        folder.add_models({model.name: model.folder for model in serve.models_at(run.uri)})
    finally:
        folder.leave()
        server_folder.remove_abandoned()


def by_deploying(run):
    deploy.deploy(run, step.Artifacts(""))


def by_evaluating(run):
    load_session(run.uri, f"{NAME}-raw")


def by_calibrating(run):
    local_model(run.uri)


@pytest.fixture
def no_cluster(monkeypatch):
    """A deploy step that would fail as soon as it asks its cluster for anything."""
    monkeypatch.setattr(step, "backend", lambda run: None)
    monkeypatch.setattr(predictor, "check_keys", lambda run: None)


@pytest.mark.parametrize("use", [by_serving, by_deploying, by_evaluating, by_calibrating])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_changed_model_is_refused(run, no_cluster, use, damage):
    place = run.folder.onnx(f"{NAME}-raw")
    storage.write_bytes(place, damage)
    with pytest.raises(InputError) as refusal:
        use(run)
    message = str(refusal.value)
    for fact in (
        place,
        storage.digest(damage)[:12],
        storage.digest(CONTENT)[:12],
        f"--resume {RUN_ID} --start-at export",
    ):
        assert fact in message
    assert "\n" not in message


def test_whole_models_are_served(run):
    by_serving(run)


@pytest.mark.parametrize(
    "record", [None, {}, {"model": NAME}, [], {"model": "other", "sha256": "0"}]
)
def test_a_repository_without_a_record_of_the_model_says_nothing(run, record):
    storage.delete(run.folder.export)
    if record is not None:
        storage.write_text(run.folder.export, json.dumps(record))
    storage.write_bytes(run.folder.onnx(NAME), b"another")
    by_serving(run)
    check_model("/anywhere/model.onnx", b"")


def test_a_model_on_s3_is_compared_too(run, s3_bucket):
    uri = f"{s3_bucket}/{RUN_ID}"
    storage.upload(run.uri, uri)
    storage.write_bytes(f"{uri}/model/{NAME}/1/model.onnx", DAMAGES["one bit"])
    folder = server_folder.create()
    with pytest.raises(InputError, match=f"{uri}/model/{NAME}/1/model.onnx"):
        folder.add_models({NAME: f"{uri}/model/{NAME}"})
    folder.leave()
    server_folder.remove_abandoned()
